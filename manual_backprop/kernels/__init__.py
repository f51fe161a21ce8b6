"""Which kernel computes a layer: ATen's, oneDNN's, or our own in C++. The only place that chooses.

A layer has three products: z = input @ weightᵀ + bias with a = σ(z) behind it, ∂C/∂input = δ @ weight, and
∂C/∂weight = δᵀ @ input with the step of gradient descent behind it. ATen hands float32 to MKL, which leaves some of the
speed of AMD CPUs with AVX-512 unused; there oneDNN takes the large products, with σ fused into the first.

Below some million multiplications the calls take longer than the arithmetic. There `use("compiled")` gives a pass of a
layer to one call of C++ (`cpp.py`), which needs a compiler, so it is not the default.

oneDNN and our C++ get plain dense CPU tensors only, and only where nothing records, because they have no derivative:
everything else (autograd, `torch.func`, `torch.compile`, tensor subclasses, other devices) is ATen's.

`linear`, `matmul`, `addmm_` and `hadamard` always compute. `gradients`, `network_cost` and `sgd` are whole passes that
C++ can have in one call; where it cannot, they say so, and the caller goes by the equations.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from manual_backprop import _torch
from manual_backprop.activations import Activation, Derivative
from manual_backprop.costs import Cost
from manual_backprop.kernels import cpp, onednn
from manual_backprop.kernels.choice import KERNELS as KERNELS
from manual_backprop.kernels.choice import NEVER, current, unrecorded
from manual_backprop.kernels.choice import chosen as chosen
from manual_backprop.kernels.choice import use as use
from manual_backprop.kernels.choice import using as using
from manual_backprop.kernels.cuda_graph import captured as captured
from manual_backprop.kernels.epoch import sgd as sgd

_linear: Callable[..., Tensor] = torch.nn.functional.linear  # it takes `out` too, of which its stub knows nothing


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, out: Tensor | None = None
) -> Tensor:
    """a = σ(input @ weightᵀ + bias). Shapes: input ``(*, i)``, weight ``(o, i)``, bias ``(o,)``; a ``(*, o)``.

    ATen writes into ``out``; the others cannot.
    """
    smallest, compiled = current()
    if compiled and out is None and unrecorded():
        a = cpp.linear(input, weight, bias, activation)
        if a is not None:
            return a
    if (
        smallest != NEVER
        and onednn.is_large(input, weight.shape[0], smallest)
        and input.shape[-1:] == weight.shape[1:]
        and onednn.can(input, weight, bfloat16=not smallest)
        and (bias is None or (bias.shape == weight.shape[:1] and onednn.can(bias, weight, bfloat16=not smallest)))
        and unrecorded()
    ):
        return onednn.linear(input, weight, bias, activation)
    z = _linear(input, weight, bias, out=out)
    # σ in place only on a plain tensor that nobody else can have kept: a subclass or a dispatch mode (selective
    # checkpointing) may have kept z. Compiled code never works in place, because Dynamo cannot trace that question.
    ours = type(z) is Tensor and not (is_dynamo_compiling() or _torch.modes_active())
    return activation.in_place_of(z) if ours else activation.function(z)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b. Shapes: ``(*, k)`` and ``(k, n)``; ``(*, n)``. ATen writes rows into ``out``; oneDNN cannot."""
    if _onednn_has(a, b) and a.shape[-1:] == b.shape[:-1] and unrecorded():
        return onednn.product(a, b.mT)
    return a @ b if out is None else torch.mm(a, b, out=out)


def addmm_(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """c = β c + α a @ b, in place: ∂C/∂weight and the step in one. Shapes: ``(m, n)``, ``(m, k)``, ``(k, n)``."""
    if _onednn_has(a, b, c) and a.shape[1:] == b.shape[:-1] and c.shape == a.shape[:1] + b.shape[1:] and unrecorded():
        # β = 0 must erase c even where c is NaN (0 · NaN is NaN), as `torch.addmm` does.
        kept = c if beta == 1 else c.mul_(beta) if beta else c.zero_()
        return kept.add_(onednn.product(a, b.mT), alpha=alpha)
    return c.addmm_(a, b, beta=beta, alpha=alpha)


def _onednn_has(a: Tensor, b: Tensor, *others: Tensor) -> bool:
    """Whether oneDNN is chosen for the product a @ b and takes such tensors."""
    smallest, _ = current()
    return (
        smallest != NEVER
        and onednn.is_large(a, b.shape[-1], smallest)
        and onednn.can(a, b, *others, bfloat16=not smallest)
    )


def hadamard(x: Tensor, derivative: Tensor | float | Derivative, out: Tensor | None = None) -> Tensor:
    """x ⊙ σ′, elementwise; for a `Derivative` in one pass over memory, where its activation has one."""
    if isinstance(derivative, Derivative):
        f, value = derivative
        if f.times_derivative and type(x) is Tensor and unrecorded():
            return f.times_derivative(x, value, out)
        derivative = f.derivative(value)
    return torch.mul(x, derivative, out=out)


def gradients(
    grad_a: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    a: Tensor | None,
    activation: Activation,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """BP1 to BP4 of a layer in one call, or None: go by the equations. Arguments as in `cpp.gradients`."""
    if current().compiled and unrecorded():
        return cpp.gradients(grad_a, input, weight, a, activation, needs)
    return None


def network_cost(
    input: Tensor,
    target: Tensor,
    activations: Sequence[Activation],
    cost: Cost,
    scale: float,
    parameters: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]] | None:
    """The cost of a network and its gradients in one call, or None: go by the equations. Arguments as in
    `cpp.network_cost`."""
    if current().compiled and unrecorded():
        return cpp.network_cost(input, target, activations, cost, scale, parameters, needs)
    return None
