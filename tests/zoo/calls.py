"""Calling an entry of the zoo, and its gradients, in plain torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

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


def signed(outputs: tuple[Tensor, ...], seed: int = 1, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(output.shape, generator=generator, dtype=torch.complex128) for output in outputs]
    return [
        scale * (g if output.is_complex() else g.real.clone()).to(output.dtype)
        for g, output in zip(drawn, outputs, strict=True)
    ]


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
        elif (
            e.shape != a.shape
            or (e - a).abs().gt(rtol * e.abs().max().clamp(min=1e-300)).any()
            or (e - a).isnan().any()
        ):
            return True
    return False


def raises_or(compute: Callable[[], bool]) -> bool:
    try:
        return compute()
    except LOUD:
        return True


def raw(entry: Entry, inputs: tuple) -> list[tuple[Tensor | None, Any]]:
    """What `backward` itself returns, beside each input."""
    seen: list = []

    def backward(ctx: Any, *grads: Any) -> Any:
        returned = entry.function.backward(ctx, *grads)
        seen.append(returned if isinstance(returned, tuple) else (returned,))
        return returned

    spied = type("Spied", (entry.function,), {"backward": staticmethod(backward)})
    try:
        vjp(spied, inputs)
    except LOUD:
        if not seen:
            raise
    assert len(seen[0]) == len(inputs)
    return list(zip(seen[0], inputs, strict=True))
