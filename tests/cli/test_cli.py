"""The command line: what it prints, what it writes, its exit status, and one line where it cannot run."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from manual_backprop.cli import main as cli
from manual_backprop.validation import RULES
from manual_backprop.zoo.matrix import CHECKERS

MODULE = """
import torch
from torch import nn
from torch.autograd import Function


class Right(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y, g * x


class Wrong(Right):
    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y, g.abs() * x


class Module(nn.Module):
    def forward(self, x, y):
        return Right.apply(x, y)


def inputs():
    return tuple(torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))


def frozen():
    return torch.randn(4, 3), torch.randn(4, 3)


def reference(x, y):
    return x * y


def raises():
    raise RuntimeError("no such file:\\nweights.pt")


module, both, number = Module(), inputs(), 3
"""
ARGUMENTS = ["--inputs", "users:inputs", "--only", "linearity,MB101"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of a user's, who has a module ``users`` in it."""
    (tmp_path / "users.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "users", raising=False)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path])
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run(capsys, *words):
    """Exit status, stdout and stderr of a command."""
    try:
        status = cli.main(words)
    except SystemExit as end:  # argparse ends the process
        status = end.code
    return status, *capsys.readouterr()


@pytest.mark.parametrize("subject", ["Right", "Right.apply", "module"])
def test_right_one_passes(here, capsys, subject):
    status, out, err = run(capsys, "validate", f"users:{subject}", *ARGUMENTS)
    assert status == 0, err
    assert "passed" in out
    assert "FAIL" not in out


def test_wrong_one_fails_with_a_table_then_the_failures(here, capsys):
    status, out, _ = run(capsys, "validate", "users:Wrong", *ARGUMENTS, "--seed", "3")
    assert status == 1
    assert out.index("linearity") < out.index("FAIL MB301")
    assert "cause" in out
    assert "seed=3" in out
    assert max(map(len, out.splitlines())) <= 80


def test_reference_batch_dim_and_skip_are_handed_on(here, capsys):
    options = ["--reference", "users:reference", "--batch-dim", "0", "--only", "MB1,MB701", "--skip", "MB104"]
    status, _, _ = run(capsys, "validate", "users:Right", "--inputs", "users:both", *options, "--json", "report.json")
    statuses = {
        finding["code"]: finding["status"] for finding in json.loads((here / "report.json").read_text())["findings"]
    }
    assert status == 0
    assert statuses["MB102"] == statuses["MB701"] == "pass"
    assert "MB104" not in statuses


def test_a_run_that_is_refused_leaves_no_file(here, capsys):
    (here / "old.json").write_text("as it was")
    for name in ("new.json", "old.json"):
        options = ("--inputs", "users:inputs", "--only", "MB999", "--json", name)
        assert run(capsys, "validate", "users:Right", *options)[0] == 2
    assert not (here / "new.json").exists()
    assert (here / "old.json").read_text() == "as it was"


def test_reports_are_written(here, capsys):
    files = [
        "--json",
        "out/report.json",
        "--junit",
        "out/report.xml",
        "--html",
        "out/report.html",
        "--tensorboard",
        "runs",
    ]
    status, _, _ = run(capsys, "validate", "users:Wrong", *ARGUMENTS, *files)
    report = json.loads((here / "out/report.json").read_text())
    suite = ElementTree.parse(here / "out/report.xml").getroot()
    assert status == 1
    assert report["passed"] is False
    assert int(suite.get("failures")) == sum(finding["status"] == "fail" for finding in report["findings"]) > 0
    assert "Wrong failed" in (here / "out/report.html").read_text(encoding="utf-8")
    assert list((here / "runs").glob("events*"))


CANNOT_RUN = {
    "no-module": (["validate", "nope:f", "--inputs", "users:inputs"], "No module named 'nope'"),
    "no-attribute": (["validate", "users:f", "--inputs", "users:inputs"], "no attribute 'f'"),
    "no-colon": (["validate", "users", "--inputs", "users:inputs"], "PKG.MOD:NAME"),
    "module-raises": (["validate", "broken:f", "--inputs", "users:inputs"], "ZeroDivisionError"),
    "maker-raises": (["validate", "users:Right", "--inputs", "users:raises"], "RuntimeError: no such file: weights.pt"),
    "maker-is-a-number": (["validate", "users:Right", "--inputs", "users:number"], "expected a function"),
    "nothing-requires-grad": (["validate", "users:Right", "--inputs", "users:frozen"], "requires grad"),
    "a-class-of-modules": (["validate", "users:Module", "--inputs", "users:inputs"], "module that is made"),
    "unknown-code": (["validate", "users:Right", "--inputs", "users:inputs", "--only", "MB999"], "'MB999'"),
    "bad-reference": (["validate", "users:Right", *ARGUMENTS, "--reference", "users:nope"], "no attribute 'nope'"),
    "unwritable": (["validate", "users:Right", *ARGUMENTS, "--json", "/proc/nope/f.json"], "/proc/nope/f.json"),
    "no-inputs": (["validate", "users:Right"], "--inputs"),
    "no-command": ([], "required"),
    "unknown-command": (["frobnicate"], "frobnicate"),
    "tests-for-validate": (["validate", "users:Right", *ARGUMENTS, "--", "pytest"], "no command"),
    "explain-unknown": (["explain", "MB999"], "MB999"),
    "zoo-without-animals": (["zoo", "--match", "unicorn"], "unicorn"),
    "mutate-without-tests": (["mutate", "users:Right"], "after --"),
    "mutate-a-plain-function": (["mutate", "users:reference", "--inputs", "users:inputs"], "no autograd.Function"),
    "mutate-a-callable": (["mutate", "users:reference", "--", "true"], "not an autograd.Function"),
    "mutate-unknown": (["mutate", "users:Right", "--inputs", "users:inputs", "--only", "nope"], "'nope'"),
    "mutate-no-such-command": (["mutate", "users:Right", "--", "no-such-program"], "no-such-program"),
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT_RUN)
def test_what_cannot_run_says_why_in_one_line(here, capsys, case):
    words, expected = CANNOT_RUN[case]
    status, out, err = run(capsys, *words)
    assert status == 2
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1, err


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_explain(capsys, rule):
    status, out, _ = run(capsys, "explain", rule.code.lower())
    assert status == 0
    assert out.startswith(f"{rule.code} {rule.name}")
    assert "A real one" in out
    assert ("\nWrong\n" in out and "\nRight\n" in out) != ("Why there is no snippet" in out)


def test_explain_marks_the_lines_that_differ(capsys):
    _, out, _ = run(capsys, "explain", "MB301")
    assert [line.strip("| ") for line in out.splitlines() if line.startswith("|")] == [
        "return 2 * x * grad_output.abs()",
        "return 2 * x * grad_output",
    ]


def test_explain_lists_all_codes(capsys):
    status, out, _ = run(capsys, "explain")
    assert status == 0
    assert all(rule.code in out for rule in RULES)


def test_zoo_prints_the_matrix_and_the_totals(here, capsys):
    status, out, err = run(capsys, "zoo", "--match", "number", "--skip", "MB806,MB807", "--json", "zoo.json")
    matrix = json.loads((here / "zoo.json").read_text())
    assert status in (0, 1), err
    assert all(checker in row for row in matrix for checker in CHECKERS)
    assert all(checker in out for checker in CHECKERS)
    wrong = [row for row in matrix if row["codes"]]
    assert f"{sum(row['validate']['refused'] for row in wrong)} of {len(wrong)}" in out


@pytest.mark.parametrize("command", ["", "validate", "explain", "zoo", "mutate"])
def test_help(capsys, command):
    status, out, _ = run(capsys, *filter(None, [command]), "--help")
    assert status == 0
    assert "usage" in out
