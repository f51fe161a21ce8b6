"""MB1xx: is it the derivative? Against the reference, finite differences, and the order of the Taylor remainder."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.audit import hand_written
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.diagnosis.patterns import wrong_gradient
from manual_backprop.validation.differences import inner, moved, norm
from manual_backprop.validation.oracle import Oracle, oracle_of
from manual_backprop.validation.report.heat_map import excerpt
from manual_backprop.validation.report.report import Finding, fail
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped
from manual_backprop.validation.subject import Broken, Subject
from manual_backprop.validation.tolerances import SAME_RTOL, coarsest, epsilon, mismatch


def derivative(subject: Subject) -> Iterator[Finding]:
    """MB101: ⟨∇, v⟩ = dφ/dt along random directions v, then element by element where one failed."""
    yield from wrong_derivatives(oracle_of(subject))


def reference_gradient(subject: Subject) -> Iterator[Finding]:
    """MB102: the gradient for random signed cotangents, beside the reference's."""
    reference = _reference(subject)
    for scale in (1.0, 30.0, 1e-3):
        given = [None if c is None else scale * c for c in subject.plain.cotangents]
        expected = reference.gradients(cotangents=given)
        actual = subject.gradients(cotangents=given)
        wrong = subject.compare(actual, expected, reference.noise, scale)
        for slot, found in wrong:
            message = "the gradient of {name} is not the reference's"
            yield wrong_gradient(subject, slot, found, message, others=expected)
        if wrong:
            return


def reference_value(subject: Subject) -> Iterator[Finding]:
    """MB103: the outputs, beside the reference's."""
    mine, theirs = subject.run().outputs, _reference(subject).run().outputs
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        dtype = coarsest([a, b])
        found = mismatch(a, b, SAME_RTOL[dtype])
        if found is not None:
            expected, actual = found.numbers
            yield fail(
                f"output {number} is not the reference's",
                cause="forward computes something else",
                fix="make forward agree with the reference before looking at backward",
                output=number,
                index=found.index,
                expected=expected,
                actual=actual,
                details=(f"at {list(found.index)}: expected {expected:.6g}, got {actual:.6g}",),
                excerpt=excerpt(found),
            )


def taylor(subject: Subject) -> Iterator[Finding]:
    """MB104: |φ(x + hv) − φ(x) − h⟨∇, v⟩| falls as h² where ∇ is the derivative and as h where it is not."""
    oracle = _measurable(subject)
    v = oracle.direction(oracle.asked, "taylor")
    analytic = sum(inner(g, d) for g, d in zip(oracle.gradients, v, strict=True))
    size = sum(norm(g, d) ** 2 for g, d in zip(oracle.gradients, v, strict=True)) ** 0.5
    rounding = (
        8 * epsilon(oracle.dtype) * sum(norm(c, y) for c, y in zip(oracle.cotangents, oracle.outputs, strict=True))
    )
    steps = [2.0**-k for k in range(6, 17, 2)]
    sides = [[_remainder(oracle, v, sign * h, analytic) for h in steps] for sign in (1.0, -1.0)]
    ahead, behind = sides
    orders = [
        math.log2(abs(a / b)) / 2
        for a, b in itertools.pairwise(ahead)
        if math.isfinite(a) and math.isfinite(b) and min(abs(a), abs(b)) > 10 * rounding
    ]
    # Per unit of h the remainder of a wrong gradient is the same constant from both sides; at a kink it is not.
    right, left = ahead[-1] / steps[-1], behind[-1] / -steps[-1]
    floor = 1e-4 * max(size, abs(analytic)) + 10 * rounding / steps[-1]
    if not orders or not (abs(right) > floor) or orders[-1] > 1.5:
        return
    if abs(right - left) > 0.1 * max(abs(right), abs(left)) or not 0.8 < orders[-1] < 1.2:
        raise Inconclusive("a kink or a jump on the way: the remainders of both sides differ")
    yield fail(
        f"the Taylor remainder is of order {orders[-1]:.2f}, where that of a derivative is 2",
        cause=f"the slope along a random direction is {analytic + right:.6g}, and the gradient says {analytic:.6g}",
        fix="see MB101 for the input and the element",
        expected=analytic + right,
        actual=analytic,
        details=("remainders " + ", ".join(f"{abs(r):.2e}" for r in ahead) + " at steps 2^-6, 2^-8 …",),
    )


