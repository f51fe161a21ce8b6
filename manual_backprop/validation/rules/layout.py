"""MB4xx: the same values in another memory layout give the same gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.audit import hand_written
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import raised_on_purpose
from manual_backprop.validation.oracle import Oracle
from manual_backprop.validation.report.report import Finding, fail
from manual_backprop.validation.rules.rule import Probe, Skipped
from manual_backprop.validation.subject import Broken, Gradients, Subject

Layout = Callable[[Tensor], Tensor | None]

CONTIGUOUS = "call .contiguous() before reading raw memory, and reshape rather than view"


def transposed(value: Tensor) -> Tensor | None:
    """The numbers of `value` stored in the reverse order of axes; None below two axes."""
    if value.ndim < 2 or value.numel() < 2:
        return None
    axes = tuple(reversed(range(value.ndim)))
    return value.permute(axes).contiguous().permute(axes)


def sliced(value: Tensor) -> Tensor | None:
    """Every second element along the last axis of a larger tensor, as after torch.cat and a slice."""
    if value.ndim == 0 or value.numel() < 2:
        return None
    room = value.new_full((*value.shape[:-1], 2 * value.shape[-1] + 1), 7)
    view = room[..., 1::2]
    return view.copy_(value)


def offset(value: Tensor) -> Tensor | None:
    """Contiguous, but 3 elements into its storage."""
    if value.numel() == 0:
        return None
    room = value.new_full((value.numel() + 5,), 7)
    return room[3 : 3 + value.numel()].view(value.shape).copy_(value)


def expanded(value: Tensor) -> Tensor | None:
    """Its first row (its first number where it has one axis) with stride 0; the storage is larger, and holds others."""
    if value.ndim == 0 or value.numel() < 2:
        return None
    first = value[:1]
    room = first.new_full((first.numel() * value.shape[0] + 5,), 7)
    return room[2 : 2 + first.numel()].view(first.shape).copy_(first).expand(value.shape)


def summed(value: Tensor) -> Tensor | None:
    """One number with stride 0 everywhere, as the gradient after .sum()."""
    if value.numel() < 2:
        return None
    room = value.new_full((value.numel() + 5,), 7)
    room[2] = value.flatten()[0]
    return room[2].expand(value.shape)


def channels_last(value: Tensor) -> Tensor | None:
    if value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last_3d) if value.ndim == 5 else None


def negative_bit(value: Tensor) -> Tensor | None:
    return torch._neg_view(value.neg()) if value.numel() else None


def conjugate_bit(value: Tensor) -> Tensor | None:
    return value.conj().resolve_conj().conj() if value.is_complex() else None


def _probe(layouts: tuple[Layout, ...], words: str, inputs: bool = True) -> Callable[[Subject], Iterator[Finding]]:
    def probe(subject: Subject) -> Iterator[Finding]:
        _ = subject.plain
        applied = False
        for layout in layouts:
            for which in ("grad_outputs", "inputs") if inputs else ("grad_outputs",):
                found = _compared(subject, layout, which, words)
                if found is None:
                    continue
                applied = True
                yield from found
                if found:
                    return
        if not applied:
            raise Skipped("no tensor of a rank and size that it applies to")

    return probe


def _compared(subject: Subject, layout: Layout, which: str, words: str) -> list[Finding] | None:
    """The findings of one layout on inputs or grad_outputs; None where it applies to none of them."""
    plain = subject.plain
    before: list[Any] = plain.cotangents if which == "grad_outputs" else subject.values
    if which == "inputs" and subject.in_place and layout in (expanded, summed):
        return None
    changed: list[Any] = [None if t is None else layout(t) for t in before]
    if all(c is None for c in changed):
        return None
    changed = [_kept(t) if c is None else c for t, c in zip(before, changed, strict=True)]
    dense: list[Any] = [None if c is None else _dense(c) for c in changed]
    setting = f"only for {which} that are {words}"
    same_values = layout not in (expanded, summed)
    try:
        expected = plain.gradients if same_values else _run(subject, dense, which)
    except Broken:
        return None  # these values by themselves are refused, whatever their layout
    try:
        actual = _run(subject, changed, which)
    except Broken as broken:
        if _loud(subject, broken, which):
            raise Skipped(f"refused loudly: {broken}") from broken
        return [_crash(broken, setting)]
    if not subject.compare(actual, expected, [0.0] * len(expected)):
        return []
    values, given = (subject.values, dense) if which == "grad_outputs" else (dense, plain.cotangents)
    noise = subject.noise if same_values else subject.noise_at(values, given, expected)
    message = f"the gradient of {{name}} is another for {which} that are {words}"
    found = list(differing(subject, actual, expected, message, setting, noise, fix=CONTIGUOUS))
    # Equal rows are ties: which of them a maximum or a sort takes may depend on the layout.
    if found and which == "inputs" and not same_values and _kinked(subject, dense):
        return []
    return found


def _kept(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def _dense(value: Tensor) -> Tensor:
    return value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _kinked(subject: Subject, values: list[Any]) -> bool:
    oracle = Oracle(subject, values)
    return not oracle.measurable or oracle.verdict() in ("kink", "unknown")


def _loud(subject: Subject, broken: Broken, which: str) -> bool:
    """Whether a layout is refused in a way that a caller may be asked to live with.

    The layout of an input is the caller's choice and may be refused by a `raise`; that of grad_output is not.
    """
    bits = "numpy" in str(broken)  # NumPy knows no lazy negation, and says so
    chosen = which == "inputs" and broken.stage == "forward" and raised_on_purpose(broken.error)
    return bits or chosen or not hand_written(subject.run().outputs)


def _run(subject: Subject, tensors: list[Any], which: str) -> Gradients:
    if which == "inputs":
        return subject.gradients(tensors, subject.plain.cotangents, own=True)
    return subject.differentiate(subject.run(), tensors, own=True)


def _crash(broken: Broken, setting: str) -> Finding:
    return fail(
        f"{broken.stage} raises {setting}: {type(broken.error).__name__}: {broken.error}",
        cause="a view, or a kernel, that wants contiguous memory",
        fix=CONTIGUOUS,
    )


PROBES = (
    Probe("MB401", "transposed", "layout", "Same result for transposed tensors?", "2 passes", "two axes",
          _probe((transposed,), "transposed")),
    Probe("MB402", "sliced", "layout", "Same result for slices of larger tensors?", "2 passes", "",
          _probe((sliced,), "slices of a larger tensor")),
    Probe("MB403", "offset", "layout", "Same result with a storage offset?", "2 passes", "",
          _probe((offset,), "at an offset in their storage")),
    Probe("MB404", "expanded", "layout", "Same result with stride 0, as after .sum()?", "4 passes", "",
          _probe((summed, expanded), "expanded (stride 0)")),
    Probe("MB405", "channels_last", "layout", "Same result in channels-last?", "2 passes", "four or five axes",
          _probe((channels_last,), "channels-last")),
    Probe("MB406", "bits", "layout", "Same result for lazily negated and conjugated views?", "2 passes", "",
          _probe((negative_bit, conjugate_bit), "lazily negated or conjugated")),
)  # fmt: skip
