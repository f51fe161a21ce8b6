"""Small layers in C++: `compiled.cpp`, built when it is first used.

A step of 784-30-10 on 10 samples is some microseconds of arithmetic, and some twenty operations of torch, each of which
costs more than a microsecond before it computes anything, and several where its code is not in the cache of the
processor. C++ has no such cost: a pass of a layer is one call of it, and an epoch of a network is one too, which reads
the samples where they lie and updates a weight while it is in the cache. A compiled graph of the same operations
(`torch.compile`) keeps the calls of the library that multiplies matrices, which is slow at such sizes.

The C++ includes nothing of torch's. So the C++ compiler of this machine builds it alone, in some seconds, and the file
is kept for the next process. It tells of itself what it is called with; where Python would call it otherwise, it is not
called at all.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from manual_backprop.activations import ACTIVATIONS, Activation, identity
from manual_backprop.costs import Cost, quadratic, sigmoid_cross_entropy
from manual_backprop.kernels import processor

SOURCES = (Path(__file__).with_name("compiled.cpp"), Path(__file__).with_name("layer.h"))
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
LARGEST = 10_000_000
"""Multiplications of a forward pass up to which one thread of `compiled.cpp` is faster than torch's operations."""
LARGEST_LAYER = 1_000_000
"""The same for a layer by itself, whose calls are fewer."""

COSTS = {id(quadratic): 0, id(sigmoid_cross_entropy): 1}  # by identity: to hash a Cost takes a microsecond
POINTER, COUNT, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
ARGUMENTS = {"p": POINTER, "n": COUNT, "d": NUMBER}
FUNCTIONS = {
    "layer_forward": "ppppnnnn",
    "layer_backward": "pppppppnnnn",
    "network_cost": "ppnnpppndpp",
    "sgd": "pppnnpddnpppn",
}
"""What is called in C++, with the kinds of its arguments. C++ says the same of itself, and the two are compared."""
PLAIN = (Tensor, torch.nn.Parameter)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor | None:
    """a = σ(input @ weightᵀ + bias) where `compiled.cpp` can take these, else None. Shapes as in `kernels.linear`."""
    code = activation.code
    given = addresses_if_dense(weight.dtype, input, weight, bias)
    if code is None or input is None or not given or weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    samples = input.numel() // max(1, inputs)
    if (
        not 0 < samples * inputs * outputs <= LARGEST_LAYER
        or input.shape[-1] != inputs
        or (bias is not None and bias.shape != (outputs,))
    ):
        return None
    a = input.new_empty(*input.shape[:-1], outputs)
    run = library()["layer_forward", a.dtype]
    run(*given, address(a), samples, inputs, outputs, code)
    return a


def gradients(
    grad_a: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    a: Tensor | None,
    activation: Activation,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """BP1 to BP4 where `compiled.cpp` can take these, else None.

    Args:
        grad_a: ∂C/∂a, ``(*, o)``.
        input, weight, a: ``(*, i)``, ``(o, i)``, ``(*, o)``; what is not needed may be None.
        needs: whether ∂C/∂input, ∂C/∂weight and ∂C/∂bias are asked for; the others are None.
    """
    code = activation.code
    given = addresses_if_dense(grad_a.dtype, grad_a, input, weight, a)
    if code is None or not given:
        return None
    outputs, inputs = grad_a.shape[-1], max(0 if t is None else t.shape[-1] for t in (input, weight))
    samples = grad_a.numel() // max(1, outputs)
    if (
        not grad_a.numel()
        or grad_a.numel() * inputs > LARGEST_LAYER
        # As large as they were in the forward pass? `.data` and hooks on saved tensors can change that.
        or (input is not None and input.numel() != samples * inputs)
        or (weight is not None and weight.numel() != outputs * inputs)
        or (a is not None and a.numel() != grad_a.numel())
    ):
        return None
    new = grad_a.new_empty
    found = (
        new(*grad_a.shape[:-1], inputs) if needs[0] else None,
        new(outputs, inputs) if needs[1] else None,
        new(outputs) if needs[2] else None,
    )
    run = library()["layer_backward", grad_a.dtype]
    run(*given, *map(address, found), samples, inputs, outputs, code)
    return found


def network_cost(
    input: Tensor,
    target: Tensor,
    activations: Sequence[Activation],
    cost: Cost,
    scale: float,
    parameters: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]] | None:
    """The sum of the costs of the samples, times ``scale``, and its gradients, where `compiled.cpp` can take these.

    Args:
        input, target: ``(*, i)`` and ``(*, o)``.
        parameters: w^1, b^1, w^2, b^2 …
        needs: which gradients are asked for: of the input, and of each parameter; the others are None.
    """
    weights, biases = [w for w in parameters[::2] if w is not None], parameters[1::2]
    codes = [f.code for f in activations if f.code is not None]
    sizes = [w.shape[-1] for w in weights] + [weights[-1].shape[0]]
    samples = input.numel() // sizes[0] if sizes[0] else 0
    if (
        not len(codes) == len(activations) == len(weights)
        or not (cost is quadratic or (cost is sigmoid_cross_entropy and activations[-1] is identity))
        or not 0 < samples * sum(i * o for i, o in pairwise(sizes)) <= LARGEST
        or not addresses_if_dense(input.dtype, input, target, *parameters)
        or input.shape[-1] != sizes[0]
        or target.numel() != samples * sizes[-1]
        or any(w.shape != (o, i) for w, (i, o) in zip(weights, pairwise(sizes), strict=True))
        or any(b is not None and b.shape != (o,) for b, o in zip(biases, sizes[1:], strict=True))
    ):
        return None
    differentiable = zip((input, *parameters), needs, strict=True)
    found = [torch.empty_like(t) if need and t is not None else None for t, need in differentiable]
    value = input.new_empty(())
    library()["network_cost", input.dtype](
        *map(address, (input, target)),
        samples,
        len(weights),
        counts(sizes),
        counts(codes),
        addresses(weights, biases, found[1::2], found[2::2]),
        COSTS[id(cost)],
        scale,
        *map(address, (value, found[0])),
    )
    return value, found


