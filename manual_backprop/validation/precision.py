"""In which dtype does a forward compute? One that casts to float32 inside is no more exact than float32."""

from collections.abc import Sequence

import torch
from torch import Tensor

from manual_backprop.validation import tolerances
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.subject import Subject, times
from manual_backprop.validation.tolerances import epsilon, largest, pieces, real


def computes_in(subject: Subject) -> torch.dtype:
    """The dtype in which forward computes: the coarsest to which its inputs can be rounded without changing one bit of
    its outputs; float64 where there is none."""
    found = torch.float64
    try:
        exact = _of_many_bits(subject)
        plain = subject.outputs(exact)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            few, many = (
                subject.outputs(subject.nearby("varies", by, exact), copied=False) for by in (32 * epsilon(dtype), 0.3)
            )
            # A small step has to change about as many outputs as a large step does, because the outputs of a floor or a
            # sign stay the same under any small step, and rounding then proves nothing.
            varies = _changed(few, plain) > 0.5 * _changed(many, plain)
            through = [_through(v, dtype) if need else v for v, need in zip(exact, subject.needs, strict=True)]
            if _changed(subject.outputs(through), plain) or not varies:
                break
            found = dtype
        if found == torch.float64 and _grainy(subject, exact):
            found = torch.float32
    except Broken:  # forward does not take float64; then `found` stays as it is
        pass
    return found


def _grainy(subject: Subject, values: Sequence[Tensor]) -> bool:
    """Whether the outputs jump where the inputs move by less than float32 resolves.

    The outputs of a forward that computes a part in float32 do; third differences are then far above the rounding of
    float64.
    """

    def moved(k: int) -> list[Tensor]:
        draw = subject.generator("grain")
        return [
            times(v.clone(), lambda s: 1 + 3e-8 * k * torch.rand(s, generator=draw, dtype=torch.float64))
            if need
            else v.clone()
            for v, need in zip(values, subject.needs, strict=True)
        ]

    line = [first := subject.outputs(moved(1), copied=False)]
    rough: list[Tensor | bool] = [False] * len(first)
    for k in range(2, 17):  # steps to one side only, so that a kink of the sample is not crossed
        line = [*line[-3:], subject.outputs(moved(k), copied=False)]
        if len(line) == 4:
            rough = [was | _bent(*four) for was, four in zip(rough, zip(*line, strict=True), strict=True)]
    # Most of the elements that move have to jump, because a few jump also where two of them change places in a sort.
    return any(
        int(torch.as_tensor(bent).sum()) > 0.5 * _changed([last], [start])
        for bent, start, last in zip(rough, first, line[-1], strict=True)
    )


def _of_many_bits(subject: Subject) -> list[Tensor]:
    """The sample; where its numbers have few bits themselves, moved a little in float64 so that rounding changes it."""
    if _changed([_through(value, torch.float32) for value in subject.values], subject.values):
        return subject.values
    return subject.nearby("bits", 1e-3, [tolerances.wide(value) for value in subject.values])


def _through(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` rounded to a coarser real dtype and converted back to the dtype that it had."""
    if value.is_complex():
        return torch.view_as_complex(torch.view_as_real(value).to(dtype).to(real(value.dtype)))
    return value.to(dtype).to(value.dtype)


def _changed(after: Sequence[Tensor], before: Sequence[Tensor]) -> int:
    """How many elements differ."""
    pairs = zip(map(tolerances.dense, after), map(tolerances.dense, before), strict=True)
    return sum(int((tolerances.wide(x) != tolerances.wide(y)).sum()) for pair in pairs for x, y in pieces(*pair))


def _bent(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor | bool:
    """The elements whose third difference is larger than that of a smooth function."""
    if not (a.is_floating_point() or a.is_complex()):
        return False
    third = tolerances.wide(d) - tolerances.wide(a) - 3 * (tolerances.wide(c) - tolerances.wide(b))
    return third.abs() > 1e-10 * largest(a)