def _remainder(oracle: Oracle, v: list[Tensor | None], h: float, analytic: float) -> float:
    with torch.no_grad():
        outputs = oracle.function(moved(oracle.values, v, h))
    return sum(map(inner, oracle.cotangents, outputs, oracle.outputs)) - h * analytic


def kink(subject: Subject) -> Iterator[Finding]:
    """MB105: at a kink the gradient lies between the one-sided slopes; zeros and ties are put into the sample."""
    _ = subject.plain
    seen, by_hand = 0, hand_written(subject.run().outputs)
    for words, values in _kinked_samples(subject):
        try:
            oracle = Oracle(subject, values)
        except Broken:
            continue
        if not oracle.measurable:
            continue
        for slot in oracle.asked:
            places = _kink_places(oracle, slot, words)
            elements = oracle.elements(slot, places)
            for place, slope, verdict, actual in zip(
                elements.where, elements.slopes, elements.verdicts, elements.actual, strict=True
            ):
                if verdict != "kink" and not (slope.kinked and math.isnan(actual.real) and by_hand):
                    continue
                seen += 1
                if _tied(oracle.values[slot], place):
                    continue  # a choice among equals (sort, max) is no matter of one coordinate, but see below
                bounds = _subgradients(oracle, slot, place)
                slack = 1e-3 * max(map(abs, bounds)) + 10 * slope.error * 1e-3
                if math.isinf(actual.real) or bounds[0] - slack <= actual.real <= bounds[1] + slack:
                    continue
                index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), oracle.values[slot].shape))
                yield fail(
                    f"at a kink the gradient of `{subject.slots[slot].name}` is no subgradient {words}",
                    cause=f"it is {actual.real:.6g}, outside the one-sided slopes [{bounds[0]:.6g}, {bounds[1]:.6g}]",
                    fix="return a value between the slopes of both sides (torch takes 0 for ReLU at 0)",
                    input=subject.slots[slot].name,
                    index=index,
                    expected=bounds[0],
                    actual=actual.real,
                )
                return
    if by_hand:
        yield from _ties(oracle_of(subject))
    if not seen:
        raise Skipped("no kink at the sample, at zeros or at ties")


def _ties(oracle: Oracle) -> Iterator[Finding]:
    """Elements that are equal moved together: where that is smooth, the shares of one maximum add up to one."""
    if not oracle.measurable:
        return
    for slot in oracle.asked:
        value = oracle.values[slot]
        if value.is_complex() or value.numel() > 4096:
            continue
        numbers, counts = value.unique(return_counts=True)
        for number in numbers[counts > 1][:4]:
            direction: list[Tensor | None] = [None] * len(oracle.values)
            direction[slot] = (value == number).to(value.dtype)
            slope = oracle.slope(direction)
            analytic = inner(oracle.gradients[slot], direction[slot])
            if (
                not slope.kinked
                and slope.judge(analytic, norm(oracle.gradients[slot], direction[slot]), oracle.dtype) == "wrong"
            ):
                yield fail(
                    f"where elements of `{oracle.subject.slots[slot].name}` are equal, their gradients do not add up",
                    cause=f"moved together the slope is {slope.central:.6g}, and the gradients sum to {analytic:.6g}: "
                    "each of the equals gets the whole",
                    fix="give it to one of them, or share it out",
                    input=oracle.subject.slots[slot].name,
                    expected=slope.central,
                    actual=analytic,
                )
                return


