"""Ways to break a backward pass on purpose, as a table: what nobody notices has never been tested.

A mutation wraps `backward` from outside, so it breaks any hand-written backward, also one that calls into CUDA. It is
told the gradients and grad_outputs of one call, and returns the gradients that the engine is to see instead.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.naming import argument_names
from manual_backprop.validation.replaced import replaced

Grads = tuple[Tensor | None, ...]


@dataclass
class Pass:
    """One call of the true `backward`.

    Args:
        run: the true backward with this call's ctx bound.
        ctx: the Function's context.
        grad_outputs: what the engine handed in.
        true: the true gradients for these.
        slot: number of the gradient to break, for the mutations that break one at a time.
        memory: what the mutant remembers from call to call.
    """

    run: Callable[..., Any]
    ctx: Any
    grad_outputs: tuple[Any, ...]
    true: Grads
    slot: int = 0
    memory: dict[str, Any] = field(default_factory=dict)

    def gradients(self, change: Callable[[Tensor], Tensor]) -> Grads:
        """The true gradients for changed grad_outputs."""
        return _tuple(self.run(*(change(g) if isinstance(g, Tensor) else g for g in self.grad_outputs)))


@dataclass(frozen=True)
class Mutation:
    """A way to break a backward pass.

    Args:
        name: for ``--only``.
        words: completes "your tests would not notice if …"; ``{input}`` stands for the input's name.
        apply: from a true pass to the gradients that the engine sees.
        one: whether it breaks the gradient of one input, and so makes as many mutants as there are gradients.
        applies: whether it would change anything, from the true gradients, the grad_outputs and the slot.
    """

    name: str
    words: str
    apply: Callable[[Pass], Grads]
    one: bool = False
    applies: Callable[[Grads, Sequence[Any], int], bool] = lambda gradients, grad_outputs, slot: True


def _tuple(returned: Any) -> Grads:
    return returned if isinstance(returned, tuple) else (returned,)


# --- how each breaks it -------------------------------------------------------------------------------------------


def _to_one(change: Callable[[Tensor], Tensor | None]) -> Callable[[Pass], Grads]:
    """Changes the gradient of the slot."""

    def apply(call: Pass) -> Grads:
        return tuple(change(g) if i == call.slot and g is not None else g for i, g in enumerate(call.true))

    return apply


def _to_all(change: Callable[[Tensor], Tensor]) -> Callable[[Pass], Grads]:
    """Changes every gradient."""
    return lambda call: tuple(None if g is None else change(g) for g in call.true)


def _to_grad_outputs(change: Callable[[Tensor], Tensor]) -> Callable[[Pass], Grads]:
    """Changes every grad_output before the true backward sees it."""
    return lambda call: call.gradients(change)


def _only_row(row: int) -> Callable[[Tensor], Tensor]:
    """Zeros in all rows of a tensor but one."""

    def change(g: Tensor) -> Tensor:
        if g.dim() == 0:
            return g
        kept = torch.zeros_like(g, memory_format=torch.contiguous_format)
        kept[row] = g[row]
        return kept

    return change


def _last_sample(call: Pass) -> Grads:
    last = call.gradients(_only_row(-1))
    return tuple(last[i] if i == call.slot else g for i, g in enumerate(call.true))


def _swap(call: Pass) -> Grads:
    gradients = list(call.true)
    first, second = _alike(gradients)[0]
    gradients[first], gradients[second] = gradients[second], gradients[first]
    return tuple(gradients)


def _first_output(call: Pass) -> Grads:
    return call.gradients(lambda g: g if g is call.grad_outputs[0] else torch.zeros_like(g))


def _stale(call: Pass) -> Grads:
    """The first call's gradients, as long as their shapes fit."""
    gradients = call.true
    first = call.memory.setdefault("first", [None if g is None else g.detach().clone() for g in gradients])
    fit = [_shape(a) == _shape(b) for a, b in zip(gradients, first, strict=True)]
    return tuple(first) if all(fit) else gradients


