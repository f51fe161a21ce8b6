"""The benchmark's table and plots, from its file alone."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from manual_backprop.benchmark.bars import judge
from manual_backprop.benchmark.timing import Timing


def _races(timings: Sequence[Timing]) -> list[tuple[str, list[Timing]]]:
    def race(t: Timing) -> tuple:
        return t.work, t.sizes, t.batch, t.dtype, t.threads

    return [
        (f"{work}, {sizes} / {batch}, {dtype}, {threads} thread{'s' * (threads > 1)}", list(group))
        for (work, sizes, batch, dtype, threads), group in groupby(timings, race)
    ]


def table(timings: Sequence[Timing]) -> str:
    """In Markdown: microseconds a step, median and 20th to 80th percentile, a race after the other."""
    lines = ["| work | contestant | µs a step | 20–80 % | n |", "|---|---|---|---|---|"]
    for name, race in _races(timings):
        for t in race:
            spread = f"{t.low:.4g}–{t.high:.4g}"
            lines.append(f"| {name} | {t.contestant} | {t.median:.4g} | {spread} | {t.rounds} × {t.calls} |")
    return "\n".join(lines)


def bars_table(timings: Sequence[Timing]) -> str:
    """In Markdown: each bar with its ratio."""
    lines = ["| work, samples | ours | against | at least | measured | |", "|---|---|---|---|---|---|"]
    for verdict in judge(timings):
        bar = verdict.bar
        measured = "missing" if verdict.ratio is None else f"{verdict.ratio:.2f}×"
        result = "pass" if verdict.passed else "miss"
        ours = bar.ours.removeprefix("ours: ")
        lines.append(f"| {bar.work} | {ours} | {bar.theirs} | {bar.least:g}× | {measured} | {result} |")
    return "\n".join(lines)


def plot(timings: Sequence[Timing], path: Path) -> None:
    """The medians of each step's race as bars, ours in colour, the slowest at the bottom."""
    races = [(name, race) for name, race in _races(timings) if name.startswith("step") and len(race) > 3]
    columns = 2
    rows = -(-len(races) // columns)
    figure = Figure((6.5 * columns, 3.4 * rows), layout="constrained")
    for axes, (name, race) in zip(figure.subplots(rows, columns, squeeze=False).flat, races, strict=False):
        ordered = sorted(race, key=lambda t: -t.median)
        colours = ["#0072B2" if t.contestant.startswith("ours") else "#B0B0B0" for t in ordered]
        errors = [[t.median - t.low for t in ordered], [t.high - t.median for t in ordered]]
        axes.barh([t.contestant for t in ordered], [t.median for t in ordered], xerr=errors, color=colours)
        axes.set(xscale="log", xlabel="µs a step", title=name.removeprefix("step, "))
        axes.tick_params(axis="y", labelsize=8)
        for row, t in enumerate(ordered):
            axes.annotate(f" {t.median:.3g}", (t.high, row), va="center", fontsize=7)
    for axes in figure.axes[len(races) :]:
        axes.remove()
    figure.savefig(path, dpi=110)
