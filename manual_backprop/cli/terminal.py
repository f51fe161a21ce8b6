"""The commands on the terminal: progress on stderr, tables and findings on stdout, as wide as the terminal is."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from manual_backprop.mutation.mutants import Mutant, Outcome
    from manual_backprop.validation.report.finding import Finding
    from manual_backprop.validation.report.report import Report
    from manual_backprop.validation.rule import Rule
    from manual_backprop.zoo import Entry
    from manual_backprop.zoo.matrix import Row

COLOURS = {
    "pass": "green",
    "fail": "red",
    "warn": "yellow",
    "skip": "bright_black",
    "inconclusive": "cyan",
    "error": "magenta",
    "noticed": "green",
    "survived": "red",
    "not reached": "red",
    "not applicable": "bright_black",
}


VERDICTS = {"passed": "green", "failed": "red", "unchecked": "yellow", "error": "magenta"}


# --- while it goes on ---------------------------------------------------------------------------------------------


class Bar:
    """One bar, for rules, entries or mutants."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.task = bar, bar.add_task("starting", total=None)

    def rule(self, rule: "Rule", number: int, of: int) -> None:
        self._show(f"{rule.code} {rule.asks}", number, of)

    def entry(self, entry: "Entry", number: int, of: int) -> None:
        self._show(entry.name, number, of)

    def mutant(self, mutant: "Mutant | None", number: int, of: int) -> None:
        self._show("the true backward" if mutant is None else f"what if {mutant.words}?", number, of)

    def _show(self, words: str, number: int, of: int) -> None:
        self.bar.update(self.task, description=words, completed=number, total=of)


@contextlib.contextmanager
def progress() -> Iterator[Bar]:
    """A bar on stderr that is gone at the end; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Bar(bar)


# --- a report -----------------------------------------------------------------------------------------------------


def show_report(report: "Report") -> None:
    """A table by family, then the failures, then warnings and what was inconclusive."""
    console = _console()
    console.print(_families(report))
    for finding in report.shown:
        console.print()
        console.print(_finding(finding))
    console.print()
    codes = list(dict.fromkeys(finding.code for finding in (*report.errors, *report.failures)))
    shown = f"{', '.join(codes)} in {report.effort}".lstrip()
    verdict = {"error": "error of the validator:"}.get(report.verdict, report.verdict)
    style = f"bold {VERDICTS[report.verdict]}"
    console.print(Text.assemble((f"{report.name} {verdict}", style), f" {shown}"))
    if report.failures:
        roots = [finding.code for finding in report.failures if not finding.follows]
        console.print(f"manual-backprop explain {(roots or codes)[0]} says more", style="bright_black")


def _families(report: "Report") -> Table:
    from manual_backprop.validation.report.finding import STATUSES

    statuses = [status for status in STATUSES if status != "error" or report.errors]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(report.name, overflow="fold")
    for status in (*statuses, "seconds"):
        table.add_column(status, justify="right")
    for family in dict.fromkeys(finding.family for finding in report.findings):
        seconds = sum(finding.seconds for finding in report.findings if finding.family == family)
        counts = [_count(report.count(status, family), status) for status in statuses]
        table.add_row(family, *counts, f"{seconds:.2f}")
    return table


def _count(number: int, status: str) -> Text:
    return Text(str(number) if number else "·", style=COLOURS[status] if number else "bright_black")


def _finding(finding: "Finding") -> RenderableType:
    head = Text.assemble(
        (f"{finding.status.upper()} {finding.code} ", f"bold {COLOURS[finding.status]}"), f"{finding.family}: ",
        finding.message,
    )  # fmt: skip
    lines = Table.grid(padding=(0, 1))
    lines.add_column(min_width=6)
    lines.add_column(overflow="fold")
    for line in finding.details:
        lines.add_row("", Text(line))
    for label, text in finding.labels.items():
        lines.add_row(Text(label, style="bold"), Text(text))
    return Group(head, Padding(lines, (0, 0, 0, 5), expand=False))


# --- the other commands -------------------------------------------------------------------------------------------


def show_codes(rules: Sequence["Rule"]) -> None:
    """The code, the name and the question of every rule."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("code", "family", "name", "question"):
        table.add_column(title)
    for rule in rules:
        table.add_row(rule.code, rule.family, rule.name, rule.asks)
    _console().print(table)


