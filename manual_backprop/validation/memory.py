"""Large samples: which ones they are, and how their memory goes back to the system as soon as a tensor is freed."""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from manual_backprop.validation.tolerances import PIECE

LARGE = 100_000  # elements

# glibc maps each allocation of at least M_MMAP_THRESHOLD bytes by itself, and gives it back when it is freed. glibc
# raises this threshold by itself, up to MOST. Smaller blocks come from the heap, which fragments and is not given back;
# so the threshold is fixed low while a large sample is validated.
M_MMAP_THRESHOLD = -3
SMALL, MOST = 9 * PIECE, 32 << 20

try:
    _glibc: Any = ctypes.CDLL(None)
    _ = _glibc.mallopt, _glibc.malloc_trim
except (AttributeError, OSError, TypeError):  # on a system with another C library memory is left to that library
    _glibc = None


def large(values: Iterable[Tensor]) -> bool:
    """Whether one pass takes long enough for the rules to ask fewer questions of each kind."""
    return sum(value.numel() for value in values) > LARGE


@contextlib.contextmanager
def freed_at_once(values: Iterable[Tensor]) -> Iterator[None]:
    """A block in which the memory of a tensor goes back to the system when it is freed, where the sample is large."""
    if _glibc is None or not large(values):
        yield
        return
    _glibc.mallopt(M_MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        _glibc.mallopt(M_MMAP_THRESHOLD, int(os.environ.get("MALLOC_MMAP_THRESHOLD_", MOST)))


def tidy(values: Iterable[Tensor]) -> None:
    """Gives back the free memory that the heap keeps, where the sample is large."""
    if _glibc is not None and large(values):
        _glibc.malloc_trim(0)
