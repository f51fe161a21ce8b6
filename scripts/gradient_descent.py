"""Gradient descent on two curves, with good and bad learning rates: python scripts/gradient_descent.py --help"""

import math
import sys
from dataclasses import dataclass

from manual_backprop.chapter import pictures
from manual_backprop.chapter.gradient_descent import PARABOLA, QUARTIC, descend
from manual_backprop.chapter.run import Run, RunOptions, main


@dataclass(frozen=True)
class Options(RunOptions):
    """Gradient descent, x' = x - ε f'(x), on (x - 2)² and x⁴ - 3x³."""

    rate: float = 0.01
    """ε, the size of a step as a multiple of the slope."""
    tolerance: float = 1e-5
    """On x⁴ - 3x³, and for the comparison of ε: stop when a step is no longer than this."""
    steps: int = 10_000
    """Stop after so many steps at the latest."""


RULES = [
    ("rate", "a finite positive number", lambda o: math.isfinite(o.rate) and o.rate > 0),
    ("tolerance", "a finite positive number", lambda o: math.isfinite(o.tolerance) and o.tolerance > 0),
    ("steps", "from 1 to 1000000", lambda o: 1 <= o.steps <= 1_000_000),
]
OTHER_RATES = (0.0001, 0.1, 0.9, 1.0, 1.1)  # the last two do not get there: over it and back, and away


def show(options: Options, run: Run) -> bool:
    valley = [descend(PARABOLA, start, options.rate, most=min(options.steps, 100)) for start in (4.0, 0.0)]
    rows = ([f"from {d.path[0]:g}", *(f"{x:.7g}" for x in d.path[1:4])] for d in valley)
    run.table(f"(x − 2)², ε = {options.rate:g}: the first steps", ["", "step 1", "step 2", "step 3"], rows)

    quartic = descend(QUARTIC, 6.0, options.rate, options.tolerance, options.steps)
    run.say(f"{QUARTIC.name} from 6, ε = {options.rate:g}: x = {quartic.path[-1]!r} after {quartic.steps} steps")
    run.say(f"{quartic.outcome}; the minimum is at 9/4 = 2.25", "")

    rates = sorted({options.rate, *OTHER_RATES})
    compared = [descend(PARABOLA, 4.0, rate, options.tolerance, min(options.steps, 1000)) for rate in rates]
    rows = ([f"{d.rate:g}", d.outcome, str(d.steps), f"{d.path[-1]:.7g}"] for d in compared)
    run.table("(x − 2)² from 4: too small, good and too large ε", ["ε", "outcome", "steps", "x"], rows)

    run.picture("gradient_descent", pictures.gradient_descent(valley, quartic, compared))
    run.scalars("x/quartic_from_6", quartic.path)
    for descent in valley:
        run.scalars(f"x/parabola_from_{descent.path[0]:g}", descent.path)
    for descent in compared:
        run.scalars(f"distance/rate_{descent.rate:g}", descent.distances)
    return True


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
