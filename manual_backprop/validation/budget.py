"""Precision: how far may a gradient that was computed in a coarse dtype be from that of float64, from equal numbers?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import wrong_gradient
from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.oracle import in_dtype
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.subject import Gradients, Subject, rounded
from manual_backprop.validation.tolerances import BUDGET, EAGER_FACTOR, epsilon, largest, mismatch, wide

LARGE_IN_FLOAT16 = 100.0  # the square of a number three times as large overflows, and backward may well square it


@dataclass
class Exact:
    """Gradients in float64 from numbers quantised to a dtype, and how far one rounding of these numbers moves them."""

    gradients: Gradients
    noise: list[float]  # the change of each gradient
    eager: list[float] | None  # the reference's own error in that dtype, where there is a reference


def quantised(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_complex():
        return value.to(dtype)
    return in_dtype(value, torch.float32 if dtype == torch.bfloat16 else dtype)


def exact(case: Case, values: list[Tensor], given: list[Any], dtype: torch.dtype) -> Exact:
    """The reference in float64 from the same numbers; the case itself in float64 where there is no reference."""
    truth = case.reference or case
    wide_given = [None if c is None else in_dtype(c, torch.float64) for c in given]
    try:
        gradients = truth.gradients([in_dtype(value, torch.float64) for value in values], wide_given, copied=False)
    except Broken as broken:
        raise Skipped(f"{dtype} cannot be compared with float64, in which it does not run: {broken.error}") from broken
    noise = [0.0] * len(values)
    for trial in range(1 if case.large else 3):
        draw = case.generator("budget", trial)
        moved = [
            rounded(in_dtype(value, torch.float64), dtype, draw) if need else in_dtype(value, torch.float64)
            for value, need in zip(values, case.needs, strict=True)
        ]
        shaken = [None if c is None else rounded(c, dtype, draw) for c in wide_given]
        found = truth.gradients(moved, shaken, copied=False)
        del moved
        for i, (a, b) in enumerate(zip(found, gradients, strict=True)):
            if a is not None and b is not None and a.numel():
                noise[i] = max(noise[i], largest(a, b))
    eager = _errors(truth, values, given, gradients) if case.reference is not None else None
    return Exact(gradients, noise, eager)


def _errors(truth: Subject, values: list[Tensor], given: list[Any], exact: Gradients) -> list[float] | None:
    try:
        found = truth.gradients(values, given)
    except (Broken, ValueError):
        return None
    return [0.0 if a is None or b is None else largest(a, b) for a, b in zip(found, exact, strict=True)]


def over_budget(case: Case, actual: Gradients, truth: Exact, dtype: torch.dtype) -> Iterator[Finding]:
    overall = max([largest(e) for e in truth.gradients], default=0.0)
    for slot, (given, e) in enumerate(zip(actual, truth.gradients, strict=True)):
        if e is None or not case.needs[slot]:
            continue
        a = given.to_dense() if given is not None and given.layout != torch.strided else given
        # Elements near the end of the dtype's range, or not finite in float64, are not compared (NaN stands for that),
        # because there a right backward overflows too.
        expected = torch.where(wide(e).abs() < 0.1 * torch.finfo(dtype).max, wide(e), torch.nan)
        if dtype == torch.float16 and truth.eager is None and a is not None:
            # Infinities, and NaN in the place of a large number, are allowed, because in the narrow range of float16 an
            # intermediate may overflow in eager torch too; NaN in the place of a small number is not.
            overflow = a.isinf() | (a.isnan() & (expected.abs() > LARGE_IN_FLOAT16))
            expected = torch.where(overflow, torch.nan, expected)
        rounding = max(epsilon(dtype) * largest(expected), truth.noise[slot], 0.1 * epsilon(dtype) * overall)
        rounding += float(torch.finfo(dtype).tiny)
        allowed = BUDGET[dtype] * rounding
        if truth.eager is not None:
            allowed = EAGER_FACTOR * truth.eager[slot] + 2 * rounding
        case.compared += 1
        found = mismatch(a, expected, 0.0, allowed)
        if found is not None:
            e_, a_ = found.numbers
            times = abs(a_ - e_) / (epsilon(dtype) * max(largest(expected), 1e-300))
            predicate = f"in {dtype} is {times:.3g} roundings away from that in float64"
            fix = "accumulate and multiply in the dtype of the tensors, or in float32"
            yield wrong_gradient(case, slot, found, predicate, f"only in {dtype}", fix=fix)
