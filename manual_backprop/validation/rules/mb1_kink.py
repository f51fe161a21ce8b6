"""MB105: at a kink, is the gradient between the slopes of both sides?"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.differences import inner, norm
from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.oracle import Oracle
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SQUARE

MB105_SKELETON = SQUARE.replace("Square", "ReLU").replace("x**2", "F.relu(x)")


@rule("MB105", "Is it a subgradient at kinks?", "some 100 forwards", needs="plain truth", skeleton=MB105_SKELETON)
def subgradient_at_kinks(case: Case) -> Iterator[Finding]:
    """At a kink the gradient lies between the slopes of both sides; zeros and ties are put into the sample to meet one.

    At a kink (abs, max or ReLU at 0) there is no derivative, and any value between the two one-sided slopes will do.
    A wrong gradient lies outside of these slopes, or is NaN. Random inputs never meet the kink; the zeros behind a ReLU
    or a mask do.

    Seen in: pytorch/pytorch#2421: the gradient of norm at zero was NaN, 0 / 0, and made every update NaN; torch takes
    the subgradient 0 there since.

    Wrong:
        return grad_output * F.relu(x) / x  # 0 / 0 at 0

    Right:
        return grad_output * (x > 0)
    """
    seen, by_hand = 0, case.hand_written
    for words, values in _kinked_samples(case):
        try:
            oracle = case.oracle_at(values)
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
                    continue  # moving one of several tied values alone crosses a kink of sort or max; see `_ties`
                bounds = _subgradients(oracle, slot, place)
                slack = 1e-3 * max(map(abs, bounds)) + 10 * slope.error * 1e-3
                if math.isinf(actual.real) or bounds[0] - slack <= actual.real <= bounds[1] + slack:
                    continue
                index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), oracle.values[slot].shape))
                yield case.fail(
                    f"at a kink the gradient of `{case.slots[slot].name}` is no subgradient {words}",
                    cause=f"it is {actual.real:.6g}, outside the one-sided slopes [{bounds[0]:.6g}, {bounds[1]:.6g}]",
                    fix="return a value between the slopes of both sides (torch takes 0 for ReLU at 0)",
                    input=case.slots[slot].name,
                    index=index,
                    expected=bounds[0],
                    actual=actual.real,
                )
                return
    if by_hand:
        yield from _ties(case, case.oracle)
    if not seen:
        raise Skipped("there is no kink at the sample, at zeros or at ties")


MOST_TIED = 4096  # elements of an input whose ties are looked at, because a larger one is better searched by a smaller
MOST_NUMBERS = 4  # repeated numbers of an input that are moved, because each costs a dozen forward passes
MOST_PLACES = 32  # elements of the plain sample that are looked at, each of which costs a dozen forward passes


def _ties(case: Case, oracle: Oracle) -> Iterator[Finding]:
    """A failure where the gradients of equal elements do not add up to the slope along which all of them move together.

    Tied values are moved together, because moving one alone crosses a kink of sort or max. Where the common move is
    smooth, the shares that backward gives to several equal maxima have to add up to one.
    """
    if not oracle.measurable:
        return
    for slot in oracle.asked:
        value = oracle.values[slot]
        if value.is_complex() or value.numel() > MOST_TIED:
            continue
        numbers, counts = value.unique(return_counts=True)
        for number in numbers[counts > 1][:MOST_NUMBERS]:
            direction: list[Tensor | None] = [None] * len(oracle.values)
            direction[slot] = (value == number).to(value.dtype)
            slope = oracle.slope(direction)
            analytic = inner(oracle.gradients[slot], direction[slot])
            if (
                not slope.kinked
                and slope.judge(analytic, norm(oracle.gradients[slot], direction[slot]), oracle.dtype) == "wrong"
            ):
                yield case.fail(
                    f"where elements of `{case.slots[slot].name}` are equal, the gradients of these do not add up",
                    cause=f"moved together the slope is {slope.central:.6g}, and the gradients sum to {analytic:.6g}: "
                    "each of the equal elements gets the whole gradient",
                    fix="give the gradient to one of the equal elements, or divide it among them",
                    input=case.slots[slot].name,
                    expected=slope.central,
                    actual=analytic,
                )
                return


def _kinked_samples(case: Case) -> Iterator[tuple[str, list[Tensor]]]:
    """The sample itself, then samples with one element of each slot at 0, and at ±1, where hinges and clamps turn."""
    if not case.large and case.oracle.verdict() != "right":
        yield "in the sample", list(case.values)
    for number in (0.0,) if case.large else (0.0, 1.0, -1.0):
        values = [value.contiguous() for value in case.nearby(("kink", number), by=0.2)]
        for value, need in zip(values, case.needs, strict=True):
            if need and value.numel() and not value.is_complex():
                value.view(-1)[value.numel() // 2] = number
        yield f"where an input is {number:g}", values


def _kink_places(oracle: Oracle, slot: int, words: str) -> list[int]:
    count = oracle.values[slot].numel()
    if words == "in the sample":
        return oracle.sampled(count)[:MOST_PLACES]
    return [count // 2] if count else []


def _tied(value: Tensor, place: int) -> bool:
    """Whether at least two other elements equal this one; a single one may be chance (two zeros in a sample)."""
    flat = value.reshape(-1)
    return int((flat == flat[place]).sum()) > 2


def _subgradients(oracle: Oracle, slot: int, place: int) -> tuple[float, float]:
    """Bounds of Σ_j g_j s_j, where s_j lies between the left and the right slope of output element j."""
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
