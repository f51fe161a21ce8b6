"""Activation functions: the value a = σ(z), the derivative σ′(z), and what the derivative is computed from.

A table, not a hierarchy: `ACTIVATIONS` holds the ready ones by name, and an `Activation` of one's own works everywhere
that they do.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from manual_backprop import _torch


@dataclass(frozen=True)
class Activation:
    """An activation function with its derivative written by hand.

    Args:
        name: as it is printed, and looked up in `ACTIVATIONS`.
        function: a = σ(z), elementwise, ``(*, o)`` to ``(*, o)``, in differentiable torch operations.
        derivative: σ′, ``(*, o)`` to ``(*, o)`` in differentiable torch operations, or the number that σ′ always is.
            Its argument is what `needs` names.
        needs: ``"a"`` where σ′ is computed from the activation a = σ(z), ``"z"`` where it takes the weighted input z,
            None where σ′ is constant. It decides what a layer keeps in memory for its backward pass.
        in_place: a = σ(z) written over z, where there is such a form.
        times_derivative: x ⊙ σ′ in one pass over memory, of ``(x, value, out)``, where there is such a form; it is used
            where nothing records.
        module: the same as a module of torch.
        functions: the same as functions of torch, by all their names.
        onednn: the name of the same in oneDNN.
        code: the number of the same in our C++, `kernels/layer.h`.

    Example:
        >>> softplus = Activation("softplus", torch.nn.functional.softplus, torch.sigmoid, needs="z")
        >>> softplus.derivative_at(torch.tensor([0.0]))
        tensor([0.5000])
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor | float]
    needs: Literal["a", "z"] | None
    in_place: Callable[[Tensor], Tensor] | None = None
    times_derivative: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
    module: type[torch.nn.Module] | None = None
    functions: tuple[Callable[[Tensor], Tensor], ...] = ()
    onednn: str | None = None
    code: int | None = None

    def in_place_of(self, z: Tensor) -> Tensor:
        """a = σ(z), for the caller that has no more use for z."""
        return self.function(z) if self.in_place is None else self.in_place(z)

    def split(self) -> tuple["Activation", "Activation"]:
        """(of the product, after it): σ in two, so that σ′ is computed from the output of the first.

        Where σ′ takes a, or nothing, these are (σ, identity): a layer computes σ in one with its product and may forget
        z. Where σ′ takes z, they are (identity, σ): the layer puts out z, which is kept.
        """
        return (identity, self) if self.needs == "z" else (self, identity)

    def derivative_of(self, value: Tensor) -> "Derivative":
        """σ′ as a factor of BP1 and BP2, from the value that `needs` names: the output of the first of `split`."""
        return Derivative(self, value)

    def derivative_at(self, z: Tensor, a: Tensor | None = None) -> Tensor | float:
        """σ′(z), for the caller that has z, and a = σ(z) perhaps too."""
        if self.needs != "a":
            return self.derivative(z)
        return self.derivative(self.function(z) if a is None else a)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """The ready ones are copied and saved as their names: there is one of each, and `torch.load` has to trust
        `activation_named` only, not their functions."""
        if ACTIVATIONS.get(self.name) is self:
            return activation_named, (self.name,)
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return self.name


class Derivative(NamedTuple):
    """σ′ as a factor that is not computed by itself, because σ′ and its product in one pass over memory are faster.

    Computed first and multiplied then, a step of `Network` takes 1.08 times as long at 784-30-10 on 10 samples, and
    layers of 1024 neurons some 1.015 times (float32, one thread).
    """

    activation: Activation
    value: Tensor


# Functions with names rather than lambdas, so that a module that holds an activation can be pickled. The derivatives
# have no numbers as operands: torch would make a tensor of each, which takes longer than a small product.


def sigmoid_prime(a: Tensor) -> Tensor:
    return a * (torch.ones_like(a) - a)


def tanh_prime(a: Tensor) -> Tensor:
    return torch.ones_like(a) - a * a


def relu_prime(a: Tensor) -> Tensor:
    return torch.sign(a)  # a is never negative


def identity_function(z: Tensor) -> Tensor:
    return z


def identity_prime(_: Tensor) -> float:
    return 1.0


def _in_one_pass(name: str, *numbers: float) -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """x ⊙ σ′ by one of ATen's operations, in its two forms; None where torch has it no longer."""
    new, into = _torch.operation(f"{name}.default"), _torch.operation(f"{name}.grad_input")
    if new is None or into is None:
        return None

    def times_derivative(x: Tensor, value: Tensor, out: Tensor | None) -> Tensor:
        return new(x, value, *numbers) if out is None else into(x, value, *numbers, grad_input=out)

    return times_derivative


