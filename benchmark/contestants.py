"""Who takes part: the same step of gradient descent on the quadratic cost of sigmoid layers, by different hands
(scikit-learn's has softmax outputs and their cross-entropy; it knows no other).

Each maker gives a function and the number of steps that one call of it takes (perhaps a part of one), or None where its
library is missing; the libraries that are no torch take part in float32, and NumPy and scikit-learn in small works.
"""

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmark.timing import Contestant, Work
from manual_backprop import Network, kernels, nn
from manual_backprop.kernels import cpp

RATE = 0.1
LARGE_FLOPS = 1e8
STEPS = 50  # of those who take many steps a call, where a step is short
Maker = Callable[[Work], "tuple[Contestant, float] | None"]


def steps(work: Work) -> int:
    return STEPS if work.flops < LARGE_FLOPS else 2


def data(work: Work, batches: int = 1) -> tuple[Tensor, Tensor]:
    n = work.batch * batches
    return torch.rand(n, work.sizes[0], dtype=work.dtype), torch.rand(n, work.sizes[-1], dtype=work.dtype)


def torch_layers(work: Work) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for i, o in pairwise(work.sizes):
        layers += [torch.nn.Linear(i, o, dtype=work.dtype), torch.nn.Sigmoid()]
    return torch.nn.Sequential(*layers)


def _training(model: torch.nn.Module, cost: Callable[[Tensor, Tensor], Tensor], work: Work, **options: bool) -> tuple:
    x, y = data(work)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, **options)

    def step() -> None:
        optimizer.zero_grad()
        cost(x, y).backward()
        optimizer.step()

    return step, 1


def _of_torch(mode: str | None = None, **options: bool) -> Maker:
    """Eager, or compiled in a mode of `torch.compile`."""

    def make(work: Work) -> tuple[Contestant, int]:
        cost = TorchCost(work)
        return _training(cost, torch.compile(cost, mode=mode) if mode else cost, work, **options)

    return make


def layers(work: Work) -> tuple[Contestant, int]:
    model, cost = nn.MLP(work.sizes, dtype=work.dtype), nn.QuadraticCost()
    return _training(model, lambda x, y: cost(model(x), y), work)


def network_cost(work: Work) -> tuple[Contestant, int]:
    cost = network_with_cost(work)
    return _training(cost, cost, work)


def network(compile: bool = False) -> Maker:
    def make(work: Work) -> tuple[Contestant, int]:
        net = Network(work.sizes, dtype=work.dtype, compile=compile)
        x, y = data(work, steps(work))
        order = torch.randperm(len(x))
        return lambda: net.sgd(x, y, work.batch, RATE, order), steps(work)

    return make


def _by(kernel: str, make: Maker) -> Maker:
    """The same with its layers by one kernel: our own C++ in small works, the others in large ones."""

    def maker(work: Work) -> tuple[Contestant, float] | None:
        small = work.flops < LARGE_FLOPS
        if small != (kernel == "compiled") or (small and not cpp.can_be_built()):
            return None
        made, calls = make(work), STEPS if small else 1  # to choose takes some microseconds
        if made is None:
            return None

        def run() -> None:
            with kernels.using(kernel):
                for _ in range(calls):
                    made[0]()

        return run, calls * made[1]

    return maker


def jax_step(work: Work) -> tuple[Contestant, int] | None:
    if not _can("jax", work):
        return None
    import jax

    parameters, step = _jax(work)
    x, y = (jax.numpy.asarray(t.numpy()) for t in data(work))
    jitted = jax.jit(step)
    state = [parameters]

    def run() -> None:
        state[0] = jax.block_until_ready(jitted(state[0], x, y))

    return run, 1


def jax_epoch(work: Work) -> tuple[Contestant, int] | None:
    """Many steps under `jax.lax.scan`, the samples gathered in each as an epoch does."""
    if not _can("jax", work):
        return None
    import jax

    parameters, step = _jax(work)
    x, y = (jax.numpy.asarray(t.numpy()) for t in data(work, steps(work)))
    order = jax.numpy.asarray(torch.randperm(len(x)).reshape(steps(work), work.batch).numpy())
    epoch = jax.jit(lambda p: jax.lax.scan(lambda p, batch: (step(p, x[batch], y[batch]), None), p, order)[0])
    state = [parameters]

    def run() -> None:
        state[0] = jax.block_until_ready(epoch(state[0]))

    return run, steps(work)


