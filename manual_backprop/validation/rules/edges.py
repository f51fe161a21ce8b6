"""MB7xx: edges of the shapes: empty, one, broadcast, other ranks, one tensor in two slots, an output nobody uses."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import raised_on_purpose
from manual_backprop.validation.oracle import Oracle
from manual_backprop.validation.report.report import Finding, fail, warn
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped
from manual_backprop.validation.subject import Broken, Graph, Subject


@dataclass
class Reshaped:
    """The sample with other shapes: a tensor a slot, and the leaves that are no slots."""

    values: list[Tensor]
    others: list[Any]


def batch_leaves(subject: Subject) -> list[int]:
    """Which leaves carry the samples: those with the first tensor's size along `batch_dim`, if forward agrees.

    Raises:
        Skipped: `batch_dim` is not given, or no choice lets forward run with a sample fewer.
    """
    axis = subject.batch_dim
    if axis is None:
        raise Skipped("batch_dim= is not given")
    inputs = len(subject.leaves) - len(subject.parameters)
    tensors = [i for i, leaf in enumerate(subject.leaves[:inputs]) if isinstance(leaf, Tensor)]
    tall = [i for i in tensors if -subject.leaves[i].ndim <= axis < subject.leaves[i].ndim]
    if not tall:
        raise Skipped(f"no input has an axis {axis}")
    size = subject.leaves[tall[0]].shape[axis]
    carriers = [i for i in tall if subject.leaves[i].shape[axis] == size]
    if size < 2:
        return carriers
    for count in range(len(carriers), 0, -1):
        for chosen in itertools.combinations(carriers, count):
            if carriers[0] not in chosen:
                continue
            if _runs(subject, _reshaped(subject, chosen, lambda t: t.narrow(axis, 0, size - 1))):
                return list(chosen)
        if count > 5:
            break
    raise Skipped("no choice of inputs that carry the samples lets forward run with one sample fewer")


def _runs(subject: Subject, reshaped: Reshaped) -> bool:
    try:
        subject.run(reshaped.values, others=reshaped.others)
    except Broken:
        return False
    return True


def _reshaped(subject: Subject, chosen: Any, change: Callable[[Tensor], Tensor]) -> Reshaped:
    others = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in subject.leaves]
    for leaf in chosen:
        others[leaf] = change(others[leaf]).clone()
    return Reshaped([others[slot.leaf] for slot in subject.slots], others)


def empty_batch(subject: Subject) -> Iterator[Finding]:
    """MB701: no samples: gradients of the right shape, zero for what is shared by the samples."""
    chosen = batch_leaves(subject)
    reshaped = _reshaped(subject, chosen, lambda t: t.narrow(subject.batch_dim or 0, 0, 0))
    try:
        graph = subject.run(reshaped.values, others=reshaped.others)
    except Broken as broken:
        # Much of torch refuses the maximum or the transform of nothing, too.
        raise Skipped(f"forward refuses an empty batch: {broken.error}") from broken
    try:
        actual = subject.differentiate(graph, subject.cotangents(graph.outputs))
    except Broken as broken:
        yield _raises(broken, "with an empty batch")
        return
    if any(output.numel() for output in graph.outputs):
        return  # a cost: the mean of nothing is NaN, the sum of nothing 0
    message = "the gradient of {name} is not zero with an empty batch"
    expected = [None if g is None else torch.zeros_like(g) for g in actual]
    yield from differing(subject, actual, expected, message, "only with an empty batch", [0.0] * len(actual))


def one_sample(subject: Subject) -> Iterator[Finding]:
    """MB702: one sample."""
    reshaped = _reshaped(subject, batch_leaves(subject), lambda t: t.narrow(subject.batch_dim or 0, 0, 1))
    graph = yield from _graph(subject, reshaped, "with one sample")
    if graph is not None:
        yield from _judged(subject, reshaped, "with one sample", _raises)


def _graph(subject: Subject, reshaped: Reshaped, setting: str) -> Any:
    """The forward pass, or a finding that says why there is none (a generator that returns the graph)."""
    try:
        return subject.run(reshaped.values, others=reshaped.others)
    except Broken as broken:
        if raised_on_purpose(broken.error):
            raise Skipped(f"forward refuses: {broken.error}") from broken
        if subject.reference is not None and not _runs(subject.reference, reshaped):
            raise Skipped(f"the reference raises too: {broken.error}") from broken
        yield _raises(broken, setting)
        return None


def _raises(broken: Broken, setting: str) -> Finding:
    return fail(
        f"{broken.stage} raises {setting}: {type(broken.error).__name__}: {' '.join(str(broken.error).split())}",
        cause="a shape is taken for granted (view(-1, …), squeeze(), an index 0)",
        fix="name the sizes, and reduce with dim=",
    )


def _refuses(broken: Broken, setting: str) -> Finding:
    return warn(
        f"{broken.stage} raises {setting}, where forward runs: {' '.join(str(broken.error).split())}",
        cause="backward is written for one rank (t(), mm, sum(0))",
        fix="use mT, @ and a sum over all leading axes",
    )


def _judged(
    subject: Subject,
    reshaped: Reshaped,
    setting: str,
    crash: Callable[[Broken, str], Finding],
    shape_matters: bool = False,
) -> Iterator[Finding]:
    """Whether the gradient at other shapes is the derivative."""
    try:
        oracle = Oracle(subject, reshaped.values, reshaped.others)
    except Broken as broken:
        if raised_on_purpose(broken.error):
            raise Skipped(f"{broken.stage} refuses: {broken.error}") from broken
        # A gradient of the wrong shape is a wrong answer; a kernel that refuses is a loud one.
        wrong = "invalid gradient" in str(broken) and shape_matters
        yield (_raises if wrong else crash)(broken, setting)
        return
    if subject.trusted:
        yield from wrong_derivatives(oracle, setting)


def broadcast(subject: Subject) -> Iterator[Finding]:
    """MB703: sizes of 1 that forward broadcasts."""
    if subject.batch_dim is None:
        raise Skipped("batch_dim= is not given")
    shapes = [output.shape for output in subject.plain.outputs]
    asked = 0
    for slot in subject.slots:
        for axis in range(subject.leaves[slot.leaf].ndim):
            if subject.leaves[slot.leaf].shape[axis] < 2 or slot.parameter or not slot.asked or asked >= 8:
                continue
            reshaped = _reshaped(subject, [slot.leaf], lambda t, axis=axis: t.narrow(axis, 0, 1))  # type: ignore[misc]
            if not _spans(subject, slot.leaf, axis, shapes) or not _same_shapes(subject, reshaped, shapes):
                continue
            asked += 1
            setting = f"where `{slot.name}` has size 1 along axis {axis} and is broadcast"
            try:
                # The axes of the first input mean something; what comes after it is combined with it.
                found = list(_judged(subject, reshaped, setting, _refuses, shape_matters=slot.leaf > 0))
            except Inconclusive:
                continue
            yield from found
            if found:
                return
    if not asked:
        raise Skipped("forward broadcasts no input")


def _spans(subject: Subject, leaf: int, axis: int, shapes: list[torch.Size]) -> bool:
    """Whether the axis is one of the outputs' too, so that the same output shape means a broadcast."""
    shape = subject.leaves[leaf].shape
    from_right = axis - len(shape)
    return all(len(s) >= -from_right and s[from_right] == shape[axis] for s in shapes)


