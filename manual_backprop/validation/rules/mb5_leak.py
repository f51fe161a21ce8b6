"""MB507: all memory of a pass is freed with its graph."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from manual_backprop import _torch
from manual_backprop.validation.case import Case
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule

MB507_SKELETON = """
history = []

class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ___

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output


validate(Square, (randn(4, 3),))
"""


@rule("MB507", "Is all freed with the graph?", "1 pass", skeleton=MB507_SKELETON)
def memory_leak(case: Case) -> Iterator[Finding]:
    """No memory of a pass is alive once its graph is gone.

    Some tensors of a pass are still in memory after the graph is gone: each step leaks a little more memory.

    Seen in: pytorch/pytorch#5569: a custom Function that leaks its output in every step of the loop.

    Wrong:
        history.append(x)  # left over from debugging
        ctx.save_for_backward(x)
        return x**2

    Right:
        ctx.save_for_backward(x)
        return x**2
    """
    references = _weak_pass(case)
    case.compared += len(references)
    if not _alive(references):
        return
    gc.collect()
    alive = _alive(references)
    if alive:
        yield case.fail(
            f"a pass leaves in memory, after its graph is gone: {', '.join(alive)}",
            cause="a global list or cache, or a cycle through ctx, keeps the memory",
            fix="save through ctx.save_for_backward, and keep nothing in module globals",
        )
    else:
        yield case.warn(
            "tensors of a pass are freed by the garbage collector only",
            cause="there is a reference cycle, as an output that is kept on ctx makes one",
            fix="keep the output by ctx.save_for_backward",
        )


def _weak_pass(case: Case) -> list[tuple[str, Callable[[], bool]]]:
    graph = case.run()
    cotangents = [None if c is None else c.clone() for c in case.plain.cotangents]
    gradients = case.differentiate(graph, cotangents, copied=False)
    named: list[tuple[str, Any]] = [
        (f"input `{slot.name}`", leaf)
        for slot, leaf in zip(case.slots, graph.leaves, strict=True)
        if not slot.parameter  # modules such as nn.GRU hold on to their parameters
    ]
    named += [(f"output {i}", output) for i, output in enumerate(graph.outputs)]
    named += [(f"grad_output {i}", c) for i, c in enumerate(cotangents)]
    named += [(f"the gradient of `{slot.name}`", g) for slot, g in zip(case.slots, gradients, strict=True)]
    # The memory is watched and not the tensor, because a detached alias may keep the memory when the tensor is gone.
    return [
        (name, _torch.watch_memory(t)) for name, t in named if t is not None and t.layout == torch.strided and t.numel()
    ]


def _alive(references: Sequence[tuple[str, Callable[[], bool]]]) -> list[str]:
    return [name for name, is_held in references if is_held()]
