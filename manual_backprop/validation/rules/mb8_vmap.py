"""MB804: vmap does what a loop does. A refusal with an error is a skip."""

from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Skipped, one_line
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients
from manual_backprop.validation.tolerances import SAME_RTOL, mismatch

MB804_SKELETON = """
class Centre(Function):
    @staticmethod
    def forward(x):
        return x - x.mean()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output - grad_output.mean()

    @staticmethod
    def vmap(info, in_dims, x):
        ___


validate(Centre, (randn(4, 3),))
"""

Tensors = list[Tensor]

MOST_SLOTS = 4  # inputs that are batched one by one, because each costs three passes
MOST_SAMPLES = 8  # of a batch, because each is run once more by itself


@rule("MB804", "Does vmap do what a loop does?", "3 passes a choice", skeleton=MB804_SKELETON)
def vmap(case: Case) -> Iterator[Finding]:
    """vmap over each input and over all of them gives what a loop gives, values and gradients.

    Under torch.vmap the result is not that of a loop over the samples: the Function's vmap rule mixes samples up, or
    takes another axis for the batch axis.

    Seen in: pytorch/functorch#207: “autograd.Function is silently incorrect on functorch transforms”; pytorch/pytorch
    PR#186303: a compiled vmap went around the Function's own vmap rule and its backward.

    Wrong:
        return Centre.apply(x), in_dims[0]  # one mean for the whole batch

    Right:
        return torch.stack([Centre.apply(sample) for sample in x.unbind(in_dims[0])]), 0
    """
    own_rule = any(not f.generate_vmap_rule for f in case.functions)  # type: ignore[attr-defined]
    if case.reads_raw_memory and not own_rule:
        raise Skipped("the pass uses NumPy or raw memory, which vmap cannot see through")
    asked = [i for i, need in enumerate(case.needs) if need]
    everything, count = tuple(asked), len(asked)
    # The batch axis is the first, then the last (-1), because a vmap rule that ignores in_dims is right for the first.
    choices = [(everything, (0,) * count), (everything, (-1,) * count)]
    if count > 1:
        # Axes that differ from input to input, with as many samples as the first axis is long: then the shapes fit even
        # if a rule ignores in_dims, and only the values tell.
        choices += [(everything, tuple(min(k % 2, case.values[i].ndim) for k, i in enumerate(asked)))]
        choices += [((i,), (0,)) for i in asked[:MOST_SLOTS]]
    choices = choices[:1] if case.large else choices
    first = case.values[asked[0]]
    many = len(first) if first.ndim and 2 <= len(first) <= MOST_SAMPLES else 2
    refusals = []
    for chosen, axes in choices:
        count = many if len(set(axes)) > 1 else 2
        try:
            outputs, gradients = _vmap(case, count, chosen, axes)
        except Exception as error:
            refusals.append(one_line(error))
            continue
        setting = f"under vmap over {', '.join(f'`{case.slots[i].name}`' for i in chosen)} (in_dims {axes})"
        for number in range(count):
            sample_outputs, wanted = _pass(case, number, chosen)
            values = [o[number] for o in outputs]
            case.compared += len(values)
            bad = [i for i, (a, b) in enumerate(zip(values, sample_outputs, strict=True))
                   if mismatch(a, b, SAME_RTOL[case.dtype])]  # fmt: skip
            if bad:
                yield case.fail(f"output {bad[0]} is wrong {setting}", output=bad[0], cause="the vmap rule is wrong",
                           fix="generate_vmap_rule = True, or mind in_dims and return the right out_dims")  # fmt: skip
                return
            found = list(
                differing(case, [g if g is None else g[number] for g in gradients],
                          [w if i in chosen else None for i, w in enumerate(wanted)],
                          f"is wrong {setting}", "only under vmap")
            )  # fmt: skip
            yield from found
            if found:
                return
            del sample_outputs, wanted
    if len(refusals) == len(choices):
        raise Skipped(f"vmap is refused with an error: {refusals[0]}")


def _vmap_sample(case: Case, number: int, chosen: tuple[int, ...]) -> Tensors:
    """Sample `number` of the batch, as fresh tensors; number 0 is the case's own sample, not copied."""
    if not number:
        return list(case.values)
    near = case.nearby(("vmap", number))
    return [near[i] if i in chosen else value.clone() for i, value in enumerate(case.values)]


def _pass(case: Case, number: int, chosen: tuple[int, ...]) -> tuple[Tensors, Gradients]:
    if not number:
        return case.plain.outputs, case.plain.gradients
    graph = case.run(_vmap_sample(case, number, chosen), copied=False)
    gradients = case.differentiate(graph, case.cotangents(graph.outputs))
    return [output.detach() for output in graph.outputs], gradients


def _vmap(case: Case, count: int, chosen: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Tensors, Gradients]:
    stacked = {i: case.values[i].new_empty((count, *case.values[i].shape)) for i in chosen}
    for number in range(count):
        sample = _vmap_sample(case, number, chosen)
        for i in chosen:
            stacked[i][number] = sample[i]
    del sample
    for i, axis in zip(chosen, axes, strict=True):
        stacked[i] = stacked[i].movedim(0, axis).contiguous().requires_grad_()

    def one(*parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(case.call(case.with_parts(chosen, parts)))

    outputs = list(torch.func.vmap(one, in_dims=axes)(*stacked.values()))
    given = [
        None if c is None or not o.requires_grad else torch.stack([c] * count)
        for o, c in zip(outputs, case.plain.cotangents, strict=True)
    ]
    pairs = [(o, c) for o, c in zip(outputs, given, strict=True) if c is not None]
    found = torch.autograd.grad([o for o, _ in pairs], list(stacked.values()), [c for _, c in pairs], allow_unused=True)
    gradients: Gradients = [None] * len(case.values)
    for i, axis, gradient in zip(chosen, axes, found, strict=True):
        gradients[i] = gradient.movedim(axis, 0) if gradient is not None and axis else gradient
    return [output.detach() for output in outputs], gradients