def addresses(*of_each_layer: Sequence[Tensor | None]) -> ctypes.Array:
    """Weight, bias, and what belongs to each, layer by layer."""
    places = [address(t) for layer in zip(*of_each_layer, strict=True) for t in layer]
    return (POINTER * len(places))(*places)


def addresses_if_dense(dtype: torch.dtype, *tensors: Tensor | None) -> list[int]:
    """Where they lie, 0 for None; nothing unless all are plain rows of one of `DTYPES` in the memory of the CPU."""
    places = []
    for t in tensors:  # a loop, since this is asked at every pass, and a generator takes half a microsecond more
        if t is None:
            places.append(0)
            continue
        if not (type(t) in PLAIN and t.dtype is dtype and t.is_cpu and t.is_contiguous() and not t.is_neg()):
            return []
        try:
            place = t.data_ptr()
        except RuntimeError:  # it has none: one of many that torch computes at once, as with `is_grads_batched`
            return []
        if not place:  # empty, or freed, or zeros that torch does not write down
            return []
        places.append(place)
    return places if dtype in DTYPES else []


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def counts(values: Sequence[int]) -> ctypes.Array:
    return (COUNT * len(values))(*values)


def numbers(values: Sequence[float]) -> ctypes.Array:
    return (NUMBER * len(values))(*values)


class Mismatch(Exception):
    """C++ and Python do not agree about the calls."""


def can_be_built() -> bool:
    """Whether there is a C++ compiler; the first time, where there is none, it warns."""
    return bool(library())


@functools.cache
def library() -> dict[tuple[str, torch.dtype], Callable[..., None]]:
    """The functions of `compiled.cpp` by name and dtype; none, and a warning, where it cannot be built or called."""
    try:
        return _functions(_rows(_built()))
    except FileNotFoundError as error:
        reason = f"could not be built: there is no {error.filename}"
    except subprocess.CalledProcessError as error:
        reason = f"could not be built: {(error.stderr.splitlines() or [error])[0]}"
    except OSError as error:
        reason = f"could not be built: {error}"
    except Mismatch as error:
        reason = f"is not the C++ that Python expects: {error}"
    warnings.warn(f"compiled.cpp {reason}; torch's operations run instead", stacklevel=4)
    return {}


def _built() -> Path:
    """The library for this processor and these sources, built if it is not there."""
    sources = b"".join(source.read_bytes() for source in SOURCES)
    digest = hashlib.sha256(sources + " ".join((*_compiler(), *FLAGS, _processor())).encode()).hexdigest()[:16]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or caches / "torch_extensions")  # where torch keeps its own
    path = folder / f"manual_backprop_{digest}.so"  # a home may be shared by several processors
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            new = Path(unfinished) / path.name
            command = [*_compiler(), *FLAGS, str(SOURCES[0]), "-o", str(new)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            new.replace(path)  # whole or not at all, whoever builds it at the same time
    return path


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


def _processor() -> str:
    """The abilities of this processor, for which the library is built."""
    return processor.said("flags", "Features") or platform.machine()


def _rows(path: Path) -> dict[str, int]:
    """The rows that the library has about itself, each with a number: the address of a function, the code of an
    activation or a cost."""
    try:
        table = ctypes.CDLL(str(path)).table
    except AttributeError:
        raise Mismatch("it has no table of its functions") from None
    table.argtypes, table.restype = [], ctypes.c_char_p
    rows = (line.rsplit(" ", 1) for line in table().decode().splitlines())
    return {row: int(number) for row, number in rows}


def _functions(rows: dict[str, int]) -> dict[tuple[str, torch.dtype], Callable[..., None]]:
    """The functions as Python calls them, from rows that are exactly those that Python expects."""
    kinds = {(name, dtype): kinds for name, kinds in FUNCTIONS.items() for dtype in DTYPES}
    keys = {f"function {name} {DTYPES[dtype]} {kinds[name, dtype]}": (name, dtype) for name, dtype in kinds}
    codes = {f"activation {f.name}": f.code for f in ACTIVATIONS.values() if f.code is not None}
    codes |= {f"cost {cost.name}": COSTS[id(cost)] for cost in (quadratic, sigmoid_cross_entropy)}
    here = keys.keys() | {f"{row} {code}" for row, code in codes.items()}
    there = {row if row.startswith("function") else f"{row} {number}" for row, number in rows.items()}
    if here != there:
        alone = {"C++": there - here, "Python": here - there}
        raise Mismatch("; ".join(f"{side} alone has {', '.join(sorted(rows))}" for side, rows in alone.items() if rows))
    types = {key: ctypes.CFUNCTYPE(None, *(ARGUMENTS[kind] for kind in kinds[key])) for key in kinds}
    return {key: types[key](rows[row]) for row, key in keys.items()}
