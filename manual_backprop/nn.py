"""Drop-in modules: `torch.nn.Linear` with an activation and a hand-written backward pass, and the costs.

The layers are subclasses of `torch.nn.Linear`: their parameters, initialisation, random stream and ``state_dict`` are
those of the original, and only ``forward`` differs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from manual_backprop import functional
from manual_backprop.activations import Activation, activation_named, identity, relu, sigmoid, tanh
from manual_backprop.costs import Cost, cost_named


class LinearActivation(torch.nn.Linear):
    """a = σ(input @ weightᵀ + bias), with BP1 to BP4 as its backward pass.

    Args:
        in_features: i.
        out_features: o.
        activation: a name in `ACTIVATIONS`, or an `Activation` of one's own.
        bias, device, dtype: as in `torch.nn.Linear`.

    Shape: input ``(*, i)``, output ``(*, o)``.

    Attributes: ``weight`` ``(o, i)`` and ``bias`` ``(o,)``, initialised as in `torch.nn.Linear`.

    Raises:
        ValueError: an unknown activation.
        RuntimeError: at the call, an input whose features, dtype or device are not those of the layer; the message
            names the layer, what it expects, what it found, and what torch says of it.

    Example:
        >>> LinearActivation(4, 3, "tanh")
        LinearActivation(in_features=4, out_features=3, bias=True, activation=tanh)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Activation,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation_named(activation)

    def forward(self, input: Tensor) -> Tensor:
        # Looked into only after torch has refused, so that an input that fits pays for no check.
        try:
            return functional.linear_activation(input, self.weight, self.bias, self.activation)
        except (RuntimeError, TypeError) as error:
            if misfit := _misfit(self, input):
                raise type(error)(f"{misfit} ({error})") from error
            raise

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


def _misfit(layer: torch.nn.Linear, input: Any) -> str | None:
    """What about the input does not fit the layer, in one line; None where all of it fits."""
    weight = layer.weight
    cast = functional.autocast_is_on(weight.device) and functional.autocast_casts(input)
    if not isinstance(input, Tensor):
        expected, found = "a tensor", type(input).__name__
    elif input.shape[-1:] != weight.shape[-1:]:
        expected, found = f"input of {layer.in_features} features", str(tuple(input.shape))
    elif input.dtype != weight.dtype and not cast:
        expected, found = f"input of {weight.dtype}", str(input.dtype)
    elif input.device != weight.device:
        expected, found = f"input on {weight.device}", str(input.device)
    else:
        return None
    sizes = f"in_features={layer.in_features}, out_features={layer.out_features}"
    return f"{type(layer).__name__}({sizes}): expected {expected}, found {found}"


class _NamedLinear(LinearActivation):
    """A `LinearActivation` whose class says which activation it has."""

    _activation: Activation

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, self._activation, bias, device, dtype)

    def extra_repr(self) -> str:
        return torch.nn.Linear.extra_repr(self)


class Linear(_NamedLinear):
    """`torch.nn.Linear` with a hand-written backward pass: the linear neuron, a = z, σ′ = 1."""

    _activation = identity


