"""How fast is backpropagation? One backward pass against a forward pass for every weight.

Source: chapter 2, "In what sense is backpropagation a fast algorithm?", equation (46).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from manual_backprop.activations import Activation, sigmoid
from manual_backprop.network import Network


@dataclass
class Passes:
    """Passes through a network, counted where each goes through the output layer: at its σ, and at its σ′."""

    forward: int = 0
    backward: int = 0

    def counting(self, activation: Activation) -> Activation:
        """The activation, with every use of it counted."""

        def function(z: Tensor) -> Tensor:
            self.forward += 1
            return activation.function(z)

        def derivative(x: Tensor) -> Tensor | float:
            self.backward += 1
            return activation.derivative(x)

        return Activation(f"counted {activation}", function, derivative, activation.needs)


@dataclass(frozen=True)
class Way:
    """A way to ∂C/∂w: the gradient, the passes that it took, and its seconds."""

    gradient: list[Tensor]
    passes: Passes
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """The two ways on one network."""

    sizes: tuple[int, ...]
    weights: int
    naive: Way
    backprop: Way

    @property
    def ratio(self) -> float:
        """Seconds of the naive way for a second of backpropagation."""
        return self.naive.seconds / self.backprop.seconds

    @property
    def difference(self) -> float:
        """The largest difference between the two gradients; the naive one errs by about ε C″/2."""
        pairs = zip(self.naive.gradient, self.backprop.gradient, strict=True)
        return max(float((n - b).abs().max()) for n, b in pairs)


def naive_gradient(network: Network, x: Tensor, y: Tensor, epsilon: float) -> list[Tensor]:
    """∂C/∂w_j ≈ (C(w + ε e_j) − C(w))/ε for every weight w_j (equation (46)); the biases are left as they are."""
    cost = network.mean_cost(x, y)
    gradients = [torch.empty_like(w) for w in network.weights]
    for w, gradient in zip(network.weights, gradients, strict=True):
        w_j, g_j = w.view(-1), gradient.view(-1)
        for j in range(len(w_j)):
            old = w_j[j].clone()
            w_j[j] += epsilon
            g_j[j] = (network.mean_cost(x, y) - cost) / epsilon
            w_j[j] = old
    return gradients


def compare(
    sizes: Sequence[int], samples: int = 1, epsilon: float = 1e-6, repeats: int = 5, seed: int = 0
) -> Comparison:
    """Both ways on a sigmoid network with the quadratic cost, in float64.

    Args:
        sizes: neurons a layer, the inputs first.
        samples: in the mini-batch; a pass takes all of them at once.
        epsilon: ε.
        repeats: of backpropagation, whose seconds are their median.
        seed: of the weights and the mini-batch.
    """
    passes, network, x, y = _problem(sizes, samples, seed)
    fast = backprop(sizes, samples, repeats, seed)
    slow = _measured(passes, lambda: naive_gradient(network, x, y, epsilon))
    return Comparison(tuple(sizes), sum(w.numel() for w in network.weights), naive=slow, backprop=fast)


def backprop(sizes: Sequence[int], samples: int = 1, repeats: int = 5, seed: int = 0) -> Way:
    """Backpropagation alone; arguments as in `compare`."""
    passes, network, x, y = _problem(sizes, samples, seed)
    network.backprop(x, y)  # a first call takes longer
    ways = [_measured(passes, lambda: network.backprop(x, y).weights) for _ in range(repeats)]
    return Way(ways[0].gradient, ways[0].passes, statistics.median(way.seconds for way in ways))


def _problem(sizes: Sequence[int], samples: int, seed: int) -> tuple[Passes, Network, Tensor, Tensor]:
    """A network, one mini-batch, and where its passes are counted."""
    passes = Passes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(sizes, output_activation=passes.counting(sigmoid), dtype=torch.float64)
        x = torch.rand(samples, sizes[0], dtype=torch.float64)
        y = torch.rand(samples, sizes[-1], dtype=torch.float64)
    return passes, network, x, y


def growth(comparisons: Sequence[Comparison], seconds: Callable[[Comparison], float]) -> float:
    """The p of seconds ~ weights^p, by least squares on the logarithms."""
    xs, ys = ([log(value(c)) for c in comparisons] for value in (lambda c: c.weights, seconds))
    return statistics.linear_regression(xs, ys).slope


def _measured(passes: Passes, gradient: Callable[[], list[Tensor]]) -> Way:
    before, started = (passes.forward, passes.backward), time.perf_counter()
    found = gradient()
    seconds = time.perf_counter() - started
    return Way(found, Passes(passes.forward - before[0], passes.backward - before[1]), seconds)