def _jax(work: Work) -> tuple:
    import jax

    def cost(parameters, x, y):  # type: ignore[no-untyped-def]
        for w, b in parameters:
            x = jax.nn.sigmoid(x @ w.T + b)
        return ((x - y) ** 2).sum() / (2 * len(y))

    def step(parameters, x, y):  # type: ignore[no-untyped-def]
        slopes = jax.grad(cost)(parameters, x, y)
        return jax.tree.map(lambda p, slope: p - RATE * slope, parameters, slopes)

    linear = [layer for layer in torch_layers(work) if isinstance(layer, torch.nn.Linear)]
    return [tuple(jax.numpy.asarray(p.detach().numpy()) for p in layer.parameters()) for layer in linear], step


def numpy_batches(work: Work) -> tuple[Contestant, int] | None:
    """The equations on whole mini-batches in NumPy."""
    return (_numpy(work, whole=True), 1) if _can("numpy", work) else None


def numpy_samples(work: Work) -> tuple[Contestant, int] | None:
    """Sample by sample, as the book's program computes."""
    return (_numpy(work, whole=False), 1) if _can("numpy", work) else None


def _numpy(work: Work, whole: bool) -> Contestant:
    import numpy as np

    linear = [layer for layer in torch_layers(work) if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight.detach().numpy() for layer in linear]
    biases = [layer.bias.detach().numpy() for layer in linear]
    x, y = (t.numpy() for t in data(work))
    groups = [slice(None)] if whole else [slice(i, i + 1) for i in range(work.batch)]

    def step() -> None:
        nabla = [[np.zeros_like(p) for p in weights], [np.zeros_like(p) for p in biases]]
        for group in groups:
            activations = [x[group]]
            for w, b in zip(weights, biases, strict=True):
                activations.append(1 / (1 + np.exp(-(activations[-1] @ w.T + b))))
            delta = activations[-1] - y[group]
            for layer in reversed(range(len(weights))):
                a = activations[layer + 1]
                delta = (delta if layer == len(weights) - 1 else delta @ weights[layer + 1]) * a * (1 - a)
                nabla[0][layer] += delta.T @ activations[layer]
                nabla[1][layer] += delta.sum(0)
        for parameters, slopes in zip((weights, biases), nabla, strict=True):
            for p, slope in zip(parameters, slopes, strict=True):
                p -= RATE / work.batch * slope

    return step


def scikit_learn(work: Work) -> tuple[Contestant, int] | None:
    if not _can("sklearn", work):
        return None
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(work.sizes[1:-1], activation="logistic", solver="sgd", batch_size=work.batch, momentum=0)
    x = data(work, STEPS)[0].numpy()
    labels = torch.arange(len(x)) % work.sizes[-1]
    classes = list(range(work.sizes[-1]))
    return lambda: model.partial_fit(x, labels.numpy(), classes=classes), STEPS


def products(work: Work) -> tuple[Contestant, int]:
    """The matrix products of a step and nothing else, by torch's own kernel."""
    pairs = []
    for layer, (i, o) in enumerate(pairwise(work.sizes)):
        x, w = torch.rand(work.batch, i, dtype=work.dtype), torch.rand(o, i, dtype=work.dtype)
        delta = torch.rand(work.batch, o, dtype=work.dtype)
        pairs += [(x, w.t()), (delta.t(), x)] + ([(delta, w)] if layer else [])
    out = [a @ b for a, b in pairs]

    def run() -> None:
        for (a, b), c in zip(pairs, out, strict=True):
            torch.mm(a, b, out=c)

    return run, 1


def peak(work: Work) -> tuple[Contestant, float]:
    """The arithmetic of a step at the rate of one product of 1024 × 1024 numbers, by the kernel that ours have."""
    a, b = (torch.rand(1024, 1024, dtype=work.dtype) for _ in range(2))
    return lambda: kernels.matmul(a, b), 2 * 1024**3 / work.flops


SLOW = ("numpy", "sklearn")
"""Of these a step takes seconds where others take milliseconds."""


def _can(library: str, work: Work) -> bool:
    small = work.flops < LARGE_FLOPS or library not in SLOW
    return small and work.dtype == torch.float32 and importlib.util.find_spec(library) is not None


