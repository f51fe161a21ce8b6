"""MB5xx: what a Function writes, keeps and leaks."""

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from manual_backprop.validation.audit import audited, hand_written, snapshot
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import one_line, raised_on_purpose
from manual_backprop.validation.oracle import Oracle, oracle_of
from manual_backprop.validation.report.report import Finding, fail, warn
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped
from manual_backprop.validation.subject import Broken, Gradients, Graph, Subject

OUT_OF_PLACE = "compute out of place, or ctx.mark_dirty an input that forward changes"


def inputs_written(subject: Subject) -> Iterator[Finding]:
    """MB501: no byte of an input changes, unless forward marks it dirty."""
    _ = subject.plain
    held = _copied_leaves(subject)
    before, others_before = snapshot(subject.values), snapshot(held)
    graph, started = _watched(subject, held)
    after, others_after = snapshot(started), snapshot(held)
    returned = {id(output) for output in graph.outputs}
    for i, slot in enumerate(subject.slots):
        dirty = id(started[i]) in returned or (started[i].grad_fn is not None and started[i]._version > 0)
        if before[i] != after[i] and not dirty:
            yield from _written(subject, slot.name, "forward", slot.asked)
    names = [f"inputs[{i}]" for i in range(len(held))]
    slots = {slot.leaf for slot in subject.slots}
    for i, name in enumerate(names):
        if i not in slots and others_before[i] != others_after[i] and id(held[i]) not in returned:
            yield from _written(subject, name, "forward", False)
    subject.differentiate(graph, subject.plain.cotangents)
    for i, (old, new) in enumerate(zip(after, snapshot(started), strict=True)):
        if old != new:
            yield from _written(subject, subject.slots[i].name, "backward", True)


def _copied_leaves(subject: Subject) -> list[Any]:
    """The leaves that are no slots; `_watched` makes those that are."""
    slots = {slot.leaf for slot in subject.slots}
    return [
        leaf.detach().clone() if isinstance(leaf, Tensor) and i not in slots else leaf
        for i, leaf in enumerate(subject.leaves)
    ]


def _watched(subject: Subject, held: list[Any]) -> tuple[Graph, list[Tensor]]:
    """A forward pass whose very arguments are kept at hand. Non-leaves, so that forward may mark them dirty."""
    leaves = [v.detach().clone().requires_grad_(n) for v, n in zip(subject.values, subject.needs, strict=True)]
    started = [leaf.clone() if subject.in_place else leaf for leaf in leaves]
    in_place, subject.in_place = subject.in_place, False
    try:
        graph = Graph(leaves, subject.call(started, held))
    except Exception as error:
        raise Broken("forward", error) from error
    finally:
        subject.in_place = in_place
    return graph, started


def _written(subject: Subject, name: str, stage: str, asked: bool) -> Iterator[Finding]:
    if not asked and not hand_written(subject.run().outputs):
        return  # torch's own functions update running statistics so, as documented
    yield fail(
        f"{stage} writes into its input `{name}`",
        cause="an in-place operation, through .data, NumPy or a kernel perhaps, which no version counter sees",
        fix=OUT_OF_PLACE,
        input=name,
    )


def grad_output_written(subject: Subject) -> Iterator[Finding]:
    """MB502: no byte of grad_output changes: the engine may hand the same tensor to others."""
    given = [None if c is None else c.clone() for c in subject.plain.cotangents]
    before = snapshot(given)
    graph = subject.run()
    subject.differentiate(graph, given, own=True)
    written = [i for i, (a, b) in enumerate(zip(before, snapshot(given), strict=True)) if a != b]
    written += [i for call in audited(subject).calls for i in call.grad_outputs_written]
    if written:
        yield fail(
            f"backward writes into grad_output {written[0]}",
            cause="an in-place operation on grad_output, perhaps to save memory",
            fix="compute out of place: grad_output belongs to the engine, which may use it again",
            output=written[0],
        )


