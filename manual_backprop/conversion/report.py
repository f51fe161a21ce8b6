"""Which Linears of a model have been swapped and which were left alone, with the reasons.

The report of a model is kept beside the model, not in it: so it is in no ``state_dict``, no pickle and no copy, and it
goes when the model goes.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch.nn import Module

_LAST: "WeakKeyDictionary[Module, Conversion]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Row:
    """One Linear: where it is, its class before and after, and why it is not a fused layer."""

    path: str
    before: str
    after: str
    why: str = ""


@dataclass(frozen=True)
class Conversion:
    """The work of one call of `convert` or `revert`: a row for each Linear; ``print`` shows it as a table."""

    rows: tuple[Row, ...]

    @property
    def swapped(self) -> tuple[Row, ...]:
        """The Linears that have another class now."""
        return tuple(row for row in self.rows if row.before != row.after)

    @property
    def left(self) -> tuple[Row, ...]:
        """The Linears that were left alone, each with the reason."""
        return tuple(row for row in self.rows if row.before == row.after)

    def __str__(self) -> str:
        table = [("path", "before", "after", "why not")]
        table += [(row.path or "(the model)", row.before, row.after, row.why) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        summary = f"{len(self.swapped)} of {len(self.rows)} Linears swapped"
        return "\n".join(line.rstrip() for line in (summary, *lines))


def conversions(model: Module) -> Conversion:
    """The report of the last `convert` or `revert` of this model: the Linears swapped, those left alone, and why.

    Args:
        model: the very object that was converted or reverted; a copy of it has no report.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it has not been converted or reverted.

    Example:
        >>> from manual_backprop import convert
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> print(conversions(convert(model)))
        1 of 2 Linears swapped
        path  before  after       why not
        0     Linear  LinearTanh
        2     Linear  Linear      it is the last of its Sequential
    """
    check(model)
    if model not in _LAST:
        raise ValueError(
            f"model: expected one that convert or revert was called on, found another {type(model).__name__} "
            "(a copy, or a part of a model, has no report of its own)"
        )
    return _LAST[model]


def keep(model: Module, rows: list[Row]) -> None:
    """From now on `conversions` of this model tells of these rows."""
    _LAST[model] = Conversion(tuple(rows))


def check(model: Module) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
