"""What the benchmark says of its races; how fast anything is, no test asks."""

import pytest
import torch

from manual_backprop.benchmark import bars, contestants, pictures, timing
from manual_backprop.benchmark.timing import Timing, Work

WORK = Work("step", (5, 4, 3), 6)


def timed(work, contestant, median):
    sizes = "-".join(map(str, work.sizes))
    return Timing(work.name, sizes, work.batch, "float32", 1, contestant, median, median, median, 9, 1, "2", "now")


def test_contestants_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 0)
    turns = []
    made = {name: (lambda name=name: turns.append(name), steps) for name, steps in (("a", 1), ("b", 4))}
    timings = timing.race(WORK, made, seconds=0.01)
    assert turns[4:8] == ["a", "b", "a", "b"]  # after two calls of each to warm up
    assert [t.contestant for t in timings] == ["a", "b"]
    assert all(t.low <= t.median <= t.high and t.rounds >= 5 for t in timings)


def test_the_file_gives_back_what_was_written(tmp_path):
    timings = [timed(WORK, name, 1.5) for name in ("a", "b")]
    timing.write(timings, tmp_path / "new" / "timings.csv")
    assert timing.read(tmp_path / "new" / "timings.csv") == timings


def test_every_bar_is_of_a_race_and_its_contestants():
    works = {str(work): contestants.CONTESTANTS[work.name] for work in bars.WORKS}
    for bar in bars.BARS:
        assert {bar.ours, bar.theirs} <= set(works[bar.work]), bar


def test_bars_are_ratios_of_medians():
    work = next(work for work in bars.WORKS if str(work) == "step 784-30-10 / 10")
    timings = [timed(work, "ours: Network", 10.0), timed(work, "torch eager", 44.0)]
    verdicts = {(v.bar.ours, v.bar.theirs): v for v in bars.judge(timings) if v.bar.work == str(work)}
    missed = verdicts["ours: Network", "torch eager"]
    assert (missed.ratio, missed.passed) == (pytest.approx(4.4), False)
    assert verdicts["ours: Network", "NumPy, sample by sample"].ratio is None
    table = pictures.bars_table(timings)
    assert "| step 784-30-10 / 10 | Network | torch eager | 4.5× | 4.40× | miss |" in table
    assert "missing" in table


def test_operations_are_those_of_three_products_a_layer():
    assert WORK.flops == 2 * 6 * (2 * 5 * 4 + 3 * 4 * 3)


@pytest.mark.parametrize("name", [name for name in contestants.STEP if "compile" not in name])
def test_every_contestant_runs(name):
    torch.manual_seed(0)
    made = contestants.STEP[name](WORK)
    if made is None:
        pytest.skip("its library is not installed")
    run, steps = made
    run()
    assert steps in (1, contestants.STEPS)


def test_the_plot_is_drawn(tmp_path):
    pictures.plot([timed(WORK, name, 10.0**n) for n, name in enumerate(contestants.STEP)], tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 10_000
