"""MB806 and MB807: torch.compile and torch.export, each with a canary.

Some paths replace a custom backward by the derivative of its forward and say nothing; a comparison there proves
nothing. So the outputs pass through a Function whose backward is wrong on purpose (it triples), in the same graph: only
where every gradient comes out tripled did the path run backward passes that people wrote.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manual_backprop.validation.audit import functions_of
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import one_line
from manual_backprop.validation.report.report import Finding, fail
from manual_backprop.validation.rules.rule import Skipped
from manual_backprop.validation.subject import Gradients, Graph, Subject
from manual_backprop.validation.tolerances import SAME_RTOL, mismatch

WRONG_BY = 3.0


class Canary(torch.autograd.Function):
    """The identity with a backward that is wrong on purpose: it triples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * WRONG_BY


def compiled(subject: Subject) -> Iterator[Finding]:
    """MB806: torch.compile(backend="aot_eager", fullgraph=True)."""
    _ = subject.plain

    def path(function: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
        torch._dynamo.reset()
        return torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)

    yield from _through(subject, "torch.compile", path)


def exported(subject: Subject) -> Iterator[Finding]:
    """MB807: torch.export.export(...).module()."""
    _ = subject.plain

    def path(function: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
        class Module(nn.Module):
            def forward(self, *tensors: Tensor) -> Any:
                return function(*tensors)

        examples = tuple(leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves)
        with contextlib.redirect_stderr(io.StringIO()):  # since torch.export prints the graph of what it refuses
            program = torch.export.export(Module(), examples, strict=False)
        return program.module()(*leaves)

    yield from _through(subject, "torch.export", path)


def _through(
    subject: Subject, name: str, path: Callable[[Callable[..., Any], Sequence[Tensor]], Any]
) -> Iterator[Finding]:
    if not functions_of(subject.run().outputs):
        raise Skipped("no autograd.Function in the graph")
    targets = subject.targets

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = subject.call(tensors)
        return tuple(Canary.apply(o) if i in targets else o for i, o in enumerate(outputs))

    leaves = [v.detach().clone().requires_grad_(n) for v, n in zip(subject.values, subject.needs, strict=True)]
    try:
        outputs = path(function, leaves)
        actual = subject.differentiate(Graph(leaves, list(outputs)), subject.plain.cotangents)
    except Exception as error:
        raise Skipped(f"{name} is refused loudly: {one_line(getattr(error, 'error', error))}") from error
    for number, (a, b) in enumerate(zip(outputs, subject.plain.outputs, strict=True)):
        if mismatch(a, b, SAME_RTOL[subject.dtype]):
            yield fail(
                f"output {number} is another under {name}",
                cause="forward takes another branch there",
                fix="compute the same value, whoever runs it",
                output=number,
            )
            return
    tripled = [None if g is None else WRONG_BY * g for g in subject.plain.gradients]
    if not subject.compare(actual, tripled, scale=WRONG_BY):
        return
    if not _canary_was_caught(subject, path):
        raise Skipped(f"{name} ignores custom backward passes: a wrong one on the same path goes unnoticed")
    words: dict[str, Any] = {
        "fix": "compare with eager before relying on it; move what it cannot trace into a custom op"
    }
    message = f"the gradient of {{name}} is another under {name}"
    shared: Gradients = [None if g is None else g / WRONG_BY for g in actual]
    yield from differing(subject, shared, subject.plain.gradients, message, f"only under {name}", **words)


def _canary_was_caught(subject: Subject, path: Callable[[Callable[..., Any], Sequence[Tensor]], Any]) -> bool:
    x = torch.ones(2, device=subject.values[0].device, requires_grad=True)
    (gradient,) = torch.autograd.grad(path(lambda t: (Canary.apply(t),), [x])[0].sum(), x)
    return bool((gradient == WRONG_BY).all())
