"""The forward pass through the layers of a network, the only loop over them."""

from collections.abc import Iterator, Sequence
from itertools import repeat

from torch import Tensor

from manual_backprop import kernels
from manual_backprop.activations import Activation, identity


def layers(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[Activation],
    x: Tensor,
    keep_z: bool = True,
    out: Sequence[Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """z^l = w^l a^{l-1} + b^l and a^l = σ(z^l), layer by layer.

    Args:
        weights, biases, activations: one a layer, ``(o, i)`` and ``(o,)``.
        x: a^1, ``(*, i)``.
        keep_z: False where z^l is wanted only if σ′ is computed from it. Then the first of a layer is "the output of
            the first" of `Activation.split`: z^l, or a^l, which is computed in one with the product.
        out: where each z^l may be written, ``(*, o)``, and a^l over it if z^l is not kept.

    Yields:
        z^l (or a^l, see ``keep_z``) and a^l, ``(*, o)`` both.

    Example:
        >>> from manual_backprop.activations import relu
        >>> [(z, a)] = layers([torch.tensor([[1.0], [-1.0]])], [None], [relu], torch.tensor([2.0]))
        >>> z, a
        (tensor([ 2., -2.]), tensor([2., 0.]))

    Source: chapter 2, equation (25).
    """
    a = x
    for w, b, f, place in zip(weights, biases, activations, out or repeat(None, len(weights)), strict=True):
        of_product, after = (identity, f) if keep_z else f.split()
        value = kernels.linear(a, w, b, of_product, place)
        a = value if after is identity else after.function(value)
        yield value, a
