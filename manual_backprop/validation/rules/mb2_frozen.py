"""MB208 and MB209: where some inputs are frozen, are the other gradients the same, and is nothing computed in vain?"""

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from manual_backprop.validation.audit import audited
from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import LINEAR


@rule("MB208", "Same values whatever is frozen?", "1 pass a subset", needs="plain two-inputs", skeleton=LINEAR)
def frozen_inputs(case: Case) -> Iterator[Finding]:
    """The values of a gradient do not depend on which other inputs require grad (frozen weights).

    With some inputs frozen, backward returns something else for the others, or crashes. Tests in which everything
    requires grad never take that branch; fine-tuning takes it at once.

    Seen in: mgmalek/efficient_cross_entropy#1: UnboundLocalError, because the gradient of the projection is assigned
    only where it is asked for; shader-slang/slangpy#1056: an illegal memory access when one of two requires grad.

    Wrong:
        if ctx.needs_input_grad[1]:
            grad_weight = grad_output.mT @ input
        return grad_output @ weight, grad_weight, grad_output.sum(0)  # unbound where the weight is frozen

    Right:
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ weight
        if ctx.needs_input_grad[1]:
            grad_weight = grad_output.mT @ input
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(0)
        return grad_input, grad_weight, grad_bias
    """
    asked = [i for i, need in enumerate(case.needs) if need]
    for chosen in _subsets(asked):
        needs = tuple(i in chosen for i in range(len(case.needs)))
        frozen = " and ".join(f"`{case.slots[i].name}`" for i in asked if i not in chosen)
        expected = [g if need else None for g, need in zip(case.plain.gradients, needs, strict=True)]
        actual = _for_subset(case, needs, frozen)
        if isinstance(actual, Finding):
            yield actual
            return
        message = f"is different when {frozen} does not require grad"
        found = list(differing(case, actual, expected, message, f"only when {frozen} is frozen"))
        yield from found
        if found:
            return


def _for_subset(case: Case, needs: tuple[bool, ...], frozen: str) -> Any:
    try:
        graph = case.run(needs=needs)
        plain = case.plain.cotangents
        cotangents = [c if o.requires_grad else None for o, c in zip(graph.outputs, plain, strict=True)]
        return case.differentiate(graph, cotangents)
    except Broken as broken:
        return case.fail(
            f"{broken.stage} raises when {frozen} does not require grad: {type(broken.error).__name__}: {broken.error}",
            cause="a tensor is saved or computed only if one input requires grad, and then used for another input",
            fix="let each gradient, and the tensors that it reads, depend on its own ctx.needs_input_grad[i]",
        )


def _subsets(asked: list[int]) -> list[tuple[int, ...]]:
    """The sets of inputs that require grad while the others are frozen; not all where there are many inputs.

    Up to 4 inputs there are at most 14 sets. Beyond that each input is taken alone and left out alone, and up to 8
    inputs each pair is taken (28 at most), because the number of all sets doubles with each input.
    """
    if len(asked) <= 4:
        sizes = range(1, len(asked))
        return [subset for size in sizes for subset in itertools.combinations(asked, size)]
    ends = [(i,) for i in asked] + [tuple(j for j in asked if j != i) for i in asked]
    return ends + list(itertools.combinations(asked, 2)) if len(asked) <= 8 else ends


@rule(
    "MB209",
    "Is anything computed in vain?",
    "1 pass an input",
    needs="plain two-inputs function",
    skeleton=LINEAR,
    status="warn",
)
def wasted_gradient(case: Case) -> Iterator[Finding]:
    """backward computes nothing that was not asked for.

    A gradient is computed that nobody asked for, and thrown away. Nothing is wrong but the time: a frozen weight wastes
    a third of the backward. The finding is a warning.

    Seen in: NVIDIA/apex PR#1517: the gradient of the weight was computed although the weight was frozen; leaving it
    out made a training step some 20 % faster.

    Wrong:
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)

    Right:
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ weight
        if ctx.needs_input_grad[1]:
            grad_weight = grad_output.mT @ input
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(0)
        return grad_input, grad_weight, grad_bias
    """
    asked = [i for i, need in enumerate(case.needs) if need]
    for keep in asked:
        needs = tuple(i == keep for i in range(len(case.needs)))
        for call in audited(case, needs=needs).calls:
            case.compared += 1
            waste = [
                argument.name
                for argument, needed, value in zip(call.arguments, call.needed, call.values, strict=False)
                if not needed and isinstance(value, Tensor)
            ]
            if waste:
                yield case.warn(
                    f"{call.function.__name__}.backward computes the gradient of `{'`, `'.join(waste)}`, which nobody "
                    f"asked for ({1e6 * call.seconds:.0f} µs for the call)",
                    cause="backward does not look at ctx.needs_input_grad",
                    fix="compute each gradient only `if ctx.needs_input_grad[i]`",
                )
                return
