"""Many steps of a small network in one call: `sgd.cpp`, built when it is first used.

A step of 784-30-10 on 10 samples is some microseconds of arithmetic, and some twenty operations of torch, each of which
costs more than a microsecond before it computes anything. C++ has no such cost, reads the samples where they lie, and
updates a weight while it is in the cache. A compiled graph of the same operations (`torch.compile`) keeps the calls of
the library that multiplies matrices, which is slow at such sizes.

`torch.utils.cpp_extension` builds it with the C++ compiler of this machine and keeps it for the next process.
"""

import ctypes
import functools
import hashlib
import logging
import platform
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manual_backprop.activations import identity, relu, sigmoid, tanh
from manual_backprop.costs import Cost, quadratic, sigmoid_cross_entropy

if TYPE_CHECKING:
    from manual_backprop.network import Network

SOURCE = Path(__file__).with_name("sgd.cpp")
ACTIVATIONS = {sigmoid: 0, tanh: 1, relu: 2, identity: 3}
FUNCTIONS = {torch.float32: "sgd_float32", torch.float64: "sgd_float64"}
LARGEST = 2_000_000
"""Multiplications of a forward pass up to which one thread of `sgd.cpp` is faster than torch's operations."""


def can_run(network: "Network", x: Tensor, y: Tensor, batch_size: int, order: Tensor) -> bool:
    """Whether `sgd` takes these: dense rows of float32 or float64 on the CPU, a small network with activations and a
    cost that `sgd.cpp` knows, and a C++ compiler. What does not fit is torch's to refuse."""
    tensors = [x, y, *network.weights, *network.biases, *network.velocities]
    dtype = network.weights[0].dtype
    small = batch_size * sum(w.numel() for w in network.weights) <= LARGEST
    return (
        small
        and dtype in FUNCTIONS
        and order.dim() == 1
        and order.dtype in (torch.int32, torch.int64)
        and all(t.is_cpu and t.dtype == dtype and t.is_contiguous() for t in tensors)
        and all(f in ACTIVATIONS for f in network.activations)
        and _cost(network) in (quadratic, sigmoid_cross_entropy)
        and _library() is not None
    )


def sgd(
    network: "Network",
    x: Tensor,
    y: Tensor,
    batch_size: int,
    rates: list[float],
    order: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """`Network.sgd` for those that `can_run`. ``rates``: the learning rate of each mini-batch."""
    if momentum and not network.velocities:
        network.velocities = [torch.zeros_like(parameter) for parameter in network.weights + network.biases]
    layers = len(network.weights)
    velocities = network.velocities if momentum else [None] * (2 * layers)
    parameters = [
        0 if tensor is None else tensor.data_ptr()
        for of_a_layer in zip(network.weights, network.biases, velocities[:layers], velocities[layers:], strict=True)
        for tensor in of_a_layer
    ]
    order = order.to(torch.int64).contiguous()
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise IndexError(f"order: expected indices of {len(x)} samples, found {int(order.min())} to {int(order.max())}")
    library = _library()
    assert library is not None
    getattr(library, FUNCTIONS[x.dtype])(
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_void_p(order.data_ptr()),
        ctypes.c_int64(len(order)),
        ctypes.c_int64(batch_size),
        (ctypes.c_double * len(rates))(*rates),
        ctypes.c_double(momentum),
        ctypes.c_double(weight_decay),
        ctypes.c_int64(layers),
        (ctypes.c_int64 * (layers + 1))(network.weights[0].shape[1], *map(len, network.biases)),
        (ctypes.c_int64 * layers)(*(ACTIVATIONS[f] for f in network.activations)),
        (ctypes.c_void_p * len(parameters))(*parameters),
        ctypes.c_int64(_cost(network) is sigmoid_cross_entropy),
    )


def _cost(network: "Network") -> Cost:
    """In its short form, where there is one: the cross-entropy of sigmoid outputs as a function of z."""
    return network.cost.of_weighted_input_of(network.activations[-1]) or network.cost


def _processor() -> str:
    """A digest of what this processor can, for which the library is built."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return hashlib.sha256(flags.encode()).hexdigest()[:12]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """`sgd.cpp` as a library, or None and a warning where it cannot be built."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses a CUDA that nobody asked for
    from torch.utils import cpp_extension  # lazily: it takes as long as the rest of the package

    name = f"manual_backprop_sgd_{_processor()}"  # a home may be shared by several
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]
    try:
        return ctypes.CDLL(cpp_extension.load(name, [str(SOURCE)], extra_cflags=flags, is_python_module=False))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"compile: sgd.cpp could not be built, so torch's operations run instead: {reason}", stacklevel=4)
        return None
