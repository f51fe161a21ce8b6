"""MB606 and MB607: autocast around forward alone, and around both passes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.budget import exact, over_budget
from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients

MB606_SKELETON = """
class Linear(Function):
    @staticmethod
    ___


validate(Linear, (randn(4, 3), randn(5, 3)))
"""
MB607_SKELETON = """
class LookupLinear(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type='cpu', cast_inputs=torch.float32)
    def forward(ctx, table, index, weight):
        ctx.save_for_backward(table, index, weight)
        return F.linear(table[index], weight)

    @staticmethod
    ___
    def backward(ctx, grad_output):
        table, index, weight = ctx.saved_tensors
        grad_table = torch.zeros_like(table).index_add_(0, index, grad_output @ weight)
        return grad_table, None, grad_output.mT @ table[index]


validate(LookupLinear, (randn(6, 3), torch.tensor([0, 2, 2]), randn(5, 3)))
"""


@rule(
    "MB606",
    "Right with autocast on the forward?",
    "5 passes",
    needs="plain hand-written",
    skeleton=MB606_SKELETON,
    status="warn",
)
def autocast_forward(case: Case) -> Iterator[Finding]:
    """With autocast around forward alone, the gradient is within the budget of bfloat16.

    With autocast around the forward alone, as torch recommends, backward meets the low dtype that forward produced
    beside the saved float32, and then raises an error or computes a wrong gradient.

    Seen in: pytorch/ao#4616: under autocast the incoming gradient is bfloat16 and the saved weight float32, and the
    product of the two raises.

    Wrong:
        def forward(ctx, input, weight):
            ctx.save_for_backward(input, weight)
            return input @ weight.mT

        @staticmethod
        def backward(ctx, grad_output):
            input, weight = ctx.saved_tensors
            return grad_output @ weight, grad_output.mT @ input

    Right:
        @torch.amp.custom_fwd(device_type='cpu', cast_inputs=torch.float32)
        def forward(ctx, input, weight):
            ctx.save_for_backward(input, weight)
            return input @ weight.mT

        @staticmethod
        @torch.amp.custom_bwd(device_type='cpu')
        def backward(ctx, grad_output):
            input, weight = ctx.saved_tensors
            return grad_output @ weight, grad_output.mT @ input
    """
    yield from _under_autocast(case, backward_too=False)


@rule(
    "MB607",
    "Right with autocast on both?",
    "5 passes",
    needs="plain hand-written",
    skeleton=MB607_SKELETON,
    status="warn",
)
def autocast_both(case: Case) -> Iterator[Finding]:
    """With autocast around both passes, the gradient is within the budget of bfloat16.

    With autocast around backward too, the products inside backward change their dtype, and the operations after them
    cannot take two dtypes.

    Seen in: pytorch/pytorch#87979: under custom_bwd the backward ran in another dtype than the forward.

    Wrong:
        # no custom_bwd

    Right:
        @torch.amp.custom_bwd(device_type='cpu')
    """
    yield from _under_autocast(case, backward_too=True)


def _under_autocast(case: Case, backward_too: bool) -> Iterator[Finding]:
    values = [value if value.is_complex() else value.to(torch.float32) for value in case.values]
    where = "forward and backward" if backward_too else "forward"
    try:
        outputs, given, actual = _autocast_pass(case, values, backward_too)
        truth = exact(case, values, given, torch.bfloat16)
    except Broken as broken:
        if broken.stage == "forward":
            raise Skipped(f"forward refuses autocast: {broken.error}") from broken
        yield case.warn(
            f"backward raises after autocast on {where}: {broken.error}",
            cause="forward ran in bfloat16 inside, and backward meets tensors of two dtypes",
            fix="cast the operands once, in front of the Function, or use torch.amp.custom_fwd and custom_bwd",
        )
        return
    finite = all(bool(o.isfinite().all()) for o in outputs if o.is_floating_point())
    if not finite:
        raise Inconclusive("outputs overflow under autocast")
    dtype = torch.bfloat16
    yield from over_budget(case, actual, truth, dtype)


def _autocast_pass(case: Case, values: list[Tensor], backward_too: bool) -> tuple[list[Tensor], list[Any], Gradients]:
    device = case.values[0].device.type
    with torch.autocast(device, torch.bfloat16):
        graph = case.run(values)
    plain = case.plain.cotangents
    given = [None if c is None else c.to(o.dtype) for c, o in zip(plain, graph.outputs, strict=True)]
    with torch.autocast(device, torch.bfloat16, enabled=backward_too):
        return [output.detach() for output in graph.outputs], given, case.differentiate(graph, given)
