"""The README's Python blocks run and print what their comments say."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from manual_backprop.training import cli

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


SHELL = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
TRAINING = [
    line
    for block in SHELL
    for line in block.replace("\\\n", "").splitlines()
    if "train_mnist.py" in line and "runs/NAME" not in line
]


@pytest.mark.parametrize("line", TRAINING)
def test_the_training_commands_are_understood(line, monkeypatch):
    arguments = shlex.split(line.partition("train_mnist.py")[2], comments=True)
    config, _ = cli.parse(arguments)
    assert all(getattr(config, option[2:].replace("-", "_")) for option in arguments if option.startswith("--"))


def test_the_lines_for_ci_pass_and_fail_as_the_backward_does(tmp_path):
    (example,) = [block for block, _ in BLOCKS if "def test_double" in block]
    (commands,) = [block for block in SHELL if "--backward-report" in block]
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for source, status in ((example, 0), (example.replace("return 2 * grad_output", "return 3 * grad_output"), 1)):
        (tmp_path / "test_double.py").write_text(source)
        for line in commands.splitlines():
            command = shlex.split(line, comments=True)
            done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True)
            assert done.returncode == status, done.stdout + done.stderr
    assert {file.suffix for file in (tmp_path / "reports").iterdir()} == {".json", ".xml"}
