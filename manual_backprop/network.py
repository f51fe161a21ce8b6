"""The backpropagation algorithm as the chapter states it: no autograd anywhere."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manual_backprop.activations import ACTIVATIONS, Activation, activation_named
from manual_backprop.costs import Cost, cost_named
from manual_backprop.equations import bias_gradient, hidden_error, output_error, weight_gradient


class Gradients(NamedTuple):
    """What backpropagation puts out, by layer: ∂C/∂w^l ``(o, i)``, ∂C/∂b^l ``(o,)``, the errors δ^l ``(*, o)``."""

    weights: list[Tensor]
    biases: list[Tensor]
    deltas: list[Tensor]


class Network:
    """A feedforward network that learns by gradient descent, the gradient by BP1 to BP4.

    Args:
        sizes: neurons a layer, the inputs first.
        activation: of every layer but the last: a name in `ACTIVATIONS`, or an `Activation`.
        cost: "quadratic" or "cross_entropy", or a `Cost`.
        output_activation: of the last layer; the same as `activation` where it is None.
        device, dtype: of the weights and biases.

    Attributes:
        weights: the w^l, ``(o, i)`` each; drawn from N(0, 1), as the biases, from torch's global generator.
        biases: the b^l, ``(o,)`` each.
        velocities: of the weights, then of the biases; empty until there is momentum.

    Everything runs under `torch.inference_mode`. C is the mean over the samples.

    Raises:
        ValueError: fewer than two sizes, or an unknown activation or cost.

    Example:
        >>> net = Network([3, 2])
        >>> before = net.feedforward(torch.ones(1, 3))
        >>> net.update(torch.ones(1, 3), torch.ones(1, 2), learning_rate=3.0)  # desired output: 1 and 1
        >>> bool((net.feedforward(torch.ones(1, 3)) > before).all())
        True

    Source: chapter 1 (gradient descent in mini-batches), chapter 2 ("The backpropagation algorithm").
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Activation = "sigmoid",
        cost: str | Cost = "quadratic",
        output_activation: str | Activation | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected at least an input and an output size, found {list(sizes)}")
        last = activation if output_activation is None else output_activation
        self.activations = [activation_named(activation)] * (len(sizes) - 2) + [activation_named(last)]
        self.cost = cost_named(cost)
        layers = list(pairwise(sizes))
        self.weights = [torch.randn(o, i, device=device, dtype=dtype) for i, o in layers]
        self.biases = [torch.randn(o, device=device, dtype=dtype) for _, o in layers]
        self.velocities: list[Tensor] = []

    @torch.inference_mode()
    def feedforward(self, x: Tensor) -> Tensor:
        """a^L for the input x: ``(*, sizes[0])`` to ``(*, sizes[-1])``."""
        a = x
        for w, b, f in zip(self.weights, self.biases, self.activations, strict=True):
            a = f.function(torch.nn.functional.linear(a, w, b))
        return a

    @torch.inference_mode()
    def backprop(self, x: Tensor, y: Tensor) -> Gradients:
        """The gradient of the cost, the mean over the samples: the five steps of the chapter.

        Args:
            x: the inputs, ``(*, sizes[0])``.
            y: the desired outputs, ``(*, sizes[-1])``.

        Raises:
            ValueError: y has not the shape of the outputs (nothing is broadcast).
        """
        # 1. Input: a^1 = x.
        inputs, zs = [x], []

        # 2. Feedforward: z^l = w^l a^{l-1} + b^l and a^l = σ(z^l).
        for w, b, f in zip(self.weights, self.biases, self.activations, strict=True):
            zs.append(torch.nn.functional.linear(inputs[-1], w, b))
            inputs.append(f.function(zs[-1]))
        sigma_prime = [f.derivative_at(z, a) for f, z, a in zip(self.activations, zs, inputs[1:], strict=True)]

        # 3. Output error (BP1): δ^L = ∇_a C ⊙ σ′(z^L), or the short form where σ′ cancels.
        self._expect_same_shape(y, inputs[-1])
        n = x.shape[:-1].numel() or 1  # no samples: every sum over them is 0
        short = self._cost_of_weighted_input()
        if short is None:
            deltas = [output_error(self.cost.derivative(inputs[-1], y) * (1 / n), sigma_prime[-1])]
        else:
            deltas = [short.derivative(zs[-1], y) * (1 / n)]

        # 4. Backpropagate the error (BP2): δ^l = ((w^{l+1})ᵀ δ^{l+1}) ⊙ σ′(z^l), for l = L−1, …, 2.
        for w_next, s in zip(self.weights[:0:-1], sigma_prime[-2::-1], strict=True):
            deltas.insert(0, hidden_error(w_next, deltas[0], s))

        # 5. Output (BP3, BP4): ∂C/∂b^l = δ^l and ∂C/∂w^l = δ^l (a^{l-1})ᵀ.
        return Gradients(
            weights=[weight_gradient(delta, a) for delta, a in zip(deltas, inputs[:-1], strict=True)],
            biases=[bias_gradient(delta) for delta in deltas],
            deltas=deltas,
        )

    @torch.inference_mode()
    def mean_cost(self, x: Tensor, y: Tensor) -> Tensor:
        """C, the mean over the samples, ``()``; the short form in z where there is one, finite at any z."""
        a = x
        for w, b, f in zip(self.weights, self.biases, self.activations, strict=True):
            z = torch.nn.functional.linear(a, w, b)
            a = f.function(z)
        self._expect_same_shape(y, a)
        short = self._cost_of_weighted_input()
        return (self.cost.value(a, y) if short is None else short.value(z, y)).mean()

    @torch.inference_mode()
    def update(
        self, x: Tensor, y: Tensor, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        """One step of gradient descent on one mini-batch: w → w − η ∂C/∂w and b → b − η ∂C/∂b.

        Args:
            x, y: the mini-batch, as in `backprop`.
            learning_rate: η.
            momentum: μ. With one, v → μ v + ∂C/∂w and w → w − η v (as `torch.optim.SGD`; the book's v is −η times it).
            weight_decay: λ/n of an L2 term λ/2n Σw² in the cost; it shrinks weights, not biases.

        Source: chapter 1, equations (16), (17); chapter 3, equations (93) to (95), (107), (108).
        """
        gradients = self.backprop(x, y)
        if weight_decay:
            for gradient, w in zip(gradients.weights, self.weights, strict=True):
                gradient.add_(w, alpha=weight_decay)
        steps = gradients.weights + gradients.biases
        if momentum:
            self.velocities = self.velocities or [torch.zeros_like(step) for step in steps]
            steps = [v.mul_(momentum).add_(step) for v, step in zip(self.velocities, steps, strict=True)]
        for parameter, step in zip(self.weights + self.biases, steps, strict=True):
            parameter.sub_(step, alpha=learning_rate)

    def sgd(
        self, x: Tensor, y: Tensor, batch_size: int = 10, learning_rate: float = 3.0, order: Tensor | None = None
    ) -> None:
        """Stochastic gradient descent: one epoch of mini-batches.

        Args:
            x: the inputs, ``(N, sizes[0])``.
            y: the desired outputs, ``(N, sizes[-1])``.
            batch_size: samples a mini-batch; the last one has what is left.
            learning_rate: η.
            order: a permutation of the N samples; a random one where it is None.
        """
        order = torch.randperm(len(x), device=x.device) if order is None else order
        for batch in order.split(batch_size):
            self.update(x[batch], y[batch], learning_rate)

    @torch.inference_mode()
    def evaluate(self, x: Tensor, labels: Tensor) -> int:
        """How many of the samples ``(N, sizes[0])`` have their largest output at their label ``(N,)``.

        Raises:
            ValueError: not one label a sample.
        """
        if labels.shape != x.shape[:-1]:
            expected, found = tuple(x.shape[:-1]), tuple(labels.shape)
            raise ValueError(f"labels: expected the shape {expected}, found {found}")
        return int((self.feedforward(x).argmax(-1) == labels).sum())

    def _cost_of_weighted_input(self) -> Cost | None:
        last = self.activations[-1]
        # By more than its name: an activation of one's own may be called "sigmoid" too.
        return self.cost.of_weighted_input.get(last.name) if last == ACTIVATIONS.get(last.name) else None

    @staticmethod
    def _expect_same_shape(y: Tensor, a: Tensor) -> None:
        if y.shape != a.shape:
            raise ValueError(f"y: expected the shape {tuple(a.shape)} of the outputs, found {tuple(y.shape)}")