_sigmoid_error = _in_one_pass("sigmoid_backward")
_tanh_error = _in_one_pass("tanh_backward")
_relu_error = _in_one_pass("threshold_backward", 0)


def _identity_error(x: Tensor, _: Tensor, out: Tensor | None) -> Tensor:
    return x if out is None or out is x else out.copy_(x)


sigmoid = Activation(
    "sigmoid",
    torch.sigmoid,
    sigmoid_prime,
    needs="a",
    in_place=torch.sigmoid_,
    times_derivative=_sigmoid_error,
    module=torch.nn.Sigmoid,
    functions=(torch.sigmoid, torch.nn.functional.sigmoid, torch.special.expit),
    onednn="sigmoid",
    code=0,
)
"""σ(z) = 1/(1 + e^{−z}), in (0, 1); σ′ = σ(1 − σ), at most 1/4. Chapter 1, equation (3)."""

tanh = Activation(
    "tanh",
    torch.tanh,
    tanh_prime,
    needs="a",
    in_place=torch.tanh_,
    times_derivative=_tanh_error,
    module=torch.nn.Tanh,
    functions=(torch.tanh, torch.nn.functional.tanh),
    onednn="tanh",
    code=1,
)
"""tanh(z) = 2σ(2z) − 1, in (−1, 1): a sigmoid stretched and shifted; tanh′ = 1 − tanh². Chapter 3, equation (111).

>>> z = torch.tensor([-1.0, 0.5, 2.0])
>>> bool(torch.allclose(tanh.function(z), 2 * sigmoid.function(2 * z) - 1))
True
"""

relu = Activation(
    "relu",
    torch.relu,
    relu_prime,
    needs="a",
    in_place=torch.relu_,
    times_derivative=_relu_error,
    module=torch.nn.ReLU,
    functions=(torch.relu, torch.nn.functional.relu),
    onednn=None,  # oneDNN's makes a 0 of a NaN
    code=2,
)
"""max(0, z); its derivative is 1 above 0 and 0 below, and 0 at the kink, as torch has it. Chapter 3, section
"Other models of artificial neuron"."""

identity = Activation(
    "identity",
    identity_function,
    identity_prime,
    needs=None,
    in_place=identity_function,
    times_derivative=_identity_error,
    module=torch.nn.Identity,
    onednn="none",
    code=3,
)
"""The linear neuron, a = z, with σ′ = 1. Chapter 2, exercise "Backpropagation with linear neurons"."""

ACTIVATIONS = {activation.name: activation for activation in (sigmoid, tanh, relu, identity)}
Name = Literal["sigmoid", "tanh", "relu", "identity"]
"""The names in `ACTIVATIONS`, for command lines, which want a type."""


def activation_named(activation: str | Activation) -> Activation:
    """The activation of that name, or the given `Activation` itself.

    Raises:
        ValueError: no activation of that name.
    """
    if isinstance(activation, Activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected an Activation or one of {', '.join(ACTIVATIONS)}, found {activation!r}")
    return ACTIVATIONS[activation]


def per_neuron(activations: Sequence[str | Activation]) -> Activation:
    """A layer whose neurons have an activation each: a_j = f_j(z_j), and δ_j = ∂C/∂a_j · f_j′(z_j) in BP1.

    Args:
        activations: one for each of the o neurons of the layer.

    Returns:
        An activation on ``(*, o)`` that takes σ′ from z. On a layer of another size it raises ValueError.

    Example:
        >>> one_modified = per_neuron(["sigmoid", "sigmoid", "identity"])
        >>> one_modified.function(torch.tensor([0.0, 0.0, 7.0]))
        tensor([0.5000, 0.5000, 7.0000])

    Source: chapter 2, exercise "Backpropagation with a single modified neuron".
    """
    neurons = [activation_named(activation) for activation in activations]

    def columns(z: Tensor) -> Iterable[tuple[Activation, Tensor]]:
        if z.shape[-1] != len(neurons):
            raise ValueError(f"per_neuron: expected a layer of {len(neurons)} neurons, found {z.shape[-1]}")
        return zip(neurons, z.unbind(-1), strict=True)

    def function(z: Tensor) -> Tensor:
        return torch.stack([f.function(z_j) for f, z_j in columns(z)], dim=-1)

    def derivative(z: Tensor) -> Tensor:
        # `+ zeros` because a constant derivative is a number, and stack wants tensors.
        return torch.stack([torch.zeros_like(z_j) + f.derivative_at(z_j) for f, z_j in columns(z)], dim=-1)

    return Activation(f"per_neuron({', '.join(f.name for f in neurons)})", function, derivative, needs="z")
