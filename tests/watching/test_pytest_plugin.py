"""The plugin, in a pytest of its own: it fails tests with the findings, writes reports, imports nothing early."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from manual_backprop import Report
from manual_backprop.watching.pytest_plugin import file_name, written

pytest_plugins = ["pytester"]

TESTS = """
import pytest
import torch
from torch.autograd import Function


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Wrong(Square):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g.abs()


X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("only", ["MB101", "linearity"])
def test_right(validate_backward, only):
    assert validate_backward(Square, (X,), only=only).passed


def test_twice(validate_backward):
    validate_backward(Square, (X,), only="MB101")
    validate_backward(Square, (X,), only="MB301")


def test_wrong(validate_backward):
    validate_backward(Wrong, (X,), only="linearity")


def test_bad_input(validate_backward):
    with pytest.raises(ValueError, match="requires grad"):
        validate_backward(Square, (X.detach(),))
"""
PLUGIN = ("-p", "_manual_backprop_pytestplugin", "-p", "no:randomly")


@pytest.fixture
def result(pytester):
    pytester.makepyfile(test_user=TESTS)
    return pytester.runpytest_inprocess(*PLUGIN, "--backward-report", "out", "-p", "no:xdist", "-W", "error")


def test_verdicts(result):
    result.assert_outcomes(passed=4, failed=1)


def test_failure_prints_the_findings_and_no_traceback(result):
    text = result.stdout.str()
    failure = text[text.index("test_wrong") : text.index("short test summary")]
    assert "FAIL MB301 linearity" in failure
    assert "cause" in failure
    assert "validate_backward(Wrong" not in failure  # a line of the test's source, which a traceback would show
    assert "Traceback" not in failure


def test_reports_are_collected(result, pytester):
    folder = pytester.path / "out"
    names = sorted(path.stem for path in folder.glob("*.json"))
    assert len(names) == 5, names
    assert names == sorted(path.stem for path in folder.glob("*.xml"))
    reports = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    failed = [name for name in names if not reports[name]["passed"]]
    assert failed == ["test_user.py.test_wrong"]
    assert int(ElementTree.parse(folder / f"{failed[0]}.xml").getroot().get("failures")) > 0
    result.stdout.fnmatch_lines(["*5 backward reports in out*"])


def test_no_folder_no_files(pytester):
    pytester.makepyfile(test_user=TESTS)
    before = {path.name for path in pytester.path.iterdir()}
    pytester.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", "-k", "test_right").assert_outcomes(
        passed=2, deselected=3
    )
    assert {path.name for path in pytester.path.iterdir()} - before <= {"__pycache__"}


def test_plugin_imports_neither_torch_nor_the_package():
    code = "import sys, _manual_backprop_pytestplugin; print(sorted({m.split('.')[0] for m in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'_manual_backprop_pytestplugin'" in found
    assert "'torch'" not in found
    assert "'manual_backprop'" not in found


def test_pytest_without_the_fixture_imports_no_torch(pytester):
    pytester.makepyfile("import sys\ndef test_modules():\n    assert 'torch' not in sys.modules\n")
    pytester.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)


LONG = "x" * 300
IDS = {
    "long": (f"test_a.py::test_b[{LONG}1]", f"test_a.py::test_c[{LONG}1]"),
    "long, of one test": (f"test_a.py::test_b[1{LONG}]", f"test_a.py::test_b[2{LONG}]"),
    "letters of many bytes": (f"test_a.py::test_b[{'δ' * 200}1]", f"test_a.py::test_b[{'δ' * 199}11]"),
    "replaced": ("test_a.py::test_b[a b]", "test_a.py::test_b[a-b]"),
    "folders": ("a/b.py::test_c", "a-b.py::test_c"),
    "half a surrogate pair": ("test_a.py::test_b[\ud800]", "test_a.py::test_b[\ud801]"),
}


@pytest.mark.parametrize(("one", "other"), IDS.values(), ids=IDS)
def test_two_tests_never_share_a_file(one, other, tmp_path):
    paths = [written(Report("f", ()), tmp_path, test, 2) for test in (one, other)]
    assert len(set(paths)) == 2
    assert len(list(tmp_path.iterdir())) == 4


def test_the_name_of_a_file_is_that_of_the_test():
    assert file_name("test_user.py::test_wrong") == "test_user.py.test_wrong"
    assert re.fullmatch(
        r"tests-test_user\.py\.test_right-1\.[0-9a-f]{8}", file_name("tests/test_user.py::test_right[1]")
    )
