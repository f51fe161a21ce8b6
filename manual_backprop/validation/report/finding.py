"""A finding, the answer of one rule about one sample; and all findings about one callable, with their verdict."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from manual_backprop.validation.report.heat_map import Excerpt
from manual_backprop.validation.subject import Passes

Status = Literal["pass", "fail", "warn", "skip", "inconclusive", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

Verdict = Literal["passed", "failed", "unchecked", "error"]


@dataclass(frozen=True)
class Finding:
    """The answer of one rule.

    Args:
        code: stable for ever, ``"MB301"``.
        check: the rule's name.
        family: ``"linearity"``.
        status: ``pass``, ``fail``, ``warn`` (waste, or an error where the formula would need none), ``skip`` (nothing
            was compared, because there was nothing to ask or torch refuses with an error), ``inconclusive`` (a kink, or
            noise that hides the difference) or ``error`` (the validator itself broke, and the backward is not judged).
        message: one line that says what was found.
        cause, fix: the most likely cause of a failure, and the cure.
        details: further lines: where the two tensors differ, by how much, in what pattern.
        input: name of the input whose gradient is meant; None where none is.
        output: number of the output that is meant; None where none is.
        index: the element that differs most.
        expected, actual: the two numbers at `index`.
        repro: the call that reproduces exactly this finding.
        seconds: how long the rule took to find it.
        sample: number of the sample, where there are several.
        excerpt: the expected and the actual numbers around `index`, to draw, where two tensors differ. Not in the JSON.
        follows: code of the failure from which this one most likely follows (see `consequences`); empty for a root.
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
        """The lines below the message: the cause (or the root from which the finding follows), the fix, the repro."""
        reasons = {"cause": self.cause, "fix": self.fix}
        labels = {"cause": f"most likely that of {self.follows}"} if self.follows else reasons
        labels["repro"] = self.repro if self.status != "pass" else ""
        return {label: text for label, text in labels.items() if text}


@dataclass(frozen=True)
class Findings:
    """All findings about one callable, and the verdict that follows from them.

    Args:
        name: the name of the callable.
        findings: the answers of the rules, in the order of the rules.
        seed: the seed of all random numbers.
        seconds: how long the validation took.
        versions: the versions of torch and Python.
        unchecked: a finding for each input whose gradient was compared with nothing that knows its values.
        passes: how many forward and backward passes were made.
    """

    name: str
    findings: tuple[Finding, ...]
    seed: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    unchecked: tuple[Finding, ...] = ()
    passes: Passes = field(default_factory=Passes)

    @property
    def verdict(self) -> Verdict:
        """The result of the validation, one of four.

        - ``"error"``: the validator itself broke, which is neither the backward's failure nor its pass;
        - ``"failed"``: a rule failed;
        - ``"unchecked"``: nothing failed, but some gradient's values were compared with nothing, or no rule compared
          anything; `unchecked` says which gradient, and what to give;
        - ``"passed"``: none of these. For each input whose gradient was asked for, differences or the reference found
          the values of the gradient right, unless the caller waived that by name (``skip="MB1"``) or chose rules that
          are about something else (``only="MB3"``).
        """
        if self.errors:
            return "error"
        if self.failures:
            return "failed"
        return "passed" if self.count("pass") and not self.unchecked else "unchecked"

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    @property
    def effort(self) -> str:
        """The time, the passes and the seed, in words: "0.52 s, 187 forward and 96 backward passes, seed 0"."""
        passes = f"{self.passes.forward} forward and {self.passes.backward} backward passes, "
        return f"{self.seconds:.2f} s, {passes if self.passes.forward else ''}seed {self.seed}"

    @property
    def failures(self) -> tuple[Finding, ...]:
        return self._with("fail")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self._with("warn")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """A finding for each rule in which the validator itself broke."""
        return self._with("error")

    @property
    def shown(self) -> list[Finding]:
        """The findings to read: errors, failures (the roots first), warnings, and all that is unchecked or unclear."""
        order = ("error", "fail", "warn", "inconclusive")
        shown = [finding for finding in (*self.unchecked, *self.findings) if finding.status in order]
        return sorted(shown, key=lambda finding: (order.index(finding.status), bool(finding.follows)))

    def _with(self, status: Status) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == status)

    def count(self, status: Status, family: str | None = None) -> int:
        return sum(family in (None, finding.family) for finding in self._with(status))