def show_explanation(rule: "Rule", prelude: str) -> None:
    """The meaning of a code, a real bug of its class, and a wrong and a right snippet, which run after `prelude`."""
    console = _console()
    console.print(Text.assemble((f"{rule.code} {rule.name}", "bold"), f" ({rule.family})  {rule.asks}"))
    console.print("\nA right backward", style="bold")
    _paragraph(console, rule.holds)
    console.print("\nOne with this finding", style="bold")
    _paragraph(console, rule.meaning)
    _paragraph(console, f"To ask takes {rule.passes}; the rule came with version {rule.since}.")
    console.print("\nA real one", style="bold")
    _paragraph(console, rule.seen_in)
    if rule.unseen:
        console.print("\nWhy there is no snippet", style="bold")
        _paragraph(console, rule.unseen)
        return
    for title, snippet, other, colour in (
        ("Wrong", rule.wrong, rule.right, "red"),
        ("Right", rule.right, rule.wrong, "green"),
    ):
        console.print(f"\n{title}", style=f"bold {colour}")
        _snippet(console, snippet, other)
    console.print("\nBoth run after", style="bold")
    _snippet(console, prelude, prelude)


def _paragraph(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


def _snippet(console: Console, code: str, other: str) -> None:
    """Python, with a bar in front of the lines that the other snippet has not."""
    known = set(other.splitlines())
    coloured = Syntax("", "python", background_color="default").highlight(code.rstrip())
    for line in coloured.split("\n", allow_blank=True):
        differs = bool(line.plain.strip()) and line.plain not in known
        console.print(Text.assemble(("| " if differs else "  ", "bold"), line), soft_wrap=True)


def show_matrix(rows: Sequence["Row"]) -> None:
    """Zoo × checkers, and the totals."""
    console = _console()
    checkers = list(rows[0].verdicts)
    for wrong in (True, False):
        chosen = [row for row in rows if row.wrong == wrong]
        if chosen:
            console.print(_matrix(chosen, checkers, wrong))
    totals = Table(title="totals", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    totals.add_column("")
    for checker in checkers:
        totals.add_column(checker, justify="right")
    for words, wrong in (("wrong ones found", True), ("right ones blamed", False)):
        totals.add_row(words, *(_total(rows, checker, wrong) for checker in checkers))
    caught, of = sum(row.caught for row in rows), sum(row.wrong for row in rows)
    totals.add_row("by a code of their own", *["" for _ in checkers[1:]], f"{caught} of {of}")
    seconds = [sum(row.verdicts[checker].seconds for row in rows) for checker in checkers]
    totals.add_row("seconds", *(f"{value:.1f}" for value in seconds))
    console.print(totals)


def _matrix(rows: Sequence["Row"], checkers: Sequence[str], wrong: bool) -> Table:
    table = Table(title="wrong" if wrong else "right", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("entry", overflow="fold")
    for checker in checkers:
        table.add_column(checker)
    for row in rows:
        table.add_row(row.entry.name, *(_verdict(row, checker) for checker in checkers))
    return table


def _verdict(row: "Row", checker: str) -> Text:
    verdict = row.verdicts[checker]
    codes = f" {verdict.words.split()[0]}" if checker == "validate" and verdict.refused else ""
    words = {(True, True): "found", (True, False): "missed", (False, True): "blamed", (False, False): "passed"}
    return Text(words[row.wrong, verdict.refused] + codes, style="green" if verdict.refused == row.wrong else "red")


def _total(rows: Sequence["Row"], checker: str, wrong: bool) -> str:
    chosen = [row.verdicts[checker].refused for row in rows if row.wrong == wrong]
    return f"{sum(chosen)} of {len(chosen)}"


def show_outcomes(outcomes: Sequence["Outcome"], tests: str) -> None:
    """A table of the mutants, then those that survived, in words."""
    console = _console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("mutation", "what if …", "outcome", "by"):
        table.add_column(title, overflow="fold")
    for outcome in outcomes:
        status = Text(outcome.status, style=COLOURS[outcome.status])
        table.add_row(outcome.mutant.mutation.name, Text(outcome.mutant.words), status, Text(outcome.how))
    console.print(table)
    for outcome in outcomes:
        if outcome.status == "survived":
            console.print(Text(f"{tests} would not notice if {outcome.mutant.words}", style="red"))
        elif outcome.status == "not reached":
            console.print(Text(f"{outcome.mutant.mutation.name}: {outcome.how}", style="red"))
    counts: dict[str, Any] = {}
    for outcome in outcomes:
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    console.print(", ".join(f"{number} {status}" for status, number in counts.items()))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)
