"""The derivative by finite differences, for a whole subject: is a gradient right, and where is it wrong?

The subject runs in float64, from the same numbers, where it can; in the dtype of the sample where it cannot.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation import tolerances
from manual_backprop.validation.differences import Slope, Verdict, inner, norm, probe_direction, slopes, typical
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.subject import Gradients, Subject
from manual_backprop.validation.tolerances import COMPLEX_OF, coarsest, largest, real

Known = tuple[list[Tensor], list[Any], Gradients]

DIRECTIONS = 2  # random ones, because a wrong gradient may be right along a single direction by chance
ELEMENTS = 160  # of an input with more elements only this many are measured one by one
ELEMENTS_OF_LARGE = 3  # the same where the sample is large, because each costs two forward passes a step


@dataclass
class Elements:
    """The gradient of one slot, element by element, at `where` (flat indices)."""

    slot: int
    where: list[int]
    verdicts: list[Verdict]
    slopes: list[Slope]
    expected: list[complex]
    actual: list[complex]

    @property
    def wrong(self) -> bool:
        return "wrong" in self.verdicts

    @property
    def mostly_right(self) -> bool:
        """Whether most elements are right and none is wrong; the others then lie at a kink, or cannot be measured."""
        return not self.wrong and self.verdicts.count("right") > len(self.verdicts) / 2


class Oracle:
    """A subject at some values, with the gradients that its backward gives there.

    Args:
        subject: the callable and the sample that are asked about.
        computes_in: the dtype in which the subject's forward computes.
        values: one tensor for each slot; None for the subject's own values.
        others: replaces the leaves that are no slots, where the shapes changed.
        widen: whether to run in float64 where the subject can.
        longest: the most that a direction measures along each element, however large the values are.
        known: outputs, cotangents and gradients at the values given, where a pass has been made before.
    """

    def __init__(
        self,
        subject: Subject,
        computes_in: torch.dtype,
        values: Sequence[Tensor] | None = None,
        others: Sequence[object] | None = None,
        widen: bool = True,
        longest: float = math.inf,
        known: Known | None = None,
    ):
        self.subject, self.computes_in, self.others, self.longest = subject, computes_in, others, longest
        given = list(subject.values if values is None else values)
        self.values = self._widened(given) if widen else given
        if known is not None and self.values is given:
            self.outputs, self.cotangents, self.gradients = known
        else:
            graph = subject.run(self.values, others=others)
            self.outputs = [y.detach().clone() for y in graph.outputs]
            self.cotangents = subject.cotangents(graph.outputs)
            self.gradients = subject.differentiate(graph, self.cotangents)
        self.dtype = min((coarsest([*self.values, *self.outputs]), computes_in), key=tolerances.PRECISION_ORDER.index)

    def _widened(self, values: list[Tensor]) -> list[Tensor]:
        wide = [in_dtype(value, torch.float64) for value in values]
        if all(a.dtype == b.dtype for a, b in zip(wide, values, strict=True)):
            return values
        try:
            plain = self.subject.run(wide, others=self.others)
            self.subject.differentiate(plain, self.subject.cotangents(plain.outputs))
        except Broken:
            return values
        return wide

    def in_float64(self) -> "Oracle":
        """The oracle at the same values in float64, where differences see more; in the old dtype where that fails."""
        return (
            self
            if real(self.dtype) == torch.float64
            else Oracle(self.subject, self.computes_in, self.values, self.others, longest=self.longest)
        )

    @property
    def measurable(self) -> bool:
        """Whether differences mean anything here: the dtype leaves them three digits, and the outputs are finite."""
        finite = all(bool(y.isfinite().all()) for y in self.outputs if y.is_floating_point() or y.is_complex())
        return finite and real(self.dtype) in (torch.float64, torch.float32)

    def function(self, values: list[Tensor]) -> list[Tensor]:
        """The outputs at values that forward may overwrite, because nobody else needs them.

        Raises:
            Broken: forward raised.
        """
        try:
            return self.subject.call(values, self.others)
        except Exception as error:
            raise Broken("forward", error) from error

    def slope(self, direction: Sequence[Tensor | None], cotangents: Sequence[Tensor | None] | None = None) -> Slope:
        given = self.cotangents if cotangents is None else cotangents
        self.subject.compared += 1
        return slopes(self.function, self.values, direction, [given], self.dtype)[0]

    def direction(self, slots: Sequence[int], key: object, part: str = "") -> list[Tensor | None]:
        draw = self.subject.generator("direction", key)
        chosen: list[Tensor | None] = [None] * len(self.values)
        for i in slots:
            v = probe_direction(self.values[i], draw, self.longest)
            if part and v.is_complex():
                v = v.real.to(v.dtype) if part == "real" else 1j * v.imag.to(v.dtype)
            chosen[i] = v
        return chosen

    @functools.cached_property
    def asked(self) -> list[int]:
        return [i for i, need in enumerate(self.subject.needs) if need and self.values[i].numel()]

    def along(self, slots: Sequence[int], key: object = 0, part: str = "") -> Verdict:
        """Whether the gradient agrees with the slope along one random direction of these slots."""
        v = self.direction(slots, key, part)
        analytic = sum(inner(g, d) for g, d in zip(self.gradients, v, strict=True))
        size = sum(norm(g, d) ** 2 for g, d in zip(self.gradients, v, strict=True)) ** 0.5
        return self.slope(v).judge(analytic, size, self.dtype)

    def verdict(self) -> Verdict:
        """The worst verdict over random directions of all slots whose gradient is asked."""
        verdicts: list[Verdict] = [self.along(self.asked, k) for k in range(1 if self.subject.large else DIRECTIONS)]
        order: tuple[Verdict, ...] = ("right", "unknown", "kink", "wrong")
        return max(verdicts, key=order.index)

    def wrong_slots(self) -> list[int]:
        return [i for i in self.asked if any(self.along([i], k) == "wrong" for k in range(DIRECTIONS))]

    def elements(self, slot: int, where: Sequence[int] | None = None) -> Elements:
        """Each element of a slot's gradient beside the difference quotient there; where there are many, a sample."""
        value = self.values[slot]
        found = Elements(slot, list(self.sampled(value.numel()) if where is None else where), [], [], [], [])
        flat = self.flat(slot)
        step, size = min(typical(value), self.longest), 0.1 * largest(flat)
        for place in found.where:
            actual = complex(flat[place].item())
            slope = self._slope_at(slot, place, step)
            verdict, expected = slope.judge(actual.real, size, self.dtype), complex(slope.central)
            if value.is_complex() and verdict == "right":
                # Re⟨grad, i⟩ is the imaginary part of the gradient.
                slope = self._slope_at(slot, place, 1j * step)
                verdict, expected = slope.judge(actual.imag, size, self.dtype), complex(actual.real, slope.central)
            found.slopes.append(slope)
            found.verdicts.append(verdict)
            found.expected.append(expected)
            found.actual.append(actual)
        return found

    def flat(self, slot: int) -> Tensor:
        gradient = self.gradients[slot]
        dense = torch.zeros_like(self.values[slot]) if gradient is None else gradient.detach()
        return (dense.to_dense() if dense.layout != torch.strided else dense).reshape(-1)

    def _slope_at(self, slot: int, place: int, step: complex) -> Slope:
        value = self.values[slot]
        unit = torch.zeros(value.numel(), dtype=value.dtype, device=value.device)
        unit[place] = step  # type: ignore[assignment]
        direction: list[Tensor | None] = [None] * len(self.values)
        direction[slot] = unit.reshape(value.shape)
        return _divided(self.slope(direction), abs(step))

    def sampled(self, count: int) -> list[int]:
        if count <= ELEMENTS:
            return list(range(count))
        draw = self.subject.generator("elements", count)
        sample = ELEMENTS_OF_LARGE if self.subject.large else ELEMENTS
        return sorted(torch.randint(count, (sample,), generator=draw).unique().tolist())


def _divided(slope: Slope, step: float) -> Slope:
    return Slope(slope.central / step, slope.error / step, slope.left / step, slope.right / step, slope.kinked)


def in_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in a floating dtype, complex where it is complex."""
    return value.detach().to(COMPLEX_OF[dtype] if value.is_complex() else dtype)
