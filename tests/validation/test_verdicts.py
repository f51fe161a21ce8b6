"""What a verdict means: a pass compared something, a failure is the user's, and an error is the validator's own."""

import functools
import sys

import pytest
import torch
from torch.autograd import Function

from manual_backprop import functional, validate
from manual_backprop.validation import Finding, Report, ValidationError
from manual_backprop.validation.rule import REGISTRY
from tests.validation.cases import layer, made, matrix, sigmoid

FAST = ("MB1", "MB2", "MB3")
SIGMOID = sigmoid("Sigmoid", lambda g, a: g * a * (1 - a))


class Raises(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        raise KeyError("lost")


class Broken:
    """Stands for a part of the validator with a mistake, behind a frame of the standard library."""

    @functools.cached_property
    def part(self):
        return len(3)


# --- the validator's own errors -----------------------------------------------------------------------------------


@pytest.fixture
def broken_rule(monkeypatch):
    """MB301 with a mistake of ours in it, which stands in a file of the validator."""
    namespace = {"__name__": "manual_backprop.validation.rules.mb3_linear", "Broken": Broken}
    file = REGISTRY["MB301"].function.__code__.co_filename
    exec(compile("def function(case):\n    yield Broken().part", file, "exec"), namespace)
    part = Broken.__dict__["part"]
    monkeypatch.setattr(part, "func", _in(file, "lambda self: len(3)"))
    monkeypatch.setitem(vars(REGISTRY["MB301"]), "function", namespace["function"])


def _in(file, source):
    return eval(compile(source, file, "eval"))


@pytest.mark.usefixtures("broken_rule")
def test_an_error_of_the_validator_is_neither_a_failure_nor_a_pass():
    report = validate(SIGMOID, matrix(), only=FAST)
    (error,) = report.errors
    assert report.verdict == "error"
    assert not report
    assert not report.failures
    assert error.code == "MB301"
    assert "the validator itself failed while it asked MB301 (sign-of-grad-output): TypeError" in error.message
    assert "please report it" in error.fix
    assert str(report).startswith("Sigmoid: ERROR (of the validator)")
    with pytest.raises(ValidationError, match="the validator itself failed"):
        report.raise_for_failures()


def test_a_mechanism_that_finds_nothing_on_this_torch_is_an_error(monkeypatch):
    module = sys.modules["manual_backprop.validation.validate"]
    monkeypatch.setattr(module, "broken_mechanisms", lambda: ("on torch 9 the Functions are not found",))
    report = validate(SIGMOID, matrix(), only="MB301")
    assert report.verdict == "error"
    assert report.errors[0].message == "the validator cannot do its work: on torch 9 the Functions are not found"


def test_a_backward_that_raises_in_another_thread_only_is_a_failure():
    import threading

    local = threading.local()

    def forward(ctx, x):
        local.stack = [2.0]
        return x * 2

    def backward(ctx, grad_output):
        return grad_output * getattr(local, "stack", [])[0]

    report = validate(made("PerThread", forward, backward), matrix(), only="MB902")
    assert [finding.code for finding in report.failures] == ["MB902"]
    assert "IndexError" in report.failures[0].message


@pytest.mark.parametrize("key", ["{k}", "{0}", "{{", "a}b", "%s"])
def test_names_of_the_user_are_not_formatted(key):
    class Product(Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad_output):
            a, b = ctx.saved_tensors
            wrong = 1 if all(ctx.needs_input_grad) else 2
            return grad_output * b * wrong, grad_output * a

    a, b = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    inputs = ({key: a.requires_grad_(), "b": b.requires_grad_()},)
    report = validate(lambda both: Product.apply(both[key], both["b"]), inputs, only="MB208")
    assert report.verdict == "failed"
    assert f"[{key!r}]" in report.failures[0].message


# --- passes that asked nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["MB201", "MB203", "MB204", "MB205", "MB506"])
def test_a_backward_that_always_raises_passes_nothing(code):
    report = validate(Raises, matrix())
    found = [finding for finding in report.findings if finding.code == code]
    assert [finding.status for finding in found] == ["skip"]
    assert report.verdict == "failed"
    assert not [finding for finding in report.findings if finding.status == "pass" and finding.code != "MB212"]


def test_one_exception_is_one_failure_and_raised_once():
    report = validate(Raises, matrix(), skip=("MB806", "MB807"))
    assert report.passes.backward <= 3  # the plain pass and the audit; not one more for each rule
    assert len(report.failures) == 1
    assert "KeyError" in report.failures[0].message


def test_a_reference_that_is_asked_for_and_not_given_leaves_the_values_unchecked():
    report = validate(SIGMOID, matrix(), only="MB102")
    assert report.verdict == "unchecked"
    assert not report
    assert [finding.input for finding in report.unchecked] == ["x"]
    assert "reference=" in report.unchecked[0].fix


@pytest.mark.parametrize(
    ("only", "skip"), [("MB1", "MB1"), ("MB101", "calculus"), (["MB3", "MB4"], ["MB3", "MB4"])], ids=str
)
def test_a_choice_that_leaves_nothing_is_refused(only, skip):
    with pytest.raises(ValueError, match="leaves no rule to ask"):
        validate(SIGMOID, matrix(), only=only, skip=skip)


def test_a_rule_that_applies_to_nothing_is_no_pass():
    report = validate(SIGMOID, matrix(), only="MB405")
    assert [finding.status for finding in report.findings] == ["skip"]
    assert report.verdict == "unchecked"


def bfloat16_only(ctx, x):
    if x.dtype != torch.bfloat16:
        raise TypeError("bfloat16 only")
    ctx.save_for_backward(x)
    return x * x


def test_what_no_oracle_can_measure_is_unchecked():
    function = made("Square16", bfloat16_only, lambda ctx, g: 2 * ctx.saved_tensors[0] * g)
    x = torch.linspace(-2, 2, 32).to(torch.bfloat16).view(4, 8).requires_grad_()
    report = validate(function, (x,), skip=("MB806", "MB807"))
    assert not report.failures
    assert report.verdict == "unchecked"
    with pytest.raises(ValidationError, match="compared with nothing"):
        report.raise_for_failures()


WAIVED = {
    "by a prefix": "MB1",
    "by the code": "MB101",
    "by the family": "calculus",
    "by the name": "derivative",
    "by a short prefix": "MB10",
}


@pytest.mark.parametrize("skip", WAIVED.values(), ids=WAIVED)
def test_the_derivative_may_be_waived_by_any_name_of_it(skip):
    straight = made("StraightThrough", lambda ctx, x: x.sign(), lambda ctx, g: g)
    assert validate(straight, matrix(), skip=[skip, "MB806", "MB807"]).verdict == "passed"
    assert validate(straight, matrix(), skip=("MB806", "MB807")).verdict == "failed"


def test_codes_may_come_from_an_iterator():
    straight = made("StraightThrough", lambda ctx, x: x.sign(), lambda ctx, g: g)
    assert validate(straight, matrix(), skip=iter(["MB1", "MB806", "MB807"])).verdict == "passed"
    assert validate(SIGMOID, matrix(), only=iter(["MB301"])).verdict == "passed"


def test_where_something_failed_nothing_is_left_open():
    assert validate(Raises, matrix(), only=FAST).unchecked == ()


def test_a_comparison_of_no_elements_is_none():
    empty = (torch.zeros(0, 3, dtype=torch.float64, requires_grad=True),)
    report = validate(SIGMOID, empty, only="MB301")
    assert [finding.status for finding in report.findings] == ["skip"]


def test_rules_that_are_about_something_else_leave_no_value_open():
    assert validate(SIGMOID, matrix(), only="MB301").verdict == "passed"


def test_a_right_layer_passes_with_its_passes_counted():
    report = validate(functional.linear_sigmoid, layer(), only=FAST)
    assert report.verdict == "passed"
    assert report.unchecked == ()
    assert report.passes.forward > report.passes.backward > 10
    assert f"{report.passes.forward} forward and {report.passes.backward} backward passes" in str(report)


VERDICTS = {
    "nothing at all": ((), (), "unchecked"),
    "skips alone": (("skip",), (), "unchecked"),
    "a pass": (("pass", "skip"), (), "passed"),
    "a warning beside a pass": (("pass", "warn"), (), "passed"),
    "a failure": (("pass", "fail"), (), "failed"),
    "an error beside a failure": (("error", "fail"), (), "error"),
    "values left open": (("pass",), ("inconclusive",), "unchecked"),
}


@pytest.mark.parametrize(("statuses", "left_open", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_verdict(statuses, left_open, verdict):
    findings, unchecked = (tuple(Finding(status, "…") for status in found) for found in (statuses, left_open))
    report = Report("f", findings, unchecked=unchecked)
    assert report.verdict == verdict
    assert bool(report) is report.passed is (verdict == "passed")
