"""MB604 and MB605: at large inputs, where activations saturate, and at tiny numbers and zeros."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.differences import settled
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped
from manual_backprop.validation.oracle import Oracle, in_dtype
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.tolerances import largest, mismatch, real

MB604_SKELETON = """
class Sigmoid(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ___


validate(Sigmoid, (randn(4, 3),), reference=torch.sigmoid)
"""
MB605_SKELETON = """
class Sinc(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x == 0, torch.ones_like(x), x.sin() / x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        slope = (x * x.cos() - x.sin()) / x**2
        ___
        return grad_output * slope


validate(Sinc, (randn(4, 3),))
"""


MOST_SLOTS = 4  # inputs that are changed one by one, because each costs up to three passes a size
MOST_PLACES = 4  # elements that are NaN or infinite and measured, because one that is surely wrong is enough


@rule(
    "MB604",
    "Is it right for ±1e2 and ±1e4?",
    "some 100 forwards",
    needs="plain hand-written truth",
    skeleton=MB604_SKELETON,
)
def saturated(case: Case) -> Iterator[Finding]:
    """At large inputs (±1e1, ±1e2, ±1e4) the gradient is right, and finite where the derivative is.

    For inputs of size 100 or 10000, where an activation saturates, the gradient is NaN or wrong: exp overflows on the
    way to a number that is simply 0 or 1.

    Seen in: jeshraghian/snntorch PR#433: exp(−x) / (exp(−x) + 1)² for the derivative of the sigmoid is inf / inf;
    networks trained oddly, and gradcheck on ordinary inputs passes.

    Wrong:
        return grad_output * torch.exp(-x) / (1 + torch.exp(-x)) ** 2

    Right:
        a = torch.sigmoid(x)
        return grad_output * a * (1 - a)
    """
    # In float32 exp overflows from 89 on, which 1e2 and 1e4 find. At 1e1 σ′ is 5e-5 and not yet zero, so there
    # differences still see a wrong number, and not only NaN and infinity.
    yield from _at_extremes(case, (1e1, 1e2, 1e4), "for inputs of size {:g}")


@rule(
    "MB605",
    "Is it finite for 1e-12 and 0?",
    "some 10 passes",
    needs="plain hand-written truth",
    skeleton=MB605_SKELETON,
)
def tiny_elements(case: Case) -> Iterator[Finding]:
    """With tiny elements and exact zeros the gradient is finite where the derivative is.

    At zero, or for tiny inputs, the gradient is NaN or infinite where the function is smooth, because backward divides
    by a number that underflows.

    Seen in: pytorch/pytorch#36493: the gradient of cdist was NaN for differences around 1e-45: one factor underflowed
    and the other was infinite.

    Wrong:
        # 0 / 0 at 0

    Right:
        slope = torch.where(x.abs() < 1e-4, -x / 3, slope)
    """
    # The square of 1e-12 is lost when it is added to 1; the third power of 1e-16 underflows in float32; masks, padding
    # and ReLUs leave exact zeros behind.
    yield from _at_extremes(case, (1e-12, 1e-16, 0.0), "with elements of size {:g}")


def _at_extremes(case: Case, magnitudes: Sequence[float], words: str) -> Iterator[Finding]:
    asked = False
    for magnitude in magnitudes:
        slots = [i for i, need in enumerate(case.needs) if need][:MOST_SLOTS]
        choices: list[Any] = ["all inputs", *slots] if magnitude >= 1 else slots
        for which in choices[:1] if case.large else choices:
            for dtype in dict.fromkeys((torch.float64, real(case.dtype), torch.float32)):
                if dtype in (torch.float16, torch.bfloat16):
                    continue
                oracle = _extreme(case, magnitude, which, dtype)
                if oracle is None or not oracle.measurable:
                    continue
                asked = True
                found = list(_bad_at(case, oracle, words.format(magnitude), magnitude))
                del oracle  # so that no two oracles are in memory at once
                if found:
                    yield found[0]
                    return
    if not asked:
        raise Skipped("the outputs are not finite at any of these inputs")


def _extreme(case: Case, magnitude: float, which: Any, dtype: torch.dtype) -> Oracle | None:
    draw = case.generator("extreme", magnitude)
    values = []
    for i, (value, need) in enumerate(zip(case.values, case.needs, strict=True)):
        if not need or which not in ("all inputs", i) or value.is_complex():
            values.append(in_dtype(value, dtype))
            continue
        values.append(_resized(value, magnitude, draw).to(value.device, dtype))
    try:
        return case.oracle_at(values, widen=False, longest=1.0)
    except Broken:
        return None


def _resized(value: Tensor, magnitude: float, draw: torch.Generator) -> Tensor:
    """The sample with numbers of a given size: everywhere where the size is large, at 40 % of the places where tiny.

    They are not negative where the sample has no negative number, because forward may be defined for such numbers only.
    """
    sample = value.detach().cpu().double()
    signs = torch.randint(0, 2, value.shape, generator=draw, dtype=torch.int8) * 2 - 1
    if value.numel() and bool((sample >= 0).all()):
        signs = signs.abs()
    size = torch.rand(value.shape, generator=draw, dtype=torch.float64).add_(1).mul_(0.5 * magnitude).mul_(signs)
    return size if magnitude >= 1 else torch.where(torch.rand(value.shape, generator=draw) < 0.4, size, sample)


def _bad_at(case: Case, oracle: Oracle, setting: str, magnitude: float) -> Iterator[Finding]:
    case.compared += len(oracle.asked)
    for slot in oracle.asked:
        flat = oracle.flat(slot)
        bad = (~flat.isfinite()).nonzero().flatten().tolist()
        if not bad:
            continue
        truth = oracle.in_float64()
        # A random direction is asked too, because along one coordinate a function may be smooth at a point where it is
        # not smooth as a whole (the LU factors of a zero matrix).
        if not settled(truth.slope(truth.direction([slot], "settled"))) or not _forward_agrees(oracle, truth):
            continue
        elements = truth.elements(slot, bad[:MOST_PLACES])
        # A derivative within a thousandth of the dtype's range, because near the end of it any formula overflows.
        room = 1e-3 * torch.finfo(real(oracle.dtype)).max
        sure = [i for i, slope in enumerate(elements.slopes) if settled(slope) and abs(slope.central) < room]
        if not sure:
            continue
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(bad[sure[0]]), oracle.values[slot].shape))
        yield case.fail(
            f"the gradient of `{case.slots[slot].name}` is {flat[bad[sure[0]]].item()} {setting} "
            f"in {oracle.dtype}, where the derivative is finite",
            cause="backward computes 0/0, 0·∞ or an overflow",
            fix="write the derivative in its stable form: from the output (a(1 − a)) rather than from exponentials",
            input=case.slots[slot].name,
            index=index,
            expected=elements.slopes[sure[0]].central,
            actual=float(flat[bad[sure[0]]].real),
        )
        return
    finite = all(bool(oracle.flat(slot).isfinite().all()) for slot in oracle.asked)
    if finite and magnitude >= 1 and oracle.dtype == torch.float64:
        try:
            # Only a failure at one element counts, because at such sizes one along a random direction may be rounding.
            yield from (finding for finding in wrong_derivatives(case, oracle, setting) if finding.index is not None)
        except Inconclusive:
            return


def _forward_agrees(oracle: Oracle, truth: Oracle) -> bool:
    """Whether forward itself stays well within the range of the dtype."""
    room = torch.finfo(real(oracle.dtype)).max ** 0.5
    pairs = zip(oracle.outputs, truth.outputs, strict=True)
    return all(mismatch(a, b, 1e-3) is None and largest(b) < room for a, b in pairs if b.is_floating_point())
