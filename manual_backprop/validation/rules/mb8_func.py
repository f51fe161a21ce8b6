"""MB805: torch.func and batched gradients agree with autograd. A refusal with an error is a skip."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Skipped, one_line
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients

MB805_SKELETON = """
class Sine(Function):
    @staticmethod
    def forward(x):
        ___
        return x.sin(), slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_output, _):
        (slope,) = ctx.saved_tensors
        return slope * grad_output


def sine(x):
    return Sine.apply(x)[0]


validate(sine, (randn(4, 3),))
"""

Tensors = list[Tensor]

LARGEST_JACOBIAN = 4096  # elements; a larger one is not built, because it takes time and shows no other mistake


@rule("MB805", "Does torch.func agree with autograd?", "5 passes", skeleton=MB805_SKELETON)
def func_transforms(case: Case) -> Iterator[Finding]:
    """torch.func.vjp, grad and jacrev, and batched gradients, agree with autograd.

    torch.func.grad, vjp or jacrev gives another gradient than backward does. Under these transforms requires_grad is
    False, and a branch on requires_grad takes the wrong way.

    Seen in: pytorch/functorch#207: “autograd.Function is silently incorrect on functorch transforms”, which is why a
    Function needs setup_context for them.

    Wrong:
        slope = x.cos() if x.requires_grad else torch.zeros_like(x)

    Right:
        slope = x.cos()
    """
    plain = case.plain
    asked = [i for i, need in enumerate(case.needs) if need]

    def chosen(*parts: Tensor) -> tuple[Tensor, ...]:
        outputs = case.call(case.with_parts(asked, parts))
        return tuple(outputs[i] for i in case.targets)

    def contracted(*parts: Tensor) -> Tensor:
        cotangents = [plain.cotangents[i] for i in case.targets]
        return sum((o * c.conj()).sum().real for o, c in zip(chosen(*parts), cotangents, strict=True))

    def values() -> Tensors:
        return [case.values[i].clone() for i in asked]

    given = tuple(plain.cotangents[i].clone() for i in case.targets)
    ways: list[tuple[str, Callable[[], Sequence[Tensor | None]]]] = [
        ("torch.func.vjp", lambda: torch.func.vjp(chosen, *values())[1](given)),
        ("torch.func.grad", lambda: torch.func.grad(contracted, argnums=tuple(range(len(asked))))(*values())),
    ]
    if not case.reads_raw_memory:
        ways.append(("batched gradients", lambda: _batched(case)))
    if sum(c.numel() for c in given) * sum(case.values[i].numel() for i in asked) <= LARGEST_JACOBIAN and not any(
        c.is_complex() for c in given
    ):
        ways.append(("torch.func.jacrev", lambda: _contracted_jacobian(chosen, values(), given)))
    refusals = []
    for name, way in ways:
        try:
            found = dict(zip(asked, way(), strict=True))
        except Exception as error:
            refusals.append(f"{name} is refused with an error: {one_line(error)}")
            continue
        actual = [found.get(i) for i in range(len(case.values))]
        message = f"is different under {name}"
        wrong = list(differing(case, actual, plain.gradients, message, f"only under {name}"))
        yield from wrong
        if wrong:
            return
        del actual, found
    if len(refusals) == len(ways):
        raise Skipped(refusals[0])


def _batched(case: Case) -> Gradients:
    """The plain gradient as 2g − g, the difference of two gradients of one batch: vmap over backward alone."""
    graph = case.run()
    pairs = [(o, c) for o, c in zip(graph.outputs, case.plain.cotangents, strict=True) if c is not None]
    asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
    # A large gradient makes a batch of one, because two would take twice the memory.
    given = [c[None] if case.large else torch.stack([2 * c, c]) for _, c in pairs]
    found = torch.autograd.grad([o for o, _ in pairs], asked, given, is_grads_batched=True, allow_unused=True)
    del graph, pairs, asked
    return [None if g is None else g[0] if case.large else g[0] - g[1] for g in found]


def _contracted_jacobian(function: Callable[..., Any], values: Tensors, given: Sequence[Tensor]) -> Tensors:
    rows = torch.func.jacrev(function, argnums=tuple(range(len(values))))(*values)
    total = [torch.zeros_like(value) for value in values]
    for cotangent, row in zip(given, rows, strict=True):
        for k, block in enumerate(row):
            total[k] = total[k] + torch.tensordot(cotangent, block, dims=cotangent.ndim)
    return total
