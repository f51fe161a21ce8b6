"""How fast ours have to be: each bar is a ratio of two medians of one race."""

from collections.abc import Sequence
from typing import NamedTuple

from manual_backprop.benchmark.timing import Timing, Work

SMALL, HUNDRED = (784, 30, 10), (784, 100, 10)
MIDDLE, LARGE = (784, 512, 512, 10), (1024, 1024, 1024, 1024)

WORKS = [
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
    Work("step", (2048, 2048, 2048, 2048), 1024),
]
QUICK = [work for work in WORKS if work.flops < 1e9]


class Bar(NamedTuple):
    """``ours`` is to be ``least`` times as fast as ``theirs`` at this work."""

    work: str
    ours: str
    theirs: str
    least: float


def _bars(work: str, ours: str, **least: float) -> list[Bar]:
    return [Bar(work, ours, THEIRS[theirs], ratio) for theirs, ratio in least.items()]


THEIRS = {
    "layer": "Linear + Sigmoid",
    "eager": "torch eager",
    "compiled": "torch.compile",
    "jax": "JAX epoch (scan)",
    "book": "NumPy, sample by sample",
    "products": "products alone",
}
BARS = [
    *_bars("layer 784-30 / 10", "ours: LinearSigmoid", layer=1.0),
    *_bars("layer 512-512 / 128", "ours: LinearSigmoid", layer=1.75),
    *_bars("layer 1024-1024 / 256", "ours: LinearSigmoid", layer=1.9),
    *_bars("layer 2048-2048 / 1024", "ours: LinearSigmoid", layer=1.9),
    *_bars("step 784-30-10 / 10", "ours: NetworkCost", eager=1.3, compiled=1.3),
    *_bars("step 784-512-512-10 / 128", "ours: NetworkCost", eager=1.8, compiled=1.8),
    *_bars("step 1024-1024-1024-1024 / 256", "ours: NetworkCost", eager=1.9, compiled=1.8),
    *_bars("step 784-30-10 / 10", "ours: Network", eager=4.5, book=9.0),
    *_bars("step 784-30-10 / 10", "ours: Network compiled", eager=9.0, jax=1.0),
    *_bars("step 784-100-10 / 10", "ours: Network compiled", jax=1.0),
    *_bars("step 1024-1024-1024-1024 / 256", "ours: Network compiled", jax=1.05),
    *_bars("step 2048-2048-2048-2048 / 1024", "ours: Network compiled", products=0.9),
]


class Verdict(NamedTuple):
    bar: Bar
    ratio: float | None  # None: one of the two was not timed

    @property
    def passed(self) -> bool:
        return self.ratio is not None and self.ratio >= self.bar.least


def judge(timings: Sequence[Timing]) -> list[Verdict]:
    """Each bar with the ratio measured, of the float32 races."""
    medians = {(f"{t.work} {t.sizes} / {t.batch}", t.contestant): t.median for t in timings if t.dtype == "float32"}

    def ratio(bar: Bar) -> float | None:
        ours, theirs = medians.get((bar.work, bar.ours)), medians.get((bar.work, bar.theirs))
        return theirs / ours if ours and theirs else None

    return [Verdict(bar, ratio(bar)) for bar in BARS]
