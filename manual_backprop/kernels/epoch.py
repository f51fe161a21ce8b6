"""An epoch of a network's stochastic gradient descent in one call of C++: `compiled.cpp`."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from manual_backprop.activations import Activation
from manual_backprop.costs import Cost
from manual_backprop.kernels import cpp


def sgd(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    velocities: list[Tensor],
    activations: Sequence[Activation],
    cost: Cost,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    rates: Sequence[float],
    order: Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> bool:
    """One epoch, where C++ can take it, and whether it ran; else nothing has happened, and torch may refuse its input.

    C++ takes dense rows of float32 or float64 on the CPU, and a small network with activations and a cost that it
    knows.

    Args:
        weights, biases: w^l ``(o, i)`` and b^l ``(o,)`` by layer, stepped in place.
        velocities: of the weights, then of the biases; filled with zeros where it is empty and there is momentum.
        activations: one a layer.
        cost: of a^L; or `sigmoid_cross_entropy` where a^L = σ(z^L).
        x, y: all samples, ``(N, i)`` and ``(N, o)``.
        rates: the learning rate of each mini-batch.
        order: the samples in the order in which they are taken.
        momentum, weight_decay: μ and λ/n.

    Raises:
        IndexError: ``order`` names a sample that there is not.
    """
    small = batch_size * sum(w.numel() for w in weights) <= cpp.LARGEST
    indices = order.dim() == 1 and order.dtype in (torch.int32, torch.int64)
    dense = small and indices and cpp.addresses_if_dense(weights[0].dtype, x, y, *weights, *biases, *velocities)
    codes = [f.code for f in activations if f.code is not None]
    known = len(codes) == len(activations) and id(cost) in cpp.COSTS
    if not (dense and known and _fit_together(weights, biases, velocities, activations) and cpp.can_be_built()):
        return False
    if momentum and not velocities:
        velocities += [torch.zeros_like(parameter) for parameter in (*weights, *biases)]
    layers = len(weights)
    moving = velocities if momentum else [None] * (2 * layers)
    order = order.to(torch.int64).contiguous()
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise IndexError(f"order: expected indices of {len(x)} samples, found {int(order.min())} to {int(order.max())}")
    cpp.library()["sgd", x.dtype](
        *map(cpp.address, (x, y, order)),
        len(order),
        batch_size,
        cpp.numbers(rates),
        momentum,
        weight_decay,
        layers,
        cpp.counts([weights[0].shape[1], *map(len, biases)]),
        cpp.counts(codes),
        cpp.addresses(weights, biases, moving[:layers], moving[layers:]),
        cpp.COSTS[id(cost)],
    )
    return True


def _fit_together(
    weights: Sequence[Tensor], biases: Sequence[Tensor], velocities: Sequence[Tensor], activations: Sequence[Activation]
) -> bool:
    """Whether the parts of the network, which are anybody's to replace, have the shapes of one."""
    sizes = [weights[0].shape[-1], *(b.numel() for b in biases)]
    expected = [(o, i) for i, o in pairwise(sizes)] + [(o,) for o in sizes[1:]]
    shapes = [p.shape for p in (*weights, *biases)]
    return (
        len(weights) == len(biases) == len(activations)
        and shapes == expected
        and [v.shape for v in velocities] in ([], shapes)
    )
