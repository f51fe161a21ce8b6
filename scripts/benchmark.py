"""Race our layers, NetworkCost and Network against torch, JAX, scikit-learn and NumPy, and hold each bar's ratio.

Writes runs/bench/timings.csv, and the tables and the plot from that file. JAX and scikit-learn come with
`pip install -e ".[bench]"`; a library that is missing is reported as missing.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from manual_backprop import commandline, kernels
from manual_backprop.benchmark import bars, pictures, timing
from manual_backprop.benchmark.contestants import CONTESTANTS


@dataclass
class Options:
    """What `scripts/benchmark.py` takes."""

    quick: bool = False
    """The smaller works, a second each."""
    seconds: float = 8.0
    """Of a race; the contestants share it."""
    kernel: str = "auto"
    """auto, aten or onednn: which kernel multiplies in ours."""
    out: Path = Path("runs/bench")
    """Folder of the results."""


def main(arguments: list[str]) -> int:
    options = commandline.parse(Options, Options(), arguments)
    if options.seconds <= 0:
        raise commandline.InputError(f"--seconds: expected more than 0, found {options.seconds}")
    kernels.use(options.kernel)
    console = Console()
    timings = []
    for work in track(bars.QUICK if options.quick else bars.WORKS, "races", console=console):
        torch.set_num_threads(work.threads)
        torch.manual_seed(0)
        made = {name: make(work) for name, make in CONTESTANTS[work.name].items()}
        for name in [name for name, contestant in made.items() if contestant is None]:
            console.print(f"{work}, {work.dtype}: without {name}: no such library, or not for this dtype and size")
        there = {name: contestant for name, contestant in made.items() if contestant is not None}
        timings += timing.race(work, there, 1.0 if options.quick else options.seconds)
        timing.write(timings, options.out / "timings.csv")
    timings = timing.read(options.out / "timings.csv")
    (options.out / "timings.md").write_text(pictures.table(timings) + "\n")
    (options.out / "bars.md").write_text(pictures.bars_table(timings) + "\n")
    pictures.plot(timings, options.out / "steps.png")
    console.print(f"ours multiply by {kernels.chosen()}; torch {torch.__version__}", highlight=False)
    console.print(pictures.bars_table(timings), markup=False, highlight=False, soft_wrap=True)
    console.print(f"all in {options.out}", highlight=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except commandline.InputError as error:
        sys.exit(f"benchmark.py: {error}")