def _same_shapes(subject: Subject, reshaped: Reshaped, shapes: list[torch.Size]) -> bool:
    try:
        outputs = subject.run(reshaped.values, others=reshaped.others).outputs
    except Broken:
        return False
    return [output.shape for output in outputs] == shapes


def ranks(subject: Subject) -> Iterator[Finding]:
    """MB704: one leading dimension more, and one fewer, where forward takes them."""
    chosen, axis = batch_leaves(subject), subject.batch_dim or 0
    changes: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("with one more leading dimension", lambda t: torch.stack([t, t.flip(axis)])),
        ("without the batch dimension", lambda t: t.select(axis, 0)),
    )
    asked = False
    for setting, change in changes:
        reshaped = _reshaped(subject, chosen, change)
        if not _runs(subject, reshaped):
            continue
        asked = True
        try:
            yield from _judged(subject, reshaped, setting, _refuses)
        except Inconclusive:
            continue
    if not asked:
        raise Skipped("forward takes this rank only")


def same_tensor(subject: Subject) -> Iterator[Finding]:
    """MB705: one tensor in two slots gets the sum of both gradients."""
    _ = subject.plain
    asked = [i for i, slot in enumerate(subject.slots) if slot.asked and not slot.parameter]
    pairs = [(i, j) for i, j in itertools.combinations(asked, 2) if _alike(subject.values[i], subject.values[j])][:4]
    if not pairs or subject.in_place:
        raise Skipped("no two inputs of one shape and dtype")
    for i, j in pairs:
        values = [subject.values[i] if k == j else value for k, value in enumerate(subject.values)]
        try:
            apart = subject.gradients(values)
        except Broken:
            continue
        leaves = subject.run(values).leaves
        shared = [leaves[i] if k == j else leaf for k, leaf in enumerate(leaves)]
        names = f"`{subject.slots[i].name}` and `{subject.slots[j].name}`"
        try:
            outputs = subject.call(shared)
            single = [leaf for k, leaf in enumerate(shared) if k != j]
            found = subject.differentiate(Graph(single, outputs), subject.cotangents(outputs))
        except Exception as error:
            yield fail(f"it raises when one tensor is passed as {names}: {error}", cause="aliasing of two inputs",
                       fix="treat inputs as read-only")  # fmt: skip
            return
        actual = [found[i if i < j else i - 1]]
        first, second = apart[i], apart[j]
        total = second if first is None else first if second is None else first + second
        noise = subject.noise_at(values, subject.plain.cotangents, apart)
        message = f"the gradient of one tensor passed as {names} is not the sum of both"
        spread: list[Any] = [None] * len(values)
        for wanted, given in ((total, actual[0]),):
            expected_list, actual_list = list(spread), list(spread)
            expected_list[i], actual_list[i] = wanted, given
            noise = [noise[i] + noise[j] if k == i else 0.0 for k in range(len(values))]
            yield from differing(subject, actual_list, expected_list, message, "only when both are one", noise)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.numel() > 0


