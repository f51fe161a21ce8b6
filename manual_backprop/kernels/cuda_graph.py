"""The step of a network on CUDA as a CUDA graph: captured once, and replayed in one launch instead of some twenty.

A graph has the addresses and the numbers (η among them) of its step fixed. So it is kept as long as these stay, and the
mini-batches are copied to where it reads; a step of another kind runs as it is, and so all do where η changes at each.

The bookkeeping is tested everywhere; the capture itself by a test that wants a GPU, which no machine of ours has had.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from manual_backprop.network import Network

Step = Callable[[], None]


def cuda_graph(step: Step) -> Step:
    """What replays the step, which does not run now. Source: `torch.cuda.graph`."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class CapturedStep:
    """`Network`'s step on a mini-batch, captured by ``capture`` when it comes for the second time."""

    def __init__(self, capture: Callable[[Step], Step] = cuda_graph) -> None:
        self.capture = capture
        self.fixed: tuple[Any, ...] = ()
        self.replay: Step | None = None

    def __call__(self, network: "Network", x: Tensor, y: Tensor, buffers: Any, *options: float) -> None:
        parameters = network.weights + network.biases + network.velocities
        fixed = (x.shape, options, id(buffers), *(p.data_ptr() for p in parameters))
        if fixed != self.fixed:  # once as it is: what torch sets up at a first use cannot be set up in a capture
            self.fixed, self.replay = fixed, None
            network._descend(x, y, buffers, *options)
            return
        if self.replay is None:
            # The buffers too are held, so that nothing else comes to lie where the graph writes.
            self.x, self.y, self.buffers = x.clone(), y.clone(), buffers
            self.replay = self.capture(lambda: network._descend(self.x, self.y, buffers, *options))
        self.x.copy_(x)
        self.y.copy_(y)
        self.replay()


_STEPS: WeakKeyDictionary["Network", CapturedStep] = WeakKeyDictionary()


def step_of(network: "Network") -> CapturedStep:
    """The one of this network."""
    return _STEPS.setdefault(network, CapturedStep())
