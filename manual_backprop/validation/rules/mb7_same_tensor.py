"""MB705: one tensor in two slots."""

import itertools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Graph

MB705_SKELETON = """
class MatMul(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        ___


validate(MatMul, (randn(3, 3), randn(3, 3)))
"""


MOST_PAIRS = 4  # because each pair costs four passes, and the number of pairs grows as the square of that of inputs


@rule("MB705", "Does one tensor in two slots get both gradients?", "4 passes a pair", skeleton=MB705_SKELETON)
def same_tensor_twice(case: Case) -> Iterator[Finding]:
    """One tensor that is passed in two slots gets the sum of both gradients.

    The same tensor is passed for two arguments, as in self-attention, and gets only one of the two gradients.

    Seen in: pytorch/pytorch#183604 and #181146: with the same tensor in two slots torch.compile returned half of the
    gradient.

    Wrong:
        grads = {a: grad_output @ b.mT}
        grads[b] = a.mT @ grad_output  # overwrites grads[a] where b is a
        return grads[a], grads[b]

    Right:
        return grad_output @ b.mT, a.mT @ grad_output
    """
    asked = [i for i, slot in enumerate(case.slots) if slot.asked and not slot.parameter]
    alike = [(i, j) for i, j in itertools.combinations(asked, 2) if _alike(case.values[i], case.values[j])]
    pairs = alike[:MOST_PAIRS]
    if not pairs or case.in_place:
        raise Skipped("no two inputs of one shape and dtype")
    for i, j in pairs:
        values = [case.values[i] if k == j else value for k, value in enumerate(case.values)]
        try:
            separate = case.gradients(values)
        except Broken:
            continue
        leaves = case.run(values).leaves
        shared = [leaves[i] if k == j else leaf for k, leaf in enumerate(leaves)]
        names = f"`{case.slots[i].name}` and `{case.slots[j].name}`"
        try:
            outputs = case.call(shared)
            single = [leaf for k, leaf in enumerate(shared) if k != j]
            found = case.differentiate(Graph(single, outputs), case.cotangents(outputs))
        except Exception as error:
            yield case.fail(
                f"it raises when one tensor is passed as {names}: {error}",
                cause="forward or backward does not expect two inputs to share memory",
                fix="treat inputs as read-only, and do not tell them apart by identity",
            )
            return
        first, second = separate[i], separate[j]
        total = second if first is None else first if second is None else first + second
        noise = case.noise_at(values, case.plain.cotangents, separate)
        expected_list: list[Any] = [None] * len(values)
        actual_list = list(expected_list)
        expected_list[i], actual_list[i] = total, found[i if i < j else i - 1]
        spread = [noise[i] + noise[j] if k == i else 0.0 for k in range(len(values))]
        predicate = f"is not the sum of both, where one tensor is passed as {names}"
        yield from differing(case, actual_list, expected_list, predicate, "only when both are one", spread)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.numel() > 0
