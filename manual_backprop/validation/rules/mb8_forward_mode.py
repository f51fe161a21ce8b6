"""MB803: jvp is the transpose of vjp. A refusal with an error is a skip."""

from collections.abc import Iterator

import torch
import torch.autograd.forward_ad as forward_ad

from manual_backprop.validation.case import Case
from manual_backprop.validation.differences import inner, norm
from manual_backprop.validation.exceptions import Skipped, one_line
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.tolerances import SAME_RTOL

PRODUCT = """
class Product(Function):
    @staticmethod
    def forward(a, b):
        return a * b**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        return grad_output * b**2, grad_output * 2 * a * b

    @staticmethod
    ___


validate(Product, (randn(4, 3), randn(4, 3)))
"""


@rule("MB803", "Is jvp the transpose of vjp?", "1 pass", skeleton=PRODUCT)
def forward_mode(case: Case) -> Iterator[Finding]:
    """jvp is the transpose of vjp: ⟨g, jvp(v)⟩ = ⟨vjp(g), v⟩.

    Forward mode and backward do not belong to the same derivative: ⟨g, jvp(v)⟩ is not ⟨vjp(g), v⟩.

    Seen in: pytorch/pytorch#187284: under torch.compile the tangents of forward mode were dropped without an error.

    Wrong:
        def jvp(ctx, tangent_a, tangent_b):
            a, b = ctx.saved_tensors
            return tangent_a * b**2  # the share of tangent_b is left out

    Right:
        def jvp(ctx, tangent_a, tangent_b):
            a, b = ctx.saved_tensors
            return tangent_a * b**2 + 2 * a * b * tangent_b
    """
    plain = case.plain
    draw = case.generator("tangents")
    tangents = [
        torch.randn(v.shape, generator=draw, dtype=torch.float64).to(v) if need else None
        for v, need in zip(case.values, case.needs, strict=True)
    ]
    try:
        with forward_ad.dual_level():
            duals = [
                v.detach().clone() if t is None else forward_ad.make_dual(v.detach().clone(), t)
                for v, t in zip(case.values, tangents, strict=True)
            ]
            moved = [forward_ad.unpack_dual(output).tangent for output in case.call(duals)]
    except Exception as error:
        own = _with_jvp(case)
        if own and not isinstance(error, NotImplementedError):
            yield case.warn(
                f"{own[0].__name__}.jvp raises: {one_line(error)}",
                cause="the Function's own jvp does not run",
                fix="let jvp run, or drop it",
            )
            return
        raise Skipped(f"forward mode is refused with an error: {one_line(error)}") from error
    if all(t is None for t in moved) and not _with_jvp(case):
        raise Skipped("forward mode gives no tangents")
    ahead = sum(inner(c, t) for c, t in zip(plain.cotangents, moved, strict=True) if c is not None)
    back = sum(inner(g, t) for g, t in zip(plain.gradients, tangents, strict=True))
    size = sum(norm(g, t) for g, t in zip(plain.gradients, tangents, strict=True))
    size += sum(norm(c, t) for c, t in zip(plain.cotangents, moved, strict=True) if c is not None)
    case.compared += 1
    if abs(ahead - back) > 10 * SAME_RTOL[case.dtype] * max(size, 1e-30) and ahead == ahead and back == back:
        yield case.fail(
            f"jvp and vjp are not transposes: ⟨g, jvp(v)⟩ = {ahead:.6g}, ⟨vjp(g), v⟩ = {back:.6g}",
            cause="jvp or backward is wrong (MB101 says whether backward is)",
            fix="derive both from one formula",
            expected=back,
            actual=ahead,
        )


def _with_jvp(case: Case) -> list[type]:
    default = torch.autograd.Function.jvp
    return [f for f in case.functions if f.jvp is not default]  # type: ignore[attr-defined]
