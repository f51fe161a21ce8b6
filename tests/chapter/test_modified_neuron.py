"""Which equations change where a neuron is not a sigmoid, and what `validate` says of the layers that follow them."""

import dataclasses

import pytest

from manual_backprop.chapter.modified_neuron import EXERCISES, equations, validated

CHANGED = [{"BP2"}, {"BP1"}, {"BP1", "BP2"}]
NAMES = ["modified hidden neuron", "modified output neuron", "linear neurons"]
COMPILED = ("MB806", "MB807")


@pytest.mark.parametrize(("exercise", "changed"), [*zip(EXERCISES, CHANGED, strict=True)], ids=NAMES)
@pytest.mark.parametrize("samples", [1, 5])
def test_the_equations_that_change_and_those_that_do_not(exercise, changed, samples):
    found = equations(exercise, samples)
    assert {e.code for e in found if e.changes} == changed == set(exercise.equations)
    assert [e.code for e in found] == ["BP1", "BP2", "BP3", "BP4"]
    for equation in found:
        assert equation.exercise < 1e-15
        assert equation.unchanged > 1e-3 if equation.code in changed else equation.unchanged < 1e-15


@pytest.mark.parametrize("exercise", EXERCISES, ids=NAMES)
def test_every_finding_passes(exercise):
    report = validated(exercise, skip=COMPILED)
    others = [finding for finding in report.findings if finding.status not in ("pass", "skip")]
    assert not others, str(report)
    assert sum(finding.status == "pass" for finding in report.findings) > 40


def test_a_derivative_that_is_not_f_prime_is_found():
    right = EXERCISES[0].hidden
    wrong = dataclasses.replace(right, derivative=lambda z: 1.01 * right.derivative(z))
    all_but_calculus = [f"MB{family}" for family in range(2, 10)]
    assert not validated(dataclasses.replace(EXERCISES[0], hidden=wrong), skip=all_but_calculus).passed
