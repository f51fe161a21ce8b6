"""MB207: a returned gradient has memory of its own."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop import _torch
from manual_backprop.validation.audit import snapshot
from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule

MB207_SKELETON = """
class AddFlat(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = a.shape, b.shape
        return a.flatten() + b.flatten()

    @staticmethod
    def backward(ctx, grad_output):
        a_shape, b_shape = ctx.shapes
        ___


validate(AddFlat, (randn(2, 3), randn(3, 2)))
"""


@rule("MB207", "Has a gradient memory of its own?", "4 passes", skeleton=MB207_SKELETON)
def gradient_aliases(case: Case) -> Iterator[Finding]:
    """A returned gradient has memory of its own: changing it changes nothing else, and no later pass changes it.

    Two gradients, or a gradient and another tensor, share memory. Accumulating or clipping one of them in place then
    changes the other too.

    Seen in: linkedin/Liger-Kernel PR#1305: an in-place backward returned a view of the buffer that it was given, so
    that a test compared two gradients that were one and the same memory.

    Wrong:
        return grad_output.view(a_shape), grad_output.view(b_shape)

    Right:
        return grad_output.reshape(a_shape).clone(), grad_output.reshape(b_shape).clone()
    """
    # Cotangents of ones are tried too, because a backward that multiplies by them may return a saved tensor as it is.
    all_ones = [None if c is None else torch.ones_like(c) for c in case.plain.cotangents]
    found = list(_memory_of_others(case, case.plain.cotangents)) or list(_memory_of_others(case, all_ones))
    found = found or list(_buffer_reused(case))
    if not found and case.functions:
        found = list(_leaves_share(case))
    yield from found


def _memory_of_others(case: Case, cotangents: list[Any]) -> Iterator[Finding]:
    graph = case.run()
    gradients = [g for g in case.differentiate(graph, cotangents) if g is not None]
    if any(g.layout != torch.strided for g in gradients):
        raise Skipped("a gradient is sparse")
    kept = [*graph.leaves, *graph.outputs]
    before = snapshot(kept)
    with torch.no_grad():
        for gradient in gradients:
            if not _overlapping(gradient) and not _torch.has_no_memory(gradient):
                gradient.add_(1)
    for i in case.changed(before, snapshot(kept)):
        other = f"input `{case.slots[i].name}`" if i < len(graph.leaves) else f"output {i - len(graph.leaves)}"
        yield case.fail(
            f"a returned gradient shares its memory with {other}: changing one changes the other",
            cause="backward returns a saved tensor (or a view of it) as it is",
            fix="return a new tensor: multiply by grad_output, or clone",
        )


def _buffer_reused(case: Case) -> Iterator[Finding]:
    first = case.gradients()
    before = snapshot(first)
    try:
        case.gradients(case.elsewhere("alias"), copied=False)
    except Broken:
        return
    for slot in case.changed(before, snapshot(first)):
        yield case.fail(
            f"the gradient of `{case.slots[slot].name}` changes when another pass runs",
            cause="backward returns the same buffer each time",
            fix="allocate the result in backward",
            input=case.slots[slot].name,
        )


def _leaves_share(case: Case) -> Iterator[Finding]:
    """A failure for two ``.grad`` that share memory, because clip_grad_norm_ on one scales the other."""
    graph = case.run()
    pairs = [(o, c.clone()) for o, c in zip(graph.outputs, case.plain.cotangents, strict=True) if c is not None]
    torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])
    grads = [(slot.name, leaf.grad) for slot, leaf in zip(case.slots, graph.leaves, strict=True) if leaf.is_leaf]
    grads = [(name, g) for name, g in grads if g is not None and g.layout == torch.strided and not _overlapping(g)]
    for name, gradient in grads:
        others = [(n, g) for n, g in grads if g is not gradient]
        before = snapshot(g for _, g in others)
        assert gradient is not None
        gradient.add_(1)
        for place in case.changed(before, snapshot(g for _, g in others)):
            yield case.fail(
                f"the gradients of `{name}` and `{others[place][0]}` share memory: what changes one changes both",
                cause="backward returns two views of one tensor",
                fix="clone one of the two",
                input=name,
            )
            return


def _overlapping(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
