"""Large samples: what one is, and how the memory of its tensors is handed back as soon as they are freed."""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from manual_backprop.validation.tolerances import PIECE

LARGE = 100_000  # elements

# glibc's mallopt: allocations of this many bytes or more are mapped one by one, and unmapped when freed. Below it, and
# by itself glibc soon sets it to the most, they come from a heap whose holes the next aligned tensor does not fit into.
M_MMAP_THRESHOLD = -3
SMALL, MOST = 9 * PIECE, 32 << 20

try:
    _glibc: Any = ctypes.CDLL(None)
    _ = _glibc.mallopt, _glibc.malloc_trim
except (AttributeError, OSError, TypeError):  # another C library
    _glibc = None


def large(values: Iterable[Tensor]) -> bool:
    """Whether one pass takes long enough for the rules to ask fewer questions of each kind."""
    return sum(value.numel() for value in values) > LARGE


@contextlib.contextmanager
def freed_at_once(values: Iterable[Tensor]) -> Iterator[None]:
    """Hands back the memory of large tensors when they are freed, where there are large ones."""
    if _glibc is None or not large(values):
        yield
        return
    _glibc.mallopt(M_MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        _glibc.mallopt(M_MMAP_THRESHOLD, int(os.environ.get("MALLOC_MMAP_THRESHOLD_", MOST)))


def tidy(values: Iterable[Tensor]) -> None:
    """Hands back what the heap keeps of smaller tensors, where there are large ones."""
    if _glibc is not None and large(values):
        _glibc.malloc_trim(0)