def saved_written(subject: Subject) -> Iterator[Finding]:
    """MB503: no byte of a saved tensor changes in backward."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = subject.run()
    before = snapshot(saved)
    subject.differentiate(graph, subject.plain.cotangents)
    if any(old != new for old, new in zip(before, snapshot(saved), strict=True)):
        yield fail(
            "backward writes into a saved tensor",
            cause="an in-place operation on what ctx.saved_tensors gives",
            fix="compute out of place: a second backward, or another user of the tensor, reads it",
        )


def second_backward(subject: Subject) -> Iterator[Finding]:
    """MB504: backward twice over one graph gives the same, and then what another grad_output asks for."""
    _ = subject.plain
    graph = subject.run()
    other = [None if c is None else c.flip(0) * 0.5 if c.ndim else c * 0.5 for c in subject.plain.cotangents]
    expected = [subject.plain.gradients, subject.plain.gradients, subject.gradients(cotangents=other)]
    for number, (given, wanted) in enumerate(zip((subject.plain.cotangents,) * 2 + (other,), expected, strict=True)):
        try:
            actual = subject.differentiate(graph, given, retain_graph=True)
        except Broken as broken:
            message = f"backward number {number + 1} over one graph raises: {broken.error}"
            tell = warn if raised_on_purpose(broken.error) else fail
            yield tell(message, cause="backward frees or overwrites what it saved", fix="keep it; retain_graph asks so")
            return
        words: dict[str, Any] = {
            "cause": "backward changes or caches what it works with",
            "fix": "let backward depend on saved tensors",
        }
        message = f"the gradient of {{name}} is another in backward number {number + 1} over one graph"
        found = list(differing(subject, actual, wanted, message, **_exactly(subject), **words))
        yield from found
        if found:
            return


def interleaved(subject: Subject) -> Iterator[Finding]:
    """MB505: two graphs at once do not disturb each other."""
    _ = subject.plain
    expected = [subject.plain.gradients, subject.gradients(subject.elsewhere("interleaved"), own=True)]
    for order in ((0, 1), (1, 0)):
        graphs = [subject.run(), subject.run(subject.elsewhere("interleaved"), own=True)]
        actual: dict[int, Gradients] = {}
        for which in order:
            graph = graphs[which]
            actual[which] = subject.differentiate(graph, subject.cotangents(graph.outputs))
            graphs[which] = graph = Graph([], [])
        for which in (0, 1):
            message = "the gradient of {name} is another when a second forward ran before its backward"
            found = list(differing(subject, actual.pop(which), expected[which], message, **_exactly(subject), **STATE))
            yield from found
            if found:
                return


def ctx_tensors(subject: Subject) -> Iterator[Finding]:
    """MB506: tensors go through save_for_backward, not onto ctx as attributes."""
    audit = audited(subject)
    if not audit.functions:
        raise Skipped("no autograd.Function in the graph")
    for call in audit.calls:
        for name, tensors in call.attributes.items():
            differentiable = any(t.is_floating_point() or t.is_complex() for t in tensors)
            tell = fail if differentiable else warn
            yield tell(
                f"{call.function.__name__} keeps a tensor on ctx as `ctx.{name}`",
                cause="an attribute is not freed after backward, leaks where it is an output, and hides from the "
                "version counter, from saved_tensors_hooks and from checkpointing",
                fix="ctx.save_for_backward(…) and ctx.saved_tensors",
            )


def leak(subject: Subject) -> Iterator[Finding]:
    """MB507: nothing of a pass is alive once its graph is gone."""
    _ = subject.plain
    references = _weak_pass(subject)
    if not _alive(references):
        return
    gc.collect()
    alive = _alive(references)
    if alive:
        yield fail(
            f"{', '.join(alive)} of a pass still alive after its graph is gone",
            cause="a global list or cache, or a cycle through ctx, keeps it",
            fix="save through ctx.save_for_backward, and keep nothing in module globals",
        )
    else:
        yield warn(
            "tensors of a pass are freed by the garbage collector only",
            cause="a reference cycle, as of an output kept on ctx",
            fix="ctx.save_for_backward the output",
        )


def _weak_pass(subject: Subject) -> list[tuple[str, StorageWeakRef]]:
    graph = subject.run()
    cotangents = [None if c is None else c.clone() for c in subject.plain.cotangents]
    gradients = subject.differentiate(graph, cotangents, own=True)
    named: list[tuple[str, Any]] = [
        (f"input `{slot.name}`", leaf)
        for slot, leaf in zip(subject.slots, graph.leaves, strict=True)
        if not slot.parameter  # modules such as nn.GRU hold on to their parameters
    ]
    named += [(f"output {i}", output) for i, output in enumerate(graph.outputs)]
    named += [(f"grad_output {i}", c) for i, c in enumerate(cotangents)]
    named += [(f"the gradient of `{slot.name}`", g) for slot, g in zip(subject.slots, gradients, strict=True)]
    # The memory outlives the tensor where a detached alias is kept.
    return [
        (name, StorageWeakRef(t.untyped_storage()))
        for name, t in named
        if t is not None and t.layout == torch.strided and t.numel()
    ]


def _alive(references: Sequence[tuple[str, StorageWeakRef]]) -> list[str]:
    return [name for name, reference in references if not reference.expired()]


def version(subject: Subject) -> Iterator[Finding]:
    """MB508: a saved tensor changed in place before backward raises, or does not matter."""
    _ = subject.plain
    if not hand_written(subject.run().outputs):
        raise Skipped("no hand-written backward in the graph")
    names = [f"output {i}" for i in subject.targets]
    places: list[tuple[str, int]] = [("outputs", i) for i in subject.targets]
    if not subject.in_place:
        names += [f"input `{slot.name}`" for slot in subject.slots]
        places += [("leaves", i) for i in range(len(subject.slots))]
    for name, (kind, place) in zip(names, places, strict=True):
        try:
            actual = _after_a_change(subject, kind, place)
        except (Broken, RuntimeError):
            continue
        message = f"the gradient of {{name}} is wrong, without an error, after an in-place change of {name}"
        words: dict[str, Any] = {
            "cause": f"{name} is kept otherwise than by save_for_backward, so no version counter guards it",
            "fix": "ctx.save_for_backward(…): torch then refuses with an error",
        }
        found = list(differing(subject, actual, subject.plain.gradients, message, **words))
        yield from found
        if found:
            return


def _after_a_change(subject: Subject, kind: str, place: int) -> Gradients:
    graph = subject.run()
    with torch.no_grad():
        getattr(graph, kind)[place].mul_(3).add_(1)
    return subject.differentiate(graph, subject.plain.cotangents)


def hooks(subject: Subject) -> Iterator[Finding]:
    """MB509: saved tensors that come back from elsewhere (offloading) give the same gradients."""
    _ = subject.plain

    def pack(tensor: Tensor) -> tuple[Tensor]:
        return (tensor.detach().clone(),)

    def unpack(packed: tuple[Tensor]) -> Tensor:
        return packed[0].clone()

    # Numbers that no pass has seen: what a cache knows from an earlier one would be right by chance.
    values = [
        v.mul_(1.01) if need else v for v, need in zip(subject.elsewhere("offloaded"), subject.needs, strict=True)
    ]
    with saved_tensors_hooks(pack, unpack):
        actual = subject.gradients(values, subject.plain.cotangents)
    expected = subject.gradients(values, own=True)
    message = "the gradient of {name} is another under saved_tensors_hooks (offloading)"
    yield from differing(subject, actual, expected, message, "only when saved tensors are offloaded")


def checkpointed(subject: Subject) -> Iterator[Finding]:
    """MB510: both modes of torch.utils.checkpoint give the same gradients."""
    _ = subject.plain
    if not any(subject.needs):
        raise Skipped("nothing requires grad")
    for reentrant in (False, True):
        try:
            actual = _under_checkpoint(subject, reentrant)
        except Exception as error:
            mode = f"use_reentrant={reentrant}"
            tell = fail if hand_written(subject.run().outputs) else warn
            cause = "it unpacks a saved tensor twice, perhaps"
            yield tell(f"checkpoint({mode}) raises: {one_line(error)}", cause=cause, fix="read ctx.saved_tensors once")
            continue
        message = f"the gradient of {{name}} is another under checkpoint(use_reentrant={reentrant})"
        yield from differing(subject, actual, subject.plain.gradients, message, "only under checkpoint")


def _under_checkpoint(subject: Subject, reentrant: bool) -> Gradients:
    """Through .backward(), since autograd.grad does not work with reentrant checkpoints."""
    from torch.utils.checkpoint import checkpoint

    leaves = [v.detach().clone().requires_grad_(n) for v, n in zip(subject.values, subject.needs, strict=True)]
    outputs = checkpoint(lambda *tensors: tuple(subject.call(tensors)), *leaves, use_reentrant=reentrant)
    pairs = [
        (o, c) for o, c in zip(outputs, subject.plain.cotangents, strict=True) if c is not None and o.requires_grad
    ]
    torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])
    return [leaf.grad for leaf in leaves]


def global_state(subject: Subject) -> Iterator[Finding]:
    """MB511: what ran before, with other inputs or without grad, does not change a pass."""
    _ = subject.plain
    for _ in range(2):
        subject.gradients(subject.elsewhere("state"), own=True)
        found = list(_repeated(subject, subject.gradients(), "after a pass with other inputs"))
        if found:
            yield from found
            return
    graph = subject.run()
    with torch.no_grad():
        subject.run(subject.elsewhere("evaluated"), own=True)
    actual = subject.differentiate(graph, subject.plain.cotangents)
    found = list(_repeated(subject, actual, "when a forward without grad ran before its backward"))
    yield from found or list(_reseeded(subject)) or _right_elsewhere(subject)


def _right_elsewhere(subject: Subject) -> Iterator[Finding]:
    """What the first pass left behind (a mask, a buffer) may be right for the first sample alone."""
    if subject.large or not subject.trusted or not hand_written(subject.run().outputs):
        return
    try:
        if oracle_of(subject).verdict() != "right":
            return
        oracle = Oracle(subject, subject.elsewhere("state"))
        setting = "for a second sample of the same shapes, where it is for the first"
        yield from (finding for finding in wrong_derivatives(oracle, setting) if finding.index is not None)
    except (Broken, Inconclusive):
        return


def _reseeded(subject: Subject) -> Iterator[Finding]:
    """Whether a pass leaves torch's random state the same wherever it started from: it sets a global seed."""
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        subject.gradients()
        ends.append(torch.get_rng_state())
    if torch.equal(*ends):
        yield fail(
            "a pass sets torch's global seed: what draws random numbers after it draws the same ones each time",
            cause="torch.manual_seed inside forward or backward",
            fix="draw from a torch.Generator of its own, or take the mask as an input",
        )


