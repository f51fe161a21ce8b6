"""The part of two tensors around the element at which they differ most: enough to draw, and no more."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manual_backprop.validation.tolerances import Mismatch

SIDE = 16
"""Rows and columns that are kept."""

Colour = tuple[int, int, int]


class Excerpt(NamedTuple):
    """Rows of numbers; of a complex tensor, rows of the magnitudes of the numbers.

    Args:
        expected, actual: ``SIDE`` rows and columns at most, in the last two dimensions of the tensors; a tensor of one
            dimension is laid in rows of `SIDE`.
        places: the index of each number, as text.
        worst: row and column of the element that differs most.
        shape: of the tensors.
    """

    expected: list[list[float]]
    actual: list[list[float]]
    places: list[list[str]]
    worst: tuple[int, int]
    shape: tuple[int, ...]

    @property
    def ratio(self) -> list[list[float]]:
        """actual / expected; NaN for 0/0."""
        rows = zip(self.expected, self.actual, strict=True)
        return [[_ratio(a, e) for e, a in zip(*row, strict=True)] for row in rows]

    @property
    def panels(self) -> dict[str, tuple[list[list[float]], list[list[Colour]]]]:
        """By name: the numbers, and their colours; expected and actual share one scale of colours."""
        numbers = [abs(x) for rows in (self.expected, self.actual) for row in rows for x in row if math.isfinite(x)]
        largest = max(numbers, default=0.0) or 1.0
        return {
            "expected": (self.expected, [[_signed(x / largest) for x in row] for row in self.expected]),
            "actual": (self.actual, [[_signed(x / largest) for x in row] for row in self.actual]),
            "ratio": (self.ratio, [[_around_one(x) for x in row] for row in self.ratio]),
        }


def excerpt(found: Mismatch) -> Excerpt:
    """The numbers of a mismatch around the worst element."""
    expected, actual = (_sizes(tensor) for tensor in (found.expected, found.actual))
    shape, index = tuple(expected.shape), found.index
    if expected.dim() < 2:
        places = [str([i] if shape else []) for i in range(expected.numel())]
        return _in_rows(expected.reshape(-1), actual.reshape(-1), index[0] if index else 0, places, shape)
    *plane, row, column = index
    rows, columns = (_around(i, n) for i, n in zip((row, column), shape[-2:], strict=True))
    return Excerpt(
        expected[tuple(plane)][rows, columns].tolist(),
        actual[tuple(plane)][rows, columns].tolist(),
        [[str([*plane, i, j]) for j in range(columns.start, columns.stop)] for i in range(rows.start, rows.stop)],
        (row - rows.start, column - columns.start),
        shape,
    )


def chosen(found: Mismatch, where: list[int], shape: torch.Size) -> Excerpt:
    """The numbers of a mismatch of some elements only, at the flat places ``where`` of a tensor of ``shape``."""
    places = [str([int(i) for i in torch.unravel_index(torch.tensor(place), shape)]) for place in where]
    return _in_rows(_sizes(found.expected), _sizes(found.actual), found.index[0], places, tuple(shape))


def image(drawn: Excerpt, cell: int = 12) -> Tensor:
    """Expected, actual and ratio side by side, ``(3, height, width)`` bytes, the worst element framed."""
    panels = []
    for _, colours in drawn.panels.values():
        width = max(map(len, colours))
        squares = torch.tensor([row + [WHITE] * (width - len(row)) for row in colours], dtype=torch.uint8)
        picture = squares.permute(2, 0, 1).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        top, left = (place * cell for place in drawn.worst)
        framed = picture[:, top : top + cell, left : left + cell]
        inside = framed[:, 2:-2, 2:-2].clone()
        framed.zero_()
        framed[:, 2:-2, 2:-2] = inside
        panels.append(torch.nn.functional.pad(picture, (cell, cell, cell, cell), value=WHITE[0]))
    return torch.cat(panels, dim=2)


def _in_rows(expected: Tensor, actual: Tensor, worst: int, places: list[str], shape: tuple[int, ...]) -> Excerpt:
    part = _around(worst // SIDE, -(-len(places) // SIDE))
    rows = [slice(i, i + SIDE) for i in range(part.start * SIDE, min(part.stop * SIDE, len(places)), SIDE)]
    return Excerpt(
        [expected[row].tolist() for row in rows],
        [actual[row].tolist() for row in rows],
        [places[row] for row in rows],
        divmod(worst - rows[0].start, SIDE),
        shape,
    )


def _sizes(tensor: Tensor) -> Tensor:
    return (tensor.abs() if tensor.is_complex() else tensor).detach()


def _around(place: int, length: int) -> slice:
    """Up to `SIDE` places around one place on an axis of ``length``."""
    start = max(0, min(place - SIDE // 2, length - SIDE))
    return slice(start, min(start + SIDE, length))


def _ratio(actual: float, expected: float) -> float:
    if expected:
        return actual / expected
    return math.copysign(math.inf, actual) if actual else math.nan


WHITE, NOT_A_NUMBER = (255, 255, 255), (255, 221, 51)
RED, BLUE, VIOLET = (178, 24, 43), (33, 102, 172), (118, 42, 131)


def _mixed(colour: Colour, share: float) -> Colour:
    """White at 0, the colour at 1."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(w + (c - w) * share) for w, c in zip(WHITE, colour, strict=True))
    return red, green, blue


def _signed(x: float) -> Colour:
    """From −1, blue, over white to 1, red; NaN yellow."""
    return NOT_A_NUMBER if math.isnan(x) else _mixed(RED if x > 0 else BLUE, abs(x))


def _around_one(ratio: float) -> Colour:
    """1 is white, 4 and more red, a quarter and less blue, below 0 violet; 0/0 yellow."""
    if math.isnan(ratio):
        return NOT_A_NUMBER
    if ratio < 0:
        return VIOLET
    octaves = max(-2.0, min(2.0, math.log2(ratio))) if 0 < ratio < math.inf else (2.0 if ratio else -2.0)
    octaves = round(octaves, 4)  # so that a difference by rounding stays white, and any other gets a colour
    return _mixed(RED if octaves > 0 else BLUE, max(0.15, abs(octaves) / 2) if octaves else 0.0)
