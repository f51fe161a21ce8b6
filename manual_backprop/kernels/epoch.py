"""An epoch of `Network.sgd` in one call of C++: `compiled.cpp`."""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manual_backprop.costs import Cost, quadratic, sigmoid_cross_entropy
from manual_backprop.kernels import cpp

if TYPE_CHECKING:
    from manual_backprop.network import Network


def can_run(network: "Network", x: Tensor, y: Tensor, batch_size: int, order: Tensor) -> bool:
    """Whether `sgd` takes these: dense rows of float32 or float64 on the CPU, a small network with activations and a
    cost that `compiled.cpp` knows, and a C++ compiler. What does not fit is torch's to refuse."""
    tensors = [x, y, *network.weights, *network.biases, *network.velocities]
    dtype = network.weights[0].dtype
    small = batch_size * sum(w.numel() for w in network.weights) <= cpp.LARGEST
    return (
        small
        and order.dim() == 1
        and order.dtype in (torch.int32, torch.int64)
        and bool(cpp.addresses_if_dense(dtype, *tensors))
        and _is_whole(network)
        and all(id(f) in cpp.CODES for f in network.activations)
        and _cost(network) in (quadratic, sigmoid_cross_entropy)
        and cpp.can_be_built()
    )


def sgd(
    network: "Network",
    x: Tensor,
    y: Tensor,
    batch_size: int,
    rates: list[float],
    order: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """`Network.sgd` for those that `can_run`. ``rates``: the learning rate of each mini-batch."""
    if momentum and not network.velocities:
        network.velocities = [torch.zeros_like(parameter) for parameter in network.weights + network.biases]
    layers = len(network.weights)
    velocities = network.velocities if momentum else [None] * (2 * layers)
    order = order.to(torch.int64).contiguous()
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise IndexError(f"order: expected indices of {len(x)} samples, found {int(order.min())} to {int(order.max())}")
    cpp.library()["sgd", x.dtype](
        *map(cpp.address, (x, y, order)),
        len(order),
        batch_size,
        (cpp.NUMBER * len(rates))(*rates),
        momentum,
        weight_decay,
        layers,
        (cpp.COUNT * (layers + 1))(network.weights[0].shape[1], *map(len, network.biases)),
        (cpp.COUNT * layers)(*(cpp.CODES[id(f)] for f in network.activations)),
        cpp.addresses(network.weights, network.biases, velocities[:layers], velocities[layers:]),
        _cost(network) is sigmoid_cross_entropy,
    )


def _is_whole(network: "Network") -> bool:
    """Whether its parts still fit together, which are anybody's to replace."""
    parameters, layers = network.weights + network.biases, len(network.activations)
    sizes = [network.weights[0].shape[-1], *(b.numel() for b in network.biases)]
    expected = [(o, i) for i, o in pairwise(sizes)] + [(o,) for o in sizes[1:]]
    shapes = [p.shape for p in parameters]
    return (
        len(parameters) == 2 * layers and shapes == expected and [v.shape for v in network.velocities] in ([], shapes)
    )


def _cost(network: "Network") -> Cost:
    """In its short form, where there is one: the cross-entropy of sigmoid outputs as a function of z."""
    return network.cost.of_weighted_input_of(network.activations[-1]) or network.cost
