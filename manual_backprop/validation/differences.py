"""Finite differences with their own error estimate: the oracle that needs no reference.

φ(t) = Re⟨g, f(x + t·v)⟩ along one direction v, for several cotangents g at once: 2 forward passes a step whatever the
number of elements. The steps shrink by 10; Richardson's (100·D(h/10) − D(h))/99 removes the h² term, and the change
from one extrapolation to the next says how far the result can be trusted. So nobody has to choose an eps, and a
function that computes in float32 inside simply shows a larger error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.tolerances import DIFFERENCE_RTOL, dense, epsilon, largest, pieces, real, wide

Verdict = Literal["right", "wrong", "kink", "unknown"]

STEPS = {
    torch.float64: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    torch.float32: (1e-1, 1e-2, 1e-3),
}


@dataclass
class Slope:
    """The derivative of φ at 0 as differences see it."""

    central: float
    error: float
    left: float
    right: float
    kinked: bool  # left and right slopes differ by more than curvature and rounding explain

    @property
    def is_zero(self) -> bool:
        """Whether no change was seen above the error of the measurement (written so that NaN counts as zero)."""
        return not abs(self.central) > max(20 * self.error, 1e-9)

    def judge(self, analytic: float, size: float, dtype: torch.dtype) -> Verdict:
        """Whether `analytic` is the derivative; `size` is the scale of the terms that it is a sum of."""
        rtol = DIFFERENCE_RTOL[real(dtype)]
        scale = max(size, abs(self.central))
        difference = abs(analytic - self.central)
        # Ten times the error, because the estimate of the error is itself off by a small factor; `not`, because of NaN.
        if not (difference > 10 * self.error + rtol * scale):
            return "unknown" if difference != difference else "right"
        if self.kinked:
            return "kink"
        # A difference well above the error of the measurement is wrong; one near that error stays unknown, because a
        # verdict that noise can turn would be a false alarm.
        return "wrong" if self.error < 0.05 * max(scale, difference) else "unknown"


def settled(slope: Slope) -> bool:
    """Whether differences show one finite derivative: no kink, no divergence."""
    size = max(abs(slope.central), 1e-6)
    return not slope.kinked and math.isfinite(slope.central) and slope.error < 1e-2 * size + 1e-6


def inner(a: Tensor | None, b: Tensor | None, less: Tensor | None = None) -> float:
    """Re⟨a, b⟩ = Re Σ conj(a)·b, torch's convention for complex gradients, or Re⟨a, b − less⟩; 0 where one is None."""
    if a is None or b is None or a.numel() == 0:
        return 0.0
    if less is not None:
        products = (wide(x).conj() * wide(y - z) for x, y, z in pieces(dense(a), dense(b), dense(less)))
    else:
        products = (wide(x).conj() * wide(y) for x, y in pieces(dense(a), dense(b)))
    return sum(float((product.real if product.is_complex() else product).sum()) for product in products)


def norm(a: Tensor | None, b: Tensor | None) -> float:
    """√Σ|a·b|², the typical size of ⟨a, b⟩ where the signs of the terms are random."""
    if a is None or b is None or a.numel() == 0:
        return 0.0
    sizes = ((wide(x) * wide(y)).abs().nan_to_num(0.0, 0.0, 0.0) for x, y in pieces(dense(a), dense(b)))
    return math.sqrt(sum(float(size.square().sum()) for size in sizes))


def slopes(
    function: Callable[[list[Tensor]], list[Tensor]],
    values: Sequence[Tensor],
    direction: Sequence[Tensor | None],
    cotangents: Sequence[Sequence[Tensor | None]],
    dtype: torch.dtype,
) -> list[Slope]:
    """One `Slope` for each list of cotangents (one an output).

    `function` is run without autograd; a step at which it raises `Broken` counts as outside of the function's domain.
    """

    def at(step: float) -> list[Tensor]:
        with torch.no_grad():
            return function(moved(values, direction, step))

    def phi(step: float) -> list[float]:
        try:
            outputs = at(step)
        except Broken:  # the step leaves the domain of the function
            outputs = []
        if [y.shape for y in outputs] != [y0.shape for y0 in start]:
            return [math.nan] * len(cotangents)
        return [
            sum(inner(g, y, y0) for g, y, y0 in zip(gs, outputs, start, strict=True) if g is not None)
            for gs in cotangents
        ]

    start = at(0.0)
    steps = STEPS.get(real(dtype), STEPS[torch.float32])
    sides = [(phi(step), phi(-step)) for step in steps]
    found = []
    for i, gs in enumerate(cotangents):
        # The outputs are rounded in their last place, and a difference quotient divides that rounding by h.
        rounding = 4 * epsilon(dtype) * sum(norm(g, y) for g, y in zip(gs, start, strict=True) if g is not None)
        slope = _slope(steps, [(a[i], b[i]) for a, b in sides], rounding)
        slope.error += _position_error(values, direction, dtype) / steps[-1] * abs(slope.central)
        found.append(slope)
    return found


