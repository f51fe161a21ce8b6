"""MB211: an output whose gradient is dropped is marked as not differentiable, or constant."""

from collections.abc import Iterator

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SINCOS
from manual_backprop.validation.tolerances import largest


@rule("MB211", "Is an output without gradient marked?", "1 pass an output", needs="plain truth", skeleton=SINCOS)
def unmarked_output(case: Case) -> Iterator[Finding]:
    """An output whose gradient is dropped is marked as not differentiable, or does not depend on the inputs.

    An output depends on the inputs, and backward drops the gradient that comes back through that output: a loss that is
    built on it trains nothing. Either backward has to add its share, or forward has to mark the output as
    non-differentiable, so that nobody builds on it.

    Seen in: Dao-AILab/flash-attention#1817: “softmax_lse is silently not backpropagated”: a loss on the second output
    leaves every gradient at zero.

    Wrong:
        return grad_sin * x.cos()  # and the cosine?

    Right:
        return grad_sin * x.cos() - grad_cos * x.sin()
    """
    oracle = case.oracle
    if len(oracle.outputs) < 2 or not oracle.measurable:
        raise Skipped("there is only one output")
    yield from _marked_wrongly(case)
    for target in case.targets:
        alone = [
            None if c is None else c if i == target else torch.zeros_like(c) for i, c in enumerate(oracle.cotangents)
        ]
        gradients = case.differentiate(case.run(oracle.values), alone)
        if any(largest(g) for g in gradients):
            continue
        only = [c if i == target else None for i, c in enumerate(oracle.cotangents)]
        slope = oracle.slope(oracle.direction(oracle.asked, "marked"), only)
        if not slope.is_zero and not slope.kinked:
            yield case.fail(
                f"the gradient of output {target} is dropped, and output {target} depends on the inputs",
                cause="backward does not read its grad_output, and forward does not mark it",
                fix="add its share in backward, or ctx.mark_non_differentiable(output)",
                output=target,
                expected=slope.central,
                actual=0.0,
            )


def _marked_wrongly(case: Case) -> Iterator[Finding]:
    """A failure where each differentiable output is constant, and one marked as not differentiable is not.

    Marking the values of `max` instead of the indices does this. The rule's loop over the differentiable outputs cannot
    find it, because the gradients of those are rightly zero.
    """
    oracle = case.oracle
    moving = []
    for number, output in enumerate(oracle.outputs):
        if output.is_floating_point():
            # The cotangent is random and not ones, because the sum of a softmax is constant though the softmax is not.
            given = torch.randn(output.shape, generator=case.generator("moving", number), dtype=torch.float64)
            only = [given.to(output) if i == number else None for i in range(len(oracle.outputs))]
            slope = oracle.slope(oracle.direction(oracle.asked, "moving"), only)
            if not slope.is_zero and slope.error < 0.05 * abs(slope.central):
                moving.append(number)
    if moving and not set(moving) & set(case.targets):
        yield case.fail(
            f"output {moving[0]} is marked as not differentiable and depends on the inputs, and no other output does",
            cause="ctx.mark_non_differentiable names the wrong output",
            fix="mark the indices, not the values",
            output=moving[0],
        )
