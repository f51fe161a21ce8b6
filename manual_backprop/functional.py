"""The Functions as functions, with the signatures of `torch.nn.functional`. Nothing else applies a Function."""

import torch
from torch import Tensor

from manual_backprop import functions
from manual_backprop.activations import Activation, activation_named, identity, relu, sigmoid, tanh
from manual_backprop.costs import Cost, cross_entropy, quadratic, reduce, sigmoid_cross_entropy


def linear_activation(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | Activation) -> Tensor:
    """a = σ(input @ weightᵀ + bias), with BP1 to BP4 as its backward pass.

    Args:
        input: ``(*, i)``, any floating dtype.
        weight: ``(o, i)``, of the same dtype.
        bias: ``(o,)``, of the same dtype, or None.
        activation: a name in `ACTIVATIONS`, or an `Activation` of one's own.

    Returns:
        ``(*, o)``, of the same dtype.

    Raises:
        RuntimeError: shapes or dtypes that do not fit (the words are those of `torch.nn.functional.linear`).
        ValueError: an unknown activation, or a weight that is not a matrix.

    Example:
        >>> linear_activation(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0]]), None, "identity")
        tensor([11.])

    Source: chapter 2, equations (25), (BP1) to (BP4).
    """
    activation = activation_named(activation)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected a matrix (out_features, in_features), found shape {tuple(weight.shape)}")
    if torch.is_autocast_enabled(input.device.type):
        input, weight, bias = _autocast(input), _autocast(weight), None if bias is None else _autocast(bias)
    if activation.needs == "z":
        z = functions.linear_activation.apply(input, weight, bias, identity)
        return functions.activation_of.apply(z, activation)
    return functions.linear_activation.apply(input, weight, bias, activation)


def _autocast(x: Tensor) -> Tensor:
    """An operand in autocast's dtype, as `torch.nn.functional.linear` takes it; float64 is left alone.

    Cast here, by a node of its own, so that a backward outside of autocast meets one dtype. (The decorators of
    `torch.amp` do the same inside a Function, and do not work with setup_context.)
    """
    return x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(x.device.type))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear neuron, a = z = input @ weightᵀ + bias. Shapes and errors as in `linear_activation`."""
    return linear_activation(input, weight, bias, identity)


def linear_sigmoid(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """a = σ(input @ weightᵀ + bias) with σ(z) = 1/(1 + e^{−z}). Shapes and errors as in `linear_activation`."""
    return linear_activation(input, weight, bias, sigmoid)


def linear_tanh(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """a = tanh(input @ weightᵀ + bias). Shapes and errors as in `linear_activation`."""
    return linear_activation(input, weight, bias, tanh)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """a = max(0, input @ weightᵀ + bias), with derivative 0 at 0. Shapes and errors as in `linear_activation`."""
    return linear_activation(input, weight, bias, relu)


def quadratic_cost(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """C = 1/(2n) Σ_x ‖y − a‖², the book's quadratic cost; ∂C/∂a = (a − y)/n.

    With o outputs it is o/2 times `torch.nn.functional.mse_loss`, which is a mean over all n·o elements without the ½.

    Args:
        input: a, the outputs, ``(*, o)``; the leading dimensions are the n samples, a single one where there are none.
        target: y, of the same shape; where the dtypes differ, both are promoted to the wider.
        reduction: "mean" or "sum" over the samples, or "none" for the cost of each, ``(*,)``.

    Raises:
        ValueError: shapes that differ (nothing is broadcast), no dimension, or an unknown reduction.

    Example:
        >>> quadratic_cost(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor(0.2500)

    Source: chapter 1, equation (6); chapter 2, equation (26).
    """
    return _cost(input, target, quadratic, reduction)


def cross_entropy_cost(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """C = −1/n Σ_x Σ_j [y_j ln a_j + (1 − y_j) ln(1 − a_j)]; ∂C/∂a = (a − y)/(n a(1 − a)).

    With o outputs it is o times `torch.nn.functional.binary_cross_entropy`. Arguments, shapes and errors as in
    `quadratic_cost`, with a in [0, 1].

    Example:
        >>> cross_entropy_cost(torch.tensor([0.5]), torch.tensor([1.0]))
        tensor(0.6931)

    Source: chapter 3, equation (63).
    """
    return _cost(input, target, cross_entropy, reduction)


def sigmoid_cross_entropy_cost(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The cross-entropy of a = σ(z) computed from z, where δ^L = ∂C/∂z = (a − y)/n has no σ′(z) left in it.

    With o outputs it is o times `torch.nn.functional.binary_cross_entropy_with_logits`. ``input`` is z; the rest as
    in `quadratic_cost`.

    Example:
        >>> sigmoid_cross_entropy_cost(torch.tensor([-10000.0]), torch.tensor([1.0]))
        tensor(10000.)

    Source: chapter 3, equations (66) to (68).
    """
    return _cost(input, target, sigmoid_cross_entropy, reduction)


def _cost(input: Tensor, target: Tensor, cost: Cost, reduction: str) -> Tensor:
    if input.shape != target.shape or input.dim() == 0:
        raise ValueError(
            f"target: expected the shape (*, outputs) of input, {tuple(input.shape)}, found {tuple(target.shape)}"
        )
    dtype = torch.promote_types(input.dtype, target.dtype)  # as the costs of torch.nn do
    return reduce(functions.cost_of.apply(input.to(dtype), target.to(dtype), cost), reduction)
