"""Everything of the caller's as it was, whatever the functions that are validated do to it."""

import contextlib
import logging
import random
import sys
import warnings
from collections.abc import Iterator

import torch

from manual_backprop import _torch


def _no_record(record: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Gives back random states, default dtype and grad mode as they were, whatever a user's function does to them."""
    numpy = sys.modules["numpy"] if "numpy.random" in sys.modules else None
    # Compilation writes thousands of debugging records there, which pytest would show with a failing report.
    trace = _torch.compiler_log()
    trace.addFilter(_no_record)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy is not None else None
    dtype = torch.get_default_dtype()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        trace.removeFilter(_no_record)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy is not None:
            numpy.random.set_state(states[2])
        torch.set_default_dtype(dtype)
