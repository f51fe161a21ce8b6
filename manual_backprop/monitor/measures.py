"""Measures of a tensor: its norm, a histogram, how much of it is small or not finite, and a picture of it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SATURATED = 0.01
"""A neuron is called saturated where |σ′(z)| is below this: for the sigmoid, where |z| is above 4.6."""

NEAR_ZERO = 0.01
"""An input is called near 0 where |a_in| is below this."""

BINS = 32
COUNTED = 2**20
"""A histogram takes at most so many values; of a larger tensor, every second or third and so on."""


class Histogram(NamedTuple):
    """The arguments of `SummaryWriter.add_histogram_raw`, in their order.

    `add_histogram` itself raises where nothing is finite, has no bin above 1e20, and takes twenty times as long.
    """

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    limits: list[float]
    counts: list[float]


def real(x: Tensor) -> Tensor:
    """The numbers of ``x`` without its graph: dense, this process's, and real, whatever its layout and dtype."""
    x = x.detach()
    x = x.to_local() if hasattr(x, "to_local") else x  # a shard, where several processes hold one tensor
    x = x.coalesce().values() if x.is_sparse else x
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def norm(x: Tensor) -> float:
    """‖x‖, the root of the sum of squares; NaN or infinite where an element is."""
    x = real(x)
    return float(torch.linalg.vector_norm(x, dtype=_widest(x)))


def share(where: Tensor) -> float:
    """The share of elements that are true; 0 of none."""
    return float(where.float().mean()) if where.numel() else 0.0


def not_finite(x: Tensor) -> int:
    """How many elements are NaN or infinite."""
    return int((~real(x).isfinite()).sum())


def histogram(x: Tensor) -> Histogram | None:
    """`BINS` bins of one width from the least to the largest finite element; None where no element is finite."""
    x = real(x).flatten()
    x = x[:: 1 + x.numel() // COUNTED]
    x = x.to(_widest(x))
    x = x[x.isfinite()]
    if not x.numel():
        return None
    low, high, total, squares = torch.stack([x.min(), x.max(), x.sum(), x.square().sum()]).tolist()
    # Where all values are equal the bins lie around them, because TensorBoard wants limits that increase.
    margin = 0.0 if high > low else max(abs(low), 1.0) / 2
    start, width = low - margin, (high - low + 2 * margin) / BINS
    place = ((x - start) / width).long().clamp(0, BINS - 1)
    limits = [start + width * (i + 1) for i in range(BINS)]
    return Histogram(low, high, x.numel(), total, squares, limits, torch.bincount(place, minlength=BINS).tolist())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖/‖expected‖."""
    found, expected = (x.to(_widest(x)) for x in (real(found), real(expected)))
    return float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))


def weight_images(weight: Tensor, most: int = 100) -> Tensor | None:
    """The incoming weights of the first neurons as pictures in one, ``(1 or 3, height, width)`` in [0, 1]: grey is 0.

    Args:
        weight: ``(o, i)``, where i is a square (or three, for red, green and blue): the pixels of an image; or of a
            convolution, ``(o, c, h, w)`` with c of 1 or 3.
        most: neurons that are shown.

    Returns:
        None where the weights are no picture.
    """
    rows = real(weight)[:most].float().nan_to_num(0.0, 0.0, 0.0)
    if rows.dim() == 2:
        channels = next((c for c in (1, 3) if rows.shape[1] % c == 0 and _is_square(rows.shape[1] // c)), 0)
        side = math.isqrt(rows.shape[1] // channels) if channels else 0
        rows = rows.reshape(len(rows), channels, side, side) if side > 1 else rows
    if rows.dim() != 4 or rows.shape[1] not in (1, 3) or not rows.numel():
        return None
    scaled = 0.5 + 0.5 * rows / rows.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    columns = math.ceil(len(rows) ** 0.5)
    framed = torch.nn.functional.pad(scaled, (0, 1, 0, 1), value=1.0)
    empty = framed.new_ones(-len(rows) % columns, *framed.shape[1:])
    grid = torch.cat([framed, empty]).unflatten(0, (-1, columns))  # (rows, columns, c, h, w)
    return grid.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2).cpu()


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def _widest(x: Tensor) -> torch.dtype:
    """float64, where the device has it: squares of float32's largest numbers are infinite in float32."""
    return torch.float32 if x.device.type == "mps" else torch.float64
