"""MB501 to MB503: inputs, grad_output and saved tensors are left as they were."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from manual_backprop import _torch
from manual_backprop.validation.audit import audited, snapshot
from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SQUARE
from manual_backprop.validation.subject import Graph

MB501_SKELETON = """
class LogSumExp(Function):
    @staticmethod
    def forward(ctx, x):
        largest = x.amax(-1, keepdim=True)
        ___
        ctx.save_for_backward(shifted.softmax(-1))
        return shifted.exp().sum(-1).log() + largest.squeeze(-1)

    @staticmethod
    def backward(ctx, grad_output):
        (softmax,) = ctx.saved_tensors
        return softmax * grad_output.unsqueeze(-1)


validate(LogSumExp, (randn(4, 3),))
"""
MB503_SKELETON = """
class Sigmoid(Function):
    @staticmethod
    def forward(ctx, x):
        a = torch.sigmoid(x)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        ___


validate(Sigmoid, (randn(4, 3),))
"""

OUT_OF_PLACE = "compute out of place, or call ctx.mark_dirty on an input that forward changes"


@rule(
    "MB501",
    "Are inputs left as they were?",
    "1 pass",
    explains="MB208 MB404 MB504 MB505 MB509 MB51 MB70 MB80 MB902",
    skeleton=MB501_SKELETON,
)
def input_written(case: Case) -> Iterator[Finding]:
    """No byte of an input changes, unless forward marks it dirty.

    forward changes an input without ctx.mark_dirty. Every other Function that uses that tensor, or has saved it for
    backward, calculates with other numbers, and the version counter does not notice writes through .data or from a
    kernel.

    Seen in: linkedin/Liger-Kernel#272: the cross-entropy stored its gradient in its input, and the layer before,
    which had saved it, computed a wrong gradient without an error.

    Wrong:
        shifted = x.data.sub_(largest)

    Right:
        shifted = x - largest
    """
    held = _copied_leaves(case)
    before, others_before = snapshot(case.values), snapshot(held)
    graph, started = _watched(case, held)
    after, others_after = snapshot(started), snapshot(held)
    case.compared += len(started)
    returned = {id(output) for output in graph.outputs}
    for i, slot in enumerate(case.slots):
        dirty = id(started[i]) in returned or _torch.written_in_place(started[i])
        if before[i] != after[i] and not dirty:
            yield from _written(case, slot.name, "forward", slot.asked)
    names = [f"inputs[{i}]" for i in range(len(held))]
    slots = {slot.leaf for slot in case.slots}
    for i, name in enumerate(names):
        if i not in slots and others_before[i] != others_after[i] and id(held[i]) not in returned:
            yield from _written(case, name, "forward", False)
    case.differentiate(graph, case.plain.cotangents)
    for i in case.changed(after, snapshot(started)):
        yield from _written(case, case.slots[i].name, "backward", True)


def _copied_leaves(case: Case) -> list[Any]:
    """Copies of the leaves that are no slots; `_watched` copies the slots."""
    slots = {slot.leaf for slot in case.slots}
    return [
        leaf.detach().clone() if isinstance(leaf, Tensor) and i not in slots else leaf
        for i, leaf in enumerate(case.leaves)
    ]


def _watched(case: Case, held: list[Any]) -> tuple[Graph, list[Tensor]]:
    """A forward pass and the very tensors that forward got. Where forward writes in place these are clones of leaves,
    because a leaf cannot be marked dirty."""
    leaves = [v.detach().clone().requires_grad_(n) for v, n in zip(case.values, case.needs, strict=True)]
    started = [leaf.clone() if case.in_place else leaf for leaf in leaves]
    try:
        return Graph(leaves, case.call(started, held, leaves=False)), started
    except Exception as error:
        raise Broken("forward", error) from error


def _written(case: Case, name: str, stage: str, asked: bool) -> Iterator[Finding]:
    if not asked and not case.hand_written:
        return  # because torch's own functions update running statistics in place, as documented
    yield case.fail(
        f"{stage} writes into its input `{name}`",
        cause=f"an operation in {stage} works in place, perhaps through .data, NumPy or a kernel, unseen by autograd",
        fix=OUT_OF_PLACE,
        input=name,
    )


@rule(
    "MB502",
    "Is grad_output left as it was?",
    "2 passes",
    explains="MB208 MB404 MB504 MB505 MB509 MB51 MB70 MB80 MB902",
    skeleton=SQUARE,
)
def grad_output_written(case: Case) -> Iterator[Finding]:
    """No byte of grad_output changes: the engine may hand the same tensor to others.

    backward overwrites grad_output. Where the output was used twice, or has a hook, somebody else still needs that
    tensor; where .sum() came after the output, one write changes all elements.

    Seen in: linkedin/Liger-Kernel PR#376: writing into grad_output made the training of Gemma 2 diverge.
    pytorch/pytorch#81417 has asked since 2022 for a check of this.

    Wrong:
        return grad_output.mul_(2 * x)

    Right:
        return grad_output * (2 * x)
    """
    given = [None if c is None else c.clone() for c in case.plain.cotangents]
    before = snapshot(given)
    graph = case.run()
    case.differentiate(graph, given, copied=False)
    written = case.changed(before, snapshot(given))
    written += [i for call in audited(case).calls for i in call.grad_outputs_written]
    if written:
        yield case.fail(
            f"backward writes into grad_output {written[0]}",
            cause="an operation works in place on grad_output, perhaps to save memory",
            fix="compute out of place: grad_output belongs to the engine, which may use it again",
            output=written[0],
        )


@rule(
    "MB503",
    "Are saved tensors left as they were?",
    "1 pass",
    explains="MB208 MB404 MB504 MB505 MB509 MB51 MB70 MB80 MB902",
    skeleton=MB503_SKELETON,
)
def saved_written(case: Case) -> Iterator[Finding]:
    """No byte of a saved tensor changes in backward.

    backward overwrites a tensor that forward had saved. The first backward is right; a second one, by retain_graph, a
    higher derivative or a checkpoint, finds other numbers.

    Seen in: axolotl-ai-cloud/axolotl PR#3892: found in review: the gradient is written into the saved input, and a
    second backward over the same graph silently returns garbage.

    Wrong:
        return grad_output * a.data.mul_(1 - a)

    Right:
        return grad_output * a * (1 - a)
    """
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = case.run()
    if not saved:
        raise Skipped("forward saves no tensor for backward")
    before = snapshot(saved)
    case.differentiate(graph, case.plain.cotangents)
    if case.changed(before, snapshot(saved)):
        yield case.fail(
            "backward writes into a saved tensor",
            cause="an operation works in place on a tensor from ctx.saved_tensors",
            fix="compute out of place, because a second backward or another user of the tensor reads it",
        )
