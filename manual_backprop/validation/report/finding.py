"""A finding: the answer of one rule about one sample."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from manual_backprop.validation.report.heat_map import Excerpt

Status = Literal["pass", "fail", "warn", "skip", "inconclusive", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Finding:
    """The answer of one rule.

    Args:
        code: stable for ever, ``"MB301"``.
        check: the rule's name.
        family: ``"linearity"``.
        status: ``pass``, ``fail``, ``warn`` (waste, or a loud refusal that the formula would not need), ``skip``
            (nothing was compared: there was nothing to ask, or torch refuses loudly), ``inconclusive`` (a kink, or
            noise above the difference) or ``error`` (the validator itself broke, and the backward is not judged).
        message: one line, what was found.
        cause, fix: what most likely causes it, and the cure; of a failure.
        details: further lines: where the two differ, by how much, in what pattern.
        input: name of the input whose gradient is meant, if one is.
        output: number of the output that is meant, if one is.
        index: the element that differs most.
        expected, actual: the two numbers at `index`.
        repro: the call that reproduces exactly this finding.
        seconds: how long the rule took to come to it.
        sample: number of the sample, where there are several.
        excerpt: the expected and the actual numbers around `index`, to draw; where two tensors differ. Not in the JSON.
        follows: code of the failure that this one most likely follows from (see `consequences`); empty for a root.
    """

    status: Status
    message: str
    cause: str = ""
    fix: str = ""
    input: str | None = None
    output: int | None = None
    index: tuple[int, ...] | None = None
    expected: float | complex | None = None
    actual: float | complex | None = None
    details: tuple[str, ...] = ()
    repro: str = ""
    seconds: float = 0.0
    sample: int | None = None
    code: str = ""
    check: str = ""
    family: str = ""
    follows: str = ""
    excerpt: Excerpt | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        lines = [f"{self.status.upper()} {self.code} {self.family}: {self.message}"]
        lines += [f"     {line}" for line in self.details]
        lines += [f"     {label:<6} {text}" for label, text in self.labels.items()]
        return "\n".join(lines)

    @property
    def labels(self) -> dict[str, str]:
        """What stands below the message: the cause (the root's, where it follows from one), the fix, the repro."""
        reasons = {"cause": self.cause, "fix": self.fix}
        labels = {"cause": f"most likely that of {self.follows}"} if self.follows else reasons
        labels["repro"] = self.repro if self.status != "pass" else ""
        return {label: text for label, text in labels.items() if text}
