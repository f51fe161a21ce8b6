"""What `validate` hands back: findings, and a report that prints itself and writes JSON, JUnit and TensorBoard."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from manual_backprop.validation.report.heat_map import Excerpt, image
from manual_backprop.validation.report.html import page

Status = Literal["pass", "fail", "warn", "skip", "inconclusive"]
STATUSES: tuple[Status, ...] = ("pass", "fail", "warn", "skip", "inconclusive")


@dataclass(frozen=True)
class Finding:
    """The answer of one probe.

    Args:
        code: stable for ever, ``"MB301"``.
        check: the probe's name.
        family: ``"linearity"``.
        status: ``pass``, ``fail``, ``warn`` (waste, or a loud refusal that the formula would not need), ``skip``
            (nothing to ask, or torch refuses loudly) or ``inconclusive`` (a kink, or noise above the difference).
        message: one line, what was found.
        cause, fix: what most likely causes it, and the cure; of a failure.
        details: further lines: where the two differ, by how much, in what pattern.
        input: name of the input whose gradient is meant, if one is.
        output: number of the output that is meant, if one is.
        index: the element that differs most.
        expected, actual: the two numbers at `index`.
        repro: the call that reproduces exactly this finding.
        seconds: what the probe took.
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


def fail(message: str, **fields: Any) -> Finding:
    return Finding(status="fail", message=message, **fields)


def warn(message: str, **fields: Any) -> Finding:
    return Finding(status="warn", message=message, **fields)


def inconclusive(message: str, **fields: Any) -> Finding:
    return Finding(status="inconclusive", message=message, **fields)


class ValidationError(AssertionError):
    """A backward pass that did not pass; the message is the report."""


@dataclass(frozen=True)
class Report:
    """All findings about one callable. ``bool(report)`` is `passed`: no finding is a ``fail``.

    Example:
        >>> report = Report("square", (Finding("pass", "ok", code="MB101", check="derivative", family="calculus"),))
        >>> bool(report), report.failures
        (True, ())
    """

    name: str
    findings: tuple[Finding, ...]
    seed: int = 0
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        return self._with("fail")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self._with("warn")

    @property
    def shown(self) -> list[Finding]:
        """What there is to read: failures, the roots first, then warnings and what was inconclusive."""
        shown = [finding for finding in self.findings if finding.status in ("fail", "warn", "inconclusive")]
        return sorted(shown, key=lambda finding: (STATUSES.index(finding.status), bool(finding.follows)))

    def _with(self, status: Status) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == status)

    def count(self, status: Status, family: str | None = None) -> int:
        return sum(family in (None, finding.family) for finding in self._with(status))

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        """A table by family, the failures with the roots first, and once, since it is the same for all, what passed."""
        verdict = "passed" if self.passed else f"FAILED ({len(self.failures)} findings)"
        lines = [f"{self.name}: {verdict} in {self.seconds:.2f} s, seed {self.seed}", "", *self._table()]
        for finding in self.shown:
            lines += ["", str(finding)]
        if not self.passed:
            passed = sorted({finding.code for finding in self._with("pass")})
            lines += ["", f"passed: {', '.join(_ranges(passed)) or 'none'}"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        families = list(dict.fromkeys(finding.family for finding in self.findings))
        rows = [f"{'family':<12}" + "".join(f"{status:>13}" for status in STATUSES) + f"{'seconds':>10}"]
        for family in families:
            seconds = sum(finding.seconds for finding in self.findings if finding.family == family)
            counts = "".join(f"{self.count(status, family) or '.':>13}" for status in STATUSES)
            rows.append(f"{family:<12}{counts}{seconds:>10.2f}")
        return rows

    def raise_for_failures(self) -> None:
        """Raises `ValidationError` (an AssertionError) with the report as its message, unless all is well."""
        if not self.passed:
            raise ValidationError(str(self))

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, written to `path` too where one is given."""
        content = asdict(self) | {"passed": self.passed}
        for finding in content["findings"]:
            del finding["excerpt"]
        text = json.dumps(content, indent=2, default=str, ensure_ascii=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def to_junit(self, path: str | Path) -> None:
        """A JUnit file for a CI server: one test case a finding, named by its code."""
        counts = {"tests": len(self.findings), "failures": len(self.failures), "skipped": self.count("skip")}
        suite = ElementTree.Element("testsuite", name=self.name, time=f"{self.seconds:.3f}", errors="0")
        suite.attrib.update({key: str(value) for key, value in counts.items()})
        for finding in self.findings:
            name = f"{finding.code} {finding.check}"
            case = ElementTree.SubElement(suite, "testcase", name=name, time=f"{finding.seconds:.3f}")
            case.set("classname", f"{self.name}.{finding.family}")
            tag = {"pass": None, "fail": "failure", "skip": "skipped"}.get(finding.status, "system-out")
            if tag is None:
                continue
            element = ElementTree.SubElement(case, tag)
            element.text = _xml_safe(str(finding))
            if tag != "system-out":
                element.set("message", _xml_safe(finding.message))
        ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)

    def to_html(self, path: str | Path) -> None:
        """One page that needs no network and no other file: the verdict, a row a probe, and for each failure the cause,
        the fix, the repro and heat maps of expected, actual and their ratio, the worst element framed."""
        Path(path).write_text(page(self), encoding="utf-8")

    def to_tensorboard(self, writer: Any, step: int = 0) -> None:
        """Writes counts, seconds, the text and the heat maps to a `torch.utils.tensorboard.SummaryWriter`."""
        for status in STATUSES:
            writer.add_scalar(f"validate/{status}", self.count(status), step)
        writer.add_scalar("validate/seconds", self.seconds, step)
        writer.add_text(f"validate/{self.name}", f"```\n{self}\n```", step)
        for number, finding in enumerate(self.failures):
            if finding.excerpt:
                # Of its own number, since a code may fail several times, for another input or in another setting.
                tag = f"validate/{number} {finding.code} {finding.input or f'output {finding.output}'}"
                writer.add_image(tag, image(finding.excerpt), step)


def _ranges(codes: Sequence[str]) -> list[str]:
    """["MB301", "MB302", "MB303", "MB401"] as ["MB301–MB303", "MB401"]."""
    runs: list[list[str]] = []
    for code in codes:
        if runs and int(code[2:]) == int(runs[-1][-1][2:]) + 1:
            runs[-1].append(code)
        else:
            runs.append([code])
    return [run[0] if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]


def _xml_safe(text: str) -> str:
    return "".join(char for char in text if char in "\n\t" or ord(char) >= 32)
