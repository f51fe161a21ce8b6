"""MB703: inputs that forward broadcasts."""

from collections.abc import Iterator

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped
from manual_backprop.validation.other_shapes import judged, refuses
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.samples import Reshaped, reshaped

MB703_SKELETON = """
class Scale(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad_output):
        x, scale = ctx.saved_tensors
        ___


validate(Scale, (randn(4, 3), randn(4, 3)), batch_dim=0)
"""


MOST_AXES = 8  # axes of all inputs together that are broadcast, because each costs 50 forward passes


@rule("MB703", "Are broadcast inputs right?", "50 forwards a size", needs="plain batch-dim", skeleton=MB703_SKELETON)
def broadcast_input(case: Case) -> Iterator[Finding]:
    """An input with a size of 1 that forward broadcasts gets the right gradient.

    Where an input has size 1 along an axis and is broadcast, the gradient of that input is not summed over the axis.

    Seen in: tenstorrent/tt-metal#40008: gradients of inputs that were broadcast in the forward.

    Wrong:
        grad_scale = grad_output * x
        if scale.shape != grad_output.shape:
            grad_scale = grad_scale.mean(0, keepdim=True)  # has to be the sum
        return (grad_output * scale).sum_to_size(x.shape), grad_scale

    Right:
        grad_scale = grad_output * x
        return (grad_output * scale).sum_to_size(x.shape), grad_scale.sum_to_size(scale.shape)
    """
    shapes = [output.shape for output in case.plain.outputs]
    asked = 0
    for slot in case.slots:
        for axis in range(case.leaves[slot.leaf].ndim):
            if case.leaves[slot.leaf].shape[axis] < 2 or slot.parameter or not slot.asked or asked >= MOST_AXES:
                continue
            other = reshaped(case, [slot.leaf], lambda t, axis=axis: t.narrow(axis, 0, 1))  # type: ignore[misc]
            if not _spans(case, slot.leaf, axis, shapes) or not _same_shapes(case, other, shapes):
                continue
            asked += 1
            setting = f"where `{slot.name}` has size 1 along axis {axis} and is broadcast"
            try:
                # Heuristic: the first argument is the data, and later ones (weight, bias) are the ones that forward
                # broadcasts. Only for these is a gradient of the wrong shape a failure rather than a refusal.
                found = list(judged(case, other, setting, refuses, shape_matters=slot.leaf > 0))
            except Inconclusive:
                continue
            yield from found
            if found:
                return
    if not asked:
        raise Skipped("forward broadcasts no input")


def _spans(case: Case, leaf: int, axis: int, shapes: list[torch.Size]) -> bool:
    """Whether the outputs have the axis too, because only then an unchanged output shape means a broadcast."""
    shape = case.leaves[leaf].shape
    from_right = axis - len(shape)
    return all(len(s) >= -from_right and s[from_right] == shape[axis] for s in shapes)


def _same_shapes(case: Case, other: Reshaped, shapes: list[torch.Size]) -> bool:
    try:
        outputs = case.run(other.values, others=other.others).outputs
    except Broken:
        return False
    return [output.shape for output in outputs] == shapes
