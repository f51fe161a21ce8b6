"""From an expected and an actual gradient to the likely cause, by a table of patterns; never from the source.

A pattern is a name and a test that, where it fits, gives the cause in words and the cure. The first pattern that fits
speaks; where none fits, the message says so and shows the five worst elements.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case, Gradients
from manual_backprop.validation.diagnosis.linear_layer import linear_candidates, output_factors
from manual_backprop.validation.naming import counted
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.report.heat_map import excerpt
from manual_backprop.validation.tolerances import Mismatch, largest, wide


@dataclass
class Evidence:
    """A mismatch and the case that it was found in. `complete` is False where only some elements were measured."""

    case: Case
    slot: int
    expected: Tensor
    actual: Tensor
    wrong: Tensor
    others: Gradients  # the expected gradients of all slots, where known
    complete: bool = True
    rtol: float = 1e-3

    def alike(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors agree to `rtol`, which is coarse because the pattern counts, not the last digit."""
        if a.shape != b.shape or not a.numel():
            return False
        allowed = self.rtol * max(largest(a), largest(b))
        return bool(((a - b).abs() <= allowed).all())

    @property
    def name(self) -> str:
        return self.case.slots[self.slot].name


def sizes(case: Case) -> dict[str, int]:
    """The sizes that a sum may run over, by name, the likeliest first."""
    found: dict[str, int] = {}
    for slot, value in zip(case.slots, case.values, strict=True):
        for axis, size in enumerate(value.shape):
            found[f"the size {size} of `{slot.name}` along axis {axis}"] = size
        found[f"the {value.numel()} elements of `{slot.name}`"] = value.numel()
    for number, output in enumerate(case.plain.outputs):
        found[f"the {output.numel()} elements of output {number}"] = output.numel()
    return {name: size for name, size in found.items() if size > 1}


def _sums_and_means(case: Case) -> Iterator[tuple[float, str, str]]:
    for text, size in sizes(case).items():
        # A size of 2 is left to `_twos`, because a factor 2 or ½ more often comes from a square than from a size.
        if size > 2:
            yield size, f"{size}", f"backward sums over {text} where forward takes the mean: 1/{size} is missing"
            yield 1 / size, f"1/{size}", f"backward divides by {text} once too often"


def _twos(_: Case) -> Iterator[tuple[float, str, str]]:
    yield 2.0, "2", "there is a factor 2 too many"
    yield 0.5, "1/2", "a factor 2 is missing, such as the one in the derivative of x²"


def _powers(case: Case) -> Iterator[tuple[float, str, str]]:
    for text, size in sizes(case).items():
        yield size**0.5, f"√{size}", f"a factor 1/√n, n = {text}, is missing"
        yield size**-0.5, f"1/√{size}", f"a factor 1/√n, n = {text}, stands there twice"
        yield size**2, f"{size}²", f"there are two factors of {text} too many"


def ratio_name(ratio: float, case: Case) -> tuple[str, str]:
    """The most likely reason for a constant ratio actual/expected, and the cure."""
    if abs(ratio + 1) < 1e-3:
        return "the sign is turned (ratio −1)", "drop one minus sign, or add the one that is missing"
    for named in (_sums_and_means, _twos, _powers):
        for value, label, words in named(case):
            if abs(abs(ratio) / value - 1) < 1e-3:
                sign = "−" if ratio < 0 else ""
                return f"{words} (ratio {sign}{label})", "count that factor exactly once"
    return (
        f"all elements are off by the same factor {ratio:.6g}",
        "look for a constant that forward has and backward has not",
    )


def _constant_ratio(e: Evidence) -> Iterator[tuple[str, str]]:
    large = (e.expected.abs() > 1e-3 * largest(e.expected)) & (e.expected != 0)
    if int(large.sum()) < 2 and e.expected.numel() > 1:
        return
    ratios = e.actual[large] / e.expected[large]
    if ratios.is_complex():
        if bool((ratios.imag.abs() > 1e-3 * ratios.abs()).any()):
            return
        ratios = ratios.real
    if not ratios.numel() or not bool(ratios.isfinite().all()):
        return
    middle = float(ratios.median())
    if abs(middle - 1) < 1e-3:
        return  # a ratio of almost 1 is left to `_imprecise`, because it is lost precision and not a factor
    if (
        middle
        and bool(((ratios - middle).abs() <= 1e-3 * abs(middle)).all())
        and e.alike(e.actual, middle * e.expected)
    ):
        yield ratio_name(middle, e.case)


def _imprecise(e: Evidence) -> Iterator[tuple[str, str]]:
    if e.alike(e.actual, e.expected):
        yield (
            "backward loses digits: it casts to a coarser dtype inside, or uses a constant of few digits",
            "compute in the inputs' dtype",
        )


