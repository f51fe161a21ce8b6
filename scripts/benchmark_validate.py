"""How long `validate` takes, and what it costs in memory, beside gradcheck slow and fast on the same inputs.

    python scripts/benchmark_validate.py                # appends to runs/benchmark_validate.csv, and prints
    python scripts/benchmark_validate.py --large        # 1e6-element inputs too

Linear-sigmoid layers in float64 on the CPU; the contestants take turns in one process, after one warm-up each (a first
call in a process imports parts of torch, some seconds by themselves). Median and 20/80 percentiles. Memory: how far one
turn lifts the peak (VmHWM, so Linux only) of a process of its own, which has taken a turn with small inputs before.
"""

import argparse
import csv
import datetime
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from manual_backprop import validate
from manual_backprop.functional import linear_sigmoid

SIZES = {"small": (5, 4, 3), "medium": (16, 30, 10)}
LARGE = {"large": (1000, 1000, 100)}
NO_COMPILE = ("MB806", "MB807")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_validate.csv"))
    arguments = parser.parse_args()
    rows = []
    for name, sizes in (SIZES | (LARGE if arguments.large else {})).items():
        rows += measured(name, made(*sizes), arguments.repeats if name not in LARGE else 1)
    written(rows, arguments.output)


def made(samples: int, i: int, o: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = ((samples, i), (o, i), (o,))
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def contestants(name: str) -> dict[str, Callable[[tuple[Tensor, ...]], object]]:
    quick: dict[str, Callable[[tuple[Tensor, ...]], object]] = {
        "one pass": lambda inputs: linear_sigmoid(*inputs).sum().backward(),
        "validate, no compile": lambda inputs: validate(linear_sigmoid, inputs, skip=NO_COMPILE).raise_for_failures(),
    }
    if name in LARGE:
        return quick
    return quick | {
        "validate": lambda inputs: validate(linear_sigmoid, inputs).raise_for_failures(),
        "gradcheck": lambda inputs: torch.autograd.gradcheck(linear_sigmoid, inputs),
        "gradcheck fast": lambda inputs: torch.autograd.gradcheck(linear_sigmoid, inputs, fast_mode=True),
    }


def measured(name: str, inputs: tuple[Tensor, ...], repeats: int) -> list[dict[str, object]]:
    seconds: dict[str, list[float]] = {}
    runs = contestants(name)
    for turn in range(repeats + (name not in LARGE)):
        for contestant, run in runs.items():
            started = time.perf_counter()
            run(inputs)
            if turn or name in LARGE:
                seconds.setdefault(contestant, []).append(time.perf_counter() - started)
    return [
        {
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "device": f"cpu, {torch.get_num_threads()} threads",
            "size": name,
            "elements": sum(t.numel() for t in inputs),
            "contestant": contestant,
            "repeats": len(times),
            "median_s": f"{quantile(times, 0.5):.4f}",
            "p20_s": f"{quantile(times, 0.2):.4f}",
            "p80_s": f"{quantile(times, 0.8):.4f}",
            "peak_mib": f"{risen(name, contestant):.1f}",
        }
        for contestant, times in seconds.items()
    ]


def quantile(times: list[float], q: float) -> float:
    return float(torch.tensor(times).quantile(q))


def risen(name: str, contestant: str) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(rise_here, (name, contestant))


def rise_here(name: str, contestant: str) -> float:
    """By how many MiB one turn lifts the peak of this process."""
    run = contestants(name)[contestant]
    run(made(*SIZES["small"]))
    inputs = made(*(SIZES | LARGE)[name])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = peak_mib()
    run(inputs)
    return peak_mib() - before


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def written(rows: list[dict[str, object]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("  ".join(str(value) for value in row.values()))


if __name__ == "__main__":
    main()
