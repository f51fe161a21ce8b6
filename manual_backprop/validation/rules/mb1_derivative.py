"""MB101 and MB104: is it the derivative, by finite differences and by the order of the Taylor remainder?"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.differences import inner, moved, norm
from manual_backprop.validation.exceptions import Inconclusive
from manual_backprop.validation.oracle import Oracle
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SQUARE
from manual_backprop.validation.tolerances import epsilon


@rule(
    "MB101",
    "Is it the derivative?",
    "25 forwards a direction",
    needs="plain truth",
    explains="MB104 MB105 MB6 MB7 MB80",
    skeleton=SQUARE,
)
def derivative(case: Case) -> Iterator[Finding]:
    """The gradient is the derivative: ⟨∇, v⟩ = dφ/dt along random directions v, and element by element where one fails.

    The gradient that backward returns is not the derivative of what forward computes, measured by central differences
    in float64. Training goes on with a wrong gradient, only worse; a missing factor looks like a badly chosen learning
    rate.

    Seen in: Dao-AILab/quack PR#53: a normalisation with a residual multiplied (dres + dout) by the derivative of the
    norm, where only dout goes through it.

    Wrong:
        return x * grad_output

    Right:
        return 2 * x * grad_output
    """
    yield from wrong_derivatives(case, case.oracle)


@rule("MB104", "Is the Taylor remainder of order 2?", "12 forwards", needs="plain truth differences", skeleton=SQUARE)
def taylor_remainder(case: Case) -> Iterator[Finding]:
    """The Taylor remainder |φ(x + hv) − φ(x) − h⟨∇, v⟩| falls as h² where ∇ is the derivative, and as h where it is
    not.

    f(x + h) − f(x) − h·gradient has to shrink as h². If it shrinks as h, the gradient is not the derivative, however
    close it is. Small errors hide behind a chosen step or tolerance, and the order of the remainder depends on neither.

    Seen in: chainer/chainer#3541: “Bad gradients pass gradient check”: for a time the checker itself was wrong, and
    broken backward passes left their tests green. Two oracles that share nothing guard against that.

    Wrong:
        return 2.01 * x * grad_output

    Right:
        return 2 * x * grad_output
    """
    oracle = case.oracle
    case.compared += 1
    v = oracle.direction(oracle.asked, "taylor")
    analytic = sum(inner(g, d) for g, d in zip(oracle.gradients, v, strict=True))
    size = sum(norm(g, d) ** 2 for g, d in zip(oracle.gradients, v, strict=True)) ** 0.5
    rounding = (
        8 * epsilon(oracle.dtype) * sum(norm(c, y) for c, y in zip(oracle.cotangents, oracle.outputs, strict=True))
    )
    steps = [2.0**-k for k in range(6, 17, 2)]
    sides = [[_remainder(oracle, v, sign * h, analytic) for h in steps] for sign in (1.0, -1.0)]
    ahead, behind = sides
    orders = [
        math.log2(abs(a / b)) / 2
        for a, b in itertools.pairwise(ahead)
        if math.isfinite(a) and math.isfinite(b) and min(abs(a), abs(b)) > 10 * rounding
    ]
    # The remainder of a wrong gradient, divided by h, is the same constant on both sides; at a kink the sides differ.
    right, left = ahead[-1] / steps[-1], behind[-1] / -steps[-1]
    floor = 1e-4 * max(size, abs(analytic)) + 10 * rounding / steps[-1]
    if not orders or not (abs(right) > floor) or orders[-1] > 1.5:
        return
    if abs(right - left) > 0.1 * max(abs(right), abs(left)) or not 0.8 < orders[-1] < 1.2:
        raise Inconclusive("the remainders of both sides differ, so there is a kink or a jump on the way")
    yield case.fail(
        f"the Taylor remainder is of order {orders[-1]:.2f}, where that of a derivative is 2",
        cause=f"the slope along a random direction is {analytic + right:.6g}, and the gradient says {analytic:.6g}",
        fix="see MB101 for the input and the element",
        expected=analytic + right,
        actual=analytic,
        details=("remainders " + ", ".join(f"{abs(r):.2e}" for r in ahead) + " at steps 2^-6, 2^-8 …",),
    )


def _remainder(oracle: Oracle, v: list[Tensor | None], h: float, analytic: float) -> float:
    with torch.no_grad():
        outputs = oracle.function(moved(oracle.values, v, h))
    return sum(map(inner, oracle.cotangents, outputs, oracle.outputs)) - h * analytic
