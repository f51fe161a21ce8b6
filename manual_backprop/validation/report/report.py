"""The report that `validate` returns: it prints itself, and writes JSON, JUnit, HTML and TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manual_backprop.validation.report import files
from manual_backprop.validation.report.finding import STATUSES, Findings
from manual_backprop.validation.report.heat_map import image
from manual_backprop.validation.report.html import page
from manual_backprop.validation.report.json import report_as_json
from manual_backprop.validation.report.junit import report_as_junit


class ValidationError(AssertionError):
    """A backward pass that did not pass; the message is the report."""


class Report(Findings):
    """All findings about one callable; prints itself. ``bool(report)`` is ``report.verdict == "passed"``.

    Example:
        >>> from manual_backprop import Finding
        >>> report = Report("square", (Finding("pass", "ok", code="MB101", check="derivative", family="calculus"),))
        >>> bool(report), report.verdict, report.failures
        (True, 'passed', ())
    """

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        """A table by family, the failures with the roots first, and the codes that passed."""
        lines = [f"{self.name}: {self._verdict_in_words()} in {self.effort}", "", *self._table()]
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
        """The report as strict JSON (RFC 8259), written to `path` too where one is given: NaN and the infinities are
        strings, a complex number is ``{"real": …, "imag": …}``."""
        text = report_as_json(self)
        if path is not None:
            files.write(path, text + "\n")
        return text

    def to_junit(self, path: str | Path) -> None:
        """A JUnit file for a CI server: one test case a finding, named by its code."""
        files.write(path, report_as_junit(self))

    def to_html(self, path: str | Path) -> None:
        """One page that needs no network and no other file: the verdict, a row a rule, and for each failure the cause,
        the fix, the repro and heat maps of expected, actual and their ratio, the worst element framed."""
        files.write(path, page(self))

    def to_tensorboard(self, writer: Any, step: int = 0) -> None:
        """Writes counts, seconds, the text and the heat maps to a `torch.utils.tensorboard.SummaryWriter`."""
        for status in STATUSES:
            writer.add_scalar(f"validate/{status}", self.count(status), step)
        writer.add_scalar("validate/seconds", self.seconds, step)
        writer.add_text(f"validate/{self.name}", f"```\n{self}\n```", step)
        for number, finding in enumerate(self.failures):
            if finding.excerpt:
                # The tag has a number, because a code may fail several times, for several inputs or settings.
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
