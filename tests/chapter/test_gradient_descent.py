"""The numbers of the notes, to the last digit."""

import pytest

from manual_backprop.chapter.explain import STEP
from manual_backprop.chapter.gradient_descent import FAR, PARABOLA, QUARTIC, descend, step

FIRST_STEPS = {4.0: [3.96, 3.9208, 3.882384], 0.0: [0.04, 0.0792, 0.117616]}


@pytest.mark.parametrize(("start", "expected"), FIRST_STEPS.items(), ids=["from 4", "from 0"])
def test_the_first_steps_on_the_parabola(start, expected):
    assert descend(PARABOLA, start, rate=0.01, most=3).path == pytest.approx([start, *expected], rel=1e-15)


def test_the_minimum_of_the_quartic():
    descent = descend(QUARTIC, 6.0, rate=0.01, tolerance=1e-5)
    assert descent.path[-1] == 2.2499646074278457
    assert descent.outcome == "arrived"
    assert descent.steps == 70
    steps = [abs(after - before) for before, after in zip(descent.path, descent.path[1:], strict=False)]
    assert steps[-1] <= 1e-5 < min(steps[:-1])


@pytest.mark.parametrize("curve", [PARABOLA, QUARTIC], ids=["parabola", "quartic"])
@pytest.mark.parametrize("x", [-1.0, 0.3, 2.0, 5.0])
def test_the_derivative_is_the_slope(curve, x):
    slope = (curve.function(x + STEP) - curve.function(x - STEP)) / (2 * STEP)
    assert curve.derivative(x) == pytest.approx(slope, abs=1e-7)
    assert curve.derivative(curve.minimum) == 0
    assert curve.function(curve.minimum) < curve.function(x) or x == curve.minimum


OUTCOMES = {
    "too small": (0.0001, "out of steps", 1000),
    "good": (0.1, "arrived", 49),
    "over and back": (0.9, "arrived", 59),
    "for ever": (1.0, "out of steps", 1000),
    "too large": (1.1, "lost", 72),
}


@pytest.mark.parametrize(("rate", "outcome", "steps"), OUTCOMES.values(), ids=OUTCOMES)
def test_the_choice_of_the_learning_rate(rate, outcome, steps):
    descent = descend(PARABOLA, 4.0, rate, tolerance=1e-5, most=1000)
    assert (descent.outcome, descent.steps) == (outcome, steps)
    # Each step multiplies the distance by |1 − 2ε|.
    assert descent.distances[10] == pytest.approx(2 * abs(1 - 2 * rate) ** 10)


def test_a_descent_into_a_saddle_is_stuck():
    assert descend(QUARTIC, 0.0, rate=0.01, tolerance=1e-5).outcome == "stuck"


@pytest.mark.parametrize("rate", [1e300, float("nan")])
def test_numbers_that_overflow_are_lost(rate):
    descent = descend(QUARTIC, 6.0, rate)
    assert descent.outcome == "lost"
    assert not abs(step(QUARTIC, 6.0, rate)) <= FAR
