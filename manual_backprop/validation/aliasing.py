"""Whether a returned gradient is memory of its own: the dynamic test behind MB207."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop import _torch
from manual_backprop.validation.audit import functions_of, snapshot
from manual_backprop.validation.report.report import Finding, fail
from manual_backprop.validation.rules.rule import Skipped
from manual_backprop.validation.subject import Broken, Subject


def alias(subject: Subject) -> Iterator[Finding]:
    """MB207: changing a returned gradient changes nothing else, and a later pass does not change it."""
    ones = [None if c is None else torch.ones_like(c) for c in subject.plain.cotangents]
    found = list(_memory_of_others(subject, subject.plain.cotangents)) or list(_memory_of_others(subject, ones))
    found = found or list(_buffer_reused(subject))
    if not found and functions_of(subject.run().outputs):
        found = list(_leaves_share(subject))
    yield from found


def _memory_of_others(subject: Subject, cotangents: list[Any]) -> Iterator[Finding]:
    graph = subject.run()
    gradients = [g for g in subject.differentiate(graph, cotangents) if g is not None]
    if any(g.layout != torch.strided for g in gradients):
        raise Skipped("a sparse gradient")
    kept = [*graph.leaves, *graph.outputs]
    before = snapshot(kept)
    with torch.no_grad():
        for gradient in gradients:
            if not _overlapping(gradient) and not _torch.has_no_memory(gradient):
                gradient.add_(1)
    for i, (old, new) in enumerate(zip(before, snapshot(kept), strict=True)):
        if old != new:
            what = f"input `{subject.slots[i].name}`" if i < len(graph.leaves) else f"output {i - len(graph.leaves)}"
            yield fail(
                f"a returned gradient is the memory of {what}: changing one changes the other",
                cause="backward returns a saved tensor (or a view of it) as it is",
                fix="return a new tensor: multiply by grad_output, or clone",
            )


def _buffer_reused(subject: Subject) -> Iterator[Finding]:
    first = subject.gradients()
    before = snapshot(first)
    try:
        subject.gradients(subject.elsewhere("alias"), own=True)
    except Broken:
        return
    for slot, (old, new) in enumerate(zip(before, snapshot(first), strict=True)):
        if old != new:
            yield fail(
                f"the gradient of `{subject.slots[slot].name}` changes when another pass runs",
                cause="backward returns the same buffer each time",
                fix="allocate the result in backward",
                input=subject.slots[slot].name,
            )


def _leaves_share(subject: Subject) -> Iterator[Finding]:
    """Two .grad that share memory: scaling one in place (clip_grad_norm_) scales the other."""
    graph = subject.run()
    pairs = [(o, c.clone()) for o, c in zip(graph.outputs, subject.plain.cotangents, strict=True) if c is not None]
    torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])
    grads = [(slot.name, leaf.grad) for slot, leaf in zip(subject.slots, graph.leaves, strict=True) if leaf.is_leaf]
    grads = [(name, g) for name, g in grads if g is not None and g.layout == torch.strided and not _overlapping(g)]
    for name, gradient in grads:
        others = [(n, g) for n, g in grads if g is not gradient]
        before = snapshot(g for _, g in others)
        assert gradient is not None
        gradient.add_(1)
        for (other, _), old, new in zip(others, before, snapshot(g for _, g in others), strict=True):
            if old != new:
                yield fail(
                    f"the gradients of `{name}` and `{other}` share memory: changing one in place changes the other",
                    cause="two views of one tensor are returned",
                    fix="clone one of them",
                    input=name,
                )
                return


def _overlapping(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
