"""The Functions as functions, with the signatures of `torch.nn.functional`. Nothing else applies a Function."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop import _torch, functions
from manual_backprop.activations import Activation, activation_named, identity, relu, sigmoid, tanh
from manual_backprop.costs import Cost, cost_named, cross_entropy, quadratic, reduce, sigmoid_cross_entropy


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
    if autocast_is_on(weight.device):
        dtype = torch.get_autocast_dtype(weight.device.type)
        input, weight, bias = _autocast(input, dtype), _autocast(weight, dtype), _autocast(bias, dtype)
    return functions.layer(input, weight, bias, activation)


# The casts of autocast are nodes of their own, outside of the Functions, so that a backward outside of autocast meets
# one dtype. (The decorators of `torch.amp` cast inside of a Function, and do not work with setup_context.)


def autocast_is_on(device: torch.device) -> bool:
    # The first question is asked first because it is cheap; the third raises on a device without autocast, as "meta".
    return (
        _torch.autocast_is_on_somewhere()
        and torch.amp.is_autocast_available(device.type)
        and torch.is_autocast_enabled(device.type)
    )


def autocast_casts(x: Any) -> bool:
    """Whether autocast casts this argument of `torch.nn.functional.linear`: any float but float64."""
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64


def _autocast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if autocast_casts(x) else x


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


def quadratic_cost(input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """C = 1/(2n) Σ_x ‖y − a‖², the book's quadratic cost; ∂C/∂a = (a − y)/n.

    With o outputs it is o/2 times `torch.nn.functional.mse_loss`, which is a mean over all n·o elements without the ½.

    Args:
        input: a, the outputs, ``(*, o)``; the leading dimensions are the n samples, a single one where there are none.
        target: y, of the same shape; where the dtypes differ, both are promoted to the wider.
        reduction: "mean" or "sum" over the samples, or "none" for the cost of each, ``(*,)``.
        weight: w, of any shape that broadcasts to that of input, promoted likewise: the cost of a sample is then
            ½ Σ_j w_j (y_j − a_j)², and ∂C/∂a = w ⊙ (a − y)/n. A mean stays the sum over n, as in `torch.nn.BCELoss`
            (`torch.nn.functional.mse_loss` divides by Σ w where it is given one).

    Under `torch.autocast` a cost is computed in float32 where its arguments are narrower, as torch's are.

    Raises:
        ValueError: shapes that differ (only a weight is broadcast), no dimension, or an unknown reduction.

    Example:
        >>> quadratic_cost(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2))
        tensor(0.2500)

    Source: chapter 1, equation (6); chapter 2, equation (26).
    """
    return _cost(input, target, quadratic, reduction, weight)


def cross_entropy_cost(input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None) -> Tensor:
    """C = −1/n Σ_x Σ_j [y_j ln a_j + (1 − y_j) ln(1 − a_j)]; ∂C/∂a = (a − y)/(n a(1 − a)).

    With o outputs it is o times `torch.nn.functional.binary_cross_entropy`. Arguments, shapes and errors as in
    `quadratic_cost`, with a in [0, 1]; on CUDA under autocast, where torch refuses its own, it is computed in float32.

    Example:
        >>> cross_entropy_cost(torch.tensor([0.5]), torch.tensor([1.0]))
        tensor(0.6931)

    Source: chapter 3, equation (63).
    """
    return _cost(input, target, cross_entropy, reduction, weight)


def sigmoid_cross_entropy_cost(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    """The cross-entropy of a = σ(z) computed from z, where δ^L = ∂C/∂z = (a − y)/n has no σ′(z) left in it.

    With o outputs it is o times `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input: z, ``(*, o)``; this and the rest as in `quadratic_cost`.
        pos_weight: p, of any shape that broadcasts to that of input: how many times a positive output counts,
            C = −Σ_j [p_j y_j ln a_j + (1 − y_j) ln(1 − a_j)], and δ^L = (1 − y) ⊙ a − p ⊙ y ⊙ (1 − a).

    Example:
        >>> sigmoid_cross_entropy_cost(torch.tensor([-10000.0]), torch.tensor([1.0]))
        tensor(10000.)

    Source: chapter 3, equations (66) to (68).
    """
    return _cost(input, target, sigmoid_cross_entropy, reduction, weight, pos_weight)


def network_cost(
    input: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | Activation],
    cost: str | Cost = "quadratic",
    reduction: str = "mean",
) -> Tensor:
    """The cost of a network, with BP1 to BP4 of all layers in one loop as its backward pass: one autograd node.

    The same as the layers and the cost one by one, and less work for autograd. The layers do it where the node cannot:
    under `torch.compile`, transforms, forward mode and autocast, for a gradient of the target or one of a wider dtype,
    and for a second derivative.

    Args:
        input: x, ``(*, i)``.
        target: y, ``(*, o)``.
        weights, biases: the w^l ``(o, i)`` and b^l ``(o,)`` or None, of one dtype.
        activations: one a layer; sigmoid outputs under the cross-entropy take its short form in z, δ^L = a − y.
        cost: "quadratic", "cross_entropy", or a `Cost`.
        reduction: "mean" or "sum" over the samples.

    Returns:
        C, ``()``.

    Raises:
        ValueError: another reduction, an unknown activation or cost, or a target of another shape than the outputs.
        RuntimeError: shapes or dtypes that do not fit.

    Source: chapter 2, "The backpropagation algorithm".
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', found {reduction!r}")
    cost, fs = cost_named(cost).shortened([activation_named(f) for f in activations])
    if target.shape != (*input.shape[:-1], len(weights[-1])):
        expected, found = (*input.shape[:-1], len(weights[-1])), tuple(target.shape)
        raise ValueError(f"target: expected the shape {expected} of the outputs, found {found}")
    wider = target.dtype != input.dtype and torch.promote_types(input.dtype, target.dtype) != input.dtype
    recorded = torch.is_grad_enabled()  # if not, the layers do: the node may compute gradients with the cost
    if recorded and functions.plain_call() and not (wider or target.requires_grad or autocast_is_on(input.device)):
        parameters = [p for layer in zip(weights, biases, strict=True) for p in layer]
        target = target.to(input.dtype)
        return functions.NetworkCostFunction.apply(input, target, tuple(fs), cost, reduction, *parameters)
    a = input
    for w, b, f in zip(weights, biases, fs, strict=True):
        a = linear_activation(a, w, b, f)
    return _cost(a, target, cost, reduction, None)


def _cost(
    input: Tensor,
    target: Tensor,
    cost: Cost,
    reduction: str,
    weight: Tensor | None,
    pos_weight: Tensor | None = None,
) -> Tensor:
    if input.shape != target.shape or input.dim() == 0:
        raise ValueError(
            f"target: expected the shape (*, outputs) of input, {tuple(input.shape)}, found {tuple(target.shape)}"
        )
    dtype = torch.promote_types(input.dtype, target.dtype)  # the costs of torch.nn promote likewise
    if autocast_is_on(input.device):
        dtype = torch.promote_types(dtype, torch.float32)  # and so they do this
    input, target = input.to(dtype), target.to(dtype)
    if weight is None and pos_weight is None:
        return reduce(functions.cost_of.apply(input, target, cost), reduction)
    # Weights stay outside of the hand-written backward, as the 1/n does: they are factors of the cost of each output.
    each = _each_output(input, target, cost, pos_weight)
    if weight is not None:
        each = _broadcast("weight", weight, input) * each
    return reduce(each.sum(-1), reduction)


def _each_output(input: Tensor, target: Tensor, cost: Cost, pos_weight: Tensor | None) -> Tensor:
    """The cost of each output, ``(*, o)``: that of a sample which has this output alone."""

    def alone(target: Tensor) -> Tensor:
        return functions.cost_of.apply(input.unsqueeze(-1), target.unsqueeze(-1), cost)

    if pos_weight is None:
        return alone(target)
    # A cross-entropy is linear in y: C(y) = y C(1) + (1 − y) C(0), and p is a factor of the first.
    positive = _broadcast("pos_weight", pos_weight, input) * target
    return positive * alone(torch.ones_like(target)) + (1 - target) * alone(torch.zeros_like(target))


def _broadcast(name: str, weight: Tensor, input: Tensor) -> Tensor:
    try:
        return weight.expand(input.shape)
    except RuntimeError as error:
        shape, found = tuple(input.shape), tuple(weight.shape)
        raise ValueError(
            f"{name}: expected a shape that broadcasts to that of input, {shape}, found {found}"
        ) from error
