"""How near is near enough? One table keyed by dtype, and the one function that compares two tensors by it.

The difference that is allowed at an element is the sum of three:

- `rtol` times the element's own size and the largest size in the tensor, because an element may be what is left of a
  sum of terms as large as that;
- the conditioning `noise`: the change of the same gradient when the inputs move by one rounding, because another layout
  or another thread may round a product otherwise, and no implementation can be steadier than that;
- `FLOOR` roundings of the largest gradient of all, for gradients that are zero but for rounding (a bias in front of a
  batch norm).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REAL_OF = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
COMPLEX_OF = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}
PRECISION_ORDER = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

# For two runs of one function that should agree. torch.testing has 1e-7, 1.3e-6, 1e-3 and 1.6e-2, for one operation
# against another implementation. Here float64 is tighter, because float32 arithmetic inside would hide in 1e-7; the
# others are looser, because a backward is a chain of operations, and each may add terms up in another order.
SAME_RTOL = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}

# For a gradient against finite differences in one dtype; Richardson's error estimate is added. In float64 a constant
# that is wrong in the seventh digit shows; in float32 the differences themselves are right to three digits.
DIFFERENCE_RTOL = {torch.float64: 1e-8, torch.float32: 1e-2, torch.float16: 2e-1, torch.bfloat16: 5e-1}

# The budget for the error in each dtype, where eager torch's own error is not known: this many times one rounding of
# the gradient or the conditioning noise, whichever is larger. A backward of ten steps makes about ten roundings;
# one that computes in half precision inside float32 errs by 8192 roundings, a half-precision accumulator by about N.
BUDGET = {torch.float64: 256.0, torch.float32: 256.0, torch.float16: 24.0, torch.bfloat16: 16.0}

# With a reference the budget is this many times the error of the reference in eager torch, plus two roundings.
EAGER_FACTOR = 4.0

NOISE_FACTOR = 64.0  # how many times the measured noise is allowed, because a few draws find less than the largest
FLOOR = 256.0  # roundings of the largest gradient, for gradients that are zero but for rounding

PIECE = 1 << 16  # elements; sums and maxima over larger tensors are computed in pieces, because that takes less memory


def real(dtype: torch.dtype) -> torch.dtype:
    return REAL_OF.get(dtype, dtype)


def epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(real(dtype)).eps


def coarsest(tensors: Sequence[Tensor | None]) -> torch.dtype:
    """The least precise floating dtype among `tensors`; float64 where there is none."""
    dtypes = {real(t.dtype) for t in tensors if t is not None and (t.is_floating_point() or t.is_complex())}
    known = [dtype for dtype in PRECISION_ORDER if dtype in dtypes]
    return known[0] if known else torch.float64


@dataclass(frozen=True)
class Mismatch:
    """Where two tensors differ by more than is allowed."""

    expected: Tensor
    actual: Tensor
    wrong: Tensor  # bool: which elements differ
    index: tuple[int, ...]  # the place of the worst element

    @property
    def numbers(self) -> tuple[float | complex, float | complex]:
        return self.expected[self.index].item(), self.actual[self.index].item()


def wide(tensor: Tensor) -> Tensor:
    """The tensor as dense float64 or complex128, for a comparison."""
    tensor = dense(tensor)
    return tensor.resolve_conj().resolve_neg().to(torch.complex128 if tensor.is_complex() else torch.float64)


def dense(tensor: Tensor) -> Tensor:
    """The tensor without a graph, in the strided layout."""
    return tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Dense tensors of one shape, cut alike into views of about `PIECE` elements along their longest axis."""
    shape, count = tensors[0].shape, -(-tensors[0].numel() // PIECE)
    if count < 2:
        yield tensors
    else:
        axis = max(range(len(shape)), key=shape.__getitem__)
        yield from zip(*(tensor.chunk(count, axis) for tensor in tensors), strict=True)


def largest(tensor: Tensor | None, less: Tensor | None = None) -> float:
    """max |x| over the finite elements, or max |x − less|; 0 where there are none."""
    if tensor is None or tensor.numel() == 0:
        return 0.0
    if less is not None:
        sizes = ((wide(x) - wide(y)).abs() for x, y in pieces(dense(tensor), dense(less)))
    else:
        sizes = (wide(x).abs() for (x,) in pieces(dense(tensor)))
    return max(float(size.nan_to_num(0.0, 0.0, 0.0).max()) for size in sizes)


def mismatch(
    actual: Tensor | None,
    expected: Tensor | None,
    rtol: float,
    noise: float | Tensor = 0.0,
    floor: float = 0.0,
) -> Mismatch | None:
    """The mismatch of two gradients (None stands for zeros) that differ by more than is allowed; None where none does.

    Elements at which the expected gradient is not finite are left out, because a comparison with NaN proves nothing.
    """
    if actual is None and expected is None:
        return None
    zero = torch.zeros((), dtype=torch.float64)
    a = dense(actual) if actual is not None else zero.expand(expected.shape)  # type: ignore[union-attr]
    e = dense(expected) if expected is not None else zero.expand(a.shape)
    if a.shape != e.shape:
        wrong = torch.ones(e.shape, dtype=torch.bool)
        return Mismatch(wide(e), torch.full(e.shape, torch.nan), wrong, (0,) * e.ndim) if e.numel() else None
    if e.numel() == 0:
        return None
    size = largest(e)

    def differs(a: Tensor, e: Tensor, noise: float | Tensor) -> Tensor:
        a, e = wide(a), wide(e)
        return e.isfinite() & ~((a - e).abs() <= rtol * (e.abs() + size) + noise + floor)

    if e.numel() > PIECE:
        spread = torch.as_tensor(noise, dtype=torch.float64, device=a.device).expand(e.shape)
        if not any(bool(differs(*parts).any()) for parts in pieces(a, e, spread)):
            return None
    wrong = differs(a, e, noise).cpu()
    if not bool(wrong.any()):
        return None
    a, e = wide(a), wide(e)
    ranking = torch.where(wrong, (a - e).abs().nan_to_num(torch.inf).cpu(), -1.0)
    index = tuple(int(i) for i in torch.unravel_index(ranking.argmax(), e.shape))
    return Mismatch(e, a, wrong, index)
