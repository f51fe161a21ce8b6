"""MB806 and MB807: torch.compile and torch.export, each with a canary.

Some paths replace a custom backward by the derivative of forward and say nothing; a comparison there proves nothing. So
the outputs pass through a canary in the same graph, a Function whose backward is deliberately wrong (it triples). Only
where every gradient comes out tripled has the path run the backward passes that people wrote.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Skipped, one_line
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients, Graph
from manual_backprop.validation.tolerances import SAME_RTOL, mismatch

MB806_SKELETON = """
class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    ___


validate(Cube.apply, (randn(4, 3),))
"""

WRONG_BY = 3.0


class Canary(torch.autograd.Function):
    """The identity with a backward that is deliberately wrong: it triples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * WRONG_BY


@rule("MB806", "Does torch.compile keep the backward?", "seconds", needs="plain function", skeleton=MB806_SKELETON)
def compiled(case: Case) -> Iterator[Finding]:
    """torch.compile(backend="aot_eager", fullgraph=True) gives the same values and gradients.

    Under torch.compile the gradient differs from that in eager mode. A compiled path that leaves out the custom
    backward proves nothing, so a canary (a deliberately wrong backward in the same graph) shows whether the path runs
    custom backward passes.

    Seen in: pytorch/pytorch#193279: torch.compile(torch.func.grad(f)) drops the custom backward, and differentiates
    forward instead.

    Wrong:
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            if torch.compiler.is_compiling():
                return 2 * x * grad_output
            return 3 * x**2 * grad_output

    Right:
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad_output
    """

    def path(function: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
        torch.compiler.reset()
        return torch.compile(function, backend="aot_eager", fullgraph=True)(*leaves)

    yield from _through(case, "torch.compile", path)


@rule("MB807", "Does torch.export keep the backward?", "seconds", needs="plain function")
def exported(case: Case) -> Iterator[Finding]:
    """torch.export.export(…).module() gives the same values and gradients.

    The program that torch.export traces has other values, or another gradient, than the function in eager mode.

    Seen in: pytorch/rfcs PR#28: in the review of an exporter that removes autograd.Function, a maintainer notes that
    this changes the backward pass, and asks to forbid training then.

    Unseen: torch.export leaves every custom backward out, the right and the wrong ones, and differentiates forward
    instead. The rule's canary, a deliberately wrong backward, goes unnoticed there, and so the rule says skip. In a
    version of torch that exports custom backward passes, the rule will fail a backward that comes out different.
    """

    def path(function: Callable[..., Any], leaves: Sequence[Tensor]) -> Any:
        class Module(nn.Module):
            def forward(self, *tensors: Tensor) -> Any:
                return function(*tensors)

        examples = tuple(leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves)
        with contextlib.redirect_stderr(io.StringIO()):  # because torch.export prints the graph that it refuses
            program = torch.export.export(Module(), examples, strict=False)
        return program.module()(*leaves)

    yield from _through(case, "torch.export", path)


def _through(case: Case, name: str, path: Callable[[Callable[..., Any], Sequence[Tensor]], Any]) -> Iterator[Finding]:
    targets = case.targets

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = case.call(tensors)
        return tuple(Canary.apply(o) if i in targets else o for i, o in enumerate(outputs))

    leaves = [v.detach().clone().requires_grad_(n) for v, n in zip(case.values, case.needs, strict=True)]
    try:
        outputs = path(function, leaves)
        actual = case.differentiate(Graph(leaves, list(outputs)), case.plain.cotangents)
    except Exception as error:
        raise Skipped(f"{name} is refused with an error: {one_line(getattr(error, 'error', error))}") from error
    for number, (a, b) in enumerate(zip(outputs, case.plain.outputs, strict=True)):
        if mismatch(a, b, SAME_RTOL[case.dtype]):
            yield case.fail(
                f"output {number} is different under {name}",
                cause="forward takes another branch there",
                fix="compute the same value, whoever runs it",
                output=number,
            )
            return
    tripled = [None if g is None else WRONG_BY * g for g in case.plain.gradients]
    if not case.compare(actual, tripled, scale=WRONG_BY):
        return
    if not _canary_was_caught(case, path):
        raise Skipped(f"{name} ignores custom backward passes: a wrong one on the same path goes unnoticed")
    words: dict[str, Any] = {
        "fix": f"move what {name} cannot trace into a custom op, and compare with eager mode before relying on {name}"
    }
    message = f"is different under {name}"
    shared: Gradients = [None if g is None else g / WRONG_BY for g in actual]
    yield from differing(case, shared, case.plain.gradients, message, f"only under {name}", **words)


def _canary_was_caught(case: Case, path: Callable[[Callable[..., Any], Sequence[Tensor]], Any]) -> bool:
    x = torch.ones(2, device=case.values[0].device, requires_grad=True)
    (gradient,) = torch.autograd.grad(path(lambda t: (Canary.apply(t),), [x])[0].sum(), x)
    return bool((gradient == WRONG_BY).all())
