"""MB210: a gradient that did not come in counts as zero."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import NOT_MATERIALIZED
from manual_backprop.validation.subject import Gradients


@rule("MB210", "Is an undefined gradient a zero?", "3 passes", skeleton=NOT_MATERIALIZED)
def undefined_grad_output(case: Case) -> Iterator[Finding]:
    """A grad_output that is undefined (None, after set_materialize_grads(False)) counts as zero.

    With ctx.set_materialize_grads(False) the gradient of an output that nobody used arrives as None. A wrong backward
    calculates with that None.

    Seen in: pytorch/pytorch#58511: unused outputs get gradients of zeros; pytorch/pytorch PR#41821 lets one switch
    that off, and every such backward has to look for None itself.

    Wrong:
        return grad_sin * x.cos() - grad_cos * x.sin()

    Right:
        grad = torch.zeros_like(x)
        if grad_sin is not None:
            grad = grad + grad_sin * x.cos()
        if grad_cos is not None:
            grad = grad - grad_cos * x.sin()
        return grad
    """
    targets = case.targets
    for target in targets if len(targets) > 1 else []:
        alone = [c if i == target else None for i, c in enumerate(case.plain.cotangents)]
        zeros = [c if i == target or c is None else torch.zeros_like(c) for i, c in enumerate(case.plain.cotangents)]
        try:
            actual = case.gradients(cotangents=alone)
        except Broken as broken:
            yield _undefined(case, f"backward raises when only output {target} is used", broken)
            return
        message = f"through output {target} alone is not the same as with zeros for the other outputs"
        yield from differing(case, actual, case.gradients(cotangents=zeros), message)
    graph = case.run()
    below = [_Undefined.apply(o) if o.requires_grad else o for o in graph.outputs]
    graph.outputs = below
    try:
        gradients = case.differentiate(graph, case.plain.cotangents)
    except Broken as broken:
        yield _undefined(case, "backward raises when no gradient comes in at all", broken)
        return
    message = "is not zero when no gradient comes in"
    nothing: Gradients = [None] * len(gradients)
    yield from differing(case, gradients, nothing, message, noise=case.still)


class _Undefined(torch.autograd.Function):
    """The identity with a backward that returns None, so that the Function before it gets an undefined gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


def _undefined(case: Case, message: str, broken: Broken) -> Finding:
    return case.fail(
        f"{message}: {type(broken.error).__name__}: {broken.error}",
        cause="under set_materialize_grads(False) grad_output is None where the output is not used",
        fix="test grad_output for None before using it, or do not call set_materialize_grads(False)",
    )
