"""Which kernel computes a layer: ATen's, oneDNN's, or our own in C++. The only place that chooses.

A layer has three products: z = input @ weightᵀ + bias with a = σ(z) behind it, ∂C/∂input = δ @ weight, and
∂C/∂weight = δᵀ @ input with the step of gradient descent behind it. ATen hands float32 to MKL, which leaves some of the
speed of AMD CPUs with AVX-512 unused; there oneDNN takes the large products, with σ fused into the first. bfloat16 is
left to ATen, which hands it to oneDNN itself, and is as fast.

Below some million multiplications the calls take longer than the arithmetic. There `use("compiled")` gives a pass of a
layer to one call of C++ (`compiled.py`), which needs a compiler, so it is not the default.

The rule is one of machine and size, not a measurement: so all processes of a run choose alike, and a run can be
repeated. `use` or the environment variable ``MANUAL_BACKPROP_KERNEL`` override it.

oneDNN is reached through a private operation of torch without a derivative. It and our C++ get plain dense CPU tensors
only, and only where nothing records: everything else (autograd, `torch.func`, `torch.compile`, tensor subclasses, other
devices) is ATen's.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from manual_backprop.activations import Activation, Derivative, identity, sigmoid, tanh
from manual_backprop.kernels import cpp

KERNELS = ("auto", "aten", "onednn", "compiled")
VARIABLE = "MANUAL_BACKPROP_KERNEL"
SMALLEST = 16_000_000
"""Multiplications from which on oneDNN is the faster one on such a CPU, for rows of at least `NARROWEST` factors."""
NARROWEST = 64
TRANSPOSED = 16
"""So many times more where the first factor is a transposed view, as in δᵀ @ input: oneDNN then copies it."""

P = ParamSpec("P")
T = TypeVar("T")
_smallest: float
_compiled: bool
_linear: Callable[..., Tensor] = torch.nn.functional.linear  # it takes `out` too, of which its stub knows nothing
_FUSED = {identity: "none", sigmoid: "sigmoid", tanh: "tanh"}  # its ReLU makes a 0 of a NaN
_SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)


def use(kernel: str) -> None:
    """Choose for this process: ``"auto"``, the rule; ``"aten"`` or ``"onednn"``, that one wherever it can run;
    ``"compiled"``, the rule, but our own C++ for small layers.

    Raises:
        ValueError: an unknown kernel.
    """
    global _smallest, _compiled
    _smallest, _compiled = _smallest_product(kernel), kernel == "compiled" and cpp.can_be_built()


@contextmanager
def using(kernel: str) -> Iterator[None]:
    """`use` within a block."""
    global _smallest, _compiled
    before = _smallest, _compiled
    use(kernel)
    try:
        yield
    finally:
        _smallest, _compiled = before


def chosen() -> str:
    """In words: for a run to describe itself."""
    of_small = f"compiled up to {cpp.LARGEST_LAYER:,} multiplications, else " if _compiled else ""
    if _smallest == float("inf"):
        return of_small + "aten"
    return f"{of_small}onednn from {_smallest:,} multiplications on, else aten" if _smallest else "onednn"


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, out: Tensor | None = None
) -> Tensor:
    """a = σ(input @ weightᵀ + bias). Shapes: input ``(*, i)``, weight ``(o, i)``, bias ``(o,)``; a ``(*, o)``.

    ATen writes into ``out``; the others cannot.
    """
    if out is None and (a := in_one_call(cpp.linear, input, weight, bias, activation)) is not None:
        return a
    if (
        _large(input, weight.shape[0])
        and input.shape[-1:] == weight.shape[1:]
        and _onednn_can(input, weight)
        and (bias is None or (bias.shape == weight.shape[:1] and _onednn_can(bias, weight)))
    ):
        fused = _FUSED.get(activation)
        a = _onednn(input, weight, bias, fused or "none")
        return a if fused else activation.over(a)
    z = _linear(input, weight, bias, out=out)
    # What a subclass or a mode (as that of selective checkpointing) may hold on to is not overwritten. In a graph of
    # the compiler, which cannot trace the question for a mode, nothing is.
    ours = type(z) is Tensor and not (is_dynamo_compiling() or torch._C._len_torch_dispatch_stack())
    return activation.over(z) if ours else activation.function(z)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b. Shapes: ``(*, k)`` and ``(k, n)``; ``(*, n)``. ATen writes rows into ``out``; oneDNN cannot."""
    if _large(a, b.shape[-1]) and a.shape[-1:] == b.shape[:-1] and _onednn_can(a, b):
        return _onednn(a, b.mT, None, "none")
    return a @ b if out is None else torch.mm(a, b, out=out)


