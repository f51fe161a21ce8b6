"""How far apart may two gradients of one subject be? The subject's noise and dtype and the table of tolerances say."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation import tolerances
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.subject import Gradients, Subject, rounded
from manual_backprop.validation.tolerances import Mismatch, coarsest, epsilon, largest, mismatch


def noise_at(
    subject: Subject, values: Sequence[Tensor], cotangents: Sequence[Any], expected: Gradients, sizes: Sequence[float]
) -> list[float | Tensor]:
    """The change of each gradient when inputs and cotangents move by one rounding.

    Args:
        expected: the gradients at these values.
        sizes: the size of each gradient in the plain setting: a change is large or small in comparison with it.
    """
    total: list[Any] = [0.0] * len(subject.slots)
    for trial in range(2):
        draw = subject.generator("noise", trial)
        moved = [
            rounded(v, v.dtype, draw) if need else v.clone() for v, need in zip(values, subject.needs, strict=True)
        ]
        shaken = [None if c is None else rounded(c, c.dtype, draw) for c in cotangents]
        try:
            found = subject.gradients(moved, shaken, copied=False)
        except Broken:
            continue
        del moved
        for i, (before, after) in enumerate(zip(expected, found, strict=True)):
            if before is not None and after is not None and before.shape == after.shape and before.numel():
                size = max(largest(before), sizes[i])
                total[i] = _noisier(total[i], after, before, size)
        found.clear()
        after = None
    return total


def _noisier(noise: float | Tensor, after: Tensor, before: Tensor, size: float) -> float | Tensor:
    """The larger of two noises, element by element where the change is above a thousandth of the gradient's own size.

    One rounding does not move a smooth gradient that far, so some elements have crossed a kink. The allowance is then
    for these elements alone, because it would hide a mistake in all others.
    """
    most = largest(after, before)
    if most > 1e-3 * size:
        change = (tolerances.wide(after) - tolerances.wide(before)).abs().nan_to_num(0.0, 0.0, 0.0)
        return torch.maximum(change, torch.as_tensor(noise, dtype=change.dtype).expand(change.shape))
    return max(noise, most) if isinstance(noise, float) else noise.clamp(min=most)


def mismatches(
    actual: Gradients, expected: Gradients, noise: Sequence[Any], dtype: torch.dtype
) -> list[tuple[int, Mismatch]]:
    """The slots whose two gradients differ by more than two runs of one function may differ.

    Args:
        noise: the allowance for conditioning, one for each slot.
        dtype: the least precise dtype inside the subject; those of the gradients themselves count too.
    """
    dtype = min(coarsest([*actual, *expected]), dtype, key=tolerances.PRECISION_ORDER.index)
    floor = tolerances.FLOOR * epsilon(dtype) * max([largest(e) for e in expected], default=0.0)
    found = []
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        wrong = mismatch(a, e, tolerances.SAME_RTOL[dtype], noise[i], floor)
        if wrong is not None:
            found.append((i, wrong))
    return found
