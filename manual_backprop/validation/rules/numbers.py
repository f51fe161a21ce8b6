"""MB6xx: precision within a budget, saturation, tiny numbers, autocast."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.audit import hand_written
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.diagnosis.patterns import wrong_gradient
from manual_backprop.validation.differences import settled
from manual_backprop.validation.exceptions import raised_on_purpose
from manual_backprop.validation.oracle import Oracle, in_dtype
from manual_backprop.validation.report.report import Finding, fail, warn
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped
from manual_backprop.validation.subject import Broken, Gradients, Subject, rounded
from manual_backprop.validation.tolerances import BUDGET, EAGER_FACTOR, epsilon, largest, mismatch, real, wide

NOT_SUPPORTED = (
    "not implemented for",
    "unsupported ScalarType",
    "not supported",
    "expected scalar type",
    "Unsupported",
)


@dataclass
class Exact:
    """Gradients in float64 from numbers quantised to a dtype, and what one rounding of them moves."""

    gradients: Gradients
    noise: list[float]
    eager: list[float] | None  # the reference's own error in that dtype, where there is a reference


def precision(dtype: torch.dtype) -> Callable[[Subject], Iterator[Finding]]:
    def probe(subject: Subject) -> Iterator[Finding]:
        _written_by_hand(subject)
        values = [_quantised(value, dtype) for value in subject.values]
        given = [c if c is None else _quantised(c, dtype) for c in subject.plain.cotangents]
        try:
            graph = subject.run(values)
        except Broken as broken:
            raise Skipped(f"forward refuses {dtype}: {broken.error}") from broken
        if not all(o.isfinite().all() for o in graph.outputs if o.is_floating_point()):
            raise Inconclusive(f"outputs overflow in {dtype}")
        given = [c if c is None else c.to(o.dtype) for c, o in zip(given, graph.outputs, strict=True)]
        try:
            actual = subject.differentiate(graph, given)
        except Broken as broken:
            if raised_on_purpose(broken.error) or any(words in str(broken) for words in NOT_SUPPORTED):
                raise Skipped(f"backward refuses {dtype}: {broken.error}") from broken
            yield fail(
                f"backward raises in {dtype}, where forward runs: {broken.error}",
                cause="tensors of two dtypes meet",
                fix="make constants in the dtype of grad_output",
            )
            return
        del graph
        yield from _over_budget(subject, actual, _exact(subject, values, given, dtype), dtype)

    return probe


def _quantised(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_complex():
        return value.to(dtype)
    return in_dtype(value, torch.float32 if dtype == torch.bfloat16 else dtype)


def _exact(subject: Subject, values: list[Tensor], given: list[Any], dtype: torch.dtype) -> Exact:
    """The reference in float64 from the same numbers; the subject itself in float64 where there is no reference."""
    truth = subject.reference or subject
    wide_given = [None if c is None else in_dtype(c, torch.float64) for c in given]
    try:
        gradients = truth.gradients([in_dtype(value, torch.float64) for value in values], wide_given, own=True)
    except Broken as broken:
        raise Skipped(f"it does not run in float64, which {dtype} is compared with: {broken.error}") from broken
    noise = [0.0] * len(values)
    for trial in range(1 if subject.large else 3):
        draw = subject.generator("budget", trial)
        moved = [
            rounded(in_dtype(value, torch.float64), dtype, draw) if need else in_dtype(value, torch.float64)
            for value, need in zip(values, subject.needs, strict=True)
        ]
        shaken = [None if c is None else rounded(c, dtype, draw) for c in wide_given]
        found = truth.gradients(moved, shaken, own=True)
        del moved
        for i, (a, b) in enumerate(zip(found, gradients, strict=True)):
            if a is not None and b is not None and a.numel():
                noise[i] = max(noise[i], largest(a, b))
    eager = _errors(truth, values, given, gradients) if subject.reference is not None else None
    return Exact(gradients, noise, eager)


def _errors(truth: Subject, values: list[Tensor], given: list[Any], exact: Gradients) -> list[float] | None:
    try:
        found = truth.gradients(values, given)
    except (Broken, ValueError):
        return None
    return [0.0 if a is None or b is None else largest(a, b) for a, b in zip(found, exact, strict=True)]


def _over_budget(subject: Subject, actual: Gradients, exact: Exact, dtype: torch.dtype) -> Iterator[Finding]:
    overall = max([largest(e) for e in exact.gradients], default=0.0)
    for slot, (given, e) in enumerate(zip(actual, exact.gradients, strict=True)):
        if e is None or not subject.needs[slot]:
            continue
        a = given.to_dense() if given is not None and given.layout != torch.strided else given
        # Beyond the range of the dtype, and where the exact one is not finite, nothing is asked.
        expected = torch.where(wide(e).abs() < 0.1 * torch.finfo(dtype).max, wide(e), torch.nan)
        if dtype == torch.float16 and exact.eager is None and a is not None:
            # In that narrow range an intermediate may overflow in eager torch too; NaN among small numbers may not.
            overflow = a.isinf() | (a.isnan() & (expected.abs() > 100))
            expected = torch.where(overflow, torch.nan, expected)
        rounding = max(epsilon(dtype) * largest(expected), exact.noise[slot], 0.1 * epsilon(dtype) * overall)
        rounding += float(torch.finfo(dtype).tiny)
        allowed = BUDGET[dtype] * rounding
        if exact.eager is not None:
            allowed = EAGER_FACTOR * exact.eager[slot] + 2 * rounding
        found = mismatch(a, expected, 0.0, allowed)
        if found is not None:
            e_, a_ = found.numbers
            times = abs(a_ - e_) / (epsilon(dtype) * max(largest(expected), 1e-300))
            message = f"the gradient of {{name}} in {dtype} is {times:.3g} roundings away from float64's"
            fix = "accumulate and multiply in the dtype of the tensors, or in float32"
            yield wrong_gradient(subject, slot, found, message, f"only in {dtype}", fix=fix)


def saturated(subject: Subject) -> Iterator[Finding]:
    """MB604: far out on either side (±1e2, ±1e4) no NaN where the derivative is finite, and no wrong value."""
    _written_by_hand(subject)
    yield from _at_extremes(subject, (1e1, 1e2, 1e4), "for inputs of size {:g}")


def tiny(subject: Subject) -> Iterator[Finding]:
    """MB605: with tiny elements and exact zeros, no NaN or infinity where the derivative is finite."""
    _written_by_hand(subject)
    yield from _at_extremes(subject, (1e-12, 1e-16, 0.0), "with elements of size {:g}")


def _written_by_hand(subject: Subject) -> None:
    """Eager torch is what precision is measured by, so there is nothing to ask of torch's own formulas."""
    _ = subject.plain
    if not hand_written(subject.run().outputs):
        raise Skipped("no hand-written backward in the graph")