def addmm_(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """c = β c + α a @ b, in place: ∂C/∂weight and the step in one. Shapes: ``(m, n)``, ``(m, k)``, ``(k, n)``."""
    if (
        _large(a, b.shape[-1])
        and a.shape[1:] == b.shape[:-1]
        and c.shape == a.shape[:1] + b.shape[1:]
        and _onednn_can(a, b, c)
    ):
        kept = c if beta == 1 else c.mul_(beta) if beta else c.zero_()  # 0 is to forget a NaN, as in ATen
        return kept.add_(_onednn(a, b.mT, None, "none"), alpha=alpha)
    return c.addmm_(a, b, beta=beta, alpha=alpha)


def hadamard(x: Tensor, derivative: Tensor | float | Derivative, out: Tensor | None = None) -> Tensor:
    """x ⊙ σ′, elementwise; for a `Derivative` in one pass over memory, where its activation has one."""
    if isinstance(derivative, Derivative):
        f, value = derivative
        if f.times_derivative and type(x) is Tensor and _unrecorded():
            return f.times_derivative(x, value, out)
        derivative = f.derivative(value)
    return torch.mul(x, derivative, out=out)


def in_one_call(function: Callable[P, T | None], *arguments: P.args, **options: P.kwargs) -> T | None:
    """What a function of `compiled` gives, where that is chosen and nothing records; None: go by the equations."""
    return function(*arguments, **options) if _compiled and _unrecorded() else None


def _unrecorded() -> bool:
    """Whether neither autograd, nor a transform, a mode, autocast, a trace or the compiler sees what is computed."""
    return not (
        torch.is_grad_enabled()
        or is_dynamo_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_any_autocast_enabled()
    )


def _large(a: Tensor, columns: int) -> bool:
    """Whether oneDNN is to have a product of ``a`` with so many columns. Asked at every product: it takes 0.4 µs."""
    # While a graph is traced, its sizes are symbols, and to compare one would bind the graph to the answer.
    if type(a) not in cpp.PLAIN or is_dynamo_compiling() or torch._C._is_tracing():
        return False
    if a.numel() * columns < _smallest or not _smallest:
        return not _smallest
    return a.shape[-1] >= NARROWEST and (a.is_contiguous() or a.numel() * columns >= TRANSPOSED * _smallest)


def _onednn_can(*tensors: Tensor) -> bool:
    return (
        all(type(x) in cpp.PLAIN and x.is_cpu and x.layout == torch.strided for x in tensors)
        and all(x.dtype == tensors[0].dtype for x in tensors)
        and (
            tensors[0].dtype == torch.float32
            or (tensors[0].dtype == torch.bfloat16 and not _smallest and _processor_has_bfloat16())
        )
        and all(x.is_contiguous() or (x.dim() > 1 and x.mT.is_contiguous()) for x in tensors)
        and all(x.numel() for x in tensors)
        and _unrecorded()
    )


def _onednn(x: Tensor, w: Tensor, b: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w, b, activation, [], "")


def _smallest_product(kernel: str) -> float:
    """The multiplications from which on oneDNN takes a product."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, found {kernel!r}")
    wanted = kernel == "onednn" or (kernel in ("auto", "compiled") and _amd_with_avx512())
    if not wanted or not _operation_is_there():
        if kernel == "onednn":  # the rule may choose ATen in silence: nobody has asked for oneDNN
            warnings.warn("torch has no mkldnn::_linear_pointwise as it was: ATen multiplies instead", stacklevel=3)
        return float("inf")
    return 0 if kernel == "onednn" else SMALLEST


@functools.cache
def _operation_is_there() -> bool:
    return torch.backends.mkldnn.is_available() and _SCHEMA in map(
        str, torch._C._jit_get_schemas_for_operator("mkldnn::_linear_pointwise")
    )


@functools.cache
def _processor_has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor: on x86 it wants AVX-512, and raises without."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return ask is not None and bool(ask())


@functools.cache
def _amd_with_avx512() -> bool:
    processor = Path("/proc/cpuinfo")  # where there is none, ATen's kernels are as good as any
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return avx512 and processor.exists() and "AuthenticAMD" in processor.read_text()


use(os.environ.get(VARIABLE, "auto"))
