"""MB506 and MB508: tensors that are kept for backward, but not by save_for_backward."""

from collections.abc import Iterator
from typing import Any

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients

MB506_SKELETON = """
class Square(Function):
    ___


validate(Square, (randn(4, 3),))
"""
SAVED = """
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ___

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output


validate(Square, (randn(4, 3),))
"""


@rule("MB506", "Are tensors saved by save_for_backward?", "1 pass", needs="plain function", skeleton=MB506_SKELETON)
def tensors_on_ctx(case: Case) -> Iterator[Finding]:
    """Tensors are kept by save_for_backward, not as attributes of ctx.

    A tensor is kept as an attribute of ctx instead of by save_for_backward. The attribute outlives the graph (an output
    on ctx is a reference cycle), no in-place change of it is noticed, and offloading and checkpointing miss it.

    Seen in: pytorch/pytorch#25340: a memory leak by tensors on ctx; asappresearch/sru PR#171 mended one.

    Wrong:
        @staticmethod
        def forward(ctx, x):
            ctx.x = x
            return x**2

        @staticmethod
        def backward(ctx, grad_output):
            return 2 * ctx.x * grad_output

    Right:
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 2 * x * grad_output
    """
    audit = case.audit
    for call in audit.calls:
        case.compared += 1
        for name, tensors in call.attributes.items():
            differentiable = any(t.is_floating_point() or t.is_complex() for t in tensors)
            tell = case.fail if differentiable else case.warn
            yield tell(
                f"{call.function.__name__} keeps a tensor on ctx as `ctx.{name}`",
                cause="an attribute is not freed after backward, leaks where it is an output, and hides from the "
                "version counter, from saved_tensors_hooks and from checkpointing",
                fix="keep the tensor by ctx.save_for_backward(…), and read it from ctx.saved_tensors",
            )


@rule(
    "MB508",
    "Does an in-place change of a saved tensor raise?",
    "1 pass a tensor",
    needs="plain hand-written",
    skeleton=SAVED,
)
def changed_in_place(case: Case) -> Iterator[Finding]:
    """A tensor that is changed in place between forward and backward makes backward raise, or does not matter to it.

    A tensor that backward needs was changed in place after forward, and backward does not raise but calculates with
    the new numbers. save_for_backward compares versions; .data and attributes of ctx escape it.

    Seen in: linkedin/Liger-Kernel PR#1251: writes from Triton do not move the version counter, so that the check for
    changes in place never fires, and the layer before computes wrong gradients.

    Wrong:
        ctx.save_for_backward(x.data)
        return x**2

    Right:
        ctx.save_for_backward(x)
        return x**2
    """
    names = [f"output {i}" for i in case.targets]
    places: list[tuple[str, int]] = [("outputs", i) for i in case.targets]
    if not case.in_place:
        names += [f"input `{slot.name}`" for slot in case.slots]
        places += [("leaves", i) for i in range(len(case.slots))]
    for name, (kind, place) in zip(names, places, strict=True):
        case.compared += 1  # before the pass, because an error is a right answer, too
        try:
            actual = _after_a_change(case, kind, place)
        except (Broken, RuntimeError):
            continue
        message = f"is wrong, without an error, after an in-place change of {name}"
        words: dict[str, Any] = {
            "cause": f"{name} is kept otherwise than by save_for_backward, so no version counter guards it",
            "fix": "keep the tensor by ctx.save_for_backward(…), with which torch raises an error here",
        }
        found = list(differing(case, actual, case.plain.gradients, message, **words))
        yield from found
        if found:
            return


def _after_a_change(case: Case, kind: str, place: int) -> Gradients:
    graph = case.run()
    with torch.no_grad():
        getattr(graph, kind)[place].mul_(3).add_(1)
    return case.differentiate(graph, case.plain.cotangents)
