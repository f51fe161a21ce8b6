"""The rules as a table, and nothing that is right fails; what each rule catches is for its snippet and the zoo."""

import pytest

from manual_backprop import functional, validate
from manual_backprop.validation import RULES
from manual_backprop.validation.needs import NEEDS
from tests.validation.cases import RIGHT, Case, layer, matrix

SLOW = ("MB806", "MB807")


@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.name)
def test_right_passes(case: Case) -> None:
    report = validate(case.function, case.inputs(), **({"skip": SLOW} | case.options))
    assert report.passed, str(report)
    assert report.count("pass") > 20
    assert not report.errors


@pytest.mark.parametrize("name", ["linear", "linear_sigmoid", "linear_tanh", "linear_relu"])
def test_the_projects_layers_pass(name: str) -> None:
    report = validate(getattr(functional, name), layer(), batch_dim=0, skip=SLOW)
    assert report.passed, str(report)


def test_compile_and_export_run_the_custom_backward_or_say_so() -> None:
    report = validate(functional.linear_sigmoid, layer(), only=SLOW)
    compiled, exported = report.findings
    assert compiled.status == "pass", str(report)
    assert exported.status == "pass" or "ignores custom backward passes" in exported.message


def test_codes_are_in_order_and_once() -> None:
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes))
    assert all(rule.asks.endswith("?") for rule in RULES)


def test_names_are_once_and_those_of_functions() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(rule.name.replace("-", "_") == rule.function.__name__ for rule in RULES)


def test_needs_are_known() -> None:
    assert {need for rule in RULES for need in rule.needs} <= NEEDS.keys()


def test_frozen_input_is_not_asked() -> None:
    x, w, b = layer()
    report = validate(functional.linear_sigmoid, (x, w.detach(), b), only=("MB2", "MB101"))
    assert report.passed, str(report)


def test_a_reference_is_compared_with() -> None:
    right = validate(matrix_sine, matrix(), reference=lambda x: x.sin(), only="MB1")
    assert {"MB102", "MB103"} <= {f.code for f in right.findings if f.status == "pass"}
    wrong = validate(matrix_sine, matrix(), reference=lambda x: x.sin() * 1.01, only=("MB102", "MB103"))
    assert {f.code for f in wrong.failures} == {"MB102", "MB103"}


def matrix_sine(x):
    return x.sin()
