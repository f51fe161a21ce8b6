"""MB601 to MB603: is the error in each dtype within the budget of that dtype?"""

from collections.abc import Iterator

import torch

from manual_backprop.validation.budget import exact, over_budget, quantised
from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped, raised_on_purpose
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import LINEAR

MB601_SKELETON = """
def deviation(x):
    return x.std(-1, correction=0)


class Deviation(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return deviation(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(-1, keepdim=True)
        ___
        return grad_output.unsqueeze(-1) * centred / (x.shape[-1] * variance.sqrt())


x = (100 + 0.1 * torch.randn(5, 8, dtype=torch.float64)).requires_grad_()
validate(Deviation, (x,), reference=deviation)
"""
MB602_SKELETON = LINEAR.replace(
    "(randn(4, 3), randn(5, 3), randn(5))", "(randn(1024, 2), randn(3, 2), randn(3)), reference=F.linear"
)
RMS_NORM = """
def rms_norm(x):
    return (x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype)


class RMSNorm(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return rms_norm(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ___
        normal = wide * rstd
        grad = rstd * (grad_output - normal * (grad_output * normal).mean(-1, keepdim=True))
        return grad.to(x.dtype)


x = (400 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
validate(RMSNorm, (x,), reference=rms_norm)
"""

# torch has no exception class for an operation that lacks a dtype, so its English is matched. Should the words change,
# a refusal is reported as a failure, which nobody can miss, and never as a pass.
NOT_SUPPORTED = (
    "not implemented for",
    "unsupported ScalarType",
    "not supported",
    "expected scalar type",
    "Unsupported",
)


@rule("MB601", "Is float32 within its budget?", "6 passes", needs="plain hand-written", skeleton=MB601_SKELETON)
def float32_budget(case: Case) -> Iterator[Finding]:
    """The gradient in float32 is as near to that in float64, from the same numbers, as the budget of float32 demands.

    In float32 the gradient loses more digits than torch itself loses with the same numbers, because backward takes the
    difference of two large numbers, or adds up in an unlucky order.

    Seen in: NVIDIA/apex#1652: gradients of a normalisation that were less precise than those of torch.

    Wrong:
        variance = x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()

    Right:
        variance = centred.square().mean(-1, keepdim=True)
    """
    yield from _within_budget(case, torch.float32)


@rule("MB602", "Is bfloat16 within its budget?", "6 passes", needs="plain hand-written", skeleton=MB602_SKELETON)
def bfloat16_budget(case: Case) -> Iterator[Finding]:
    """The gradient in bfloat16 is as near to that in float64, from the same numbers, as the budget of bfloat16 demands.

    In bfloat16, which has eight bits, the gradient is worse than torch's own in bfloat16: backward adds numbers up
    without an accumulator in float32.

    Seen in: linkedin/Liger-Kernel PR#830: the gradient of the weight is added up chunk by chunk in bfloat16; users
    had reported training that was worse, or diverged, although the loss looked the same.

    Wrong:
        grad_weight = torch.zeros_like(weight)
        for sample, error in zip(input.split(1), grad_output.split(1)):
            grad_weight = grad_weight + error.mT @ sample
        return grad_output @ weight, grad_weight, grad_output.sum(0)

    Right:
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)
    """
    yield from _within_budget(case, torch.bfloat16)


@rule("MB603", "Is float16 within its budget?", "6 passes", needs="plain hand-written", skeleton=RMS_NORM)
def float16_budget(case: Case) -> Iterator[Finding]:
    """The gradient in float16 is as near to that in float64, from the same numbers, as the budget of float16 demands.

    In float16 an intermediate number is larger than 65504, or so small that it becomes zero, although the result is
    neither.

    Seen in: fastino-ai/GLiNER2 PR#155: a clamp to 1 − 1e-6, which in float16 and bfloat16 is 1, let log1p(−1)
    through, and the backward was 0 · inf in half precision only.

    Wrong:
        wide, rstd = x, (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()  # 400² overflows

    Right:
        wide = x.double()
        rstd = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    """
    yield from _within_budget(case, torch.float16)


def _within_budget(case: Case, dtype: torch.dtype) -> Iterator[Finding]:
    values = [quantised(value, dtype) for value in case.values]
    given = [c if c is None else quantised(c, dtype) for c in case.plain.cotangents]
    try:
        graph = case.run(values)
    except Broken as broken:
        raise Skipped(f"forward refuses {dtype}: {broken.error}") from broken
    if not all(o.isfinite().all() for o in graph.outputs if o.is_floating_point()):
        raise Inconclusive(f"outputs overflow in {dtype}")
    given = [c if c is None else c.to(o.dtype) for c, o in zip(given, graph.outputs, strict=True)]
    try:
        actual = case.differentiate(graph, given)
    except Broken as broken:
        if raised_on_purpose(broken.error) or any(words in str(broken) for words in NOT_SUPPORTED):
            raise Skipped(f"backward refuses {dtype}: {broken.error}") from broken
        yield case.fail(
            f"backward raises in {dtype}, where forward runs: {broken.error}",
            cause="tensors of two dtypes meet in backward",
            fix="make constants in the dtype of grad_output",
        )
        return
    del graph
    yield from over_budget(case, actual, exact(case, values, given, dtype), dtype)
