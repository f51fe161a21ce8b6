"""What the benchmark says of its races; how fast anything is, no test asks."""

import math
from pathlib import Path

import pytest
import torch

from benchmark import bars, contestants, pictures, studies, timing
from benchmark.studies import ALLOWED, Figure
from benchmark.timing import Timing, Work
from manual_backprop.kernels import cpp
from manual_backprop.training.config import Config

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


def test_every_bar_is_of_a_race_or_a_study():
    works = {str(work): set(contestants.CONTESTANTS[work.name]) for work in bars.RACES}
    works |= {f"memory, {work}": set(names) for work, names in bars.MEMORY.items()}
    works["epoch 784-30-10 / 10"] = {*studies.RUNS, *studies.OTHERS}
    works["epoch 784-30-10 / 10"] |= {name + studies.NOT_LOOKED_INTO for name in studies.RUNS}
    works["run chapter1"] = {*studies.RUNS, ALLOWED}
    works["import"] = {"manual_backprop, beside torch", ALLOWED}
    for bar in bars.BARS:
        assert {bar.ours, bar.theirs} <= works[bar.work], bar


def test_bars_are_ratios_of_medians():
    work = next(work for work in bars.RACES if str(work) == "step 784-30-10 / 10")
    timings = [timed(work, "ours: Network", 10.0), timed(work, "torch eager", 44.0)]
    verdicts = {(v.bar.ours, v.bar.theirs): v for v in bars.judge(timings) if v.bar.work == str(work)}
    missed = verdicts["ours: Network", "torch eager"]
    assert (missed.ratio, missed.passed) == (pytest.approx(4.4), False)
    assert verdicts["ours: Network", "NumPy, sample by sample"].ratio is None
    figures = [
        Figure("import", "manual_backprop, beside torch", 30, "ms", 9, 1),
        Figure("import", ALLOWED, 60, "ms", 0, 1),
    ]
    table = pictures.bars_table(timings, figures)
    assert "| import | manual_backprop, beside torch | allowed | 1× | 2.00× | pass |" in table
    assert "| step 784-30-10 / 10 | Network | torch eager | 4.5× | 4.40× | miss |" in table
    assert "| – | not run |" in table


def test_operations_are_those_of_three_products_a_layer():
    assert WORK.flops == 2 * 6 * (2 * 5 * 4 + 3 * 4 * 3)


RUNNING = {
    **{name: make for name, make in contestants.STEP.items() if "torch.compile" not in name},
    **{name: make for name, make in contestants.PASSES.items() if "torch.compile" not in name},
    **contestants.LAYER,
}


LIBRARIES = {"JAX": "jax", "NumPy": "numpy", "scikit-learn": "sklearn"}
OF_CPP = [name for name in RUNNING if name.endswith(", compiled")]
ONLY_LARGE = [name for name in RUNNING if name.endswith((", ATen", ", oneDNN"))]
ONLY_SMALL = [*OF_CPP, *(name for name in RUNNING if name.startswith(("NumPy", "scikit-learn")))]


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize("name", RUNNING)
def test_every_contestant_runs_where_it_takes_part(name, large):
    for word, library in LIBRARIES.items():
        if name.startswith(word):
            pytest.importorskip(library)
    if name in OF_CPP and not cpp.can_be_built():
        pytest.skip("no C++ can be built here")
    hidden = () if name in contestants.LAYER else (500,) if large else (4,)
    made = RUNNING[name](Work("step", (1000, *hidden, 1000) if large else (5, *hidden, 3), 64 if large else 6))
    assert (made is None) == (name in (ONLY_SMALL if large else ONLY_LARGE))
    if made is not None:
        run, _ = made
        run()


@pytest.mark.parametrize("compile", [False, True], ids=["steps", "compiled"])
def test_a_call_takes_as_many_steps_as_it_says(compile, monkeypatch):
    taken = []
    monkeypatch.setattr(contestants.Network, "sgd", lambda net, x, y, batch, *_: taken.append(len(x) / batch))
    run, steps = contestants.network(compile)(WORK)
    run()
    assert taken == [steps]


def test_the_first_race_of_a_work_counts():
    work = Work("step", bars.SMALL, 10)
    twice = [timed(work, "ours: Network", 10.0), timed(work, "torch eager", 50.0), timed(work, "torch eager", 1.0)]
    ratios = {(v.bar.ours, v.bar.theirs): v.ratio for v in bars.judge(twice) if v.bar.work == str(work)}
    assert ratios["ours: Network", "torch eager"] == pytest.approx(5)


def test_growth_is_the_slope_of_the_largest_sizes():
    grown = [timed(Work("width", (n, n, n), 64), "ours: Network", max(500.0, n**2)) for n in (4, 8, 64, 128, 256)]
    assert "| width | ours: Network | 2.00 | 64 to 256 |" in pictures.growth_table(grown)


