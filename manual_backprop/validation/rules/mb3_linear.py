"""MB3xx: is backward linear in grad_output? gradcheck cannot tell, because it feeds one-hot positive numbers only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SINCOS, SQUARE
from manual_backprop.validation.subject import Gradients
from manual_backprop.validation.tolerances import dense

MB306_SKELETON = """
class Cumsum(Function):
    @staticmethod
    def forward(ctx, x):
        return x.cumsum(-1)

    @staticmethod
    def backward(ctx, grad_output):
        ___
        return grad_output.flip(-1).cumsum(-1).flip(-1)


validate(Cumsum, (randn(2, 4),))
"""

Cotangents = Sequence[Tensor | None]


NOT_LINEAR = "backward takes an absolute value, a sign, a clamp or a square of grad_output"


BE_LINEAR = "only multiply grad_output by derivatives, because backward is a linear map of grad_output"


@rule("MB301", "Is backward(−g) = −backward(g)?", "1 pass", explains="MB1 MB306 MB6 MB7 MB80", skeleton=SQUARE)
def sign_of_grad_output(case: Case) -> Iterator[Finding]:
    """backward(−g) = −backward(g).

    backward(−g) is not −backward(g). A backward is a linear map of grad_output; torch.autograd.gradcheck feeds only
    non-negative grad_outputs, and so accepts an absolute value or a square.

    Seen in: jiecaoyu/XNOR-Net-PyTorch#43: the gradient of a binarised activation is built from the sign and the
    absolute value of what comes in, and gradcheck in float32 with atol=1e-2 said True.

    Wrong:
        return 2 * x * grad_output.abs()

    Right:
        return 2 * x * grad_output
    """
    yield from _scaled(case, -1.0, "for −grad_output is not minus that for grad_output")


@rule("MB302", "Is backward(c·g) = c·backward(g)?", "3 passes", explains="MB1 MB306 MB6 MB7 MB80", skeleton=SQUARE)
def scale_of_grad_output(case: Case) -> Iterator[Finding]:
    """backward(c·g) = c·backward(g), for the c of small losses and of loss scaling.

    backward(c·g) is not c·backward(g): the gradient is clipped, replaced by a constant, or underflows. Loss scaling and
    gradient accumulation multiply g by thousands, or divide it by as much.

    Seen in: ashawkey/stable-dreamfusion#158: the backward did not multiply by the gradient that came in, and so lost
    the scale of mixed-precision training.

    Wrong:
        return 2 * x * grad_output.clamp(-1, 1)

    Right:
        return 2 * x * grad_output
    """
    # 65536 is the scale at which torch's GradScaler starts. At 2⁻⁴⁰, about 1e-12, a backward fails that sets gradients
    # below an absolute threshold to zero. Both are powers of two, because these round nothing; float16 holds neither.
    for c in (1e-3, 3.0, 8.0) if case.dtype == torch.float16 else (1e-3, 3.0, 65536.0, 2.0**-40):
        found = list(_scaled(case, c, f"for {c:g}·grad_output is not {c:g} times it"))
        yield from found
        if found:
            return


@rule("MB303", "Is backward(g₁ + g₂) the sum?", "3 passes", explains="MB1 MB306 MB6 MB7 MB80", skeleton=SQUARE)
def sum_of_grad_outputs(case: Case) -> Iterator[Finding]:
    """backward(g₁ + g₂) = backward(g₁) + backward(g₂).

    backward(g₁ + g₂) is not backward(g₁) + backward(g₂): the gradient depends on g otherwise than by a matrix, for
    example because only the largest elements of g are kept.

    Seen in: jiecaoyu/XNOR-Net-PyTorch#43: grad.abs().mean() * grad is quadratic in what comes in.

    Wrong:
        large = grad_output.abs() >= grad_output.abs().mean()
        return 2 * x * grad_output * large

    Right:
        return 2 * x * grad_output
    """
    outputs = case.run().outputs
    first, second = case.cotangents(outputs, "first"), case.cotangents(outputs, "second")
    both = [None if a is None else a + b for a, b in zip(first, second, strict=True)]
    expected = _sum(case.gradients(cotangents=given) for given in (first, second))
    message = "for g₁ + g₂ is not the sum of those for g₁ and for g₂"
    yield from differing(case, case.gradients(cotangents=both), expected, message, scale=2.0, **_words())


@rule("MB304", "Is backward(0) = 0?", "1 pass", explains="MB1 MB306 MB6 MB7 MB80", skeleton=SQUARE)
def zero_grad_output(case: Case) -> Iterator[Finding]:
    """backward(0) = 0, without NaN.

    Nothing comes in, and still a gradient goes out: backward adds something to the derivative, such as weight decay or
    noise.

    Seen in: ashawkey/stable-dreamfusion#158: a backward that returned a gradient stored in the forward, whatever came
    in.

    Wrong:
        return 2 * x * grad_output + 1e-4 * x

    Right:
        return 2 * x * grad_output
    """
    given = [None if c is None else torch.zeros_like(c) for c in case.plain.cotangents]
    actual = case.gradients(cotangents=given)
    # Elements at which the plain gradient is not finite are not compared, because there 0·∞ is NaN.
    expected = [_zeros(g) for g in case.plain.gradients]
    message = "for a grad_output of zeros is not zero"
    cause = "backward adds a term without grad_output as a factor (a penalty, weight decay, noise), or computes 0·∞"
    words: dict[str, Any] = {"cause": cause, "fix": BE_LINEAR}
    yield from differing(case, actual, expected, message, noise=case.still, **words)


@rule(
    "MB305",
    "Do the outputs' shares add up?",
    "1 pass an output",
    needs="plain two-outputs",
    explains="MB1 MB306 MB6 MB7 MB80",
    skeleton=SINCOS,
)
def across_outputs(case: Case) -> Iterator[Finding]:
    """The gradients of the outputs add up: none of them looks at the grad_output of another.

    The gradient through two outputs together is not the sum of the gradients through each output alone. gradcheck asks
    about one output at a time and never sends two grad_outputs.

    Seen in: Dao-AILab/flash-attention#141: does the second output, the log-sum-exp, contribute to the gradients? It
    does not, and nothing says so.

    Wrong:
        if grad_sin.any():
            return grad_sin * x.cos()  # the share of grad_cos is left out
        return -grad_cos * x.sin()

    Right:
        return grad_sin * x.cos() - grad_cos * x.sin()
    """
    targets = [i for i, c in enumerate(case.plain.cotangents) if c is not None]
    parts = (
        case.gradients(cotangents=_only(case.plain.cotangents, lambda i, target=target: i == target))
        for target in targets
    )
    message = "is not the sum of the gradients through each output alone"
    cause = "backward multiplies the grad_outputs of two outputs, or leaves one share out where the other is not zero"
    words: dict[str, Any] = {"cause": cause, "fix": BE_LINEAR}
    yield from differing(case, case.plain.gradients, _sum(parts), message, **words)


@rule("MB306", "Does a mostly zero g give its share?", "2 passes", skeleton=MB306_SKELETON)
def sparse_grad_output(case: Case) -> Iterator[Finding]:
    """The gradients for a mostly zero part of grad_output and for the rest of grad_output add up to that for the whole.

    With a grad_output that is zero almost everywhere a share of the gradient is missing: backward takes a shortcut that
    sees some zeros and concludes that all elements are zero.

    Seen in: linkedin/Liger-Kernel PR#1298: grad_output[0] stood for all rows; if the first is masked, all are 0.

    Wrong:
        if not grad_output[..., -1].any():  # earlier steps may have one
            return torch.zeros_like(grad_output)

    Right:
        # no shortcut: every step counts
    """
    few: list[Tensor | None] = []
    rest: list[Tensor | None] = []
    for number, c in enumerate(case.plain.cotangents):
        if c is None:
            few.append(None)
            rest.append(None)
            continue
        draw = case.generator("sparse", number)
        keep = (torch.rand(c.shape, generator=draw) < 0.2).to(c.device)
        few.append(torch.where(keep, c, 0))
        rest.append(torch.where(keep, 0, c))
    expected = _sum(case.gradients(cotangents=given) for given in (few, rest))
    message = "for a mostly zero part of grad_output and that for the rest do not add up to that for the whole"
    yield from differing(case, case.plain.gradients, expected, message, **_words())


def _scaled(case: Case, c: float, message: str) -> Iterator[Finding]:
    given = [None if g is None else c * g for g in case.plain.cotangents]
    expected = [None if g is None else c * g for g in case.plain.gradients]
    yield from differing(case, case.gradients(cotangents=given), expected, message, scale=abs(c), **_words())


def _words() -> dict[str, Any]:
    return {"cause": NOT_LINEAR, "fix": BE_LINEAR}


def _only(cotangents: Cotangents, keep: Callable[..., bool]) -> list[Tensor | None]:
    return [None if c is None else c if keep(i) else torch.zeros_like(c) for i, c in enumerate(cotangents)]


def _sum(parts: Iterable[Gradients]) -> Gradients:
    """The sum of gradients, added one after the other so that no two parts are in memory at once."""
    total: Gradients = []
    for gradients in parts:
        total = total or [None] * len(gradients)
        for i, gradient in enumerate(gradients):
            before = total[i]
            total[i] = before if gradient is None else gradient if before is None else before + gradient
    return total


def _zeros(gradient: Tensor | None) -> Tensor | None:
    if gradient is None or bool(dense(gradient).isfinite().all()):
        return None
    return torch.where(dense(gradient).isfinite(), 0.0, dense(gradient))
