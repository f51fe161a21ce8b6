"""Race our layers, NetworkCost and Network against torch, JAX, scikit-learn and NumPy, and hold each bar's ratio.

Writes runs/bench/timings.csv and figures.csv, and tables and plots from these files. JAX and scikit-learn come with
`pip install -e ".[bench]"`; a library that is missing is reported as missing.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that `benchmark` is the folder, not this file

from benchmark import bars, pictures, studies, timing
from benchmark.contestants import CONTESTANTS
from benchmark.studies import Figure
from benchmark.timing import Timing, Work
from manual_backprop import kernels
from manual_backprop.programs import options as command_line


@dataclass
class Options:
    """What `scripts/benchmark.py` takes."""

    quick: bool = False
    """The smaller races alone, a second each."""
    seconds: float = 4.0
    """Of a race; the contestants share it. Those of growth take a quarter."""
    kernel: str = "auto"
    """auto, aten or onednn: which kernel multiplies in ours."""
    data_root: Path = Path("data")
    """MNIST for the training runs, as in train_mnist.py."""
    out: Path = Path("runs/bench")
    """Folder of the results."""


def main(arguments: list[str]) -> int:
    options = command_line.parse(Options, Options(), arguments)
    if options.seconds <= 0:
        raise command_line.InputError(f"--seconds: expected more than 0, found {options.seconds}")
    kernels.use(options.kernel)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports each of its starts
    console = Console()
    races = [(work, 1.0) for work in bars.QUICK]
    if not options.quick:
        races = [(work, options.seconds) for work in bars.RACES + bars.AGAIN]
        races += [(work, options.seconds / 4) for work in bars.GROWTH]
    for library in ("jax", "sklearn", "numpy"):
        if importlib.util.find_spec(library) is None:
            console.print(f"{library} is missing, and does not take part")
    timings: list[Timing] = []
    figures: list[Figure] = []
    with Progress(console=console) as progress:
        task = progress.add_task("races", total=len(races))
        for work, seconds in races:
            progress.update(task, description=str(work))
            timings += race(work, seconds)
            timing.write(timings, options.out / "timings.csv")
            progress.advance(task)
        for figure in () if options.quick else study(options.data_root, timings):
            progress.update(task, description=figure.subject)
            figures.append(figure)
    studies.write(figures, options.out / "figures.csv")
    report(options.out)
    console.print(f"ours multiply by {kernels.chosen()}; torch {torch.__version__}", highlight=False)
    console.print((options.out / "bars.md").read_text(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"all in {options.out}", highlight=False)
    return 0


def race(work: Work, seconds: float) -> list[Timing]:
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    torch.compiler.reset()
    made = {name: make(work) for name, make in CONTESTANTS[work.name].items()}
    there = {name: contestant for name, contestant in made.items() if contestant is not None}
    return timing.race(work, there, seconds)


def study(data_root: Path, timings: list[Timing]) -> Iterator[Figure]:
    """All that is no race."""
    for work, contestants in bars.MEMORY.items():
        torch.set_num_threads(work.threads)
        yield from studies.memory(work, contestants)
    for work, names, n in bars.PROFILED:
        torch.set_num_threads(work.threads)
        for name in names:
            yield from studies.profile(work, name, n)
    torch.set_num_threads(1)
    yield from studies.starts(9)
    yield from studies.naive(bars.NAIVE, bars.EXTRAPOLATED)
    small = {t.contestant: t.median for t in timings if (t.work, t.sizes, t.batch) == ("step", "784-30-10", 10)}
    steps = {name: small[name] for name in studies.OTHERS if name in small}
    yield from studies.epochs(data_root, steps, rounds=3, n=2)
    yield from studies.whole_runs(data_root)
    yield from studies.accuracies(data_root)


def report(folder: Path) -> None:
    """The tables and plots, from the files."""
    timings, figures = timing.read(folder / "timings.csv"), studies.read(folder / "figures.csv")
    tables = {
        "timings": pictures.timings_table(timings),
        "bars": pictures.bars_table(timings, figures),
        "small": pictures.small_table(timings),
        "growth": pictures.growth_table(timings),
        "passes": pictures.passes_table(timings),
        "figures": pictures.figures_table([f for f in figures if f.unit != studies.SHARE]),
        "profile": pictures.figures_table([f for f in figures if f.unit == studies.SHARE]),
    }
    for name, table in tables.items():
        (folder / f"{name}.md").write_text(table + "\n")
    pictures.plot_steps(timings, folder / "steps.png")
    pictures.plot_growth(timings, folder / "growth.png")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except command_line.InputError as error:
        sys.exit(f"benchmark.py: {error}")