def _at_extremes(subject: Subject, magnitudes: Sequence[float], words: str) -> Iterator[Finding]:
    asked = False
    for magnitude in magnitudes:
        slots = [i for i, need in enumerate(subject.needs) if need][:4]
        choices: list[Any] = ["all inputs", *slots] if magnitude >= 1 else slots
        for which in choices[:1] if subject.large else choices:
            for dtype in dict.fromkeys((torch.float64, real(subject.dtype), torch.float32)):
                if dtype in (torch.float16, torch.bfloat16):
                    continue
                oracle = _extreme(subject, magnitude, which, dtype)
                if oracle is None or not oracle.measurable:
                    continue
                asked = True
                found = list(_bad_at(oracle, words.format(magnitude), magnitude))
                del oracle  # before the next one is made
                if found:
                    yield found[0]
                    return
    if not asked:
        raise Skipped("outputs are not finite there")


def _extreme(subject: Subject, magnitude: float, which: Any, dtype: torch.dtype) -> Oracle | None:
    draw = subject.generator("extreme", magnitude)
    values = []
    for i, (value, need) in enumerate(zip(subject.values, subject.needs, strict=True)):
        if not need or which not in ("all inputs", i) or value.is_complex():
            values.append(in_dtype(value, dtype))
            continue
        values.append(_resized(value, magnitude, draw).to(value.device, dtype))
    try:
        return Oracle(subject, values, widen=False, longest=1.0)
    except Broken:
        return None


def _resized(value: Tensor, magnitude: float, draw: torch.Generator) -> Tensor:
    """Numbers of that size: all of them where it is large, a third of the sample's where it is tiny.

    A sample without negative numbers may have a domain without them.
    """
    sample = value.detach().cpu().double()
    signs = torch.randint(0, 2, value.shape, generator=draw, dtype=torch.int8) * 2 - 1
    if value.numel() and bool((sample >= 0).all()):
        signs = signs.abs()
    size = torch.rand(value.shape, generator=draw, dtype=torch.float64).add_(1).mul_(0.5 * magnitude).mul_(signs)
    return size if magnitude >= 1 else torch.where(torch.rand(value.shape, generator=draw) < 0.4, size, sample)


