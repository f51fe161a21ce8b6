"""Uses of a Function in plain torch that should give the gradients of a plain pass, and whether they do."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from manual_backprop.zoo.entry import Entry
from tests.zoo.calls import Grads, call, callable_of, changed, differ, leaves, raises_or, signed, vjp

Proof = Callable[[Entry], bool]
Use = Callable[[Entry], Grads]


def other_in(*uses: Use, rtol: float = 1e-9) -> Proof:
    """Whether one of the uses gives other gradients than a plain pass, or an error."""

    def proof(entry: Entry) -> bool:
        plain = vjp(entry.function, entry.inputs())
        return any(raises_or(lambda use=use: differ(plain, use(entry), rtol)) for use in uses)

    return proof


def each_alone(entry: Entry) -> Grads:
    """The gradient of each input where the others are frozen."""
    places = [i for i, x in enumerate(entry.inputs()) if isinstance(x, Tensor) and x.requires_grad]
    found: Grads = []
    for kept in places:
        inputs = entry.inputs()
        for place in places:
            inputs[place].requires_grad_(place == kept)
        found += vjp(entry.function, inputs)
    return found


def in_parts(part: Callable[[Tensor], Tensor]) -> Use:
    """The gradients for a part of what comes in, and those for the rest of it, added up."""

    def use(entry: Entry) -> Grads:
        given = signed(call(entry.function, entry.inputs()))
        parts = [part(g) for g in given]
        rest = [g - p for g, p in zip(given, parts, strict=True)]
        both = [vjp(entry.function, entry.inputs(), g) for g in (parts, rest)]
        return [sum(grads) for grads in zip(*both, strict=True)]

    return use


def by_outputs(entry: Entry) -> Grads:
    given = signed(call(entry.function, entry.inputs()))
    alone = [[g if i == k else torch.zeros_like(g) for i, g in enumerate(given)] for k in range(len(given))]
    return [sum(grads) for grads in zip(*(vjp(entry.function, entry.inputs(), grads) for grads in alone), strict=True)]


def laid_out(layout: Callable[[Tensor], Tensor]) -> Proof:
    """The same values in another layout, of the incoming gradients or of the inputs."""

    def of_gradients(entry: Entry) -> Grads:
        given = signed(call(entry.function, entry.inputs()))
        return vjp(entry.function, entry.inputs(), [layout(g) for g in given])

    return other_in(of_gradients, lambda entry: vjp(entry.function, changed(entry.inputs(), layout)))


def every_other_column(x: Tensor) -> Tensor:
    return torch.stack((x, torch.full_like(x, 7.0)), -1).flatten(-2)[..., ::2] if x.dim() else x


def at_an_offset(x: Tensor) -> Tensor:
    return torch.cat((torch.full_like(x, 7.0).flatten(), x.flatten()))[x.numel() :].view(x.shape)


def flagged(x: Tensor) -> Tensor:
    """A view that is conjugate, or negative, by a flag alone."""
    return x.conj().resolve_conj().conj() if x.is_complex() else torch.complex(x, -x).conj().imag


def expanded(entry: Entry) -> bool:
    given = [g[:1].expand_as(g) for g in signed(call(entry.function, entry.inputs()))]
    expected = vjp(entry.function, entry.inputs(), [g.contiguous() for g in given])
    return raises_or(lambda: differ(expected, vjp(entry.function, entry.inputs(), given)))


def a_second_time(entry: Entry) -> Grads:
    outputs = call(entry.function, inputs := entry.inputs())
    for _ in range(2):
        grads = torch.autograd.grad(outputs, leaves(inputs), signed(outputs), retain_graph=True)
    return list(grads)


def offloaded(entry: Entry) -> Grads:
    with saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x.clone()):
        return vjp(entry.function, entry.inputs())


def checkpointed(entry: Entry) -> Grads:
    def function(*inputs: Any) -> Any:
        return checkpoint(callable_of(entry.function), *inputs, use_reentrant=False)

    return vjp(function, entry.inputs())


def under_autocast(also_backward: bool) -> Use:
    def use(entry: Entry) -> Grads:
        inputs = changed(entry.inputs(), lambda x: x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = call(entry.function, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=also_backward):
            return list(torch.autograd.grad(outputs, leaves(inputs), signed(outputs)))

    return use


def under_func(entry: Entry) -> Grads:
    output, pullback = torch.func.vjp(callable_of(entry.function), *(x.detach() for x in entry.inputs()))
    return list(pullback(*signed((output,))))


def compiled(entry: Entry) -> Grads:
    torch.compiler.reset()
    return vjp(torch.compile(callable_of(entry.function), backend="aot_eager", fullgraph=True), entry.inputs())


def in_threads(entry: Entry) -> bool:
    outputs = call(entry.function, entry.inputs())
    given = [signed(outputs, seed) for seed in (1, 2)]
    expected = [vjp(entry.function, entry.inputs(), grad_outputs) for grad_outputs in given]
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(300):
            if wrong or differ(expected[which], vjp(entry.function, entry.inputs(), given[which])):
                wrong.append(which)
                return

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return bool(wrong)