def _zero(e: Evidence) -> Iterator[tuple[str, str]]:
    if not bool(e.actual.any()):
        yield (
            "the gradient is zero throughout: a detach cuts it off, or backward returns None",
            "compute the gradient and return it",
        )
    elif e.wrong.any() and not bool(e.actual[e.wrong].any()):
        yield (
            "the gradient is zero wherever it is wrong: a mask or an index drops these elements",
            "compute these elements too",
        )


def _not_finite(e: Evidence) -> Iterator[tuple[str, str]]:
    bad = ~e.actual.isfinite()
    if bool(bad.any()):
        kind = "NaN" if bool(e.actual.isnan().any()) else "infinite"
        yield (
            f"{_counted(int(bad.sum()))} {kind}, from 0/0, 0·∞ or an overflow inside backward",
            "write the derivative in its stable form (from the output rather than from exponentials)",
        )


def _counted(number: int) -> str:
    return counted(number, "element") + (" is" if number == 1 else " are")


def _conjugate(e: Evidence) -> Iterator[tuple[str, str]]:
    if e.expected.is_complex() and e.alike(e.actual, e.expected.conj()):
        yield (
            "it is the complex conjugate of the gradient",
            "conjugate the factors and not grad_output, because torch wants ∂L/∂conj(z)",
        )


def _transposed(e: Evidence) -> Iterator[tuple[str, str]]:
    if e.expected.ndim >= 2 and e.complete and e.alike(e.actual, e.expected.mT):
        yield "it is the transpose of the gradient", "swap the two factors of the matrix product, or transpose it"


def _other_slot(e: Evidence) -> Iterator[tuple[str, str]]:
    for other, gradient in enumerate(e.others):
        if other != e.slot and gradient is not None and e.alike(e.actual, wide(gradient)):
            other_name = e.case.slots[other].name
            yield (
                f"it is the gradient of `{other_name}`, returned in the wrong place",
                "return the gradients in the order of forward's arguments",
            )


def _flipped_or_shifted(e: Evidence) -> Iterator[tuple[str, str]]:
    if not e.complete:
        return
    for axis in range(e.expected.ndim):
        if e.expected.shape[axis] < 2:
            continue
        if e.alike(e.actual, e.expected.flip(axis)):
            yield f"it is reversed along axis {axis}", "add the flip that is missing, or drop one that is too many"
        for by in (1, -1):
            rolled, inside = e.expected.roll(by, axis), slice(1, None) if by > 0 else slice(None, -1)
            index = (slice(None),) * axis + (inside,)
            if e.expected.shape[axis] > 2 and e.alike(e.actual[index], rolled[index]):
                yield f"it is shifted by {by:+d} along axis {axis}", "look for an index that is off by one"


def _factor(e: Evidence) -> Iterator[tuple[str, str]]:
    if not e.complete:
        return
    for words, factor in output_factors(e.case, e.expected.shape):
        if e.alike(e.expected * factor, e.expected):
            continue  # a factor of ones is left out, because it changes nothing and would fit every mistake
        if e.alike(e.actual, e.expected * factor):
            yield f"the factor {words} is there once too often", "multiply by this factor only once"
        if e.alike(e.actual * factor, e.expected):
            yield f"the factor {words} is missing", "multiply by this factor (BP1: δ = grad_output ⊙ σ′(z))"


def _linear(e: Evidence) -> Iterator[tuple[str, str]]:
    if e.complete:
        for candidate, cause, fix in linear_candidates(e.case, e.slot):
            if e.alike(e.actual, candidate):
                yield cause, fix


def _signs(e: Evidence) -> Iterator[tuple[str, str]]:
    if e.expected.is_complex() or e.actual.is_complex():
        return  # a complex number has no sign
    turned = e.actual.sign() != e.expected.sign()
    if e.alike(e.actual.abs(), e.expected.abs()) and bool(turned[e.wrong].all()):
        count = counted(int(e.wrong.sum()), "element")
        yield (
            f"the size is right and the sign is wrong in {count}: backward takes an absolute value, or drops a sign",
            "keep the sign",
        )


def _offset(e: Evidence) -> Iterator[tuple[str, str]]:
    difference = e.actual - e.expected
    if e.expected.numel() > 1 and e.alike(difference, difference.flatten()[0].expand_as(difference)):
        yield f"the same number {difference.flatten()[0].item():.6g} is added everywhere", "drop the added constant"