def _kinked_samples(subject: Subject) -> Iterator[tuple[str, list[Tensor]]]:
    """The sample, then with one element of each slot at 0, then at ±1 (where hinges and clamps turn)."""
    if not subject.large and oracle_of(subject).verdict() != "right":
        yield "in the sample", list(subject.values)
    for number in (0.0,) if subject.large else (0.0, 1.0, -1.0):
        values = [value.contiguous() for value in subject.nearby(("kink", number), by=0.2)]
        for value, need in zip(values, subject.needs, strict=True):
            if need and value.numel() and not value.is_complex():
                value.view(-1)[value.numel() // 2] = number
        yield f"where an input is {number:g}", values


def _kink_places(oracle: Oracle, slot: int, words: str) -> list[int]:
    count = oracle.values[slot].numel()
    if words == "in the sample":
        return oracle.sampled(count)[:32]
    return [count // 2] if count else []


def _tied(value: Tensor, place: int) -> bool:
    flat = value.reshape(-1)
    return int((flat == flat[place]).sum()) > 2


def _subgradients(oracle: Oracle, slot: int, place: int) -> tuple[float, float]:
    """Bounds of Σ_j g_j s_j over slopes s_j between the left and the right one of each output element."""
    h = 1e-5 if oracle.dtype == torch.float64 else 1e-2
    ends = []
    for sign in (1.0, -1.0):
        values = [value.clone(memory_format=torch.contiguous_format) for value in oracle.values]
        values[slot].view(-1)[place] += sign * h
        with torch.no_grad():
            outputs = oracle.function(values)
        pairs = zip(oracle.cotangents, outputs, oracle.outputs, strict=True)
        terms = [(c.conj() * (y - y0)).real / (sign * h) for c, y, y0 in pairs if c is not None]
        ends.append(torch.cat([term.reshape(-1).double() for term in terms]))
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    return float(low.sum()), float(high.sum())


def complex_convention(subject: Subject) -> Iterator[Finding]:
    """MB106: the gradient along real and along imaginary directions by themselves."""
    _ = subject.plain
    if not any(value.is_complex() for value in [*subject.values, *subject.plain.outputs]):
        raise Skipped("no complex tensor")
    # Away from the real axis, where a conjugate would not show.
    oracle = Oracle(subject, [_turned(subject, i, value) for i, value in enumerate(subject.values)])
    if not oracle.measurable:
        raise Inconclusive("outputs are not finite")
    for slot in oracle.asked:
        for part in ("real", "imag") if oracle.values[slot].is_complex() else ("",):
            if oracle.along([slot], part, part) != "wrong":
                continue
            conjugate = Oracle(subject, oracle.values)
            conjugate.gradients = [None if g is None else g.conj().resolve_conj() for g in oracle.gradients]
            is_conjugate = all(conjugate.along([slot], p, p) != "wrong" for p in ("real", "imag"))
            yield fail(
                f"the gradient of `{subject.slots[slot].name}` is wrong along {part or 'real'} directions",
                cause="it is the conjugate of the gradient" if is_conjugate else "a complex factor is wrong",
                fix="torch wants ∂L/∂conj(z) for real L: grad_output times the conjugate of the derivative",
                input=subject.slots[slot].name,
            )
            break


def _turned(subject: Subject, slot: int, value: Tensor) -> Tensor:
    if not value.is_complex() or not subject.needs[slot]:
        return value
    angle = 2 * math.pi * torch.rand(value.shape, generator=subject.generator("turned", slot))
    return value * torch.polar(torch.ones_like(angle), angle).to(value)


def _measurable(subject: Subject) -> Oracle:
    oracle = oracle_of(subject)
    if not oracle.measurable:
        raise Inconclusive("outputs are not finite, or the dtype has too few digits for differences")
    return oracle


def _reference(subject: Subject) -> Subject:
    if subject.reference is None:
        raise Skipped("no reference given")
    _ = subject.plain
    return subject.reference


PROBES = (
    Probe("MB101", "derivative", "calculus", "Is it the derivative?", "25 forwards a direction", "", derivative),
    Probe("MB102", "reference_gradient", "calculus", "Is it the reference's gradient?", "6 passes", "a reference",
          reference_gradient),
    Probe("MB103", "reference_value", "calculus", "Is it the reference's value?", "2 forwards", "a reference",
          reference_value),
    Probe("MB104", "taylor", "calculus", "Is the Taylor remainder of order 2?", "12 forwards", "", taylor),
    Probe("MB105", "kink", "calculus", "Is it a subgradient at kinks?", "some 100 forwards", "", kink),
    Probe("MB106", "complex", "calculus", "Is the complex convention torch's?", "25 forwards a direction",
          "a complex tensor", complex_convention),
)  # fmt: skip
