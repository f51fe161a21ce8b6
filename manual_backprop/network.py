"""The backpropagation algorithm as the chapter states it: no autograd anywhere."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manual_backprop import kernels
from manual_backprop.activations import Activation, activation_named
from manual_backprop.costs import Cost, cost_named
from manual_backprop.equations import FEW, bias_gradient, hidden_error, output_error, weight_gradient
from manual_backprop.feedforward import layers

GATHERED = 2**18
"""Numbers that are gathered for the mini-batches to come, which stay in the cache of a core: 1 MiB of float32."""


class Gradients(NamedTuple):
    """The output of backpropagation, by layer: ∂C/∂w^l ``(o, i)``, ∂C/∂b^l ``(o,)``, the errors δ^l ``(*, o)``."""

    weights: list[Tensor]
    biases: list[Tensor]
    deltas: list[Tensor]


class _Buffers(NamedTuple):
    """Where a mini-batch of N samples is computed: a list has an entry a layer, of shape ``(N, o)``."""

    ones: Tensor | None  # (N,), for few samples
    z: list[Tensor]  # a is written over z
    deltas: list[Tensor]
    columns: list[Tensor]  # views of the deltas, (o, N)


class Network:
    """A feedforward network that learns by gradient descent, the gradient by BP1 to BP4.

    Args:
        sizes: neurons a layer, the inputs first.
        activation: of every layer but the last: a name in `ACTIVATIONS`, or an `Activation`.
        cost: "quadratic" or "cross_entropy", or a `Cost`.
        output_activation: of the last layer; the same as `activation` where it is None.
        device, dtype: of the weights and biases.
        compile: let `sgd` run many steps in one call of C++ where the network is so small that Python would take most
            of the time (`kernels/cpp.py` says which); it needs a C++ compiler, and does without after a warning. On
            CUDA: let it capture the step as a CUDA graph (`kernels/cuda_graph.py`).

    Attributes:
        weights: the w^l, ``(o, i)`` each; drawn from N(0, 1), as the biases, from torch's global generator.
        biases: the b^l, ``(o,)`` each.
        velocities: of the weights, then of the biases; empty until there is momentum.

    Nothing is recorded by autograd, and what is returned are ordinary tensors. C is the mean over the samples. Training
    keeps its z, a and δ in buffers, one set for each size of a mini-batch, and by ATen, with the ready activations that
    need no z and their costs, allocates nothing after the first step of that size; oneDNN's products are new tensors.

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
        compile: bool = False,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected at least an input and an output size, found {list(sizes)}")
        last = activation if output_activation is None else output_activation
        self.activations = [activation_named(activation)] * (len(sizes) - 2) + [activation_named(last)]
        self.cost = cost_named(cost)
        self.weights = [torch.randn(o, i, device=device, dtype=dtype) for i, o in pairwise(sizes)]
        self.biases = [torch.randn(o, device=device, dtype=dtype) for o in sizes[1:]]
        self.velocities: list[Tensor] = []
        self.compile = compile
        self._buffers: dict[tuple, _Buffers] = {}
        self._gathered: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_buffers": {},
            "_gathered": None,
        }  # views no more: deepcopy and pickle would part δ from δᵀ

    @torch.no_grad()
    def feedforward(self, x: Tensor) -> Tensor:
        """a^L for the input x: ``(*, sizes[0])`` to ``(*, sizes[-1])``."""
        return self._last(self.activations, x)

    @torch.no_grad()
    def backprop(self, x: Tensor, y: Tensor) -> Gradients:
        """The gradient of the cost, the mean over the samples: the five steps of the chapter.

        Args:
            x: the inputs, ``(*, sizes[0])``.
            y: the desired outputs, ``(*, sizes[-1])``.

        Raises:
            ValueError: y has not the shape of the outputs (nothing is broadcast).
        """
        samples = x.shape[:-1]
        self._expect_outputs(y, samples)
        rows = samples.numel()
        buffers = self._new_buffers(rows)  # not those of the training, so that several threads may ask at once
        inputs = self._inputs_and_errors(x.reshape(rows, x.shape[-1]), y.reshape(rows, y.shape[-1]), buffers)
        mean = 1 / max(1, rows)

        # 5. Output (BP3, BP4): ∂C/∂b^l = δ^l and ∂C/∂w^l = δ^l (a^{l-1})ᵀ.
        of_weights = zip(self.weights, buffers.deltas, inputs, strict=True)
        of_biases = zip(self.biases, buffers.deltas, strict=True)
        return Gradients(
            weights=[weight_gradient(delta, a, into=torch.empty_like(w), scale=mean) for w, delta, a in of_weights],
            biases=[bias_gradient(delta, into=torch.empty_like(b), scale=mean) for b, delta in of_biases],
            deltas=[(delta * mean).reshape(*samples, delta.shape[-1]) for delta in buffers.deltas],
        )

    def _inputs_and_errors(self, x: Tensor, y: Tensor, buffers: _Buffers) -> list[Tensor]:
        """Steps 1 to 4 for rows of samples: returns the a^{l-1} that come into the layers, and leaves N times the δ^l
        of the mean in ``buffers.deltas``."""
        cost, activations = self.cost.shortened(self.activations)
        weights, deltas = self.weights, buffers.deltas
        last = len(weights) - 1

        # 1. Input: a^1 = x.
        inputs, sigma_primes = [x], []

        # 2. Feedforward: z^l = w^l a^{l-1} + b^l and a^l = σ(z^l), written over z^l unless that is needed.
        passed = layers(weights, self.biases, activations, x, keep_z=False, out=buffers.z)
        for f, (value, a) in zip(activations, passed, strict=True):
            inputs.append(a)
            sigma_primes.append(f.derivative_of(value))

        # 3. Output error (BP1): δ^L = ∇_a C ⊙ σ′(z^L); in the short form of the cost, a^L is z^L, and σ′ is 1.
        output_error(cost.gradient(inputs.pop(), y, deltas[last]), sigma_primes[last], deltas[last])

        # 4. Backpropagate the error (BP2): δ^l = ((w^{l+1})ᵀ δ^{l+1}) ⊙ σ′(z^l), for l = L−1, …, 2.
        for layer in range(last - 1, -1, -1):
            hidden_error(weights[layer + 1], deltas[layer + 1], sigma_primes[layer], deltas[layer])
        return inputs

    def _last(self, activations: Sequence[Activation], x: Tensor) -> Tensor:
        """a^L of a network with these activations."""
        for _, a in layers(self.weights, self.biases, activations, x, keep_z=False):
            last = a
        return last

    @torch.no_grad()
    def mean_cost(self, x: Tensor, y: Tensor) -> Tensor:
        """C, the mean over the samples, ``()``; the short form in z where there is one, finite at any z."""
        return self.outputs_and_cost(x, y)[1]

    @torch.no_grad()
    def outputs_and_cost(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`feedforward` and `mean_cost` in one."""
        self._expect_outputs(y, x.shape[:-1])
        cost, activations = self.cost.shortened(self.activations)
        a, output = self._last(activations, x), self.activations[-1]
        return a if activations[-1] is output else output.function(a), cost.value(a, y).mean()

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
        samples = x.shape[:-1]
        self._expect_outputs(y, samples)
        rows = samples.numel()
        x, y = x.reshape(rows, x.shape[-1]), y.reshape(rows, y.shape[-1])
        self._start_moving(momentum)
        self._descend(x, y, self._buffers_for(rows), float(learning_rate), momentum, weight_decay)

    def _start_moving(self, momentum: float) -> None:
        """Velocities of 0 where there is momentum and there are none yet."""
        if momentum and not self.velocities:
            with torch.inference_mode(False):  # ordinary tensors, because they are the caller's too
                self.velocities = [torch.zeros_like(parameter) for parameter in self.weights + self.biases]

    def _descend(
        self, x: Tensor, y: Tensor, buffers: _Buffers, learning_rate: float, momentum: float, weight_decay: float
    ) -> None:
        inputs, mean = self._inputs_and_errors(x, y, buffers), 1 / max(1, x.shape[0])
        weights, biases, (ones, _, *errors) = self.weights, self.biases, buffers

        # 5. Output (BP3, BP4) and the step, w → w − η (∂C/∂w + λ/n w), in one product each.
        if not momentum:
            keep, step = 1 - learning_rate * weight_decay, -learning_rate * mean
            for w, b, delta, columns, a in zip(weights, biases, *errors, inputs, strict=True):
                weight_gradient(delta, a, into=w, keep=keep, scale=step, columns=columns)
                bias_gradient(delta, into=b, keep=1.0, scale=step, columns=columns, ones=ones)
            return
        parameters, count = weights + biases, len(weights)
        for v, w, delta, columns, a in zip(self.velocities[:count], weights, *errors, inputs, strict=True):
            weight_gradient(delta, a, into=v, keep=momentum, scale=mean, columns=columns)
            if weight_decay:
                v.add_(w, alpha=weight_decay)
        for v, delta, columns in zip(self.velocities[count:], *errors, strict=True):
            bias_gradient(delta, into=v, keep=momentum, scale=mean, columns=columns, ones=ones)
        for parameter, v in zip(parameters, self.velocities, strict=True):
            parameter.sub_(v, alpha=learning_rate)

    @torch.inference_mode()
    def sgd(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int = 10,
        learning_rate: float | Sequence[float] = 3.0,
        order: Tensor | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        """Stochastic gradient descent: one epoch of mini-batches.

        Args:
            x: the inputs, ``(N, sizes[0])``.
            y: the desired outputs, ``(N, sizes[-1])``.
            batch_size: samples a mini-batch, at least 1; the last one has what is left.
            learning_rate: η, or one for each mini-batch.
            order: the samples in the order in which they are taken; a random permutation of all N where it is None.
            momentum, weight_decay: as in `update`.

        Raises:
            ValueError: x or y has not the shape of rows of inputs and outputs, `batch_size` is below 1, or there is not
                one learning rate a mini-batch.
        """
        inputs = self.weights[0].shape[1]
        if x.shape[1:] != (inputs,):
            raise ValueError(f"x: expected the shape (N, {inputs}), found {tuple(x.shape)}")
        self._expect_outputs(y, x.shape[:1])
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        order = torch.randperm(len(x), device=x.device) if order is None else order
        rates = _of_each(learning_rate, -(-len(order) // batch_size))
        self._start_moving(momentum)
        cost, _ = self.cost.shortened(self.activations)
        network = self.weights, self.biases, self.velocities, self.activations, cost
        if self.compile and kernels.sgd(*network, x, y, batch_size, rates, order, momentum, weight_decay):
            return
        descend = self._descend
        if self.compile and x.is_cuda:
            descend = kernels.captured(self, descend, lambda: self.weights + self.biases + self.velocities)
        sizes = {min(batch_size, len(order)), len(order) % batch_size} - {0}
        buffers = {samples: self._buffers_for(samples) for samples in sizes}
        for (x_batch, y_batch), rate in zip(self._batches(x, y, order, batch_size), rates, strict=True):
            descend(x_batch, y_batch, buffers[x_batch.shape[0]], rate, momentum, weight_decay)

    def _batches(self, x: Tensor, y: Tensor, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The mini-batches, in a buffer where one index_select has gathered as many as fit."""
        size = batch_size * max(1, GATHERED // max(1, batch_size * x.shape[1]))
        kinds = [(size, values.shape[1], values.dtype, values.device) for values in (x, y)]
        if self._gathered is None or kinds != [(*rows.shape, rows.dtype, rows.device) for rows in self._gathered]:
            self._gathered = x.new_empty(size, x.shape[1]), y.new_empty(size, y.shape[1])
        for samples in order.split(size) if len(order) else ():
            rows = [buffer[: len(samples)] for buffer in self._gathered]
            for values, row in zip((x, y), rows, strict=True):
                torch.index_select(values, 0, samples, out=row)
            yield from zip(*(row.split(batch_size) for row in rows), strict=True)

    @torch.no_grad()
    def evaluate(self, x: Tensor, labels: Tensor) -> int:
        """How many of the samples ``(N, sizes[0])`` have their largest output at their label ``(N,)``.

        Raises:
            ValueError: not one label a sample.
        """
        if labels.shape != x.shape[:-1]:
            expected, found = tuple(x.shape[:-1]), tuple(labels.shape)
            raise ValueError(f"labels: expected the shape {expected}, found {found}")
        return int((self.feedforward(x).argmax(-1) == labels).sum())

    def _expect_outputs(self, y: Tensor, samples: Sequence[int]) -> None:
        outputs = (*samples, len(self.biases[-1]))
        if tuple(y.shape) != outputs:
            raise ValueError(f"y: expected the shape {outputs} of the outputs, found {tuple(y.shape)}")

    def _buffers_for(self, samples: int) -> _Buffers:
        """The buffers for a mini-batch of so many samples."""
        w = self.weights[0]
        kind = samples, w.dtype, w.device
        if kind not in self._buffers:
            if len(self._buffers) == 2:  # an epoch has two: the full mini-batches, and the last one
                self._buffers.clear()
            self._buffers[kind] = self._new_buffers(samples)
        return self._buffers[kind]

    def _new_buffers(self, n: int) -> _Buffers:
        w = self.weights[0]

        def rows() -> list[Tensor]:
            return [w.new_empty(n, len(b)) for b in self.biases]

        deltas = rows()
        return _Buffers(w.new_ones(n) if n <= FEW else None, rows(), deltas, [delta.mT for delta in deltas])


def _of_each(learning_rate: Any, batches: int) -> list[float]:
    """The learning rate of each mini-batch, from one number or a sequence, of Python's, NumPy's or torch's."""
    one = getattr(learning_rate, "ndim", 1) == 0 or not isinstance(learning_rate, Iterable)  # every tensor is Iterable
    rates = [float(learning_rate)] * batches if one else [float(rate) for rate in learning_rate]
    if len(rates) != batches:
        raise ValueError(f"learning_rate: expected one, or {batches}, found {len(rates)}")
    return rates