class LinearSigmoid(_NamedLinear):
    """`torch.nn.Linear` followed by `torch.nn.Sigmoid`, as one layer: a = σ(z), σ′ = a(1 − a).

    Example:
        >>> LinearSigmoid(4, 3)(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    _activation = sigmoid


class LinearTanh(_NamedLinear):
    """`torch.nn.Linear` followed by `torch.nn.Tanh`, as one layer: a = tanh(z), tanh′ = 1 − a²."""

    _activation = tanh


class LinearReLU(_NamedLinear):
    """`torch.nn.Linear` followed by `torch.nn.ReLU`, as one layer: a = max(0, z), with derivative 0 at 0."""

    _activation = relu


# The input size of a lazy layer is that of the first input: `torch.nn.LazyLinear` makes the parameters then, and the
# layer becomes one of the class named.


class LazyLinear(torch.nn.LazyLinear, Linear):
    """A `Linear` that takes its ``in_features`` from its first input, as `torch.nn.LazyLinear` does."""

    cls_to_become = Linear


class LazyLinearSigmoid(torch.nn.LazyLinear, LinearSigmoid):
    """A `LinearSigmoid` that takes its ``in_features`` from its first input, as `torch.nn.LazyLinear` does.

    Example:
        >>> layer = LazyLinearSigmoid(3)
        >>> _ = layer(torch.zeros(2, 4))
        >>> layer
        LinearSigmoid(in_features=4, out_features=3, bias=True)
    """

    cls_to_become = LinearSigmoid


class LazyLinearTanh(torch.nn.LazyLinear, LinearTanh):
    """A `LinearTanh` that takes its ``in_features`` from its first input, as `torch.nn.LazyLinear` does."""

    cls_to_become = LinearTanh


class LazyLinearReLU(torch.nn.LazyLinear, LinearReLU):
    """A `LinearReLU` that takes its ``in_features`` from its first input, as `torch.nn.LazyLinear` does."""

    cls_to_become = LinearReLU


class MLP(torch.nn.Sequential):
    """A stack of `LinearActivation` layers.

    Args:
        sizes: neurons a layer, the inputs first: ``[784, 30, 10]`` has two layers of weights.
        activation: of every layer but the last.
        output_activation: of the last layer; the same where it is None.
        bias, device, dtype: as in `torch.nn.Linear`.

    Shape: input ``(*, sizes[0])``, output ``(*, sizes[-1])``.

    Raises:
        ValueError: fewer than two sizes, or an unknown activation.

    Example:
        >>> MLP([784, 30, 10])(torch.zeros(5, 784)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Activation = "sigmoid",
        output_activation: str | Activation | None = None,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected at least an input and an output size, found {list(sizes)}")
        last = activation if output_activation is None else output_activation
        activations = [activation] * (len(sizes) - 2) + [last]
        super().__init__(
            *(
                LinearActivation(i, o, f, bias, device, dtype)
                for (i, o), f in zip(pairwise(sizes), activations, strict=True)
            )
        )

    def __getitem__(self, index: Any) -> Any:
        """A layer, or a `torch.nn.Sequential` of those of a slice."""
        layers = list(self)[index]
        return torch.nn.Sequential(*layers) if isinstance(index, slice) else layers


class NetworkCost(torch.nn.Module):
    """An `MLP` and its cost as one autograd node; see `functional.network_cost`.

    Args:
        network: an `MLP`; its own ``forward`` (and hooks on its layers) are not called.
        cost, reduction: as in `functional.network_cost`.

    Shape: input ``(*, sizes[0])``, target ``(*, sizes[-1])``, the cost ``()``.

    Raises:
        TypeError: at the call, a module in ``network`` that is no `LinearActivation`.

    Example:
        >>> cost = NetworkCost(MLP([784, 30, 10]))
        >>> cost(torch.zeros(5, 784), torch.zeros(5, 10)).backward()
    """

    def __init__(self, network: MLP, cost: str | Cost = "quadratic", reduction: str = "mean") -> None:
        super().__init__()
        self.network, self.cost, self.reduction = network, cost_named(cost), reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        layers = [_expect_layer(module) for module in self.network]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        activations = [layer.activation for layer in layers]
        return functional.network_cost(input, target, weights, biases, activations, self.cost, self.reduction)

    def extra_repr(self) -> str:
        return f"cost={self.cost}, reduction={self.reduction!r}"


def _expect_layer(module: torch.nn.Module) -> LinearActivation:
    if not isinstance(module, LinearActivation):
        raise TypeError(f"network: expected layers of manual_backprop alone, found {type(module).__name__}")
    return module


class _CostModule(torch.nn.Module):
    """A cost as a module. ``weight`` is a buffer, as in `torch.nn.BCELoss`: it moves with the module."""

    weight: Tensor | None

    def __init__(self, reduction: str = "mean", weight: Tensor | None = None) -> None:
        super().__init__()
        self.reduction = reduction
        self.register_buffer("weight", weight)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class QuadraticCost(_CostModule):
    """C = 1/(2n) Σ_x ‖y − a‖²; see `functional.quadratic_cost`, also for its relation to `torch.nn.MSELoss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.quadratic_cost(input, target, self.reduction, self.weight)


class CrossEntropyCost(_CostModule):
    """C = −1/n Σ_x Σ_j [y ln a + (1 − y) ln(1 − a)] of outputs a in [0, 1]; see `functional.cross_entropy_cost`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy_cost(input, target, self.reduction, self.weight)


class SigmoidCrossEntropyCost(_CostModule):
    """The cross-entropy of a = σ(z) as a function of z; see `functional.sigmoid_cross_entropy_cost`."""

    pos_weight: Tensor | None

    def __init__(self, reduction: str = "mean", weight: Tensor | None = None, pos_weight: Tensor | None = None) -> None:
        super().__init__(reduction, weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return functional.sigmoid_cross_entropy_cost(input, target, self.reduction, self.weight, self.pos_weight)
