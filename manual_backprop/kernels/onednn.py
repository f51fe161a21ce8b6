"""oneDNN's product, by a private operation of torch that has no derivative.

On x86 it beats the library that ATen hands float32 to on AMD CPUs with AVX-512 only. bfloat16 is oneDNN's in ATen too,
and as fast: here it comes only where oneDNN is asked for by name.
"""

import torch
from torch import Tensor

from manual_backprop import _torch
from manual_backprop.activations import Activation
from manual_backprop.kernels.cpp import PLAIN

SMALLEST = 16_000_000
"""Multiplications from which on oneDNN is the faster one on such a CPU, for rows of at least `NARROWEST` factors."""
NARROWEST = 64
TRANSPOSED = 16
"""So many times more where the first factor is a transposed view, as in δᵀ @ input: oneDNN then copies it."""


def there() -> bool:
    """Whether this torch has the operation as we call it."""
    return _torch.onednn_linear() is not None


def is_large(a: Tensor, columns: int, smallest: float) -> bool:
    """Whether the product of ``a`` with so many columns is worth it, where ``smallest`` multiplications are."""
    # While a graph is traced, its sizes are symbols, and to compare one would bind the graph to the answer.
    if type(a) not in PLAIN or _torch.is_tracing():
        return False
    if a.numel() * columns < smallest or not smallest:
        return not smallest
    return a.shape[-1] >= NARROWEST and (a.is_contiguous() or a.numel() * columns >= TRANSPOSED * smallest)


def can(*tensors: Tensor, bfloat16: bool) -> bool:
    """Whether the operation takes them: it reads plain dense tensors of the CPU, of one dtype."""
    dtype = tensors[0].dtype
    return (
        all(type(x) in PLAIN and x.is_cpu and x.layout == torch.strided and x.dtype == dtype for x in tensors)
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and bfloat16 and _torch.onednn_has_bfloat16()))
        and all(x.is_contiguous() or (x.dim() > 1 and x.mT.is_contiguous()) for x in tensors)
        and all(x.numel() for x in tensors)
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """a = σ(input @ weightᵀ + bias), σ in one with the product where oneDNN has it."""
    a = product(input, weight, bias, activation.onednn or "none")
    return a if activation.onednn else activation.in_place_of(a)


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """σ(input @ weightᵀ + bias), σ by its name there."""
    operation = _torch.onednn_linear()
    assert operation is not None  # or `there` would have said so
    return operation(input, weight, bias, activation, [], "")