def unused_output(subject: Subject) -> Iterator[Finding]:
    """MB706: a loss that uses one of the outputs only gets the derivative of that one."""
    targets = subject.targets
    if len(targets) < 2:
        raise Skipped("one output")
    for target in targets:
        graph = subject.run()
        cotangent = subject.plain.cotangents[target]
        expected = subject.differentiate(
            subject.run(), [c if i == target or c is None else torch.zeros_like(c)
                            for i, c in enumerate(subject.plain.cotangents)]
        )  # fmt: skip
        others = [i for i in targets if i != target]
        # The other outputs stay in the graph, behind operations that give them no gradient.
        loss = (graph.outputs[target] * cotangent.conj()).sum()
        loss = loss + sum(graph.outputs[i].detach().abs().sum() * 0 for i in others)
        asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
        try:
            found = iter(torch.autograd.grad(loss.real if loss.is_complex() else loss, asked, allow_unused=True))
        except Exception as error:
            yield fail(
                f"backward raises when only output {target} is used: {error}",
                cause="backward counts on a gradient for each output",
                fix="test grad_output for None",
            )
            return
        actual = [next(found) if leaf.requires_grad else None for leaf in graph.leaves]
        message = f"the gradient of {{name}} is wrong when only output {target} is used"
        yield from differing(subject, actual, expected, message, f"only when output {target} is used alone")


PROBES = (
    Probe("MB701", "empty_batch", "edges", "Does an empty batch run?", "1 pass", "batch_dim", empty_batch),
    Probe("MB702", "one_sample", "edges", "Is one sample right?", "50 forwards", "batch_dim", one_sample),
    Probe("MB703", "broadcast", "edges", "Are broadcast inputs right?", "50 forwards a size", "batch_dim", broadcast),
    Probe("MB704", "ranks", "edges", "Are other ranks right?", "100 forwards", "batch_dim", ranks),
    Probe("MB705", "same_tensor", "edges", "Does one tensor in two slots get both gradients?", "4 passes a pair",
          "two inputs of one shape", same_tensor),
    Probe("MB706", "unused_output", "edges", "May an output go unused?", "2 passes an output", "two outputs",
          unused_output),
)  # fmt: skip
