"""What `validate` hands back: findings, and a report that prints itself and writes JSON, JUnit and TensorBoard."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from manual_backprop.validation.report.finding import STATUSES, Finding, Status
from manual_backprop.validation.report.heat_map import image
from manual_backprop.validation.report.html import page
from manual_backprop.validation.subject import Passes

Verdict = Literal["passed", "failed", "unchecked", "error"]


class ValidationError(AssertionError):
    """A backward pass that did not pass; the message is the report."""


@dataclass(frozen=True)
class Report:
    """All findings about one callable. ``bool(report)`` is ``report.verdict == "passed"``.

    Args:
        name: of the callable.
        findings: what the rules found, in their order.
        seed: of all random numbers.
        seconds: that it took.
        versions: of torch and Python.
        unchecked: a finding for each input whose gradient was compared with nothing that knows its values.
        passes: how many forward and backward passes were made.

    Example:
        >>> report = Report("square", (Finding("pass", "ok", code="MB101", check="derivative", family="calculus"),))
        >>> bool(report), report.verdict, report.failures
        (True, 'passed', ())
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
        """The four ways in which it may end.

        - ``"error"``: the validator itself broke, which is neither the backward's failure nor its pass;
        - ``"failed"``: a rule failed;
        - ``"unchecked"``: nothing failed, but some gradient's values were compared with nothing, or no rule compared
          anything; `unchecked` says which gradient, and what to give;
        - ``"passed"``: none of these. For each input whose gradient was asked for, differences or the reference found
          its values right, unless the caller waived that by name (``skip="MB1"``) or chose rules that are about
          something else (``only="MB3"``).
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
    def failures(self) -> tuple[Finding, ...]:
        return self._with("fail")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self._with("warn")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Where the validator itself broke."""
        return self._with("error")

    @property
    def shown(self) -> list[Finding]:
        """What there is to read: errors, failures (the roots first), warnings, what is unchecked or inconclusive."""
        order = ("error", "fail", "warn", "inconclusive")
        shown = [finding for finding in (*self.unchecked, *self.findings) if finding.status in order]
        return sorted(shown, key=lambda finding: (order.index(finding.status), bool(finding.follows)))

    def _with(self, status: Status) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status == status)

    def count(self, status: Status, family: str | None = None) -> int:
        return sum(family in (None, finding.family) for finding in self._with(status))

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        """A table by family, the failures with the roots first, and once, since it is the same for all, what passed."""
        counts = f", {self.passes.forward} forward and {self.passes.backward} backward passes"
        end = f"in {self.seconds:.2f} s{counts if self.passes.forward else ''}, seed {self.seed}"
        lines = [f"{self.name}: {self._verdict_in_words()} {end}", "", *self._table()]
        for finding in self.shown:
            lines += ["", str(finding)]
        if not self.passed:
            passed = sorted({finding.code for finding in self._with("pass")})
            lines += ["", f"passed: {', '.join(_ranges(passed)) or 'none'}"]
        return "\n".join(lines)

    def _verdict_in_words(self) -> str:
        if self.verdict == "failed":
            return f"FAILED ({len(self.failures)} finding{'s' * (len(self.failures) > 1)})"
        return {"error": "ERROR (of the validator)"}.get(self.verdict, self.verdict)

    def _table(self) -> list[str]:
        families = list(dict.fromkeys(finding.family for finding in self.findings))
        rows = [f"{'family':<12}" + "".join(f"{status:>13}" for status in STATUSES) + f"{'seconds':>10}"]
        for family in families:
            seconds = sum(finding.seconds for finding in self.findings if finding.family == family)
            counts = "".join(f"{self.count(status, family) or '.':>13}" for status in STATUSES)
            rows.append(f"{family:<12}{counts}{seconds:>10.2f}")
        return rows

    def raise_for_failures(self) -> None:
        """Raises `ValidationError` (an AssertionError) with the report as its message, unless the verdict is passed."""
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
        """One page that needs no network and no other file: the verdict, a row a rule, and for each failure the cause,
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
