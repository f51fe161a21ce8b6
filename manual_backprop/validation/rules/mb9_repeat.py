"""MB901: the same call gives the same gradients again."""

from collections.abc import Iterator
from typing import Any

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SQUARE


@rule(
    "MB901",
    "Is it deterministic?",
    "4 passes",
    explains="MB1 MB208 MB3 MB4 MB504 MB505 MB509 MB51 MB6 MB7 MB8 MB902",
    skeleton=SQUARE,
)
def repeated_call(case: Case) -> Iterator[Finding]:
    """The same call gives the same bits, or nearly the same where a parallel sum may run in another order.

    The same call gives different gradients, because of a race, a random number, or memory that nobody initialised.
    Often only one run in ten shows the difference.

    Seen in: meta-pytorch/tritonbench PR#1266: a missing barrier in the backward of the layer norm that was copied
    from the tutorial; the gradients of weight and bias were wrong in 99 of 100 runs of a large one.

    Wrong:
        return 2 * x * grad_output + 1e-6 * torch.randn_like(x)

    Right:
        return 2 * x * grad_output
    """
    for _ in range(4):
        message = "is different when the same call is repeated"
        words: dict[str, Any] = {
            "cause": "backward uses random numbers, uninitialised memory, or state that is kept between calls",
            "fix": "make backward deterministic",
        }
        still = case.still
        found = list(differing(case, case.gradients(), case.plain.gradients, message, noise=still, **words))
        yield from found
        if found:
            return
