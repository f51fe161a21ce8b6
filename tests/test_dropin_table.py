"""The table of drop-in rows is made of test results, and is refused where a row has none."""

import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tests.dropin.rows import ROWS

SCRIPT = Path(__file__).parents[1] / "scripts" / "dropin_table.py"
REFUSAL = "SparseAdam does not | support"


def xml_of(row, backward, torch="", outcome="", **more):
    properties = {"row": row, "backward": backward, "torch": torch, **more}
    inside = "".join(f"<property name={quoteattr(k)} value={quoteattr(v)}/>" for k, v in properties.items())
    name = quoteattr(f"test[{backward}-{row}]")
    return f'<testcase classname="tests.dropin" name={name}><properties>{inside}</properties>{outcome}</testcase>'


def results(*, without=(), more=()):
    """Two tests a row, each with both backwards; one test that belongs to no row."""
    cases = [xml_of(row, b) for row in ROWS for b in ("right", "canary") * 2 if (row, b) not in without]
    return [*cases, *more, '<testcase classname="tests.dropin" name="test_of_no_row"/>']


def table(folder, cases):
    junit = folder / "junit.xml"
    junit.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return subprocess.run([sys.executable, SCRIPT, "--junit", junit], capture_output=True, text=True, check=False)


def test_a_line_for_each_row(tmp_path):
    found = table(tmp_path, results())
    head, rule, *lines = found.stdout.splitlines()
    assert head == "| row | what the user does | ours: passed | torch.nn | canaries caught |"
    assert rule == "|---|---|---|---|---|"
    assert lines == [f"| {row} | {what} | 2 of 2 | the same | 2 of 2 |" for row, what in ROWS.items()]
    assert (found.stderr, found.returncode) == ("", 0)


def test_what_torch_refuses_is_quoted(tmp_path):
    more = [xml_of("optimizers", b, REFUSAL) for b in ("right", "canary")]
    found = table(tmp_path, results(more=more * 2))
    (line,) = (line for line in found.stdout.splitlines() if line.startswith("| optimizers |"))
    assert line == f"| optimizers | {ROWS['optimizers']} | 4 of 4 | “SparseAdam does not \\| support” | 4 of 4 |"
    assert found.returncode == 0


def test_a_canary_that_torch_ignores_is_not_called_caught(tmp_path):
    more = [xml_of("torch.compile", b, ignored="True") for b in ("right", "canary")]
    found = table(tmp_path, results(more=more))
    (line,) = (line for line in found.stdout.splitlines() if line.startswith("| torch.compile |"))
    assert line.endswith("| 3 of 3 | the same | 2 of 2; 1 of 1 ignored by torch |")


@pytest.mark.parametrize("backward", ["right", "canary"])
def test_a_row_without_a_test(tmp_path, backward):
    found = table(tmp_path, results(without=[("pipeline", backward)]))
    assert found.stderr == f"no test with the {backward} backward: pipeline\n"
    assert found.returncode == 1


@pytest.mark.parametrize("outcome", ["failure", "error"])
def test_a_failed_test(tmp_path, outcome):
    failed = xml_of("AMP", "canary", outcome=f'<{outcome} message="the backward is wrong on purpose"/>')
    found = table(tmp_path, results(more=[failed]))
    assert f"| AMP | {ROWS['AMP']} | 2 of 2 | the same | 2 of 3 |" in found.stdout
    assert found.stderr == "failed: tests.dropin::test[canary-AMP]\n"
    assert found.returncode == 1


def test_a_skipped_test_counts_as_none(tmp_path):
    skipped = xml_of("AMP", "right", outcome='<skipped message="no GPU"/>')
    assert table(tmp_path, results(more=[skipped])).stdout == table(tmp_path, results()).stdout


@pytest.mark.parametrize(
    "arguments", [["--junit", "missing.xml"], ["--junit", __file__, "-x"]], ids=["missing", "both"]
)
def test_bad_arguments(arguments):
    found = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "--junit: expected a file and nothing else, found " in found.stderr
