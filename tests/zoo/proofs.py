"""For each code, a few lines of plain torch that show an entry of the zoo to be wrong in that way.

Nothing here uses the validator. A proof is true where the entry is wrong; it assumes inputs of the kind that the
entries with its code have, and is no probe for anybody else's Function.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn import Module

from manual_backprop.zoo.entry import Entry
from tests.zoo import uses
from tests.zoo.calls import call, callable_of, changed, differ, leaves, no_derivative, raises_or, raw, signed, vjp
from tests.zoo.uses import Proof, in_parts, laid_out, other_in

# --- the number itself, and what a backward returns ---------------------------------------------------------------


def no_derivative_at(change: Callable[[tuple], tuple]) -> Proof:
    """At other inputs than the entry's."""
    return lambda entry: no_derivative(entry.function, change(entry.inputs()))


def batch_of(*leading: int) -> Proof:
    """Another number of samples, or of axes in front of them."""

    def other(inputs: tuple) -> tuple:
        drawn = torch.randn((*leading, inputs[0].shape[-1]), generator=torch.Generator(), dtype=inputs[0].dtype)
        return drawn.requires_grad_(), *inputs[1:]

    return no_derivative_at(other)


def any_gradient(predicate: Callable[[Tensor | None], bool]) -> Proof:
    return lambda entry: any(predicate(g) for g in vjp(entry.function, entry.inputs()))


def any_raw(predicate: Callable[[Tensor, Tensor], bool]) -> Proof:
    return lambda entry: any(isinstance(g, Tensor) and predicate(g, x) for g, x in raw(entry, entry.inputs()))


def shared_gradients(entry: Entry) -> bool:
    """Whether one input's .grad is the memory of another's, or of another input."""
    first, second = leaves(inputs := entry.inputs())
    (output,) = call(entry.function, inputs)
    (output if output.dim() == 0 else output.square().sum()).backward()
    return first.grad.data_ptr() in (second.grad.data_ptr(), second.data_ptr())


class GivesNone(Function):
    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        return sum(output.sum() for output in outputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)


def none_comes_in(entry: Entry) -> bool:
    total = GivesNone.apply(*call(entry.function, inputs := entry.inputs()))
    return raises_or(lambda: any(g is not None for g in torch.autograd.grad(total, leaves(inputs), allow_unused=True)))


def varies_without_grad(entry: Entry) -> bool:
    outputs, moved = (callable_of(entry.function)(entry.inputs()[0] + step) for step in (0, 1e-6))
    return any(not o.requires_grad and 0 < (m - o).abs().max() < 1e-5 for o, m in zip(outputs, moved, strict=True))


@torch.inference_mode()
def not_in_inference(entry: Entry) -> bool:
    return raises_or(lambda: len(call(entry.function, tuple(x.clone() for x in entry.inputs()))) > 0)


def same_tensor_twice(entry: Entry) -> bool:
    x, y = entry.inputs()[0], entry.inputs()[0]
    return differ([sum(vjp(entry.function, (x, y)))], vjp(lambda x: callable_of(entry.function)(x, x), (x,)))


# --- what is written, kept and found again ------------------------------------------------------------------------


def written(which: str) -> Proof:
    """Whether forward or backward changes the numbers of the inputs, of what comes in, or of what was saved."""

    def proof(entry: Entry) -> bool:
        inputs = entry.inputs()
        seen = [(x, x.detach().clone()) for x in leaves(inputs)] if which == "inputs" else []
        outputs = call(entry.function, inputs)
        node = outputs[0].grad_fn
        node = node if hasattr(node, "saved_tensors") else node.next_functions[0][0]
        if which == "grad_output":
            node.register_prehook(lambda grads: seen.extend((g, g.clone()) for g in grads))
        if which == "saved":
            seen += [(x, x.clone()) for x in node.saved_tensors]
        torch.autograd.grad(outputs, leaves(inputs), signed(outputs))
        return any(not after.equal(before) for after, before in seen)

    return proof


