"""For each code, a few lines of plain torch that show an entry of the zoo to be wrong in that way.

Nothing here uses the validator. A proof is true where the entry is wrong; it assumes inputs of the kind that the entries
with its code have, and is no probe for anybody else's Function.
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from manual_backprop.validation.zoo.entry import Entry

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


def any_raw(predicate: Callable[[Tensor, Tensor], bool]) -> Callable[[Entry], bool]:
    return lambda entry: any(isinstance(g, Tensor) and predicate(g, x) for g, x in raw(entry, entry.inputs()))


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


def offloaded(entry: Entry) -> bool:
    expected = vjp(entry.function, entry.inputs())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.detach().clone(), lambda x: x.clone()):
        return raises_or(lambda: differ(expected, vjp(entry.function, entry.inputs())))


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
            if finite and any(g is not None and g.isnan().any() for g in vjp(entry.function, inputs)):
                return True
        return False

    return proof


def autocast(also_backward: bool) -> Callable[[Entry], bool]:
    def proof(entry: Entry) -> bool:
        inputs = tuple(x.detach().float().requires_grad_() if x.is_floating_point() else x for x in entry.inputs())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = call(entry.function, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=also_backward):
            return raises_or(lambda: not torch.autograd.grad(outputs, leaves(inputs), signed(outputs)))

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


def not_derivative(entry: Entry) -> bool:
    return raises_or(lambda: not gradcheck(callable_of(entry.function), entry.inputs(), raise_exception=False))


def not_second_derivative(entry: Entry) -> bool:
    return not gradgradcheck(callable_of(entry.function), entry.inputs(), raise_exception=False)


def against_reference(entry: Entry) -> bool:
    return differ(vjp(entry.reference, entry.inputs()), vjp(entry.function, entry.inputs()), 1e-9)


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


def shared_gradients(entry: Entry) -> bool:
    """Whether one input's .grad is the memory of another's, or of another input."""
    inputs = entry.inputs()
    outputs = call(entry.function, inputs)
    (outputs[0] if outputs[0].dim() == 0 else outputs[0].square().sum()).backward()
    first, second = leaves(inputs)
    return first.grad.data_ptr() in (second.grad.data_ptr(), second.data_ptr())


def wrong_number(entry: Entry) -> bool:
    try:
        vjp(entry.function, entry.inputs())
    except RuntimeError as error:
        return "incorrect number of gradients" in str(error)
    return False


PROOFS: dict[str, Callable[[Entry], bool]] = {
    **dict.fromkeys(("MB101", "MB104", "MB105", "MB106"), not_derivative),
    "MB102": against_reference,
    "MB201": wrong_number,
    "MB202": lambda entry: any(
        g is None for g, x in raw(entry, entry.inputs()) if isinstance(x, Tensor) and x.requires_grad
    ),
    "MB203": any_raw(lambda grad, input: grad.shape != input.shape),
    "MB204": any_raw(lambda grad, input: grad.dtype != input.dtype),
    "MB205": any_raw(lambda grad, input: grad.layout != input.layout),
    "MB206": any_raw(lambda grad, input: bool(grad.isnan().any())),
    "MB207": shared_gradients,
    "MB208": frozen_subset_differs,
    "MB210": output_left_out,
    "MB211": output_varies_without_grad,
    "MB212": not_without_grad,
    "MB301": linear_in(lambda g: -g),
    "MB302": linear_in(lambda g: 65536 * g),
    "MB303": linear_in(lambda g: g * torch.linspace(-1, 2, g.numel(), dtype=g.dtype).view(g.shape)),
    "MB304": linear_in(torch.zeros_like),
    "MB305": across_outputs,
    "MB306": linear_in(lambda g: g * (torch.arange(g.numel()).view(g.shape) % g.shape[-1] == 0)),
    "MB401": same_values(lambda x: x.mT.contiguous().mT if x.dim() > 1 else x),
    "MB402": same_values(sliced),
    "MB403": same_values(offset),
    "MB404": expanded,
    "MB405": same_values(lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x),
    "MB406": same_values(flagged),
    "MB501": written("inputs"),
    "MB502": written("grad_output"),
    "MB503": written("saved"),
    "MB504": second_backward,
    "MB505": after_another_call,
    "MB506": leaks,
    "MB507": leaks,
    "MB508": change_after_forward_unnoticed,
    "MB509": offloaded,
    "MB510": checkpointed,
    "MB511": after_another_call,
    "MB601": low_precision(torch.float32),
    "MB602": low_precision(torch.bfloat16),
    "MB603": low_precision(torch.float16),
    "MB604": scaled_inputs(1e2, 1e4),
    "MB605": scaled_inputs(1e-30, 1e-200),
    "MB606": autocast(also_backward=False),
    "MB607": autocast(also_backward=True),
    "MB701": batch_of(0),
    "MB702": batch_of(1),
    "MB703": size_of_one,
    "MB704": batch_of(2, 4),
    "MB705": same_tensor_twice,
    "MB706": output_left_out,
    "MB801": not_second_derivative,
    "MB802": gradient_penalty,
    "MB803": wrong_tangent,
    "MB804": wrong_vmap,
    "MB805": wrong_under_func,
    "MB806": wrong_when_compiled,
    "MB807": wrong_when_exported,
    "MB901": not_repeatable,
    "MB902": not_thread_safe,
}
