"""Proofs that a derivative is wrong: the number itself, the contract, linearity, layout."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck

from manual_backprop.zoo.entry import Entry
from tests.zoo.calls import call, callable_of, differ, leaves, raises_or, raw, signed, vjp


def any_raw(predicate: Callable[[Tensor, Tensor], bool]) -> Callable[[Entry], bool]:
    return lambda entry: any(isinstance(g, Tensor) and predicate(g, x) for g, x in raw(entry, entry.inputs()))


def not_derivative(entry: Entry) -> bool:
    return raises_or(lambda: not gradcheck(callable_of(entry.function), entry.inputs(), raise_exception=False))


def against_reference(entry: Entry) -> bool:
    return differ(vjp(entry.reference, entry.inputs()), vjp(entry.function, entry.inputs()), 1e-9)


def other_values(entry: Entry) -> bool:
    return differ(list(call(entry.reference, entry.inputs())), list(call(entry.function, entry.inputs())))


def wrong_number(entry: Entry) -> bool:
    try:
        vjp(entry.function, entry.inputs())
    except RuntimeError as error:
        return "incorrect number of gradients" in str(error)
    return False


def frozen_subset_differs(entry: Entry) -> bool:
    everything = dict(zip(map(id, leaves(inputs := entry.inputs())), vjp(entry.function, inputs), strict=True))
    positions = [i for i, x in enumerate(inputs) if id(x) in everything]
    for kept in positions:
        fresh = entry.inputs()
        for i in positions:
            fresh[i].requires_grad_(i == kept)
        if raises_or(lambda fresh=fresh, kept=kept: differ([everything[id(inputs[kept])]], vjp(entry.function, fresh))):
            return True
    return False


def shared_gradients(entry: Entry) -> bool:
    """Whether one input's .grad is the memory of another's, or of another input."""
    inputs = entry.inputs()
    outputs = call(entry.function, inputs)
    (outputs[0] if outputs[0].dim() == 0 else outputs[0].square().sum()).backward()
    first, second = leaves(inputs)
    return first.grad.data_ptr() in (second.grad.data_ptr(), second.data_ptr())


def output_left_out(entry: Entry) -> bool:
    inputs = entry.inputs()
    outputs = call(entry.function, inputs)
    return raises_or(lambda: not torch.autograd.grad(outputs[0], leaves(inputs), signed(outputs[:1])))


def output_varies_without_grad(entry: Entry) -> bool:
    outputs, moved = (callable_of(entry.function)(entry.inputs()[0] + step) for step in (0, 1e-6))
    return any(not o.requires_grad and 0 < (m - o).abs().max() < 1e-5 for o, m in zip(outputs, moved, strict=True))


def not_without_grad(entry: Entry) -> bool:
    def run() -> bool:
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in entry.inputs())
        callable_of(entry.function)(*inputs)
        with torch.inference_mode():
            callable_of(entry.function)(*(x.clone() for x in inputs))
        return False

    return raises_or(run)


def linear_in(change: Callable[[Tensor], Tensor]) -> Callable[[Entry], bool]:
    """`change` is linear and has no effect on the shape: changing what comes in must change what goes out alike."""

    def proof(entry: Entry) -> bool:
        grad_outputs = signed(call(entry.function, entry.inputs()))
        changed = vjp(entry.function, entry.inputs(), [change(g) for g in grad_outputs])
        rest = vjp(entry.function, entry.inputs(), [g - change(g) for g in grad_outputs])
        whole = vjp(entry.function, entry.inputs(), grad_outputs)
        return differ(whole, [a + b for a, b in zip(changed, rest, strict=True)], 1e-6)

    return proof


def across_outputs(entry: Entry) -> bool:
    outputs = call(entry.function, entry.inputs())
    grad_outputs = signed(outputs)
    parts = []
    for chosen in range(len(outputs)):
        inputs = entry.inputs()
        output = call(entry.function, inputs)[chosen]
        parts.append(torch.autograd.grad(output, leaves(inputs), grad_outputs[chosen], allow_unused=True))
    total = [sum(g for g in grads if g is not None) for grads in zip(*parts, strict=True)]
    return differ(vjp(entry.function, entry.inputs(), grad_outputs), total)


def same_values(change: Callable[[Tensor], Tensor]) -> Callable[[Entry], bool]:
    """The same values in another layout, of the incoming gradients and of the inputs."""

    def proof(entry: Entry) -> bool:
        expected = vjp(entry.function, entry.inputs())
        grad_outputs = [change(g) for g in signed(call(entry.function, entry.inputs()))]
        inputs = tuple(
            change(x.detach()).requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x
            for x in entry.inputs()
        )
        return raises_or(lambda: differ(expected, vjp(entry.function, entry.inputs(), grad_outputs))) or raises_or(
            lambda: differ(expected, vjp(entry.function, inputs))
        )

    return proof


def sliced(x: Tensor) -> Tensor:
    return torch.cat((x, torch.full_like(x, 7.0)), -1)[..., : x.shape[-1]] if x.dim() else x


def offset(x: Tensor) -> Tensor:
    return torch.cat((torch.full_like(x, 7.0).flatten(), x.flatten()))[x.numel() :].view(x.shape)


def flagged(x: Tensor) -> Tensor:
    """A view that is conjugate, or negative, by a flag alone."""
    return x.conj().resolve_conj().conj() if x.is_complex() else torch.complex(x, -x).conj().imag


def expanded(entry: Entry) -> bool:
    grad_outputs = [g[:1].expand_as(g) for g in signed(call(entry.function, entry.inputs()))]
    expected = vjp(entry.function, entry.inputs(), [g.contiguous() for g in grad_outputs])
    return raises_or(lambda: differ(expected, vjp(entry.function, entry.inputs(), grad_outputs)))
