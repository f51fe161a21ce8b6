"""Gradient descent on a curve, x′ = x − ε f′(x).

Source: chapter 1, "Learning with gradient descent", equations (10), (11) and (15), with one variable. The curves and
starts are those of the notes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curve:
    """A function f of one number, its derivative f′ and the place of its minimum."""

    name: str
    function: Callable[[float], float]
    derivative: Callable[[float], float]
    minimum: float


PARABOLA = Curve("(x − 2)²", lambda x: (x - 2) ** 2, lambda x: 2 * (x - 2), minimum=2.0)
QUARTIC = Curve("x⁴ − 3x³", lambda x: x**4 - 3 * x**3, lambda x: 4 * x**3 - 9 * x**2, minimum=9 / 4)

FAR = 1e6
"""Farther from the start than this, a descent has left for good."""


@dataclass(frozen=True)
class Descent:
    """The path x_0, x_1, … down a curve, and how it ended.

    Args:
        outcome: "arrived" where a step came under the tolerance near the minimum; "stuck" where it did elsewhere;
            "out of steps" where there were no more; "lost" where the path left for infinity.
    """

    curve: Curve
    rate: float
    path: list[float]
    outcome: Literal["arrived", "stuck", "out of steps", "lost"]

    @property
    def steps(self) -> int:
        return len(self.path) - 1

    @property
    def distances(self) -> list[float]:
        """|x − x_min| after each step."""
        return [abs(x - self.curve.minimum) for x in self.path]


def step(curve: Curve, x: float, rate: float) -> float:
    """x′ = x − ε f′(x).

    >>> step(PARABOLA, 4.0, rate=0.01)
    3.96
    """
    return x - rate * curve.derivative(x)


def descend(curve: Curve, start: float, rate: float, tolerance: float = 0.0, most: int = 10_000) -> Descent:
    """Step until a step is no longer than the tolerance, or most steps are made, or x is beyond `FAR`.

    Args:
        start: x_0.
        rate: ε, the learning rate.
        tolerance: of the step |x′ − x|; with 0, all steps are made, unless one leaves x where it is.
        most: steps at most.

    Example:
        >>> descend(QUARTIC, start=6.0, rate=0.01, tolerance=1e-5).path[-1]
        2.2499646074278457
    """
    path = [start]
    for _ in range(most):
        path.append(step(curve, path[-1], rate))
        if not abs(path[-1] - start) <= FAR:
            return Descent(curve, rate, path, "lost")
        if abs(path[-1] - path[-2]) <= tolerance:
            near = math.isclose(path[-1], curve.minimum, abs_tol=0.01)
            return Descent(curve, rate, path, "arrived" if near else "stuck")
    return Descent(curve, rate, path, "out of steps")
