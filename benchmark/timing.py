"""Contestants timed in turn in one process: on a machine that others use, only ratios within one run mean anything."""

import csv
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import torch

Contestant = Callable[[], object]
BLOCK = 1e-2  # seconds a contestant runs before it is another one's turn


@dataclass(frozen=True)
class Timing:
    """Microseconds a step of one contestant at one piece of work: the median and the 20th and 80th percentile of
    ``rounds`` turns, of ``calls`` steps each."""

    work: str
    sizes: str
    batch: int
    dtype: str
    threads: int
    contestant: str
    median: float
    low: float
    high: float
    rounds: int
    calls: int
    torch: str
    date: str


@dataclass(frozen=True)
class Work:
    """What is timed: layers of ``sizes`` on ``batch`` samples."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    dtype: torch.dtype = torch.float32
    threads: int = 2

    @property
    def flops(self) -> int:
        """Of a forward and backward pass: 2 a multiplication and addition, three products a layer but the first, which
        has no gradient of its input."""
        products = [3 * i * o for i, o in zip(self.sizes, self.sizes[1:], strict=False)]
        return 2 * self.batch * (sum(products) - self.sizes[0] * self.sizes[1])

    def __str__(self) -> str:
        return f"{self.name} {'-'.join(map(str, self.sizes))} / {self.batch}"


def race(work: Work, contestants: Mapping[str, tuple[Contestant, float]], seconds: float) -> list[Timing]:
    """Time contestants in turn, for so many seconds in all. Each is a function and the steps that one call takes."""
    calls = {}
    for name, (run, _) in contestants.items():
        run()
        started = time.perf_counter()
        run()
        calls[name] = max(1, round(BLOCK / (time.perf_counter() - started)))
    turns: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns[name]) < 5:
        for name, (run, steps) in contestants.items():
            if calls[name] > 1:
                run()  # the first call after the others finds their data in the caches
            started = time.perf_counter()
            for _ in range(calls[name]):
                run()
            turns[name].append((time.perf_counter() - started) / (calls[name] * steps) * 1e6)
    return [_timing(work, name, turns[name], max(1, round(calls[name] * contestants[name][1]))) for name in contestants]


def _timing(work: Work, name: str, turns: list[float], calls: int) -> Timing:
    low, *_, high = statistics.quantiles(turns, n=5)
    return Timing(
        work.name,
        "-".join(map(str, work.sizes)),
        work.batch,
        str(work.dtype).removeprefix("torch."),
        work.threads,
        name,
        statistics.median(turns),
        low,
        high,
        len(turns),
        calls,
        torch.__version__,
        datetime.now().isoformat(timespec="minutes"),
    )


def write(timings: Iterable[Timing], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(Timing)])
        rows.writeheader()
        rows.writerows(asdict(timing) for timing in timings)


def read(path: Path) -> list[Timing]:
    with open(path, newline="") as file:
        return [Timing(**{f.name: _TYPES[f.type](row[f.name]) for f in fields(Timing)}) for row in csv.DictReader(file)]


_TYPES: dict[object, Callable] = {str: str, int: int, float: float}
