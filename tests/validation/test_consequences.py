"""A symptom names its root, a root keeps its own cause, and nothing that failed stops being a failure."""

import pytest
import torch

from manual_backprop.validation import RULES, Finding, Report, validate
from manual_backprop.validation.consequences import with_roots
from manual_backprop.validation.rule import REGISTRY

CASES = {
    "the second derivative of no derivative": (("MB101", "MB801"), "MB801", "MB101"),
    "a derivative of what is not linear": (("MB101", "MB301"), "MB101", "MB301"),
    "no linearity is a root": (("MB101", "MB301"), "MB301", ""),
    "checkpointing after a write": (("MB502", "MB510"), "MB510", "MB502"),
    "whatever is not repeatable": (("MB901", "MB401"), "MB401", "MB901"),
    "a leak is its own": (("MB101", "MB507"), "MB507", ""),
    "a failure alone": (("MB104",), "MB104", ""),
}


@pytest.mark.parametrize(("failed", "code", "root"), CASES.values(), ids=CASES)
def test_root(failed, code, root):
    found = [Finding("fail", "…", code=c) for c in failed] + [Finding("pass", "ok", code="MB102")]
    findings = with_roots(found, REGISTRY)
    assert next(f.follows for f in findings if f.code == code) == root
    assert [f.status for f in findings] == ["fail"] * len(failed) + ["pass"]


def test_a_root_in_one_sample_explains_nothing_in_another():
    found = [Finding("fail", "…", code="MB301", sample=0), Finding("fail", "…", code="MB101", sample=1)]
    assert [finding.follows for finding in with_roots(found, REGISTRY)] == ["", ""]


def test_what_a_rule_explains_are_codes_of_others():
    codes = {rule.code for rule in RULES}
    for rule in RULES:
        assert not rule.code.startswith(rule.explains)
        assert all(any(code.startswith(prefix) for code in codes) for prefix in rule.explains)


class AbsoluteSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output.abs()


def test_the_report_shows_roots_first_and_passes_once():
    x = torch.linspace(-1, 2, 7, dtype=torch.float64).requires_grad_()
    report = validate(AbsoluteSquare, (x,), only=("MB1", "MB3"))
    assert isinstance(report, Report)
    text = str(report)
    assert text.index("FAIL MB301") < text.index("FAIL MB101")
    assert "cause  most likely that of MB301" in text
    assert text.count("passed: ") == 1
    assert all(finding.cause and finding.fix and finding.repro for finding in report.failures)