def _passes(make: Callable[[Work], torch.nn.Module], backward: bool) -> Maker:
    """The cost of a network, and its gradients too or not."""

    def maker(work: Work) -> tuple[Contestant, int]:
        cost = make(work)
        x, y = data(work)
        parameters = list(cost.parameters())
        if backward:
            return lambda: torch.autograd.grad(cost(x, y), parameters), 1
        return lambda: cost(x, y), 1

    return maker


class TorchCost(torch.nn.Module):
    """`torch.nn` layers with the quadratic cost."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.network = torch_layers(work)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(self.network(x), y, reduction="sum") / (2 * len(x))


def compiled_torch_cost(work: Work) -> Any:
    return torch.compile(TorchCost(work))


def network_with_cost(work: Work) -> nn.NetworkCost:
    return nn.NetworkCost(nn.MLP(work.sizes, dtype=work.dtype))


def _layer(make: Callable[[Work], torch.nn.Module], backward: bool = True) -> Maker:
    """Forward and backward of one layer, without an optimizer; or forward alone."""

    def maker(work: Work) -> tuple[Contestant, int]:
        module = make(work)
        x = data(work)[0].requires_grad_()
        grad_output = torch.rand(work.batch, work.sizes[-1], dtype=work.dtype)
        leaves = [x, *module.parameters()]
        if backward:
            return lambda: torch.autograd.grad(module(x), leaves, grad_output), 1
        return lambda: module(x), 1

    return maker


def linear_sigmoid(work: Work) -> nn.LinearSigmoid:
    return nn.LinearSigmoid(work.sizes[0], work.sizes[1], dtype=work.dtype)


STEP: dict[str, Maker] = {
    "torch eager": _of_torch(),
    "torch eager, foreach": _of_torch(foreach=True),
    "torch eager, fused": _of_torch(fused=True),
    "torch.compile": _of_torch("default"),
    "torch.compile, max-autotune": _of_torch("max-autotune-no-cudagraphs"),
    "ours: layers": layers,
    "ours: layers, compiled": _by("compiled", layers),
    "ours: NetworkCost": network_cost,
    "ours: NetworkCost, compiled": _by("compiled", network_cost),
    "ours: NetworkCost, ATen": _by("aten", network_cost),
    "ours: NetworkCost, oneDNN": _by("onednn", network_cost),
    "ours: Network": network(),
    "ours: Network compiled": network(compile=True),
    "JAX step": jax_step,
    "JAX epoch (scan)": jax_epoch,
    "NumPy, mini-batches": numpy_batches,
    "NumPy, sample by sample": numpy_samples,
    "scikit-learn": scikit_learn,
    "products alone": products,
    "peak rate": peak,
}
FLOORS = ("products alone", "peak rate")
LAYER: dict[str, Maker] = {
    "Linear + Sigmoid": _layer(torch_layers),
    "ours: LinearSigmoid": _layer(linear_sigmoid),
    "ours: LinearSigmoid, compiled": _by("compiled", _layer(linear_sigmoid)),
    "ours: LinearSigmoid, ATen": _by("aten", _layer(linear_sigmoid)),
    "ours: LinearSigmoid, oneDNN": _by("onednn", _layer(linear_sigmoid)),
}
FORWARD: dict[str, Maker] = {
    "Linear + Sigmoid": _layer(torch_layers, backward=False),
    "ours: LinearSigmoid": _layer(linear_sigmoid, backward=False),
}
GROWTH = {name: STEP[name] for name in ("torch eager", "ours: layers", "ours: NetworkCost", "ours: Network")}
PASSES: dict[str, Maker] = {
    "torch eager, forward": _passes(TorchCost, backward=False),
    "torch eager, forward and backward": _passes(TorchCost, backward=True),
    "torch.compile, forward and backward": _passes(compiled_torch_cost, backward=True),
    "ours: NetworkCost, forward": _passes(network_with_cost, backward=False),
    "ours: NetworkCost, forward and backward": _passes(network_with_cost, backward=True),
    "ours: NetworkCost, forward and backward, compiled": _by("compiled", _passes(network_with_cost, backward=True)),
}
CONTESTANTS = {
    "step": STEP,
    "layer": LAYER,
    "forward": FORWARD,
    "passes": PASSES,
    **dict.fromkeys(("width", "depth", "batch"), GROWTH),
}
