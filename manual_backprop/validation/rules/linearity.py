"""MB3xx: is backward linear in grad_output? gradcheck asks with one-hot positive numbers only, so nobody else does."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.report.report import Finding
from manual_backprop.validation.rules.rule import Probe, Skipped
from manual_backprop.validation.subject import Gradients, Subject
from manual_backprop.validation.tolerances import dense

Cotangents = Sequence[Tensor | None]

NOT_LINEAR = "an absolute value, a sign, a clamp or a square of grad_output"
BE_LINEAR = "backward is a linear map of grad_output: multiply by derivatives, and do nothing else with it"


def negative(subject: Subject) -> Iterator[Finding]:
    """MB301: backward(−g) = −backward(g)."""
    yield from _scaled(subject, -1.0, "the gradient of {name} for −grad_output is not minus that for grad_output")


def scale(subject: Subject) -> Iterator[Finding]:
    """MB302: backward(c·g) = c·backward(g), for the c of small losses and of loss scaling."""
    for c in (1e-3, 3.0, 8.0) if subject.dtype == torch.float16 else (1e-3, 3.0, 65536.0, 2.0**-40):
        found = list(_scaled(subject, c, f"the gradient of {{name}} for {c:g}·grad_output is not {c:g} times it"))
        yield from found
        if found:
            return


def additive(subject: Subject) -> Iterator[Finding]:
    """MB303: backward(g₁ + g₂) = backward(g₁) + backward(g₂)."""
    outputs = subject.run().outputs
    first, second = subject.cotangents(outputs, "first"), subject.cotangents(outputs, "second")
    both = [None if a is None else a + b for a, b in zip(first, second, strict=True)]
    expected = _sum(subject.gradients(cotangents=given) for given in (first, second))
    message = "the gradient of {name} for g₁ + g₂ is not the sum of those for g₁ and for g₂"
    yield from differing(subject, subject.gradients(cotangents=both), expected, message, scale=2.0, **_words())


def zero(subject: Subject) -> Iterator[Finding]:
    """MB304: backward(0) = 0, without NaN."""
    given = [None if c is None else torch.zeros_like(c) for c in subject.plain.cotangents]
    actual = subject.gradients(cotangents=given)
    # Where the plain gradient is not finite, 0·∞ is not either.
    expected = [_zeros(g) for g in subject.plain.gradients]
    message = "the gradient of {name} for a grad_output of zeros is not zero"
    cause = "something is added that grad_output does not multiply (a penalty, a regulariser, noise), or 0·∞"
    words: dict[str, Any] = {"cause": cause, "fix": BE_LINEAR}
    yield from differing(subject, actual, expected, message, noise=[0.0] * len(actual), **words)


def across_outputs(subject: Subject) -> Iterator[Finding]:
    """MB305: the gradients of the outputs add up: none of them looks at another's grad_output."""
    targets = [i for i, c in enumerate(subject.plain.cotangents) if c is not None]
    if len(targets) < 2:
        raise Skipped("one output")
    parts = (
        subject.gradients(cotangents=_only(subject.plain.cotangents, lambda i, target=target: i == target))
        for target in targets
    )
    message = "the gradient of {name} is not the sum of the gradients through each output alone"
    cause = "cross-terms: a product of the grad_outputs of two outputs, or a share that one of them switches off"
    words: dict[str, Any] = {"cause": cause, "fix": BE_LINEAR}
    yield from differing(subject, subject.plain.gradients, _sum(parts), message, **words)


def sparse(subject: Subject) -> Iterator[Finding]:
    """MB306: signed, mostly zero g, which with what is left of g adds up to g."""
    few, rest = [], []
    for number, c in enumerate(subject.plain.cotangents):
        if c is None:
            few.append(None)
            rest.append(None)
            continue
        draw = subject.generator("sparse", number)
        keep = (torch.rand(c.shape, generator=draw) < 0.2).to(c.device)
        few.append(torch.where(keep, c, 0))
        rest.append(torch.where(keep, 0, c))
    expected = _sum(subject.gradients(cotangents=given) for given in (few, rest))
    message = "the gradient of {name} for a mostly zero grad_output does not add up with that for what is left"
    yield from differing(subject, subject.plain.gradients, expected, message, **_words())


def _scaled(subject: Subject, c: float, message: str) -> Iterator[Finding]:
    given = [None if g is None else c * g for g in subject.plain.cotangents]
    expected = [None if g is None else c * g for g in subject.plain.gradients]
    yield from differing(subject, subject.gradients(cotangents=given), expected, message, scale=abs(c), **_words())


def _words() -> dict[str, Any]:
    return {"cause": NOT_LINEAR, "fix": BE_LINEAR}


def _only(cotangents: Cotangents, keep: Callable[..., bool]) -> list[Tensor | None]:
    return [None if c is None else c if keep(i) else torch.zeros_like(c) for i, c in enumerate(cotangents)]


def _sum(parts: Iterable[Gradients]) -> Gradients:
    """One part after the other, so that no two need be there at once."""
    total: Gradients = []
    for gradients in parts:
        total = total or [None] * len(gradients)
        for i, gradient in enumerate(gradients):
            before = total[i]
            total[i] = before if gradient is None else gradient if before is None else before + gradient
    return total


def _zeros(gradient: Tensor | None) -> Tensor | None:
    if gradient is None or bool(dense(gradient).isfinite().all()):
        return None
    return torch.where(dense(gradient).isfinite(), 0.0, dense(gradient))


PROBES = (
    Probe("MB301", "negative", "linearity", "Is backward(−g) = −backward(g)?", "1 pass", "", negative),
    Probe("MB302", "scale", "linearity", "Is backward(c·g) = c·backward(g)?", "3 passes", "", scale),
    Probe("MB303", "additive", "linearity", "Is backward(g₁ + g₂) the sum?", "3 passes", "", additive),
    Probe("MB304", "zero", "linearity", "Is backward(0) = 0?", "1 pass", "", zero),
    Probe("MB305", "across_outputs", "linearity", "Do the outputs' shares add up?", "1 pass an output",
          "two outputs", across_outputs),
    Probe("MB306", "sparse", "linearity", "Does a mostly zero g give its share?", "2 passes", "", sparse),
)  # fmt: skip
