"""The README's Python blocks run and print what their comments say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", README.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("block", "output"), BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_the_examples_print_what_they_say(block, output):
    """In the block of text that follows, or in a comment behind each print."""
    comments = [line.split("  # ")[1] for line in block.splitlines() if line.startswith("print(") and "  # " in line]
    promised = output.splitlines() or comments
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, str(README), "exec"), {})
    assert promised
    assert printed.getvalue().splitlines() == promised


def test_the_backward_pass_shown_is_the_one_that_runs():
    shown = re.search(r"^```python notest\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    source = (README.parent / "manual_backprop" / "functions.py").read_text()
    assert shown
    lines = shown.group(1).splitlines()
    assert len(lines) == 4
    assert all(f"{line}\n" in source for line in lines)
