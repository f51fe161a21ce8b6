"""What is raced, and how fast ours have to be: each bar is a ratio of two medians of one race, or of two figures."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmark.studies import ALLOWED, NOT_LOOKED_INTO, RUNS, Figure
from benchmark.timing import Timing, Work

SMALL, HUNDRED = (784, 30, 10), (784, 100, 10)
MIDDLE, LARGE = (784, 512, 512, 10), (1024, 1024, 1024, 1024)

BROAD = (2048, 2048, 2048, 2048)
RACES = [
    Work("layer", (784, 30), 10, threads=1),
    Work("layer", (512, 512), 128),
    Work("layer", (1024, 1024), 256),
    Work("layer", (2048, 2048), 1024),
    Work("step", SMALL, 1, threads=1),
    Work("step", SMALL, 10, threads=1),
    Work("step", HUNDRED, 10, threads=1),
    Work("step", SMALL, 128),
    Work("step", MIDDLE, 128),
    Work("step", LARGE, 256),
    Work("step", BROAD, 1024),
    Work("passes", SMALL, 10, threads=1),
    Work("passes", MIDDLE, 128),
    Work("passes", LARGE, 256),
]
QUICK = [work for work in RACES if work.flops < 1e9]
AGAIN = [
    Work("layer", (4096, 4096), 1024),
    Work("layer", (1024, 1024), 256, torch.bfloat16),
    Work("step", SMALL, 1024),
    Work("step", MIDDLE, 128, threads=1),
    Work("step", LARGE, 256, threads=1),
    Work("step", MIDDLE, 128, torch.bfloat16),
    Work("step", LARGE, 256, torch.bfloat16),
]
"""Larger, with one thread, and in bfloat16: no bar is of these."""

WIDTHS, DEPTHS, BATCHES = (64, 128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16), (1, 4, 16, 64, 256, 1024)
GROWTH = [
    *(Work("width", (n, n, n), 64) for n in WIDTHS),
    *(Work("depth", (256,) * (n + 1), 64) for n in DEPTHS),
    *(Work("batch", HUNDRED, n) for n in BATCHES),
    *(Work("passes", (n, n, n), 64) for n in WIDTHS),
]
"""How a step grows, and what its backward pass takes beside its forward pass."""


MEMORY = {
    Work("forward", (1024, 1024), 256): ["Linear + Sigmoid", "ours: LinearSigmoid"],
    Work("layer", (512, 512), 128): ["Linear + Sigmoid", "ours: LinearSigmoid"],
    Work("layer", (1024, 1024), 256): ["Linear + Sigmoid", "ours: LinearSigmoid", "ours: LinearSigmoid, ATen"],
    Work("step", LARGE, 256): [
        *("torch eager", "ours: layers", "ours: NetworkCost", "ours: NetworkCost, ATen", "ours: Network")
    ],
}
PROFILED = [
    (Work("step", SMALL, 10, threads=1), ("ours: layers", "ours: NetworkCost", "ours: Network"), 300),
    (Work("step", LARGE, 256), ("ours: layers", "ours: NetworkCost", "ours: Network"), 10),
]
"""Whose time is told by operation, over so many calls."""
NAIVE, EXTRAPOLATED = [(20, 10, 5), (100, 20, 10), (300, 30, 10), SMALL], [HUNDRED, MIDDLE, LARGE]
"""Networks whose gradient is also taken the naive way, and those where that would take too long."""


class Bar(NamedTuple):
    """``ours`` is to take at most one part in ``least`` of what ``theirs`` takes at this work."""

    work: str
    ours: str
    theirs: str
    least: float


def _bars(work: str, ours: str, **least: float) -> list[Bar]:
    return [Bar(work, ours, THEIRS[theirs], ratio) for theirs, ratio in least.items()]


BELOW = 1.01  # of memory: less of it, and as much is not enough
BOTH = ", forward and backward"
THEIRS = {
    "layer": "Linear + Sigmoid",
    "eager": "torch eager",
    "compiled": "torch.compile",
    "eager_passes": "torch eager" + BOTH,
    "compiled_passes": "torch.compile" + BOTH,
    "jax": "JAX epoch (scan)",
    "book": "NumPy, sample by sample",
    "peak": "peak rate",
    "allowed": ALLOWED,
}
BARS = [
    *_bars("layer 784-30 / 10", "ours: LinearSigmoid", layer=1.0),
    *_bars("layer 784-30 / 10", "ours: LinearSigmoid, compiled", layer=1.0),
    *_bars("layer 512-512 / 128", "ours: LinearSigmoid", layer=1.75),
    *_bars("layer 1024-1024 / 256", "ours: LinearSigmoid", layer=1.9),
    *_bars("layer 2048-2048 / 1024", "ours: LinearSigmoid", layer=1.9),
    *_bars("passes 784-30-10 / 10", "ours: NetworkCost" + BOTH, eager_passes=1.3, compiled_passes=1.3),
    *_bars("passes 784-30-10 / 10", f"ours: NetworkCost{BOTH}, compiled", eager_passes=1.3, compiled_passes=1.3),
    *_bars("passes 784-512-512-10 / 128", "ours: NetworkCost" + BOTH, eager_passes=1.8, compiled_passes=1.8),
    *_bars("passes 1024-1024-1024-1024 / 256", "ours: NetworkCost" + BOTH, eager_passes=1.9, compiled_passes=1.8),
    *_bars("step 784-30-10 / 10", "ours: Network", eager=4.5, book=9.0),
    *_bars("step 784-30-10 / 10", "ours: Network compiled", eager=9.0, jax=1.0),
    *_bars("step 784-100-10 / 10", "ours: Network compiled", jax=1.0),
    *_bars("step 1024-1024-1024-1024 / 256", "ours: Network compiled", jax=1.05),
    *_bars("step 2048-2048-2048-2048 / 1024", "ours: Network compiled", peak=0.9),
    *_bars("memory, forward 1024-1024 / 256", "ours: LinearSigmoid", layer=BELOW),
    *_bars("memory, layer 512-512 / 128", "ours: LinearSigmoid", layer=BELOW),
    *_bars("memory, layer 1024-1024 / 256", "ours: LinearSigmoid", layer=BELOW),
    *_bars("memory, layer 1024-1024 / 256", "ours: LinearSigmoid, ATen", layer=BELOW),
    *_bars("memory, step 1024-1024-1024-1024 / 256", "ours: layers", eager=BELOW),
    *_bars("memory, step 1024-1024-1024-1024 / 256", "ours: NetworkCost, ATen", eager=BELOW),
    *_bars("epoch 784-30-10 / 10", "network", book=9.0),
    *_bars("epoch 784-30-10 / 10", "network, compiled", book=9.0),
    *(Bar("epoch 784-30-10 / 10", name, name + NOT_LOOKED_INTO, 0.95) for name in RUNS),
    *_bars("run chapter1", "network", allowed=1.0),
    *_bars("run chapter1", "network, compiled", allowed=1.0),
    *_bars("import", "manual_backprop, beside torch", allowed=1.0),
]


class Verdict(NamedTuple):
    bar: Bar
    ratio: float | None  # None: one of the two was not timed

    @property
    def passed(self) -> bool:
        return self.ratio is not None and self.ratio >= self.bar.least


def judge(timings: Sequence[Timing], figures: Sequence[Figure] = ()) -> list[Verdict]:
    """Each bar with the ratio measured; of the float32 races, and of a work that was raced twice the first."""
    values = {(figure.subject, figure.contestant): figure.value for figure in figures}
    for t in timings:
        if t.dtype == "float32":
            values.setdefault((f"{t.work} {t.sizes} / {t.batch}", t.contestant), t.median)

    def ratio(bar: Bar) -> float | None:
        ours, theirs = values.get((bar.work, bar.ours)), values.get((bar.work, bar.theirs))
        return theirs / ours if ours and theirs else None

    return [Verdict(bar, ratio(bar)) for bar in BARS]