def on_ctx(entry: Entry) -> bool:
    (output,) = call(entry.function, entry.inputs())
    return any(isinstance(value, Tensor) and value.is_floating_point() for value in vars(output.grad_fn).values())


def leaks(entry: Entry) -> bool:
    outputs = call(entry.function, inputs := entry.inputs())
    watched = [weakref.ref(x) for x in (*leaves(inputs), *outputs)]
    del inputs, outputs
    return any(reference() is not None for reference in watched)


def change_unnoticed(entry: Entry) -> bool:
    expected = vjp(entry.function, entry.inputs())
    outputs = call(entry.function, inputs := entry.inputs())
    with torch.no_grad():
        leaves(inputs)[0].mul_(-3)
    return differ(expected, list(torch.autograd.grad(outputs, leaves(inputs), signed(outputs))))


def remembers(entry: Entry) -> bool:
    """Whether a pass with other numbers changes one that comes after it, or the random numbers that do."""
    other = changed(entry.inputs(), torch.neg)  # and the module forgets, as at each call of `inputs`
    expected = vjp(entry.function, other)
    vjp(entry.function, entry.inputs())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    return differ(expected, vjp(entry.function, other)) or not before.equal(torch.get_rng_state())


# --- numbers ------------------------------------------------------------------------------------------------------


def imprecise_in(dtype: torch.dtype) -> Proof:
    """Five roundings off what float64 makes of the same numbers."""

    def proof(entry: Entry) -> bool:
        low = changed(entry.inputs(), lambda x: x.to(dtype))
        high = changed(low, lambda x: x.double())
        given = [g.to(dtype) for g in signed(call(entry.function, high))]
        exact = vjp(entry.reference or entry.function, high, [g.double() for g in given])
        return differ(exact, [g.double() for g in vjp(entry.function, low, given)], 5 * torch.finfo(dtype).eps)

    return proof


def infinite_at(*scales: float) -> Proof:
    def proof(entry: Entry) -> bool:
        gradients = [vjp(entry.function, changed(entry.inputs(), lambda x, s=s: x * s)) for s in scales]
        return any(not g.isfinite().all() for grads in gradients for g in grads)

    return proof


# --- under a transform --------------------------------------------------------------------------------------------


def gradient_penalty(entry: Entry) -> bool:
    """The gradient of Σ (∂ Σ f / ∂x)², by autograd twice and by differences of the first."""

    def penalty(x: Tensor, create_graph: bool) -> Tensor:
        (grad,) = torch.autograd.grad(call(entry.function, (x,))[0].sum(), x, create_graph=create_graph)
        return grad.square().sum()

    (x,) = entry.inputs()
    value = penalty(x, create_graph=True)
    actual = torch.autograd.grad(value, x)[0].sum() if value.requires_grad else 0.0
    ahead, behind = (penalty((x.detach() + step).requires_grad_(), create_graph=False) for step in (1e-6, -1e-6))
    return bool(abs(actual - (ahead - behind) / 2e-6) > 1e-4 * abs(actual) + 1e-6)


def wrong_tangent(entry: Entry) -> bool:
    inputs = entry.inputs()
    tangents = signed(tuple(leaves(inputs)), seed=2)
    (given,) = signed(call(entry.function, inputs))
    with warnings.catch_warnings(), dual_level():
        warnings.simplefilter("ignore")  # torch's own, of torch.jit.script
        duals = [make_dual(x.detach(), t) for x, t in zip(inputs, tangents, strict=True)]
        ahead = (unpack_dual(callable_of(entry.function)(*duals)).tangent * given).sum()
    back = sum((g * t).sum() for g, t in zip(vjp(entry.function, inputs, [given]), tangents, strict=True))
    return bool(abs(ahead - back) > 1e-6)


def wrong_vmap(entry: Entry) -> bool:
    """The last input is mapped over its last axis, the others over their first."""
    inputs = [x.detach()[: x.shape[1]] for x in entry.inputs()]
    loop = torch.stack([callable_of(entry.function)(*rows) for rows in zip(*inputs, strict=True)])
    dims = (*[0] * (len(inputs) - 1), 1)
    return differ([loop], [torch.vmap(callable_of(entry.function), dims)(*inputs[:-1], inputs[-1].mT)])


