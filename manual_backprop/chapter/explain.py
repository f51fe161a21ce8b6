"""The five steps of backpropagation on one sample, in numbers, beside autograd and finite differences.

Source: chapter 2, "The backpropagation algorithm" and equations (BP1) to (BP4). Layers and neurons are counted from
1 as in the book: layer 1 is the input.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manual_backprop.feedforward import layers
from manual_backprop.network import Gradients, Network

STEP = 1e-5
"""Of the finite differences, (C(p + h) − C(p − h))/2h: near ε^(1/3) of float64, where truncation equals rounding."""


@dataclass(frozen=True)
class Steps:
    """Everything that the five steps compute, by layer from the input up; float64.

    Args:
        x, y: the sample and its desired output.
        zs: the z^l of layers 2, …, L.
        activations: the a^l of layers 1, …, L.
        sigma_primes: the σ′(z^l) of layers 2, …, L.
        grad_a: ∇_a C.
        gradients: δ^l, ∂C/∂b^l and ∂C/∂w^l of layers 2, …, L, as `Network.backprop` has them.
    """

    network: Network
    x: Tensor
    y: Tensor
    zs: list[Tensor]
    activations: list[Tensor]
    sigma_primes: list[Tensor]
    grad_a: Tensor
    gradients: Gradients

    @property
    def layers(self) -> int:
        """L."""
        return len(self.activations)


@dataclass(frozen=True)
class Checked:
    """A derivative from the algorithm, and the same from autograd and from central differences."""

    symbol: str
    equation: str
    value: Tensor
    autograd: Tensor
    central: Tensor

    @property
    def name(self) -> str:
        """The symbol, and the equation where there is one."""
        return f"{self.symbol} ({self.equation})" if self.equation else self.symbol

    def components(self) -> Iterator[tuple[str, float, float, float]]:
        """Each component with its indices as in the book: (symbol, value, by autograd, by central differences)."""
        for place in itertools.product(*map(range, self.value.shape)):
            symbol = f"{self.symbol}_{''.join(str(index + 1) for index in place)}"
            yield symbol, float(self.value[place]), float(self.autograd[place]), float(self.central[place])

    @property
    def from_autograd(self) -> float:
        """The largest difference, as a share of the largest component where that is above 1."""
        return self._off(self.autograd)

    @property
    def from_central(self) -> float:
        """The same from the central differences."""
        return self._off(self.central)

    def _off(self, other: Tensor) -> float:
        return float((self.value - other).abs().max() / self.value.abs().max().clamp(min=1))


def make(sizes: Sequence[int], activation: str = "sigmoid", cost: str = "quadratic", seed: int = 0) -> Steps:
    """The five steps on weights from N(0, 1/inputs), an x from [0, 1) and the y that is 1 at the first output alone.

    The cross-entropy needs sigmoid outputs, and gets them whatever the other layers have.
    """
    output = "sigmoid" if cost == "cross_entropy" else activation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(sizes, activation, cost, output, dtype=torch.float64)
        x, y = torch.rand(sizes[0], dtype=torch.float64), torch.zeros(sizes[-1], dtype=torch.float64)
    network.weights = [
        w / w.shape[1] ** 0.5 for w in network.weights
    ]  # unscaled, the neurons of a wide layer would saturate
    y[0] = 1
    return five_steps(network, x, y)


def five_steps(network: Network, x: Tensor, y: Tensor) -> Steps:
    """Run the algorithm on one sample, ``(i,)`` and ``(o,)``, and keep what it passes by."""
    passed = list(layers(network.weights, network.biases, network.activations, x))
    zs, activations = [z for z, _ in passed], [x, *(a for _, a in passed)]
    sigma_primes = [f.derivative_at(z) * torch.ones_like(z) for f, z in zip(network.activations, zs, strict=True)]
    grad_a = network.cost.derivative(activations[-1], y)
    return Steps(network, x, y, zs, activations, sigma_primes, grad_a, network.backprop(x, y))


def cost_from(network: Network, layer: int, z: Tensor, y: Tensor) -> Tensor:
    """C as a function of z^l (layers from 2): the rest of the network in plain torch operations."""
    a, rest = network.activations[layer - 2].function(z), slice(layer - 1, None)
    outputs = [a, *(a for _, a in layers(network.weights[rest], network.biases[rest], network.activations[rest], a))]
    return network.cost.value(outputs[-1], y)


def check(steps: Steps) -> list[Checked]:
    """Every derivative of the five steps, from the output down, beside the two other ways to it."""
    network, y, a = steps.network, steps.y, steps.activations[-1]
    # Where the cost has ln a and ln(1 − a), a step must stay well inside of (0, 1).
    step = STEP * (a * (1 - a) if network.cost.name == "cross_entropy" else torch.ones_like(a))
    grad_a = _checked(f"∂C/∂a^{steps.layers}", "∇_a C", steps.grad_a, lambda a: network.cost.value(a, y), a, step)
    return [grad_a, *(checked for layer in range(steps.layers, 1, -1) for checked in _check_layer(steps, layer))]


def _check_layer(steps: Steps, layer: int) -> list[Checked]:
    delta, grad_b, grad_w = (part[layer - 2] for part in reversed(steps.gradients))
    w, b, z = steps.network.weights[layer - 2], steps.network.biases[layer - 2], steps.zs[layer - 2]
    a_in, linear = steps.activations[layer - 2], torch.nn.functional.linear

    def cost(z: Tensor) -> Tensor:
        return cost_from(steps.network, layer, z, steps.y)

    return [
        _checked(f"δ^{layer}", "BP1" if layer == steps.layers else "BP2", delta, cost, z),
        _checked(f"∂C/∂b^{layer}", "BP3", grad_b, lambda b: cost(linear(a_in, w, b)), b),
        _checked(f"∂C/∂w^{layer}", "BP4", grad_w, lambda w: cost(linear(a_in, w, b)), w),
    ]


def central_differences(f: Callable[[Tensor], Tensor], at: Tensor, step: Tensor) -> Tensor:
    """(f(p + h_j e_j) − f(p − h_j e_j))/2h_j for every element p_j, in the shape of p; h_j is that of ``step``."""
    nudges = torch.diag(step.reshape(-1)).reshape(-1, *at.shape)
    return torch.stack([f(at + nudge) - f(at - nudge) for nudge in nudges]).reshape(at.shape) / (2 * step)


def _checked(
    symbol: str, equation: str, value: Tensor, f: Callable[[Tensor], Tensor], at: Tensor, step: Tensor | None = None
) -> Checked:
    leaf = at.clone().requires_grad_()
    (autograd,) = torch.autograd.grad(f(leaf), leaf)
    step = torch.full_like(at, STEP) if step is None else step
    return Checked(symbol, equation, value, autograd, central_differences(f, at, step))