def _position_error(values: Sequence[Tensor], direction: Sequence[Tensor | None], dtype: torch.dtype) -> float:
    """The error of a step by the rounding of x + h·v, relative to v: large where x is large and the step small."""
    sizes = [largest(x) / typical(v) for x, v in zip(values, direction, strict=True) if v is not None and v.numel()]
    return 0.1 * epsilon(dtype) * max(sizes, default=0.0)


def moved(values: Sequence[Tensor], direction: Sequence[Tensor | None], step: float) -> list[Tensor]:
    """x + h·v in fresh memory, which a function may write to."""
    return [x.clone() if v is None else (step * v).to(x.dtype).add_(x) for x, v in zip(values, direction, strict=True)]


def _slope(steps: Sequence[float], sides: Sequence[tuple[float, float]], rounding: float) -> Slope:
    central = [(ahead - behind) / (2 * h) for h, (ahead, behind) in zip(steps, sides, strict=True)]
    best, least = float("nan"), float("inf")
    for k in range(len(steps) - 1):
        extrapolated = (100 * central[k + 1] - central[k]) / 99
        # The third quotient has a say too, because two neighbouring ones may agree by chance.
        change = abs(extrapolated - central[k + 1])
        if k + 2 < len(steps):
            following = (100 * central[k + 2] - central[k + 1]) / 99
            change = max(abs(extrapolated - following), 0.01 * change)
        error = change + rounding / steps[k + 1]
        if error < least:
            best, least = extrapolated, error
    right, left = ([a / h for h, (a, _) in zip(steps, sides, strict=True)],
                   [-b / h for h, (_, b) in zip(steps, sides, strict=True)])  # fmt: skip
    return Slope(best, least, left[-1], right[-1], _kinked(steps, left, right, rounding, best))


def _kinked(
    steps: Sequence[float], left: Sequence[float], right: Sequence[float], rounding: float, slope: float
) -> bool:
    """Whether the one-sided slopes stay apart as the step shrinks, as they do at a kink, or part, as they do at a jump.

    The part of their distance that is curvature shrinks with the step, so it does not count.
    """
    # From one step to the next, ten times smaller, a distance by curvature falls to 0.1 of itself, that at a kink to 1.
    # The distance also has to stand out from rounding and from the last digits of the slopes.
    coarse, fine = abs(right[-2] - left[-2]), abs(right[-1] - left[-1])
    return (
        fine > 0.3 * coarse and fine > 8 * rounding / steps[-1] and fine > 1e-5 * max(map(abs, (left[-1], right[-1])))
    )


def probe_direction(value: Tensor, draw: torch.Generator, longest: float = math.inf) -> Tensor:
    """A random direction whose steps are relative to the size of `value`."""
    return normal(value, draw).mul_(min(typical(value), longest))


def typical(value: Tensor) -> float:
    """The root mean square of the finite elements, 1 where that is 0."""
    if value.numel() == 0:
        return 1.0
    sizes = (wide(part).abs().nan_to_num(0.0, 0.0, 0.0) for (part,) in pieces(dense(value)))
    return math.sqrt(sum(float(size.square().sum()) for size in sizes) / value.numel()) or 1.0


def normal(like: Tensor, draw: torch.Generator) -> Tensor:
    """Standard normal numbers of the dtype, shape and device of `like`, contiguous."""
    if like.is_complex():
        parts = torch.randn((*like.shape, 2), generator=draw, dtype=torch.float64)
        return torch.view_as_complex(parts).to(like.device, like.dtype)
    return torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like.device, like.dtype)