def _repeated(subject: Subject, actual: Gradients, words: str) -> Iterator[Finding]:
    message = f"the gradient of {{name}} is another {words}"
    yield from differing(subject, actual, subject.plain.gradients, message, **_exactly(subject), **STATE)


def _exactly(subject: Subject) -> dict[str, Any]:
    """The same computation on the same numbers needs no allowance for conditioning, only for a parallel sum's order."""
    return {"noise": [0.0] * len(subject.slots)}


STATE: dict[str, Any] = {
    "cause": "state outside of ctx: a class attribute, a module global, a counter or a cache",
    "fix": "keep what backward needs on ctx, by save_for_backward",
}

PROBES = (
    Probe("MB501", "inputs_written", "state", "Are inputs left as they were?", "1 pass", "", inputs_written),
    Probe("MB502", "grad_output_written", "state", "Is grad_output left as it was?", "2 passes", "",
          grad_output_written),
    Probe("MB503", "saved_written", "state", "Are saved tensors left as they were?", "1 pass", "", saved_written),
    Probe("MB504", "second_backward", "state", "Same result the second time?", "4 passes", "", second_backward),
    Probe("MB505", "interleaved", "state", "Do two graphs stay apart?", "4 passes", "", interleaved),
    Probe("MB506", "ctx_tensors", "state", "Are tensors saved by save_for_backward?", "1 pass", "a Function",
          ctx_tensors),
    Probe("MB507", "leak", "state", "Is all freed with the graph?", "1 pass", "", leak),
    Probe("MB508", "version", "state", "Does an in-place change of a saved tensor raise?", "1 pass a tensor", "",
          version),
    Probe("MB509", "saved_tensors_hooks", "state", "Same result when saved tensors are offloaded?", "1 pass", "",
          hooks),
    Probe("MB510", "checkpoint", "state", "Same result under checkpointing?", "4 passes", "", checkpointed),
    Probe("MB511", "global_state", "state", "Is a pass free of what ran before?", "6 passes", "", global_state),
)  # fmt: skip
