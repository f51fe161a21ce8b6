"""Nested arguments (tuples, lists and dicts) taken apart and put together: what `_torch` falls back on."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with its path, ``("[0]['weight']", tensor)``."""
    if isinstance(value, dict):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    else:
        yield path, value
        return
    for key, part in parts:
        yield from leaves(part, f"{path}[{key!r}]")


def rebuilt(structure: Any, parts: Iterator[Any]) -> Any:
    """A value nested as `structure` is, of the next leaves."""
    if isinstance(structure, dict):
        new = copy.copy(structure)
        new.update({key: rebuilt(part, parts) for key, part in structure.items()})
        return new
    if isinstance(structure, tuple | list):
        found = [rebuilt(part, parts) for part in structure]
        return type(structure)(*found) if hasattr(structure, "_fields") else type(structure)(found)
    return next(parts)
