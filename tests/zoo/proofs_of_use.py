"""Proofs that a derivative goes wrong in use: state, numbers, edges."""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from manual_backprop.zoo.entry import Entry
from tests.zoo.calls import Grads, call, callable_of, differ, leaves, raises_or, raw, signed, vjp


def written(which: str) -> Callable[[Entry], bool]:
    """Whether the bytes of the inputs, the incoming gradients or what was saved are changed by forward and backward."""

    def proof(entry: Entry) -> bool:
        inputs = entry.inputs()
        before_inputs = [x.detach().clone() for x in leaves(inputs)]
        outputs = call(entry.function, inputs)
        grad_outputs = signed(outputs)
        saved = [x for x in outputs[0].grad_fn.saved_tensors if x is not None]
        before = [x.detach().clone() for x in (grad_outputs if which == "grad_output" else saved)]
        torch.autograd.grad(outputs, leaves(inputs), grad_outputs)
        after = {"inputs": leaves(inputs), "grad_output": grad_outputs, "saved": saved}[which]
        return any(not a.equal(b) for a, b in zip(after, before_inputs if which == "inputs" else before, strict=True))

    return proof


def second_backward(entry: Entry) -> bool:
    inputs = entry.inputs()
    outputs = call(entry.function, inputs)
    grads = [list(torch.autograd.grad(outputs, leaves(inputs), signed(outputs), retain_graph=True))]
    return raises_or(lambda: differ(grads[0], list(torch.autograd.grad(outputs, leaves(inputs), signed(outputs)))))


def after_another_call(entry: Entry) -> bool:
    """A call with other numbers comes between forward and backward, before them, or changes the random numbers."""
    expected = vjp(entry.function, entry.inputs())
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    inputs, others = entry.inputs(), tuple(-x.detach() if x is not None else x for x in entry.inputs()[:1])
    outputs = call(entry.function, inputs)
    other = (others[0].requires_grad_(), *entry.inputs()[1:])
    held = call(entry.function, other)
    between = list(torch.autograd.grad(outputs, leaves(inputs), signed(outputs)))
    correct = [g for _, g in zip(leaves(other), numerical_vjp(entry, other), strict=True)]
    actual = list(torch.autograd.grad(held, leaves(other), signed(held)))
    return differ(expected, between) or not first.equal(torch.rand(1)) or differ(correct, actual, 1e-4)


def numerical_vjp(entry: Entry, inputs: tuple) -> Grads:
    """By central differences, of the first input; the analytic one for the others."""
    with torch.no_grad():
        x, grad = inputs[0].detach(), torch.zeros_like(inputs[0])
        for i in range(x.numel()):
            for sign in (1, -1):
                moved = x.clone()
                moved.view(-1)[i] += sign * 1e-6
                output = callable_of(entry.function)(moved, *inputs[1:])
                grad.view(-1)[i] += sign * (output * signed((output,))[0]).sum() / 2e-6
    return [grad, *vjp(entry.function, inputs)[1:]]


def leaks(entry: Entry) -> bool:
    inputs = entry.inputs()
    outputs = call(entry.function, inputs)
    watched = [weakref.ref(x) for x in (*leaves(inputs), *outputs)]
    grads = torch.autograd.grad(outputs, leaves(inputs), signed(outputs))
    del inputs, outputs, grads
    return any(reference() is not None for reference in watched)


def change_after_forward_unnoticed(entry: Entry) -> bool:
    inputs = entry.inputs()
    expected = vjp(entry.function, inputs)
    outputs = call(entry.function, inputs)
    with torch.no_grad():
        leaves(inputs)[0].mul_(3)
    try:
        return differ(expected, list(torch.autograd.grad(outputs, leaves(inputs), signed(outputs))))
    except RuntimeError:
        return False


# A cache knows the numbers of an earlier pass, by chance at the same address: each turn has numbers of its own.
_turn = itertools.count(1)


def offloaded(entry: Entry) -> bool:
    inputs = entry.inputs()
    with torch.no_grad():
        for x in leaves(inputs):
            x.mul_(1 + 0.01 / next(_turn))

    def offloading() -> Grads:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x.clone()):
            return vjp(entry.function, inputs)

    return raises_or(lambda: differ(offloading(), vjp(entry.function, inputs)))


def checkpointed(entry: Entry) -> bool:
    expected = vjp(entry.function, entry.inputs())

    def function(*inputs: Any) -> Any:
        return checkpoint(callable_of(entry.function), *inputs, use_reentrant=False)

    return raises_or(lambda: differ(expected, vjp(function, entry.inputs())))


def low_precision(dtype: torch.dtype) -> Callable[[Entry], bool]:
    """Ten roundings off what float64 makes of the same numbers."""

    def proof(entry: Entry) -> bool:
        low = tuple(x.detach().to(dtype).requires_grad_() if isinstance(x, Tensor) else x for x in entry.inputs())
        high = tuple(x.detach().double().requires_grad_() if isinstance(x, Tensor) else x for x in low)
        grad_outputs = [g.to(dtype) for g in signed(call(entry.function, high))]
        exact = vjp(entry.reference or entry.function, high, [g.double() for g in grad_outputs])
        return differ(exact, [g.double() for g in vjp(entry.function, low, grad_outputs)], 5 * torch.finfo(dtype).eps)

    return proof


def scaled_inputs(*scales: float) -> Callable[[Entry], bool]:
    def proof(entry: Entry) -> bool:
        for scale in scales:
            inputs = entry.inputs()
            inputs = tuple((x.detach() * scale).requires_grad_() for x in inputs)
            finite = all(output.isfinite().all() for output in call(entry.function, inputs))
            if finite and any(g is not None and not g.isfinite().all() for g in vjp(entry.function, inputs)):
                return True
        return False

    return proof


def autocast(also_backward: bool) -> Callable[[Entry], bool]:
    """More than a few per cent off what the same numbers give in float32."""

    def proof(entry: Entry) -> bool:
        inputs = tuple(x.detach().float().requires_grad_() for x in entry.inputs())
        expected = vjp(entry.function, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = call(entry.function, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=also_backward):
            grads = torch.autograd.grad(outputs, leaves(inputs), signed(outputs))
        return differ(expected, list(grads), 0.05)

    return proof


def batch_of(*leading: int) -> Callable[[Entry], bool]:
    """Another number of samples, or of batch axes: a crash, a NaN, or a raw gradient of another shape."""

    def proof(entry: Entry) -> bool:
        first, *others = entry.inputs()
        drawn = torch.randn(*leading, first.shape[-1], dtype=first.dtype).requires_grad_()
        gradients = raises_or(lambda: any(g.isnan().any() for g in vjp(entry.function, (drawn, *others))))
        return gradients or any(g.shape != x.shape for g, x in raw(entry, (drawn, *others)))

    return proof


def size_of_one(entry: Entry) -> bool:
    first, second = entry.inputs()
    second = second.detach()[:, :1].clone().requires_grad_()
    return raises_or(lambda: not vjp(entry.function, (first, second))) or any(
        g.shape != x.shape for g, x in raw(entry, (first, second))
    )


def same_tensor_twice(entry: Entry) -> bool:
    x, y = entry.inputs()[0], entry.inputs()[0]
    a, b = vjp(entry.function, (x, y))
    (total,) = torch.autograd.grad(outputs := call(entry.function, (x, x)), x, signed(outputs))
    return differ([a + b], [total])
