"""Which kernel is chosen, and where none but ATen's may compute.

The choice is one of machine and size, not a measurement: so all processes of a run choose alike, and a run can be
repeated. `use` sets it for the process, every thread of it; `using` for a block, in the thread (or task of asyncio)
that runs the block and in no other; before either, the environment variable ``MANUAL_BACKPROP_KERNEL`` does. It is read
when the first layer runs: to import the package builds nothing and raises nothing, whatever the variable says.
"""

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch.compiler import is_dynamo_compiling

from manual_backprop import _torch
from manual_backprop.kernels import cpp, onednn, processor

KERNELS = ("auto", "aten", "onednn", "compiled")
VARIABLE = "MANUAL_BACKPROP_KERNEL"
NEVER = float("inf")


class Choice(NamedTuple):
    """The multiplications from which on oneDNN takes a product, and whether small layers are C++'s."""

    smallest: float
    compiled: bool


ATEN = Choice(NEVER, False)
_of_process: Choice | None = None
_of_context: ContextVar[Choice | None] = ContextVar("manual_backprop kernel", default=None)


def use(kernel: str) -> None:
    """Choose for this process: ``"auto"``, the rule; ``"aten"`` or ``"onednn"``, that one wherever it can run;
    ``"compiled"``, the rule, but our own C++ for small layers. A block of `using` keeps its own choice.

    Raises:
        ValueError: an unknown kernel.
    """
    global _of_process
    _of_process = _choice("kernel", kernel)


@contextmanager
def using(kernel: str) -> Iterator[None]:
    """`use` within a block: other threads do not see it."""
    token = _of_context.set(_choice("kernel", kernel))
    try:
        yield
    finally:
        _of_context.reset(token)


def current() -> Choice:
    """The choice of this context, else that of the process. Asked at every product: it takes 0.1 µs."""
    if is_dynamo_compiling():  # the compiler has kernels of its own, and may not trace what follows
        return ATEN
    return _of_context.get() or _of_process or _of_environment()


def chosen() -> str:
    """In words: for a run to describe itself."""
    smallest, compiled = current()
    of_small = f"compiled up to {cpp.LARGEST_LAYER:,} multiplications, else " if compiled else ""
    if smallest == NEVER:
        return of_small + "aten"
    return f"{of_small}onednn from {smallest:,} multiplications on, else aten" if smallest else "onednn"


def unrecorded() -> bool:
    """Whether neither autograd, nor a transform, a mode, autocast, a trace or the compiler sees what is computed."""
    return not (
        torch.is_grad_enabled()
        or is_dynamo_compiling()
        or _torch.is_tracing()
        or _torch.transform_is_active()
        or _torch.modes_active()
        or _torch.autocast_is_on_somewhere()
    )


def _of_environment() -> Choice:
    global _of_process
    _of_process = _choice(VARIABLE, os.environ.get(VARIABLE, "auto"))
    return _of_process


def _choice(name: str, kernel: str) -> Choice:
    if kernel not in KERNELS:
        raise ValueError(f"{name}: expected one of {', '.join(KERNELS)}, found {kernel!r}")
    return Choice(_smallest_product(kernel), kernel == "compiled" and cpp.can_be_built())


def _smallest_product(kernel: str) -> float:
    if kernel == "onednn":
        if onednn.there():
            return 0
        warnings.warn("torch has no mkldnn::_linear_pointwise as it was: ATen multiplies instead", stacklevel=4)
    by_rule = kernel in ("auto", "compiled") and _amd_with_avx512() and onednn.there()
    return onednn.SMALLEST if by_rule else NEVER


@functools.cache
def _amd_with_avx512() -> bool:
    # Where the vendor is not told, ATen's kernels are as good as any.
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and processor.said("vendor_id") == "AuthenticAMD"
