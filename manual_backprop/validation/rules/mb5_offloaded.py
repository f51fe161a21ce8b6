"""MB509 and MB510: saved tensors that are offloaded and brought back, or are computed again."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import one_line
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SQUARE
from manual_backprop.validation.subject import Gradients

MB509_SKELETON = "slopes = {}\n\n" + SQUARE.replace(
    "(x)\n        return x**2", "(x)\n        slopes[x.data_ptr()] = 2 * x.detach()\n        return x**2"
)
MB510_SKELETON = """
class Multiply(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad_output):
        ___


validate(Multiply, (randn(4, 3), randn(4, 3)))
"""


@rule("MB509", "Same result when saved tensors are offloaded?", "1 pass", skeleton=MB509_SKELETON)
def offloaded_tensors(case: Case) -> Iterator[Finding]:
    """Saved tensors that are offloaded and come back as copies give the same gradients.

    With saved_tensors_hooks (offloading to the CPU or to disk) the gradient is different, or backward crashes, because
    it relies on getting back the very tensor and not one with the same values.

    Seen in: pytorch/pytorch PR#153005: why tensors that are not saved by save_for_backward defeat offloading and
    activation checkpointing.

    Wrong:
        return slopes[x.data_ptr()] * grad_output  # an offloaded x comes back at another address

    Right:
        return 2 * x * grad_output
    """

    def pack(tensor: Tensor) -> tuple[Tensor]:
        return (tensor.detach().clone(),)

    def unpack(packed: tuple[Tensor]) -> Tensor:
        return packed[0].clone()

    # The sample is multiplied by 1.01, so that no pass has seen these numbers before, because a cache keyed by values
    # would otherwise still hold the right answer from an earlier pass.
    values = [v.mul_(1.01) if need else v for v, need in zip(case.elsewhere("offloaded"), case.needs, strict=True)]
    with saved_tensors_hooks(pack, unpack):
        actual = case.gradients(values, case.plain.cotangents)
    expected = case.gradients(values, copied=False)
    message = "is different under saved_tensors_hooks (offloading)"
    yield from differing(case, actual, expected, message, "only when saved tensors are offloaded")


@rule("MB510", "Same result under checkpointing?", "4 passes", skeleton=MB510_SKELETON)
def checkpointed(case: Case) -> Iterator[Finding]:
    """Both modes of torch.utils.checkpoint give the same gradients.

    Under torch.utils.checkpoint the gradient is different, or backward crashes. The checkpoint runs forward again, and
    hands out each saved tensor only once.

    Seen in: state-spaces/mamba PR#1021: ctx.saved_tensors was looked at twice, and the second look raises under a
    checkpoint; pytorch/pytorch#82156 asks for more than one.

    Wrong:
        return grad_output * ctx.saved_tensors[1], grad_output * ctx.saved_tensors[0]

    Right:
        a, b = ctx.saved_tensors
        return grad_output * b, grad_output * a
    """
    for reentrant in (False, True):
        try:
            actual = _under_checkpoint(case, reentrant)
        except Exception as error:
            mode = f"use_reentrant={reentrant}"
            tell = case.fail if case.hand_written else case.warn
            cause = "perhaps backward reads ctx.saved_tensors twice"
            yield tell(f"checkpoint({mode}) raises: {one_line(error)}", cause=cause, fix="read ctx.saved_tensors once")
            continue
        message = f"is different under checkpoint(use_reentrant={reentrant})"
        yield from differing(case, actual, case.plain.gradients, message, "only under checkpoint")


def _under_checkpoint(case: Case, reentrant: bool) -> Gradients:
    """The gradients under a checkpoint, by .backward(), because autograd.grad refuses reentrant checkpoints."""
    from torch.utils.checkpoint import checkpoint

    leaves = [v.detach().clone().requires_grad_(n) for v, n in zip(case.values, case.needs, strict=True)]
    outputs = checkpoint(lambda *tensors: tuple(case.call(tensors)), *leaves, use_reentrant=reentrant)
    given = [None if c is None else c.clone() for c in case.plain.cotangents]  # backward may write into them
    pairs = [(o, c) for o, c in zip(outputs, given, strict=True) if c is not None and o.requires_grad]
    torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])
    return [leaf.grad for leaf in leaves]
