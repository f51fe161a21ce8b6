"""What `mb.Monitor` costs a training step: without it, on steps that it does not record, at its default interval.

    python scripts/benchmark_monitor.py                # appends to runs/benchmark_monitor.csv, and prints

One network of each size of the book and of the recipe `best`, forward, backward and SGD in float32 on the CPU, one
thread. The contestants take turns in one process, after one warm-up each. Seconds are those of the process on the CPU,
the writer's thread included: on a machine that is shared, those of the clock say little. Median and 20/80 percentiles.
The default interval's share is what a recorded step takes more than another, over the time of so many steps: measured
as a whole it drowns in the noise.
"""

import argparse
import csv
import datetime
import platform
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import manual_backprop as mb
from manual_backprop.monitor.monitor import EVERY

# Sizes and samples a step.
NETWORKS = {"chapter1": ([784, 30, 10], 10), "chapter3": ([784, 100, 10], 10), "best": ([784, 800, 10], 100)}

# Each: the interval, None for no monitor, and the steps that are measured.
CONTESTANTS = {"no monitor": (None, 500), "not recorded": (10**9, 500), "every step recorded": (1, 20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark_monitor.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name, (sizes, samples) in NETWORKS.items() for row in measured(name, sizes, samples, arguments)]
    written(rows, arguments.output)


def measured(name: str, sizes: list[int], samples: int, arguments: argparse.Namespace) -> list[dict[str, object]]:
    torch.manual_seed(0)
    model = mb.nn.MLP(sizes)
    x, y = torch.rand(samples, sizes[0]), torch.rand(samples, sizes[-1])
    seconds: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
    for turn in range(1 + arguments.repeats):
        for contestant, (every, count) in CONTESTANTS.items():
            found = steps(model, x, y, every, count)
            if turn:
                seconds[contestant].append(found)
    base = quantile(seconds["no monitor"], 0.5)
    return [
        {
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "device": platform.machine(),
            "network": name,
            "samples": samples,
            "contestant": contestant,
            "repeats": len(times),
            "p20_us": f"{quantile(times, 0.2) * 1e6:.1f}",
            "median_us": f"{quantile(times, 0.5) * 1e6:.1f}",
            "p80_us": f"{quantile(times, 0.8) * 1e6:.1f}",
            "share_at_default_percent": f"{100 * (quantile(times, 0.5) / base - 1) / EVERY:.2f}"
            if contestant == "every step recorded"
            else "",
        }
        for contestant, times in seconds.items()
    ]


def steps(model: torch.nn.Module, x: Tensor, y: Tensor, every: int | None, count: int) -> float:
    """Seconds a step, over ``count`` steps."""
    optimizer, cost = torch.optim.SGD(model.parameters(), lr=0.1), mb.nn.QuadraticCost()
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer, ExitStack() as stack:
        if every:
            monitor = stack.enter_context(mb.Monitor(model, writer, every=every))
            monitor.step = int(every > 1)  # step 0 is recorded at any interval
        started = time.process_time()
        for _ in range(count):
            optimizer.zero_grad()
            cost(model(x), y).backward()
            optimizer.step()
        stack.close()
        writer.flush()
        return (time.process_time() - started) / count


def quantile(times: list[float], q: float) -> float:
    return float(torch.tensor(times).quantile(q))


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
