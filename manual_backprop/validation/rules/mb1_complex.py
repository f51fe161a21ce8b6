"""MB106: the gradient of a complex input is ∂L/∂conj(z)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Inconclusive, Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule

MB106_SKELETON = """
class Multiply(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        ___


complex_randn = partial(torch.randn, dtype=torch.complex128, requires_grad=True)
validate(Multiply, (complex_randn(4, 3), complex_randn(4, 3)))
"""


@rule(
    "MB106",
    "Is the complex convention torch's?",
    "25 forwards a direction",
    explains="MB104 MB105 MB6 MB7 MB80",
    skeleton=MB106_SKELETON,
)
def complex_convention(case: Case) -> Iterator[Finding]:
    """The gradient is right along real directions and along imaginary directions, each by itself.

    For a complex tensor torch's gradient is ∂L/∂conj(z), so that a step against it makes L smaller: a factor in forward
    comes back conjugated. Real inputs never show the difference.

    Seen in: tensorflow/tensorflow#4859: the gradient of a complex matrix product was not conjugated; no test had
    complex numbers.

    Wrong:
        return grad_output * b, grad_output * a

    Right:
        return grad_output * b.conj(), grad_output * a.conj()
    """
    if not any(value.is_complex() for value in [*case.values, *case.plain.outputs]):
        raise Skipped("no complex tensor")
    # The inputs are turned away from the real axis, because there a number and its conjugate are the same.
    oracle = case.oracle_at([_turned(case, i, value) for i, value in enumerate(case.values)])
    if not oracle.measurable:
        raise Inconclusive("outputs are not finite")
    for slot in oracle.asked:
        for part in ("real", "imag") if oracle.values[slot].is_complex() else ("",):
            if oracle.along([slot], part, part) != "wrong":
                continue
            conjugate = case.oracle_at(oracle.values)
            conjugate.gradients = [None if g is None else g.conj().resolve_conj() for g in oracle.gradients]
            is_conjugate = all(conjugate.along([slot], p, p) != "wrong" for p in ("real", "imag"))
            yield case.fail(
                f"the gradient of `{case.slots[slot].name}` is wrong along {part or 'real'} directions",
                cause="it is the conjugate of the gradient" if is_conjugate else "a complex factor is wrong",
                fix="multiply grad_output by the conjugate of the derivative: torch wants ∂L/∂conj(z) for real L",
                input=case.slots[slot].name,
            )
            break


def _turned(case: Case, slot: int, value: Tensor) -> Tensor:
    if not value.is_complex() or not case.needs[slot]:
        return value
    angle = 2 * math.pi * torch.rand(value.shape, generator=case.generator("turned", slot))
    return value * torch.polar(torch.ones_like(angle), angle).to(value)
