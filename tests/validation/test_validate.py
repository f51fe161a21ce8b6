"""What `validate` does around the rules: bad input, repeatability, and nothing of the caller's changed."""

import random

import numpy as np
import pytest
import torch

from manual_backprop import functional, validate
from manual_backprop.validation import ValidationError
from tests.validation.cases import layer, made, matrix, sigmoid

SIGMOID = sigmoid("Sigmoid", lambda g, a: g * a * (1 - a))
HALF = sigmoid("Half", lambda g, a: g * a * (1 - a) / 2)
FAST = ("MB1", "MB2", "MB3")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (lambda: {"inputs": (torch.ones(3),)}, ValueError, "inputs: no tensor requires grad"),
        (lambda: {"func": lambda x: x.detach()}, ValueError, "func: no output has a grad_fn"),
        (lambda: {"func": torch.nn.functional.dropout}, ValueError, "func: it is random"),
        (lambda: {"func": 3}, TypeError, "func: expected a Function"),
        (lambda: {"inputs": 3}, TypeError, "inputs: expected a tuple"),
        (lambda: {"only": "MB999"}, ValueError, "only: no rule answers to 'MB999'"),
        (lambda: {"skip": ("linearity", "nonsense")}, ValueError, "skip: no rule answers to 'nonsense'"),
        (lambda: {"reference": lambda x: (x, x)}, ValueError, "reference: it has 2 outputs where func has 1"),
        (lambda: {"reference": lambda x: x.sum()}, ValueError, r"reference: output 0 has shape \(\)"),
        (
            lambda: {"inputs": (torch.ones(3, requires_grad=True), torch.ones(3, device="meta"))},
            ValueError,
            "inputs: they are on several devices",
        ),
    ],
    ids=lambda value: value.replace(" ", "-")[:40] if isinstance(value, str) else "",
)
def test_bad_input_is_told_in_one_line(arguments, error, words) -> None:
    with pytest.raises(error, match=words) as raised:
        validate(**({"func": SIGMOID, "inputs": matrix()} | arguments()))
    assert "\n" not in str(raised.value)


def test_two_calls_give_the_same_report() -> None:
    first, second = (validate(HALF, matrix(), only=FAST, seed=3) for _ in range(2))
    untimed = [
        [(f.code, f.status, f.message, f.index, f.expected, f.actual) for f in r.findings] for r in (first, second)
    ]
    assert untimed[0] == untimed[1]
    other = validate(HALF, matrix(), only="MB101", seed=4)
    assert other.failures[0].expected != first.failures[0].expected


def test_the_repro_line_gives_the_same_finding() -> None:
    inputs = matrix()
    finding = next(f for f in validate(HALF, inputs, only=FAST, seed=3).failures if f.code == "MB101")
    assert finding.repro == 'validate(Half, inputs, only="MB101", seed=3)'
    again = eval(finding.repro, {"validate": validate, "Half": HALF, "inputs": inputs}).failures[0]
    assert (again.message, again.index, again.actual) == (finding.message, finding.index, finding.actual)


def test_nothing_of_the_callers_is_changed() -> None:
    x, w, b = layer()
    copies = [t.detach().clone() for t in (x, w, b)]
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def meddles(x, w, b):
        torch.set_default_dtype(torch.float16)
        return functional.linear_sigmoid(x, w, b)

    validate(meddles, (x, w, b), only=FAST)
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip((x, w, b), copies, strict=True))


def test_a_modules_state_is_its_own() -> None:
    norm = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert validate(norm, matrix(), only=FAST)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_an_exception_is_a_finding_with_its_line() -> None:
    def backward(ctx, grad):
        raise KeyError("lost")

    report = validate(made("Raises", lambda ctx, x: x * 2, backward), matrix(), only=FAST)
    assert len(report.failures) >= 1
    assert "test_validate.py" in report.failures[0].message
    assert "KeyError" in report.failures[0].message


def test_parameter_names_are_those_of_forward() -> None:
    report = validate(HALF, matrix(), only="MB101")
    assert report.failures[0].input == "x"
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, dtype=torch.float64))
    finding = validate(model, matrix(), reference=None, only="MB101").findings[0]
    assert finding.status == "pass"


def test_several_samples() -> None:
    report = validate(HALF, [matrix(), (matrix()[0][:1].detach().requires_grad_(),)], only="MB101")
    assert [f.message.split(":")[0] for f in report.failures] == ["sample 0", "sample 1"]


def test_raise_for_failures_replaces_gradcheck_line_for_line() -> None:
    assert validate(SIGMOID, matrix(), only=FAST)
    with pytest.raises(ValidationError, match="MB101"):
        validate(HALF, matrix(), only=FAST).raise_for_failures()


def test_progress_is_told() -> None:
    told = []
    validate(
        SIGMOID, matrix(), only="MB3", progress=lambda rule, number, count: told.append((rule.code, number, count))
    )
    assert told == [(f"MB30{k + 1}", k, 6) for k in range(6)]
