"""Calling an entry of the zoo, and its gradients, in plain torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, gradcheck

from manual_backprop.zoo.entry import Entry

Grads = list[Tensor | None]
LOUD = (RuntimeError, TypeError, IndexError, NameError, ValueError, KeyError)


def callable_of(function: Any) -> Callable:
    return function.apply if isinstance(function, type) and issubclass(function, Function) else function


def call(function: Any, inputs: tuple) -> tuple[Tensor, ...]:
    """The outputs that require grad."""
    outputs = callable_of(function)(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(output for output in outputs if output.requires_grad)


def leaves(inputs: tuple) -> list[Tensor]:
    return [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]


def changed(inputs: tuple, change: Callable[[Tensor], Tensor]) -> tuple:
    """The inputs, with `change` of those that require grad as leaves in their place."""
    return tuple(
        change(x.detach()).requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x for x in inputs
    )


def signed(outputs: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(output.shape, generator=generator, dtype=torch.complex128) for output in outputs]
    return [(g if o.is_complex() else g.real.clone()).to(o.dtype) for g, o in zip(drawn, outputs, strict=True)]


def vjp(function: Any, inputs: tuple, grad_outputs: list[Tensor] | None = None, **options: Any) -> Grads:
    outputs = call(function, inputs)
    grad_outputs = signed(outputs) if grad_outputs is None else grad_outputs
    grads = torch.autograd.grad(outputs, leaves(inputs), grad_outputs, allow_unused=True, **options)
    return [None if grad is None else grad.detach().clone() for grad in grads]


def differ(expected: Grads, actual: Grads, rtol: float = 1e-9) -> bool:
    """Whether the gradients differ; `rtol` is relative to the largest element."""
    for e, a in zip(expected, actual, strict=True):
        if e is None or a is None:
            if e is not a:
                return True
        elif e.shape != a.shape or not ((e - a).abs() <= rtol * e.detach().abs().max().clamp(min=1e-300)).all():
            return True
    return False


def raises_or(compute: Callable[[], bool]) -> bool:
    try:
        return compute()
    except LOUD:
        return True


def no_derivative(function: Any, inputs: tuple) -> bool:
    """Whether gradcheck refuses Σ g·f for a signed g, so that all outputs are used at once, or the backward raises."""

    def weighted(*inputs: Any) -> Tensor:
        outputs = call(function, inputs)
        return sum((o * g.conj()).real.sum() for o, g in zip(outputs, signed(outputs), strict=True))

    return raises_or(lambda: not gradcheck(weighted, inputs, rtol=1e-5, atol=1e-6, raise_exception=False))


def raw(entry: Entry, inputs: tuple) -> list[tuple[Tensor | None, Any]]:
    """What `backward` itself returns, beside each input."""
    seen: list = []

    def backward(ctx: Any, *grads: Any) -> Any:
        returned = entry.function.backward(ctx, *grads)
        seen.append(returned if isinstance(returned, tuple) else (returned,))
        return returned

    vjp(type("Spied", (entry.function,), {"backward": staticmethod(backward)}), inputs)
    return list(zip(seen[0], inputs, strict=True))