def _threshold(e: Evidence) -> Iterator[tuple[str, str]]:
    right = ~e.wrong
    if not e.complete or not bool(right.any()):
        return
    for slot, value in zip(e.case.slots, e.case.values, strict=True):
        if value.shape != e.wrong.shape or value.is_complex():
            continue
        x = wide(value).cpu()
        if float(x.abs()[e.wrong].min()) > float(x.abs()[right].max()):
            yield (
                f"it is wrong only where |{slot.name}| > {float(x.abs()[right].max()):.4g}",
                "check the branch for large values",
            )
        elif bool((x[e.wrong] < 0).all()) and bool((x[right] >= 0).all()):
            yield f"it is wrong only where `{slot.name}` is negative", "check the branch for negative values"
        elif bool((x[e.wrong] > 0).all()) and bool((x[right] <= 0).all()):
            yield f"it is wrong only where `{slot.name}` is positive", "check the branch for positive values"


def _some_rows(e: Evidence) -> Iterator[tuple[str, str]]:
    if not e.complete:
        return
    for axis in range(e.wrong.ndim):
        rest = [a for a in range(e.wrong.ndim) if a != axis]
        lines = e.wrong.any(dim=rest) if rest else e.wrong
        places = lines.nonzero().flatten().tolist()
        if len(places) <= len(lines) // 2:
            shown = ", ".join(map(str, places[:5]))
            yield f"it is wrong only at {shown} along axis {axis} (of {len(lines)})", "check the borders of that axis"


PATTERNS: tuple[tuple[str, Callable[[Evidence], Iterator[tuple[str, str]]]], ...] = (
    ("not finite", _not_finite),
    ("zero", _zero),
    ("imprecise", _imprecise),
    ("linear layer", _linear),
    ("wrong slot", _other_slot),
    ("constant ratio", _constant_ratio),
    ("conjugate", _conjugate),
    ("transposed", _transposed),
    ("shifted", _flipped_or_shifted),
    ("factor", _factor),
    ("signs", _signs),
    ("offset", _offset),
    ("threshold", _threshold),
    ("some rows", _some_rows),
)


def diagnose(evidence: Evidence) -> tuple[str, str]:
    """Cause and fix, of the first pattern that fits."""
    for _, test in PATTERNS:
        for cause, fix in test(evidence):
            return cause, fix
    return (
        f"no pattern fits; the worst elements, expected and got: {_worst(evidence)}",
        "compare these elements with the formula by hand",
    )


def _worst(e: Evidence) -> str:
    error = (e.actual - e.expected).abs().nan_to_num(torch.inf).flatten()
    shown = []
    for place in error.argsort(descending=True)[:5].tolist():
        index = [int(i) for i in torch.unravel_index(torch.tensor(place), e.expected.shape)]
        shown.append(f"{index} {_short(e.expected.flatten()[place])} → {_short(e.actual.flatten()[place])}")
    return "; ".join(shown)


def _short(number: Tensor) -> str:
    return f"{number.item():.4g}"


def wrong_gradient(
    case: Case,
    slot: int,
    found: Mismatch,
    predicate: str,
    setting: str = "",
    others: Gradients | None = None,
    sampled_at: tuple[int, ...] | None = None,
    **fields: Any,
) -> Finding:
    """A failure with its place, pattern, cause and cure.

    Args:
        predicate: what is the matter with the gradient: "is not the derivative".
        setting: the only setting in which the gradient is wrong; empty where there is no such setting.
        others: the expected gradients of all slots, where known.
        sampled_at: the place of the worst element, where only some of the gradient's elements are in `found`.
    """
    name, complete = case.slots[slot].name, sampled_at is None
    evidence = Evidence(case, slot, found.expected, found.actual, found.wrong, others or [], complete)
    cause, fix = diagnose(evidence)
    expected, actual = found.numbers
    index = found.index if sampled_at is None else sampled_at
    share = _share(found) if complete else "the worst of a random choice of elements"
    defaults: dict[str, Any] = {
        "cause": f"{setting}: {cause}" if setting else cause,
        "fix": fix,
        "input": name,
        "index": index,
        "expected": expected,
        "actual": actual,
        "details": (f"at {list(index)}: expected {expected:.6g}, got {actual:.6g}; {share}",),
        "excerpt": excerpt(found),
    }
    return case.fail(f"the gradient of `{name}` {predicate}", **(defaults | fields))


def _share(found: Mismatch) -> str:
    count, total = int(found.wrong.sum()), found.wrong.numel()
    if total == 1:
        return "its only element differs"
    return f"all {total} elements differ" if count == total else f"{count} of {total} elements differ"


def differing(
    case: Case,
    actual: Gradients,
    expected: Gradients,
    predicate: str,
    setting: str = "",
    noise: list[Any] | None = None,
    scale: float = 1.0,
    **fields: Any,
) -> Iterator[Finding]:
    """A failure for each slot whose two gradients differ, where they should be equal."""
    for slot, found in case.compare(actual, expected, noise, scale):
        yield wrong_gradient(case, slot, found, predicate, setting, expected, **fields)