def wrong_when_exported(entry: Entry) -> bool:
    class Wrapped(Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return callable_of(entry.function)(*inputs)

    inputs = tuple(x.detach() for x in entry.inputs())
    exported = torch.export.export(Wrapped(), inputs).module()
    return differ([callable_of(entry.function)(*inputs)], [exported(*inputs)])


PROOFS: dict[str, Proof] = {
    **dict.fromkeys(("MB101", "MB105"), no_derivative_at(lambda inputs: inputs)),
    "MB102": lambda entry: differ(vjp(entry.reference, entry.inputs()), vjp(entry.function, entry.inputs())),
    "MB103": lambda entry: differ([entry.reference(*entry.inputs())], list(call(entry.function, entry.inputs()))),
    "MB106": no_derivative_at(lambda inputs: changed(inputs, lambda x: x + 0.3j)),
    "MB202": any_gradient(lambda gradient: gradient is None),
    "MB203": any_raw(lambda gradient, input: gradient.shape != input.shape),
    "MB204": any_raw(lambda gradient, input: gradient.dtype != input.dtype),
    "MB206": any_gradient(lambda gradient: bool(gradient.isnan().any())),
    "MB207": shared_gradients,
    "MB208": other_in(uses.each_alone),
    "MB210": none_comes_in,
    "MB211": varies_without_grad,
    "MB212": not_in_inference,
    "MB301": other_in(in_parts(lambda g: -g), rtol=1e-6),
    "MB302": other_in(in_parts(lambda g: 65536 * g), rtol=1e-6),
    "MB303": other_in(in_parts(lambda g: g * torch.linspace(-1, 2, g.numel(), dtype=g.dtype).view(g.shape)), rtol=1e-6),
    "MB304": other_in(in_parts(torch.zeros_like), rtol=1e-6),
    "MB305": other_in(uses.by_outputs),
    "MB306": other_in(in_parts(lambda g: g * (torch.arange(g.numel()).view(g.shape) % g.shape[-1] == 0)), rtol=1e-6),
    "MB401": laid_out(lambda x: x.mT.contiguous().mT if x.dim() > 1 else x),
    "MB402": laid_out(uses.every_other_column),
    "MB403": laid_out(uses.at_an_offset),
    "MB404": uses.expanded,
    "MB405": laid_out(lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x),
    "MB406": laid_out(uses.flagged),
    "MB501": written("inputs"),
    "MB502": written("grad_output"),
    "MB503": written("saved"),
    "MB504": other_in(uses.a_second_time),
    "MB506": on_ctx,
    "MB507": leaks,
    "MB508": change_unnoticed,
    "MB509": other_in(uses.offloaded),
    "MB510": other_in(uses.checkpointed),
    "MB511": remembers,
    "MB601": imprecise_in(torch.float32),
    "MB602": imprecise_in(torch.bfloat16),
    "MB603": imprecise_in(torch.float16),
    "MB604": infinite_at(1e2, 1e4),
    "MB605": infinite_at(1e-30, 1e-200),
    "MB606": other_in(uses.under_autocast(also_backward=False), rtol=0.05),
    "MB607": other_in(uses.under_autocast(also_backward=True), rtol=0.05),
    "MB701": batch_of(0),
    "MB702": batch_of(1),
    "MB703": no_derivative_at(lambda inputs: (inputs[0], inputs[1].detach()[:, :1].clone().requires_grad_())),
    "MB704": batch_of(2, 4),
    "MB705": same_tensor_twice,
    "MB801": lambda entry: not gradgradcheck(callable_of(entry.function), entry.inputs(), raise_exception=False),
    "MB802": gradient_penalty,
    "MB803": wrong_tangent,
    "MB804": wrong_vmap,
    "MB805": other_in(uses.under_func),
    "MB806": other_in(uses.compiled),
    "MB807": wrong_when_exported,
    "MB902": uses.in_threads,
}