def _second(call: Pass) -> Grads:
    """Doubled whenever this graph has gone backward before."""
    calls = getattr(call.ctx, "_mutant_calls", 0) + 1
    call.ctx._mutant_calls = calls
    return tuple(None if g is None else g * min(calls, 2) for g in call.true)


def _noise(call: Pass) -> Grads:
    draw = call.memory.setdefault("generator", torch.Generator().manual_seed(0))

    def noisy(g: Tensor) -> Tensor:
        return g * (1 + 0.01 * torch.randn(g.shape, generator=draw)).to(g.device, g.real.dtype)

    return tuple(None if g is None else noisy(g) for g in call.true)


def _overwrite(call: Pass) -> Grads:
    gradients = tuple(None if g is None else g.clone() for g in call.true)
    with torch.no_grad():
        for g in call.grad_outputs:
            if isinstance(g, Tensor) and not _overlaps(g):
                g.mul_(2)
    return gradients


# --- where each applies -------------------------------------------------------------------------------------------


def _shape(g: Tensor | None) -> tuple[int, ...] | None:
    return None if g is None else tuple(g.shape)


def _overlaps(g: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(g.stride(), g.shape, strict=True))


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _alike(gradients: Sequence[Tensor | None]) -> list[tuple[int, int]]:
    """The pairs of gradients that have one shape, so that an author may mistake one for the other."""
    pairs = itertools.combinations(range(len(gradients)), 2)
    return [(i, j) for i, j in pairs if gradients[i] is not None and _shape(gradients[i]) == _shape(gradients[j])]


def _square(gradients: Grads, grad_outputs: Sequence[Any], slot: int) -> bool:
    shape = _shape(gradients[slot]) or ()
    return len(shape) >= 2 and shape[-1] == shape[-2] > 1


def _reduced(gradients: Grads, grad_outputs: Sequence[Any], slot: int) -> bool:
    """Whether the gradient is a sum over the samples: its first axis is not that of the grad_outputs."""
    shape, rows = _shape(gradients[slot]) or (), {tuple(g.shape)[:1] for g in _tensors(grad_outputs)}
    return all(row and row[0] > 1 and shape[:1] != row for row in rows)


def _rows(gradients: Grads, grad_outputs: Sequence[Any], slot: int) -> bool:
    return any(g.dim() > 0 and g.shape[0] > 1 for g in _tensors(grad_outputs))


def _real(gradients: Grads, grad_outputs: Sequence[Any], slot: int) -> bool:
    return all(not g.is_complex() for g in _tensors(grad_outputs))


def _wide(gradients: Grads, grad_outputs: Sequence[Any], slot: int) -> bool:
    return all(g.dtype in (torch.float32, torch.float64) for g in _tensors(gradients))


MUTATIONS = (
    Mutation("drop", "the gradient of {input} were dropped", _to_one(lambda g: None), one=True),
    Mutation("scale", "the gradient of {input} were twice as large", _to_one(lambda g: 2 * g), one=True),
    Mutation("sign", "the gradient of {input} had the wrong sign", _to_one(lambda g: -g), one=True),
    Mutation(
        "transpose", "the gradient of {input} were transposed", _to_one(lambda g: g.mT), one=True, applies=_square
    ),
    Mutation(
        "unsummed",
        "the sum over the samples in the gradient of {input} were forgotten, and only the last one counted",
        _last_sample,
        one=True,
        applies=_reduced,
    ),
    Mutation("swap", "two gradients of the same shape were swapped", _swap, applies=lambda g, _, slot: bool(_alike(g))),
    Mutation("zero", "every gradient were zero", _to_all(torch.zeros_like)),
    Mutation("ignore", "grad_output were ignored, with ones in its place", _to_grad_outputs(torch.ones_like)),
    Mutation("abs", "the sign of grad_output were lost", _to_grad_outputs(torch.abs), applies=_real),
    Mutation("clamp", "grad_output were clipped to ±1", _to_grad_outputs(lambda g: g.clamp(-1, 1)), applies=_real),
    Mutation("row", "only the first row of grad_output were used", _to_grad_outputs(_only_row(0)), applies=_rows),
    Mutation(
        "outputs",
        "the gradient of every output but the first were ignored",
        _first_output,
        applies=lambda gradients, grad_outputs, slot: len(grad_outputs) > 1,
    ),
    Mutation("stale", "the gradients of the first call came back in every later call", _stale),
    Mutation("second", "a second backward through the same graph were wrong", _second),
    Mutation("noise", "every gradient had 1 % of noise", _noise),
    Mutation("half", "the gradients were computed in bfloat16", _to_all(lambda g: g.bfloat16().to(g)), applies=_wide),
    Mutation("overwrite", "grad_output were overwritten in place", _overwrite),
    Mutation("once", "the second derivative were dropped", _to_all(torch.detach)),
)
BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


