"""The step of a network on CUDA as a CUDA graph: captured once, and replayed in one launch instead of some twenty.

A graph has the addresses and the numbers (η among them) of its step fixed. So it is kept as long as these stay, and the
mini-batches are copied to where it reads; a step of another kind runs as it is, and so all do where η changes at each.

The bookkeeping is tested everywhere; the capture itself by a test that wants a GPU, which no machine of ours has had.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Run = Callable[[], None]
Step = Callable[..., None]
Parameters = Callable[[], Sequence[Tensor]]


def cuda_graph(run: Run) -> Run:
    """The replay of ``run``, which does not run now. Source: `torch.cuda.graph`."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class CapturedStep:
    """A step on a mini-batch, captured by ``capture`` when it comes for the second time."""

    def __init__(self, capture: Callable[[Run], Run] = cuda_graph) -> None:
        self.capture = capture
        self.fixed: tuple[Any, ...] = ()
        self.replay: Run | None = None

    def __call__(
        self,
        step: Step,
        parameters: Parameters,
        x: Tensor,
        y: Tensor,
        buffers: Any,
        *options: float,
    ) -> None:
        """``step(x, y, buffers, *options)``, which writes to the parameters and the buffers."""
        fixed = (x.shape, options, id(buffers), *(p.data_ptr() for p in parameters()))
        if fixed != self.fixed:  # once as it is: what torch sets up at a first use cannot be set up in a capture
            self.fixed, self.replay = fixed, None
            step(x, y, buffers, *options)
            return
        if self.replay is None:
            # The buffers too are held, so that nothing else comes to lie where the graph writes.
            self.x, self.y, self.buffers = x.clone(), y.clone(), buffers
            self.replay = self.capture(lambda: step(self.x, self.y, buffers, *options))
        self.x.copy_(x)
        self.y.copy_(y)
        self.replay()


_STEPS: WeakKeyDictionary[object, CapturedStep] = WeakKeyDictionary()


def captured(owner: object, step: Step, parameters: Parameters) -> Step:
    """``step`` as a CUDA graph, which is kept as long as its owner lives. ``parameters``: the tensors it reads and
    writes beside its arguments, as they are at each step."""
    return partial(_STEPS.setdefault(owner, CapturedStep()), step, parameters)
