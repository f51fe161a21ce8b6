"""MB701, MB702 and MB704: batches without a sample, of one sample, and inputs of other ranks."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped, raised_on_purpose
from manual_backprop.validation.other_shapes import judged, raises, refuses
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import LINEAR, SQUARE
from manual_backprop.validation.samples import Reshaped, batch_leaves, reshaped, runs

MB701_SKELETON = SQUARE.replace("(randn(4, 3),))", "(randn(4, 3),), batch_dim=0)")
BATCH = LINEAR.replace("randn(5)))", "randn(5)), batch_dim=0)")
MB704_SKELETON = """
class Softmax(Function):
    @staticmethod
    def forward(ctx, x):
        a = x.softmax(-1)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        ___


validate(Softmax, (randn(4, 3),), batch_dim=0)
"""


@rule("MB701", "Does an empty batch run?", "1 pass", needs="plain batch-dim", skeleton=MB701_SKELETON)
def empty_batch(case: Case) -> Iterator[Finding]:
    """An empty batch gives gradients of the right shape, zero for inputs that the samples share.

    A batch without samples crashes backward, or gives no gradient. An empty batch is left over at the end of an epoch,
    on one of many workers, or behind a filter.

    Seen in: Dao-AILab/flash-attention PR#2776: forward takes a batch of none, and backward was refused by CUDA;
    intel/torch-xpu-ops PR#5416: it aborted.

    Wrong:
        largest = grad_output.abs().max()  # raises where there are no elements
        return 2 * x * (grad_output / largest) * largest

    Right:
        return 2 * x * grad_output
    """
    chosen = batch_leaves(case)
    other = reshaped(case, chosen, lambda t: t.narrow(case.batch_dim or 0, 0, 0))
    try:
        graph = case.run(other.values, others=other.others)
    except Broken as broken:
        # A refusal by forward is no failure, because much of torch refuses an empty maximum or transform, too.
        raise Skipped(f"forward refuses an empty batch: {broken.error}") from broken
    try:
        actual = case.differentiate(graph, case.cotangents(graph.outputs))
    except Broken as broken:
        yield raises(case, broken, "with an empty batch")
        return
    case.compared += 1  # because the question is whether backward runs at all, and it did
    if any(output.numel() for output in graph.outputs):
        return  # an output without a batch axis is a cost: a mean over nothing is NaN and a sum 0, so nothing is asked
    message = "is not zero with an empty batch"
    expected = [None if g is None else torch.zeros_like(g) for g in actual]
    yield from differing(case, actual, expected, message, "only with an empty batch", case.still)


@rule("MB702", "Is one sample right?", "50 forwards", needs="plain batch-dim", skeleton=BATCH)
def one_sample(case: Case) -> Iterator[Finding]:
    """A batch of one sample gives the right gradient.

    A batch of one sample gives a wrong gradient or crashes, because backward squeezes an axis of size 1, or takes it
    for one that was broadcast.

    Seen in: fla-org/flash-linear-attention#1140: wrong gradients only for chunks of one or two tokens, as in
    decoding.

    Wrong:
        error = grad_output.squeeze()
        return grad_output @ weight, error.mT @ input, error.sum(0)

    Right:
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)
    """
    other = reshaped(case, batch_leaves(case), lambda t: t.narrow(case.batch_dim or 0, 0, 1))
    graph = yield from _graph(case, other, "with one sample")
    if graph is not None:
        yield from judged(case, other, "with one sample", raises)


def _graph(case: Case, other: Reshaped, setting: str) -> Any:
    """A generator that returns the forward pass; where forward raises it yields the finding and returns None."""
    try:
        return case.run(other.values, others=other.others)
    except Broken as broken:
        if raised_on_purpose(broken.error):
            raise Skipped(f"forward refuses: {broken.error}") from broken
        if case.reference is not None and not runs(case.reference, other):
            raise Skipped(f"the reference raises too: {broken.error}") from broken
        yield raises(case, broken, setting)
        return None


@rule("MB704", "Are other ranks right?", "100 forwards", needs="plain batch-dim", skeleton=MB704_SKELETON)
def other_ranks(case: Case) -> Iterator[Finding]:
    """One leading dimension more, or one fewer, gives the right gradient, where forward takes it.

    forward takes inputs with more or fewer leading axes than the sample that was tested, and with these inputs backward
    is wrong or crashes, because it sums over the first axis instead of all leading ones.

    Seen in: ooples/AiDotNet.Tensors#234: a bias reduced over axis 0 only, which breaks for sequences;
    linkedin/Liger-Kernel#1375: a group norm that forward takes with any rank and backward with one.

    Wrong:
        return a * (grad_output - (a * grad_output).sum(1, keepdim=True))  # axis 1 is the last one of a matrix only

    Right:
        return a * (grad_output - (a * grad_output).sum(-1, keepdim=True))
    """
    chosen, axis = batch_leaves(case), case.batch_dim or 0
    changes: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("with one more leading dimension", lambda t: torch.stack([t, t.flip(axis)])),
        ("without the batch dimension", lambda t: t.select(axis, 0)),
    )
    asked = False
    for setting, change in changes:
        other = reshaped(case, chosen, change)
        if not runs(case, other):
            continue
        asked = True
        try:
            yield from judged(case, other, setting, refuses)
        except Inconclusive:
            continue
    if not asked:
        raise Skipped("forward takes this rank only")