# --- putting it in the place of a Function's backward -------------------------------------------------------------

Hear = Callable[[str, dict[str, Any]], None]


def closer(function: type) -> str:
    """The name of the method that goes backward: ``vjp`` where the Function defines that, else ``backward``."""
    base = torch.autograd.Function
    return "vjp" if function.vjp is not base.vjp else "backward"  # type: ignore[attr-defined]


def replacement(function: type, mutation: Mutation | None, slot: int, hear: Hear) -> Callable[..., Any]:
    """A backward to `install`: the broken one, or where `mutation` is None the true one, which tells `hear`."""
    return _listening(function, hear) if mutation is None else _broken(function, mutation, slot, hear)


def _broken(function: type, mutation: Mutation, slot: int, hear: Hear) -> Callable[..., Any]:
    """A backward to put in the place of `function`'s.

    Args:
        function: the Function class, as it is right.
        mutation: what to do to it.
        slot: the gradient to break, where it breaks one.
        hear: is told at each call, ``"applied"`` where the mutation has something to break, ``"reached"`` where not.
    """
    true = getattr(function, closer(function))
    memory: dict[str, Any] = {}

    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        gradients = _tuple(true(ctx, *grad_outputs))
        call = Pass(lambda *g: true(ctx, *g), ctx, grad_outputs, gradients, slot, memory)
        applies = mutation.applies(gradients, grad_outputs, slot)
        if not torch.compiler.is_compiling():
            hear("applied" if applies else "reached", {})
        if applies:
            gradients = mutation.apply(call)
        return gradients if len(gradients) > 1 else gradients[0]

    return backward


def _listening(function: type, hear: Hear) -> Callable[..., Any]:
    """The true backward, which tells `hear` which mutants would change anything: ``"seen"`` with their names."""
    true = getattr(function, closer(function))

    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        returned = true(ctx, *grad_outputs)
        if not torch.compiler.is_compiling():
            hear("seen", {"mutants": _applicable(function, returned, grad_outputs)})
        return returned

    return backward


def _applicable(function: type, returned: Any, grad_outputs: Sequence[Any]) -> list[tuple[str, int, str]]:
    """(mutation, slot, name of the input) of every mutant of this call."""
    gradients = _tuple(returned)
    names = argument_names(function, [0] * len(gradients))
    return [
        (mutation.name, slot, names[slot])
        for mutation in MUTATIONS
        for slot in (range(len(gradients)) if mutation.one else (0,))
        if (not mutation.one or gradients[slot] is not None) and mutation.applies(gradients, grad_outputs, slot)
    ]


def install(function: type, backward: Callable[..., Any]) -> None:
    """Puts `backward` in the place of the Function's own."""
    setattr(function, closer(function), staticmethod(backward))


def installed(function: type, backward: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """`backward` in the place of the Function's own, and its own back at the end."""
    return replaced(function, closer(function), staticmethod(backward))
