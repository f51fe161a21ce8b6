"""The benchmark's tables and plots, from its files alone."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import log
from pathlib import Path
from statistics import linear_regression

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from benchmark.bars import HUNDRED, LARGE, MIDDLE, SMALL, judge
from benchmark.contestants import FLOORS
from benchmark.studies import Figure
from benchmark.timing import Timing

PICTURED = ((SMALL, 10), (HUNDRED, 10), (MIDDLE, 128), (LARGE, 256))
FITTED = 3  # of the largest sizes: the small ones take the time of the calls, whatever their size
AXES: dict[str, Callable[[list[int], int], int]] = {
    "width": lambda sizes, batch: sizes[0],
    "depth": lambda sizes, batch: len(sizes) - 1,
    "batch": lambda sizes, batch: batch,
}
OURS, THEIRS = "#0072B2", "#B0B0B0"


def timings_table(timings: Sequence[Timing]) -> str:
    """Microseconds a step, median and 20th to 80th percentile, a race after the other."""
    rows = (
        (_name(t), t.contestant, f"{t.median:.4g}", f"{t.low:.4g}–{t.high:.4g}", f"{t.rounds} × {t.calls}")
        for t in timings
    )
    return _markdown(("work", "contestant", "µs a step", "20–80 %", "n"), rows)


def bars_table(timings: Sequence[Timing], figures: Sequence[Figure]) -> str:
    """Each bar with its ratio."""
    rows = []
    for verdict in judge(timings, figures):
        bar, ratio = verdict
        measured = "–" if ratio is None else f"{ratio:.2f}×"
        result = "not run" if ratio is None else "pass" if verdict.passed else "miss"
        rows.append((bar.work, bar.ours.removeprefix("ours: "), bar.theirs, f"{bar.least:g}×", measured, result))
    return _markdown(("work / samples", "ours", "against", "at least", "measured", ""), rows)


def small_table(timings: Sequence[Timing]) -> str:
    """The steps of the book's networks on 10 samples, the fastest first."""
    networks = ["-".join(map(str, sizes)) for sizes in (SMALL, HUNDRED)]
    races = [{t.contestant: t for t in timings if _is(t, "step", n, 10)} for n in networks]
    first = sorted(races[0].values(), key=lambda t: t.median)
    names = [t.contestant for t in first if t.contestant not in FLOORS]

    def cell(t: Timing | None) -> str:
        return "–" if t is None else f"{_three(t.median)} ({_three(t.low)}–{_three(t.high)})"

    return _markdown(("", *networks), ((name, *(cell(race.get(name)) for race in races)) for name in names))


def growth_table(timings: Sequence[Timing]) -> str:
    """The p of seconds ~ size^p, of the largest sizes."""
    rows = []
    for axis in AXES:
        for name, points in _curves(timings, axis).items():
            sizes = f"{points[-FITTED:][0][0]} to {points[-1][0]}"
            rows.append((axis, name, f"{_exponent(points):.2f}", sizes))
    return _markdown(("seconds against", "contestant", "exponent", "fitted from"), rows)


def passes_table(timings: Sequence[Timing]) -> str:
    """The time of the backward pass, for one of the forward pass."""
    rows = []
    for name, race in _races([t for t in timings if t.work == "passes"]):
        medians = {t.contestant: t.median for t in race}
        for whose in ("torch eager", "ours: NetworkCost"):
            if f"{whose}, forward" in medians:
                forward = medians[f"{whose}, forward"]
                ratio = medians[f"{whose}, forward and backward"] / forward - 1
                rows.append((name, whose, f"{forward:.4g}", f"{ratio:.2f}"))
    return _markdown(("network", "contestant", "forward, µs", "backward / forward"), rows)


def figures_table(figures: Sequence[Figure]) -> str:
    """Memory, starts, runs, the naive way."""
    rows = ((f.subject, f.contestant, f"{f.value:.4g} {f.unit}", str(f.n or "–"), str(f.threads)) for f in figures)
    return _markdown(("what", "contestant", "value", "n", "threads"), rows)


def plot_steps(timings: Sequence[Timing], path: Path) -> None:
    """The medians of a race as bars, ours in colour, the slowest at the top."""
    races = [
        (sizes, batch, [t for t in timings if _is(t, "step", "-".join(map(str, sizes)), batch)])
        for sizes, batch in PICTURED
    ]
    canvas = Canvas((13, 8), layout="constrained")
    for axes, (sizes, batch, race) in zip(canvas.subplots(2, 2).flat, races, strict=True):
        if not race:
            axes.remove()
            continue
        race = [t for t in race if t.threads == race[0].threads]
        ordered = sorted(race, key=lambda t: -t.median)
        colours = [OURS if t.contestant.startswith("ours") else THEIRS for t in ordered]
        errors = [[t.median - t.low for t in ordered], [t.high - t.median for t in ordered]]
        axes.barh([t.contestant for t in ordered], [t.median for t in ordered], xerr=errors, color=colours)
        threads = f"{race[0].threads} thread{'s' * (race[0].threads > 1)}"
        title = f"{'-'.join(map(str, sizes))}, {batch} samples, {threads}"
        axes.set(xscale="log", xlabel="µs a step", title=title, xlim=(ordered[-1].median / 2, ordered[0].high * 2))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8)
        for row, t in enumerate(ordered):
            axes.annotate(f" {_three(t.median)}", (t.high, row), va="center", fontsize=7)
    canvas.savefig(path, dpi=110)


def plot_growth(timings: Sequence[Timing], path: Path) -> None:
    """A step against width, depth and batch on log-log axes, with the fitted exponents; none where none was timed."""
    if not any(t.work in AXES for t in timings):
        return
    canvas = Canvas((13, 4.4), layout="constrained")
    for axes, axis in zip(canvas.subplots(1, len(AXES)), AXES, strict=True):
        for name, points in _curves(timings, axis).items():
            axes.loglog(*zip(*points, strict=True), marker="o", label=f"{name}: {axis}^{_exponent(points):.2f}")
        axes.set(xlabel=axis, ylabel="µs a step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(LogLocator(base=2 if axis == "depth" else 4))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    canvas.savefig(path, dpi=110)


def _curves(timings: Sequence[Timing], axis: str) -> dict[str, list[tuple[int, float]]]:
    """The points of each contestant: size and median."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for t in timings:
        if t.work == axis:
            size = AXES[axis](list(map(int, t.sizes.split("-"))), t.batch)
            curves.setdefault(t.contestant, []).append((size, t.median))
    return curves


def _exponent(points: Sequence[tuple[int, float]]) -> float:
    sizes, times = ([log(value) for value in values] for values in zip(*points[-FITTED:], strict=True))
    return linear_regression(sizes, times).slope


def _is(t: Timing, work: str, sizes: str, batch: int) -> bool:
    return (t.work, t.sizes, t.batch, t.dtype) == (work, sizes, batch, "float32")


def _name(t: Timing) -> str:
    return f"{t.work}, {t.sizes} / {t.batch}, {t.dtype}, {t.threads} thread{'s' * (t.threads > 1)}"


def _races(timings: Sequence[Timing]) -> list[tuple[str, list[Timing]]]:
    return [(name, list(race)) for name, race in groupby(timings, _name)]


def _three(x: float) -> str:
    """With three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