def test_the_backward_pass_is_what_the_forward_pass_leaves():
    work = Work("passes", (4, 4, 4), 64)
    race = [
        timed(work, "ours: NetworkCost, forward", 10.0),
        timed(work, "ours: NetworkCost, forward and backward", 32.0),
    ]
    assert "| 10 | 2.20 |" in pictures.passes_table(race)


def test_the_peak_is_that_of_what_is_alive_at_once():
    def run():
        a = torch.empty(3000, dtype=torch.uint8)
        del a
        return torch.empty(1000, dtype=torch.uint8), torch.empty(500, dtype=torch.uint8)

    assert studies.peak(run) == pytest.approx(3000, abs=64)


def test_a_profile_is_of_the_whole_time():
    found = {f.contestant: f.value for f in studies.profile(WORK, "ours: Network", 20, most=99)}
    assert {"aten::addmm_", "aten::sigmoid_backward", "no operation of torch"} <= set(found)
    assert sum(found.values()) == pytest.approx(100)


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.peers.PEERS)
def test_the_recipe_is_learned_by_the_peers(name, monkeypatch):
    """In two epochs of the bundled images."""
    library, epochs = studies.peers.PEERS[name]
    pytest.importorskip(library)
    monkeypatch.setattr(studies.peers, "EPOCHS", 2)
    images, _ = studies.peers.mnist.load(Config(data_root=Path("nowhere")), torch.device("cpu"), download=False)
    history = list(epochs(images))
    assert len(history) == 2
    assert history[1][1] > 60


def test_figures_come_back_from_their_file(tmp_path):
    figures = [Figure("import", "ours", 1.5, "ms", 9, 1), Figure("run", "ours", 2.0, "s", 1, 2)]
    studies.write(figures, tmp_path / "figures.csv")
    assert studies.read(tmp_path / "figures.csv") == figures
    assert "| run | ours | 2 s | 1 | 2 |" in pictures.figures_table(figures)


def test_the_time_to_an_accuracy_is_that_of_the_epochs_up_to_it(monkeypatch):
    history = [{"seconds": "2", "accuracy_test": level} for level in ("96.9", "97.0", "97.9")]
    monkeypatch.setattr(studies, "_run", lambda *_: (history, 9.0))
    monkeypatch.setattr(studies.peers, "histories", lambda _: [("JAX", [(1.5, 98.5)])])
    found = {(f.contestant, f.subject.split()[1]): f.value for f in studies.accuracies(Path("data"))}
    assert found["network", "97"] == 4
    assert math.isnan(found["network", "98"])
    assert found["JAX", "98"] == 1.5


def test_the_naive_way_is_extrapolated_along_its_slope():
    figures = list(studies.naive([(3, 2), (30, 2), (300, 2)], [(3000, 2)]))
    slow = {f.subject: f.value for f in figures if f.contestant.startswith("(C")}
    expected = slow["gradient of 600 weights"] * 10 ** slow["gradient, growth with the weights"]
    assert slow["gradient of 6,000 weights"] == pytest.approx(expected)
    assert [f.n for f in figures if f.subject == "gradient of 6,000 weights"] == [0, 5]


def test_an_epoch_that_is_looked_into_takes_turns_with_one_that_is_not(monkeypatch):
    runs = []
    monkeypatch.setattr(studies, "_run", lambda _, options: (runs.append(options), ([{"seconds": "2"}], 9.0))[1])
    found = list(studies.epochs(Path("data"), {"NumPy, sample by sample": 200.0}, rounds=2, n=1))
    assert ["--inspect-every" in options for options in runs] == [False, True] * (2 * len(studies.RUNS))
    assert {(f.contestant, f.n) for f in found if f.contestant.startswith("layers")} == {
        ("layers", 2),
        ("layers" + studies.NOT_LOOKED_INTO, 2),
    }
    assert found[-1].value == 1


def test_the_peak_rate_is_that_of_the_arithmetic():
    _, steps = contestants.peak(WORK)
    assert steps * WORK.flops == pytest.approx(2 * 1024**3)


def test_the_plots_are_drawn(tmp_path):
    steps = [timed(Work("step", bars.SMALL, 10), name, 10.0**n) for n, name in enumerate(contestants.STEP)]
    pictures.plot_steps(steps, tmp_path / "steps.png")
    pictures.plot_growth([timed(work, "ours: Network", 1.0) for work in bars.GROWTH], tmp_path / "growth.png")
    for name in ("steps", "growth"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_without_growth_there_is_no_plot_of_it(tmp_path):
    pictures.plot_growth([timed(Work("step", bars.SMALL, 10), "ours: Network", 1.0)], tmp_path / "growth.png")
    assert not (tmp_path / "growth.png").exists()


BENCH = Path(__file__).parents[2] / "runs" / "bench"


def test_the_readme_has_the_table_of_the_file():
    table = pictures.small_table(timing.read(BENCH / "timings.csv"))
    assert table in (BENCH.parents[1] / "README.md").read_text()
