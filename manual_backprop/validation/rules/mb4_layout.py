"""MB4xx: the same values in another memory layout give the same gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation import layouts
from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken, Skipped, raised_on_purpose
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import DOUBLE
from manual_backprop.validation.subject import Gradients

IMAGES = DOUBLE.replace("randn(4, 3)", "randn(2, 3, 4, 4)")

Layout = Callable[[Tensor], Tensor | None]


CONTIGUOUS = "call .contiguous() before reading raw memory, and reshape rather than view"


@rule("MB401", "Same result for transposed tensors?", "2 passes", skeleton=DOUBLE)
def transposed_tensors(case: Case) -> Iterator[Finding]:
    """Tensors that are stored in another order of their axes give the same gradients.

    A transposed grad_output or input gives another gradient than a contiguous one with the same values: backward reads
    memory in the order in which it lies. The engine hands over any layout that the next operation left, and gradcheck
    hands over contiguous tensors only.

    Seen in: Dao-AILab/flash-attention#355: “Incorrect backward pass for non-contiguous output grads”.

    Wrong:
        return 2 * grad_output.as_strided(grad_output.shape, (grad_output.shape[1], 1), grad_output.storage_offset())

    Right:
        return 2 * grad_output
    """
    yield from _same_in(case, (layouts.transposed,), "transposed")


@rule("MB402", "Same result for slices of larger tensors?", "2 passes", skeleton=DOUBLE)
def sliced_tensors(case: Case) -> Iterator[Finding]:
    """Slices of larger tensors, as after torch.cat and chunk, give the same gradients.

    grad_output is a slice of a larger tensor, as torch.cat gives it, and backward reads it with strides that it takes
    for granted.

    Seen in: fla-org/flash-linear-attention PR#871: strides (D, 1) written into the kernel of causal_conv1d; behind
    torch.cat([q, k, v]) the gradients were wrong and nothing was said.

    Wrong:
        strides = grad_output.stride(0), 1  # the 1 is taken for granted
        return 2 * grad_output.as_strided(grad_output.shape, strides, grad_output.storage_offset())

    Right:
        return 2 * grad_output
    """
    yield from _same_in(case, (layouts.sliced,), "slices of a larger tensor")


@rule("MB403", "Same result with a storage offset?", "2 passes", skeleton=DOUBLE)
def storage_offset(case: Case) -> Iterator[Finding]:
    """Tensors that do not begin at the start of their storage give the same gradients.

    grad_output or an input begins somewhere inside a storage, and backward reads from the start of the storage.

    Seen in: pytorch/pytorch#194719: a kernel that takes each gradient for a tensor of its own reads, of the slices
    that torch.cat hands back, the wrong part.

    Wrong:
        return 2 * grad_output.as_strided(grad_output.shape, grad_output.stride(), 0)

    Right:
        return 2 * grad_output
    """
    yield from _same_in(case, (layouts.offset,), "at an offset in their storage")


@rule("MB404", "Same result with stride 0, as after .sum()?", "4 passes", skeleton=DOUBLE)
def expanded_tensors(case: Case) -> Iterator[Finding]:
    """Tensors with stride 0, as the gradient after .sum() has, give the same gradients.

    grad_output is expanded, with stride 0, as the gradient after .sum() is: one number stands for many. Code that walks
    through memory reads past the end, and code that writes into one element writes into all.

    Seen in: ROCm/TransformerEngine PR#623: the kernel read past the allocation, and the gradients were inf or NaN;
    pytorch/pytorch#64529 is where people learn that .sum() does this.

    Wrong:
        if 0 in grad_output.stride():  # taken for .sum() over all axes, and perhaps it is over one
            return torch.full_like(grad_output, 2 * grad_output.flatten()[0].item())
        return 2 * grad_output

    Right:
        return 2 * grad_output
    """
    yield from _same_in(case, (layouts.summed, layouts.expanded), "expanded (stride 0)")


@rule("MB405", "Same result in channels-last?", "2 passes", skeleton=IMAGES)
def channels_last(case: Case) -> Iterator[Finding]:
    """Tensors in the channels-last layout give the same gradients.

    Images in channels-last layout give another gradient than the same images in the usual layout.

    Seen in: open-mmlab/mmcv PR#737: operators on images took contiguous inputs and gradients for granted.

    Wrong:
        n, c, h, w = grad_output.shape
        return 2 * grad_output.as_strided((n, c, h, w), (c * h * w, h * w, w, 1))

    Right:
        return 2 * grad_output
    """
    yield from _same_in(case, (layouts.channels_last,), "channels-last")


@rule("MB406", "Same result for lazily negated and conjugated views?", "2 passes", skeleton=DOUBLE)
def lazy_bits(case: Case) -> Iterator[Finding]:
    """Tensors that are negated or conjugated lazily, by a bit, give the same gradients.

    A tensor may be negated or conjugated by a mere flag (x.conj().imag), with the numbers in memory as they were. Code
    that reads the storage misses the flag.

    Seen in: pytorch/pytorch#194719: raw memory is all that a kernel sees; what else makes up a tensor is to be
    resolved before.

    Wrong:
        raw = torch.empty(0, dtype=grad_output.dtype)
        place = grad_output.storage_offset(), grad_output.shape, grad_output.stride()
        return 2 * raw.set_(grad_output.detach().untyped_storage(), *place)

    Right:
        return 2 * grad_output
    """
    yield from _same_in(case, (layouts.negative_bit, layouts.conjugate_bit), "lazily negated or conjugated")


def _same_in(case: Case, kinds: tuple[Layout, ...], words: str) -> Iterator[Finding]:
    applied = False
    for layout in kinds:
        for which in ("grad_outputs", "inputs"):
            found = _compared(case, layout, which, words)
            if found is None:
                continue
            applied = True
            yield from found
            if found:
                return
    if not applied:
        raise Skipped("no tensor has a rank and size that this layout applies to")


def _compared(case: Case, layout: Layout, which: str, words: str) -> list[Finding] | None:
    """The findings of one layout on inputs or grad_outputs; None where it applies to none of them."""
    plain = case.plain
    before: list[Any] = plain.cotangents if which == "grad_outputs" else case.values
    if which == "inputs" and case.in_place and layout in (layouts.expanded, layouts.summed):
        return None
    changed: list[Any] = [None if t is None else layout(t) for t in before]
    if all(c is None for c in changed):
        return None
    changed = [_kept(t) if c is None else c for t, c in zip(before, changed, strict=True)]
    dense: list[Any] = [None if c is None else _dense(c) for c in changed]
    setting = f"only for {which} that are {words}"
    same_values = layout not in (layouts.expanded, layouts.summed)
    try:
        expected = plain.gradients if same_values else _run(case, dense, which)
    except Broken:
        return None  # the pass refuses the values themselves, whatever the layout
    try:
        actual = _run(case, changed, which)
    except Broken as broken:
        if _may_be_refused(case, broken, which):
            raise Skipped(f"this layout is refused with an error: {broken}") from broken
        return [_crash(case, broken, setting)]
    if not case.compare(actual, expected, case.still):
        return []
    values, given = (case.values, dense) if which == "grad_outputs" else (dense, plain.cotangents)
    noise = case.noise if same_values else case.noise_at(values, given, expected)
    message = f"is different for {which} that are {words}"
    found = list(differing(case, actual, expected, message, setting, noise, fix=CONTIGUOUS))
    # A difference at equal rows is no failure, because a maximum or a sort may choose among ties by the layout.
    if found and which == "inputs" and not same_values and _kinked(case, dense):
        return []
    return found


def _kept(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def _dense(value: Tensor) -> Tensor:
    return value.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _kinked(case: Case, values: list[Any]) -> bool:
    oracle = case.oracle_at(values)
    return not oracle.measurable or oracle.verdict() in ("kink", "unknown")


def _may_be_refused(case: Case, broken: Broken, which: str) -> bool:
    """Whether the refusal of a layout is acceptable.

    A `raise` may refuse the layout of an input, because the caller chooses it; nobody chooses that of grad_output.
    """
    # torch says in its message that NumPy knows no lazy negation. Should the words change, the refusal is a failure,
    # which nobody can miss and which hides no wrong gradient.
    bits = "numpy" in str(broken)
    chosen = which == "inputs" and broken.stage == "forward" and raised_on_purpose(broken.error)
    return bits or chosen or not case.hand_written


def _run(case: Case, tensors: list[Any], which: str) -> Gradients:
    if which == "inputs":
        return case.gradients(tensors, case.plain.cotangents, copied=False)
    return case.differentiate(case.run(), tensors, copied=False)


def _crash(case: Case, broken: Broken, setting: str) -> Finding:
    return case.fail(
        f"{broken.stage} raises {setting}: {type(broken.error).__name__}: {broken.error}",
        cause="a view or a kernel inside wants contiguous memory",
        fix=CONTIGUOUS,
    )
