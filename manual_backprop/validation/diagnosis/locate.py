"""From "the derivative is wrong somewhere" to the input, the output, the element, and the reason."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import wrong_gradient
from manual_backprop.validation.differences import inner, norm
from manual_backprop.validation.exceptions import Inconclusive
from manual_backprop.validation.naming import counted
from manual_backprop.validation.oracle import Elements, Oracle
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.report.heat_map import chosen
from manual_backprop.validation.subject import Gradients
from manual_backprop.validation.tolerances import Mismatch


def wrong_derivatives(case: Case, oracle: Oracle, setting: str = "") -> Iterator[Finding]:
    """A failure for each input whose gradient is not the derivative; the slots that are judged go into `Case.judged`.

    Args:
        setting: where this was measured, ``"with one sample"``; empty for the plain sample.

    Raises:
        Inconclusive: the differences cannot tell.
    """
    if not oracle.measurable:
        raise Inconclusive(f"outputs are not finite, or {oracle.dtype} has too few digits for differences")
    if not oracle.asked:
        return
    verdict = oracle.verdict()
    if verdict == "right":
        case.judged.update(oracle.asked)
        return
    if verdict == "unknown":
        raise Inconclusive("the differences do not converge: forward has a jump, or its noise hides the difference")
    slots = oracle.asked if verdict == "kink" else oracle.wrong_slots() or oracle.asked
    measured = [oracle.elements(slot) for slot in slots]
    case.judged.update(elements.slot for elements in measured if elements.wrong or elements.mostly_right)
    case.judged.update(set(oracle.asked) - set(slots))
    kinks = sum(elements.verdicts.count("kink") for elements in measured)
    expected: Gradients = list(oracle.gradients)
    for elements in measured:
        expected[elements.slot] = _expected(oracle, elements)
    findings = [_located(case, oracle, elements, setting, expected) for elements in measured if elements.wrong]
    yield from findings
    if not findings and verdict == "wrong":
        yield _unlocated(case, oracle, setting)
    elif not findings:
        places = counted(kinks, "element") if kinks else "some elements"
        raise Inconclusive(f"the sample lies on a kink at {places}, where any subgradient may be right")


def _expected(oracle: Oracle, elements: Elements) -> torch.Tensor | None:
    """The gradient that differences measured; None unless they measured every element."""
    value = oracle.values[elements.slot]
    if len(elements.where) != value.numel():
        return None
    numbers = torch.tensor(elements.expected, dtype=torch.complex128).reshape(value.shape)
    return numbers if value.is_complex() else numbers.real


def _located(case: Case, oracle: Oracle, elements: Elements, setting: str, others: Gradients) -> Finding:
    value, slot = oracle.values[elements.slot], elements.slot
    complete = len(elements.where) == value.numel()
    found = _mismatch(elements, value, complete)
    predicate = "is not the derivative" + (f" {setting}" if setting else "")
    output = wrong_output(oracle)
    if output is not None:
        predicate += f"; the share of output {output} is wrong"
    if complete:
        return wrong_gradient(case, slot, found, predicate, setting, others)
    flat = torch.tensor(elements.where[found.index[0]])
    at = tuple(int(i) for i in torch.unravel_index(flat, value.shape))
    finding = wrong_gradient(case, slot, found, predicate, setting, others, sampled_at=at)
    return replace(finding, excerpt=chosen(found, elements.where, value.shape))


def _mismatch(elements: Elements, value: torch.Tensor, complete: bool) -> Mismatch:
    """The numbers of the elements that were measured, in the shape of the gradient where all of them were."""
    shape = value.shape if complete else torch.Size([len(elements.where)])
    expected, actual = (
        torch.tensor(numbers, dtype=torch.complex128).reshape(shape) for numbers in (elements.expected, elements.actual)
    )
    if not value.is_complex():
        expected, actual = expected.real, actual.real
    wrong = torch.tensor([verdict == "wrong" for verdict in elements.verdicts]).reshape(shape)
    error = torch.where(wrong, (expected - actual).abs().nan_to_num(torch.inf), -1.0)
    index = tuple(int(i) for i in torch.unravel_index(error.argmax(), shape))
    return Mismatch(expected, actual, wrong, index)


def wrong_output(oracle: Oracle) -> int | None:
    """The output whose share of the gradient is wrong; None where there is one output only, or several are wrong."""
    targets = [i for i, cotangent in enumerate(oracle.cotangents) if cotangent is not None]
    if len(targets) < 2:
        return None
    wrong = [target for target in targets if not share_is_right(oracle, target)]
    return wrong[0] if len(wrong) == 1 else None


def share_is_right(oracle: Oracle, target: int) -> bool:
    alone = [c if i == target else None for i, c in enumerate(oracle.cotangents)]
    explicit = [c if i == target or c is None else torch.zeros_like(c) for i, c in enumerate(oracle.cotangents)]
    gradients = oracle.subject.differentiate(oracle.subject.run(oracle.values, others=oracle.others), explicit)
    v = oracle.direction(oracle.asked, ("share", target))
    analytic = sum(inner(g, d) for g, d in zip(gradients, v, strict=True))
    size = sum(norm(g, d) ** 2 for g, d in zip(gradients, v, strict=True)) ** 0.5
    return oracle.slope(v, alone).judge(analytic, size, oracle.dtype) != "wrong"


def _unlocated(case: Case, oracle: Oracle, setting: str) -> Finding:
    slots = oracle.wrong_slots() or oracle.asked
    names = ", ".join(f"`{case.slots[i].name}`" for i in slots)
    return case.fail(
        f"the gradient of {names} is not the derivative along a random direction{' ' + setting if setting else ''}",
        cause="many elements are off by a little, or a few are wrong that were not measured one by one",
        fix="compare the formula of backward with that of forward; give a smaller sample to see the elements",
        input=case.slots[slots[0]].name,
    )
