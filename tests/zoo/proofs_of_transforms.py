"""Proofs that a derivative goes wrong under a transform, or when run again."""

import threading
import warnings

import torch
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn import Module

from manual_backprop.zoo.entry import Entry
from tests.zoo.calls import call, callable_of, differ, leaves, raises_or, signed, vjp


def not_second_derivative(entry: Entry) -> bool:
    return not gradgradcheck(callable_of(entry.function), entry.inputs(), raise_exception=False)


def gradient_penalty(entry: Entry) -> bool:
    """The gradient of Σ (∂ Σ f / ∂x)², which central differences of the first gradient know too."""

    def penalty(inputs: tuple, create_graph: bool) -> Tensor:
        loss = sum(output.sum() for output in call(entry.function, inputs))
        return sum(g.square().sum() for g in torch.autograd.grad(loss, leaves(inputs), create_graph=create_graph))

    inputs = entry.inputs()
    value = penalty(inputs, create_graph=True)
    actual = torch.autograd.grad(value, inputs[0])[0] if value.requires_grad else torch.zeros_like(inputs[0])
    moved = [((entry.inputs()[0].detach() + step).requires_grad_(), *entry.inputs()[1:]) for step in (1e-6, -1e-6)]
    plus, minus = (penalty(other, create_graph=False) for other in moved)
    return abs(actual.sum() - (plus - minus) / 2e-6) > 1e-4 * abs(actual.sum()) + 1e-6


def wrong_tangent(entry: Entry) -> bool:
    inputs = entry.inputs()
    tangents = signed(tuple(leaves(inputs)), seed=2)
    grad_outputs = signed(call(entry.function, inputs))
    with warnings.catch_warnings(), dual_level():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of torch.jit.script
        duals = [make_dual(x.detach(), t) for x, t in zip(inputs, tangents, strict=True)]
        tangent = unpack_dual(callable_of(entry.function)(*duals)).tangent
    pairs = zip(vjp(entry.function, inputs, grad_outputs), tangents, strict=True)
    return abs((tangent * grad_outputs[0]).sum() - sum((g * t).sum() for g, t in pairs)) > 1e-6


def wrong_vmap(entry: Entry) -> bool:
    inputs = [x.detach() for x in entry.inputs()]
    function = callable_of(entry.function)
    for dim in (0, 1):
        for mapped in range(len(inputs)):
            dims = tuple(dim if i == mapped else 0 for i in range(len(inputs)))
            sides = [x.mT.contiguous() if d else x for x, d in zip(inputs, dims, strict=True)]
            loop = torch.stack([function(*row) for row in zip(*inputs, strict=True)])
            if raises_or(lambda s=sides, d=dims, e=loop: differ([e], [torch.vmap(function, d)(*s)])):
                return True
    return False


def wrong_under_func(entry: Entry) -> bool:
    inputs = [x.detach() for x in entry.inputs()]
    output, pullback = torch.func.vjp(callable_of(entry.function), *inputs)
    return differ(vjp(entry.function, entry.inputs()), list(pullback(*signed((output,)))))


def wrong_when_compiled(entry: Entry) -> bool:
    torch.compiler.reset()
    compiled = torch.compile(callable_of(entry.function), backend="aot_eager", fullgraph=True)
    return differ(vjp(entry.function, entry.inputs()), vjp(compiled, entry.inputs()))


def wrong_when_exported(entry: Entry) -> bool:
    class Wrapped(Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return callable_of(entry.function)(*inputs)

    inputs = tuple(x.detach() for x in entry.inputs())
    exported = torch.export.export(Wrapped(), inputs).module()
    return differ([callable_of(entry.function)(*inputs)], [exported(*inputs)])


def not_repeatable(entry: Entry) -> bool:
    """Memory that nobody wrote to is filled with NaN, so that it shows."""
    torch.use_deterministic_algorithms(True)
    try:
        return differ(*(vjp(entry.function, entry.inputs()) for _ in range(2)))
    finally:
        torch.use_deterministic_algorithms(False)


def not_thread_safe(entry: Entry) -> bool:
    expected = [
        vjp(entry.function, entry.inputs(), signed(call(entry.function, entry.inputs()), seed)) for seed in (1, 2)
    ]
    wrong: list[int] = []

    def work(which: int) -> None:
        inputs = entry.inputs()
        for _ in range(300):
            outputs = call(entry.function, inputs)
            if wrong or differ(expected[which], vjp(entry.function, inputs, signed(outputs, which + 1))):
                wrong.append(which)
                return

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bool(wrong)