def _bad_at(oracle: Oracle, setting: str, magnitude: float) -> Iterator[Finding]:
    subject = oracle.subject
    if not subject.trusted:
        return
    for slot in oracle.asked:
        flat = oracle.flat(slot)
        bad = (~flat.isfinite()).nonzero().flatten().tolist()
        if not bad:
            continue
        truth = oracle.in_float64()
        # One coordinate may be smooth where the function as a whole is not (the LU factors of a zero matrix).
        if not settled(truth.slope(truth.direction([slot], "settled"))) or not _forward_agrees(oracle, truth):
            continue
        elements = truth.elements(slot, bad[:4])
        room = 1e-3 * torch.finfo(real(oracle.dtype)).max
        sure = [i for i, slope in enumerate(elements.slopes) if settled(slope) and abs(slope.central) < room]
        if not sure:
            continue
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(bad[sure[0]]), oracle.values[slot].shape))
        yield fail(
            f"the gradient of `{subject.slots[slot].name}` is {flat[bad[sure[0]]].item()} {setting} "
            f"in {oracle.dtype}, where the derivative is finite",
            cause="0/0, 0·∞ or an overflow inside backward",
            fix="write the derivative in its stable form: from the output (a(1 − a)) rather than from exponentials",
            input=subject.slots[slot].name,
            index=index,
            expected=elements.slopes[sure[0]].central,
            actual=float(flat[bad[sure[0]]].real),
        )
        return
    finite = all(bool(oracle.flat(slot).isfinite().all()) for slot in oracle.asked)
    if finite and magnitude >= 1 and oracle.dtype == torch.float64:
        try:
            # One that cannot be pinned to an element may be rounding, at such sizes.
            yield from (finding for finding in wrong_derivatives(oracle, setting) if finding.index is not None)
        except Inconclusive:
            return


def _forward_agrees(oracle: Oracle, truth: Oracle) -> bool:
    """Whether forward has not itself left the range of the dtype, or come near it."""
    room = torch.finfo(real(oracle.dtype)).max ** 0.5
    pairs = zip(oracle.outputs, truth.outputs, strict=True)
    return all(mismatch(a, b, 1e-3) is None and largest(b) < room for a, b in pairs if b.is_floating_point())


def autocast(backward_too: bool) -> Callable[[Subject], Iterator[Finding]]:
    def probe(subject: Subject) -> Iterator[Finding]:
        _written_by_hand(subject)
        values = [value if value.is_complex() else value.to(torch.float32) for value in subject.values]
        where = "forward and backward" if backward_too else "forward"
        try:
            outputs, given, actual = _autocast_pass(subject, values, backward_too)
            exact = _exact(subject, values, given, torch.bfloat16)
        except Broken as broken:
            if broken.stage == "forward":
                raise Skipped(f"forward refuses autocast: {broken.error}") from broken
            yield warn(
                f"backward raises after autocast on {where}: {broken.error}",
                cause="forward ran in bfloat16 inside, and backward meets tensors of two dtypes",
                fix="cast the operands once, in front of the Function, or use torch.amp.custom_fwd and custom_bwd",
            )
            return
        finite = all(bool(o.isfinite().all()) for o in outputs if o.is_floating_point())
        if not finite:
            raise Inconclusive("outputs overflow under autocast")
        dtype = torch.bfloat16
        yield from _over_budget(subject, actual, exact, dtype)

    return probe


def _autocast_pass(
    subject: Subject, values: list[Tensor], backward_too: bool
) -> tuple[list[Tensor], list[Any], Gradients]:
    device = subject.values[0].device.type
    with torch.autocast(device, torch.bfloat16):
        graph = subject.run(values)
    plain = subject.plain.cotangents
    given = [None if c is None else c.to(o.dtype) for c, o in zip(plain, graph.outputs, strict=True)]
    with torch.autocast(device, torch.bfloat16, enabled=backward_too):
        return [output.detach() for output in graph.outputs], given, subject.differentiate(graph, given)


PROBES = (
    Probe("MB601", "float32", "numbers", "Is float32 within its budget?", "6 passes", "", precision(torch.float32)),
    Probe("MB602", "bfloat16", "numbers", "Is bfloat16 within its budget?", "6 passes", "", precision(torch.bfloat16)),
    Probe("MB603", "float16", "numbers", "Is float16 within its budget?", "6 passes", "", precision(torch.float16)),
    Probe("MB604", "saturated", "numbers", "Is it right for ±1e2 and ±1e4?", "some 100 forwards", "", saturated),
    Probe("MB605", "tiny", "numbers", "Is it finite for 1e-12 and 0?", "some 10 passes", "", tiny),
    Probe("MB606", "autocast_forward", "numbers", "Right with autocast on the forward?", "5 passes", "",
          autocast(False)),
    Probe("MB607", "autocast_both", "numbers", "Right with autocast on both?", "5 passes", "", autocast(True)),
)  # fmt: skip
