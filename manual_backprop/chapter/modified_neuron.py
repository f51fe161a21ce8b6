"""The chapter's two exercises on the equations: one neuron with f(z) ≠ σ(z), and neurons that are all linear.

Source: chapter 2, exercises "Backpropagation with a single modified neuron" and "Backpropagation with linear neurons".
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manual_backprop import functional
from manual_backprop.activations import Activation, per_neuron, sigmoid
from manual_backprop.equations import bias_gradient, hidden_error, output_error, weight_gradient
from manual_backprop.feedforward import layers
from manual_backprop.network import Network
from manual_backprop.validation import Report, validate

SIZES = (2, 3, 2)

softplus = Activation("softplus", torch.nn.functional.softplus, torch.sigmoid, needs="z")
"""f(z) = ln(1 + e^z), with f′(z) = σ(z): the modified neuron of the exercise, which leaves f open."""


@dataclass(frozen=True)
class Exercise:
    """A network of one hidden layer; the activations of its two layers, and how the equations read in it."""

    name: str
    hidden: str | Activation
    output: str | Activation
    equations: dict[str, str]


UNCHANGED = {
    "BP1": "δ^L = ∇_a C ⊙ σ′(z^L)",
    "BP2": "δ^l = ((w^{l+1})ᵀ δ^{l+1}) ⊙ σ′(z^l)",
    "BP3": "∂C/∂b^l_j = δ^l_j",
    "BP4": "∂C/∂w^l_jk = a^{l-1}_k δ^l_j",
}

EXERCISES = (
    Exercise(
        "neuron 2 of the hidden layer is f",
        per_neuron(["sigmoid", softplus, "sigmoid"]),
        "sigmoid",
        {"BP2": "δ^l_2 = Σ_k w^{l+1}_k2 δ^{l+1}_k f′(z^l_2)"},
    ),
    Exercise(
        "neuron 2 of the output layer is f",
        "sigmoid",
        per_neuron(["sigmoid", softplus]),
        {"BP1": "δ^L_2 = ∂C/∂a^L_2 f′(z^L_2)"},
    ),
    Exercise(
        "all neurons are linear, σ′ = 1",
        "identity",
        "identity",
        {"BP1": "δ^L = ∇_a C", "BP2": "δ^l = (w^{l+1})ᵀ δ^{l+1}"},
    ),
)


@dataclass(frozen=True)
class Equation:
    """An equation in an exercise.

    Args:
        reads: as it must read there.
        unchanged: the largest error of the equation as the chapter has it, held against autograd.
        exercise: the same for the equation as it reads here.
    """

    code: str
    reads: str
    unchanged: float
    exercise: float

    @property
    def changes(self) -> bool:
        """Whether the chapter's equation is wrong here."""
        return self.unchanged > 1e-6


def equations(exercise: Exercise, samples: int = 5, seed: int = 0) -> list[Equation]:
    """BP1 at the output layer and BP2 to BP4 at the hidden one, each given what is right before it.

    Once with σ′ everywhere, and once with the derivatives of the exercise's own neurons.
    """
    network, x, y = _network_and_batch(exercise, samples, seed)
    deltas, grad_ws, grad_bs = _by_autograd(network, x, y)
    zs, activations = _feedforward(network, x)
    grad_a = network.cost.derivative(activations[-1], y) / samples
    book = [torch.as_tensor(sigmoid.derivative_at(z)) for z in zs]
    own = [f.derivative_at(z) for f, z in zip(network.activations, zs, strict=True)]
    w_next = network.weights[1]
    # There is no derivative of an activation in BP3 and BP4: they have one form.
    forms = {
        "BP1": (deltas[1], output_error(grad_a, book[1]), output_error(grad_a, own[1])),
        "BP2": (deltas[0], hidden_error(w_next, deltas[1], book[0]), hidden_error(w_next, deltas[1], own[0])),
        "BP3": (grad_bs[0], *[bias_gradient(deltas[0])] * 2),
        "BP4": (grad_ws[0], *[weight_gradient(deltas[0], x)] * 2),
    }
    reads = UNCHANGED | exercise.equations
    return [Equation(code, reads[code], _gap(right, a), _gap(right, b)) for code, (right, a, b) in forms.items()]


def validated(exercise: Exercise, skip: Sequence[str] = (), seed: int = 0) -> Report:
    """The backward pass of the exercise's network, our layers' own, asked by every probe of `validate`.

    Args:
        skip: codes of rules to leave out, as in `validate`.
        seed: of the weights and the mini-batch.
    """

    def network(x: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
        hidden = functional.linear_activation(x, w2, b2, exercise.hidden)
        return functional.linear_activation(hidden, w3, b3, exercise.output)

    net, x, _ = _network_and_batch(exercise, samples=5, seed=seed)
    (w2, w3), (b2, b3) = net.weights, net.biases
    inputs = tuple(tensor.requires_grad_() for tensor in (x, w2, b2, w3, b3))
    return validate(network, inputs, batch_dim=0, skip=tuple(skip), seed=seed)


def _network_and_batch(exercise: Exercise, samples: int, seed: int) -> tuple[Network, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(SIZES, exercise.hidden, output_activation=exercise.output, dtype=torch.float64)
        x, y = (torch.rand(samples, size, dtype=torch.float64) for size in (SIZES[0], SIZES[-1]))
    return network, x, y


def _feedforward(network: Network, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The z^l and the a^l of layers 2 and 3."""
    passed = list(layers(network.weights, network.biases, network.activations, x))
    return [z for z, _ in passed], [a for _, a in passed]


def _by_autograd(network: Network, x: Tensor, y: Tensor) -> list[tuple[Tensor, ...]]:
    """∂C/∂z, ∂C/∂w and ∂C/∂b of both layers, from torch alone."""
    twin = copy.copy(network)
    twin.weights, twin.biases = ([p.clone().requires_grad_() for p in ps] for ps in (network.weights, network.biases))
    zs, activations = _feedforward(twin, x)
    cost = twin.cost.value(activations[-1], y).mean()
    groups = (zs, twin.weights, twin.biases)
    return [torch.autograd.grad(cost, group, retain_graph=True) for group in groups]


def _gap(right: Tensor, found: Tensor) -> float:
    return float((right - found).abs().max())
