"""What is no race: memory, starts, whole runs, time to an accuracy, and the naive way to a gradient.

Each study yields `Figure`s, which the bars and tables read by ``subject`` and ``contestant`` as they do the races.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import torch

from benchmark import peers
from benchmark.contestants import CONTESTANTS
from benchmark.timing import Contestant, Work
from manual_backprop.chapter import how_fast

SHARE = "%"
"""The unit of what an operation takes of the whole time."""
ALLOWED = "allowed"
"""The contestant of a bar that is a number: 60 ms, 12 s."""


@dataclass(frozen=True)
class Figure:
    """One number: the median of ``n`` measurements."""

    subject: str
    contestant: str
    value: float
    unit: str
    n: int
    threads: int
    torch: str = torch.__version__


def memory(work: Work, contestants: Sequence[str]) -> Iterator[Figure]:
    """The most that a forward and backward pass has allocated at once, of what torch's allocator counts: oneDNN takes
    its scratch memory there, MKL does not."""
    for name in contestants:
        if made := CONTESTANTS[work.name][name](work):
            yield Figure(f"memory, {work}", name, peak(made[0]) / 2**20, "MiB", 1, work.threads)


def peak(run: Contestant) -> int:
    """Bytes at the highest point of ``run``, of all that it has allocated; of its second run, when what it keeps
    (buffers, the gradients of the step before) is there."""
    second = "the second run"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
        with torch.profiler.record_function(second):
            run()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    started = next(event.start_ns() for event in events if event.name() == second)
    level = highest = 0
    for event in events:
        if event.name() == "[memory]":
            level += event.nbytes()
            highest = max(highest, level) if event.start_ns() >= started else 0
    return highest


def profile(work: Work, contestant: str, n: int, most: int = 7) -> Iterator[Figure]:
    """Where the time of ``n`` calls goes, in percent: torch's operations without those that they call, the longest
    first, and what is none of them (Python, autograd's engine, the profiler itself)."""
    made = CONTESTANTS[work.name][contestant](work)
    assert made is not None
    for _ in range(3):
        made[0]()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        started = time.perf_counter()
        for _ in range(n):
            made[0]()
        spent = 1e6 * (time.perf_counter() - started)
    operations = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    shares = {
        event.key: event.self_cpu_time_total for event in operations if event.key.startswith(("aten::", "mkldnn::"))
    }
    rest = max(0.0, spent - sum(shares.values()))
    for name, microseconds in [*list(shares.items())[:most], ("no operation of torch", rest)]:
        yield Figure(f"time of {contestant}, {work}", name, 100 * microseconds / spent, SHARE, n, work.threads)


def starts(n: int) -> Iterator[Figure]:
    """What `import manual_backprop` adds to `import torch`."""
    program = "import time, torch; t = time.perf_counter(); import manual_backprop; print(time.perf_counter() - t)"
    times = [float(_python("-c", program)) for _ in range(n)]
    yield Figure("import", "manual_backprop, beside torch", 1e3 * statistics.median(times), "ms", n, 1)
    yield Figure("import", ALLOWED, 60, "ms", 0, 1)


RUNS = {
    "network": ["--backprop", "network"],
    "network, compiled": ["--backprop", "network", "--compile"],
    "layers": ["--backprop", "layers"],
    "torch.nn": ["--backprop", "autograd"],
}
"""The options of `scripts/train_mnist.py`."""

ONE_RECIPE = [
    *("--sizes", *map(str, peers.SIZES), "--cost", "cross_entropy", "--init", "scaled", "--schedule", "linear"),
    *("--batch-size", str(peers.BATCH), "--learning-rate", str(peers.RATE), "--epochs", str(peers.EPOCHS)),
]
"""Reaches 98 % of the test images; the same for all."""


NOT_LOOKED_INTO = ", not looked into"
OTHERS = ("JAX epoch (scan)", "scikit-learn", "NumPy, mini-batches", "NumPy, sample by sample", "torch.compile")
"""Those whose epoch is so many of their steps."""


def epochs(data_root: Path, steps: Mapping[str, float], rounds: int, n: int) -> Iterator[Figure]:
    """Seconds of an epoch of 784-30-10 in the training script, with all that it does at its defaults but the scores,
    and without its looks at the layers and the gradient; runs of ``n`` epochs in turn, so many rounds. And those of
    others, of 5,000 of their ``steps``, in microseconds."""
    looks = {"": [], NOT_LOOKED_INTO: ["--check-every", "0", "--inspect-every", "0"]}
    seconds: dict[str, list[float]] = {name + look: [] for name in RUNS for look in looks}
    for _ in range(rounds):
        for (name, options), (look, more) in product(RUNS.items(), looks.items()):
            rows, _ = _run(data_root, [*options, *more, "--epochs", str(n)])
            seconds[name + look] += [float(row["seconds"]) for row in rows]
    for name, found in seconds.items():
        yield Figure("epoch 784-30-10 / 10", name, statistics.median(found), "s", len(found), 1)
    for name, microseconds in steps.items():
        yield Figure("epoch 784-30-10 / 10", name, 5000 * microseconds / 1e6, "s", 1, 1)


def whole_runs(data_root: Path) -> Iterator[Figure]:
    """Seconds of all of `train_mnist.py --recipe chapter1`, its start and its pictures included."""
    for name in ("network", "network, compiled"):
        _, seconds = _run(data_root, [*RUNS[name], "--recipe", "chapter1"])
        yield Figure("run chapter1", name, seconds, "s", 1, 1)
    yield Figure("run chapter1", ALLOWED, 12, "s", 0, 1)


def accuracies(data_root: Path, levels: Sequence[float] = (97, 98)) -> Iterator[Figure]:
    """Seconds of training until the test images are first answered so well, by one recipe; NaN where they never are."""
    for name, options in RUNS.items():
        rows, _ = _run(data_root, [*ONE_RECIPE, *options, "--check-every", "0", "--inspect-every", "0"])
        yield from _until(name, [(float(row["seconds"]), float(row["accuracy_test"])) for row in rows], levels)
    for name, history in peers.histories(data_root):
        yield from _until(name, history, levels)


def _until(name: str, history: Sequence[tuple[float, float]], levels: Sequence[float]) -> Iterator[Figure]:
    sizes = "-".join(map(str, peers.SIZES))
    for level in levels:
        enough = next((n for n, (_, accuracy) in enumerate(history, 1) if accuracy >= level), None)
        spent = sum(seconds for seconds, _ in history[:enough]) if enough else float("nan")
        yield Figure(f"to {level} % of the test images, {sizes} / {peers.BATCH}", name, spent, "s", 1, 1)


def naive(networks: Sequence[Sequence[int]], further: Sequence[Sequence[int]]) -> Iterator[Figure]:
    """Seconds of (C(w + ε e_j) − C(w))/ε for every weight and of backpropagation; the former of ``further`` networks
    follow from the slope on log-log axes."""
    slow, fast, threads = "(C(w + ε e) − C(w))/ε", "one backward pass", torch.get_num_threads()
    compared = [how_fast.compare(sizes) for sizes in networks]
    for c in compared:
        yield Figure(f"gradient of {c.weights:,} weights", slow, c.naive.seconds, "s", 1, threads)
        yield Figure(f"gradient of {c.weights:,} weights", fast, c.backprop.seconds, "s", 5, threads)
    p = how_fast.growth(compared, lambda c: c.naive.seconds)
    yield Figure("gradient, growth with the weights", slow, p, "exponent", len(compared), threads)
    last = compared[-1]
    for sizes in further:
        weights = sum(i * o for i, o in pairwise(sizes))
        value = last.naive.seconds * (weights / last.weights) ** p
        yield Figure(f"gradient of {weights:,} weights", slow + ", extrapolated", value, "s", 0, threads)
        yield Figure(f"gradient of {weights:,} weights", fast, how_fast.backprop(sizes).seconds, "s", 5, threads)


def write(figures: Sequence[Figure], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        rows = csv.DictWriter(file, list(Figure.__dataclass_fields__))
        rows.writeheader()
        rows.writerows(vars(figure) for figure in figures)


def read(path: Path) -> list[Figure]:
    with open(path, newline="") as file:
        return [
            Figure(**row | {"value": float(row["value"]), "n": int(row["n"]), "threads": int(row["threads"])})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def _run(data_root: Path, options: Sequence[str]) -> tuple[list[dict[str, str]], float]:
    """The rows of a training run's `metrics.csv`, and its seconds from the start of its process to the end."""
    with tempfile.TemporaryDirectory() as folder:
        program = "import sys; from manual_backprop.training.cli import main; sys.exit(main())"
        place = ["--runs", folder, "--name", "run", "--data-root", str(data_root)]
        started = time.perf_counter()
        _python("-c", program, *options, *place)
        seconds = time.perf_counter() - started
        with open(Path(folder) / "run" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file)), seconds


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
