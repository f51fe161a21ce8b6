"""The whole program: what a run leaves in its folder, how it goes on, and with which status it ends."""

import csv
import json
import re
import warnings

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manual_backprop.monitor.monitor import LAYOUT
from manual_backprop.training.cli import main

CHECKPOINT = "checkpoint.pt"


@pytest.fixture
def run(data_root, tmp_path):
    """Runs the program in ``tmp_path`` and gives its exit status."""

    def run(*arguments):
        return main(["--data-root", str(data_root), "--runs", str(tmp_path), "--batch-size", "1000", *arguments])

    return run


@pytest.fixture
def two_epochs(run, tmp_path):
    assert run("--epochs", "2", "--name", "mine", "--check-every", "10", "--inspect-every", "20") == 0
    return tmp_path / "mine"


def read_metrics(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_what_a_run_leaves(two_epochs):
    names = {path.name for path in two_epochs.iterdir() if not path.name.startswith("events")}
    pictures = {"curves.png", "confusion.png", "most_wrong.png"}
    assert names == {CHECKPOINT, "config.json", "env.json", "metrics.csv", *pictures}
    assert all((two_epochs / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert json.loads((two_epochs / "config.json").read_text())["sizes"] == [784, 30, 10]
    env = json.loads((two_epochs / "env.json").read_text())
    assert env["torch"] == torch.__version__
    assert {"command", "git_commit", "device", "threads"} <= env.keys()
    rows = read_metrics(two_epochs)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["cost_train"]) < float(rows[0]["cost_train"])


def test_what_tensorboard_shows(two_epochs):
    events = EventAccumulator(str(two_epochs), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    layers, parameters = ("0", "1"), [f"{layer}.{part}" for layer in ("0", "1") for part in ("weight", "bias")]
    scalars = {f"{what}/{part}" for what in ("cost", "accuracy") for part in ("train", "validation", "test")}
    scalars |= {"images_per_second", "cost/batch", "final/accuracy_test"}
    scalars |= {tag for layer in layers for tag in (f"error/{layer}/norm", f"saturation/{layer}/share")}
    scalars |= {f"agreement/{layer}/{part}" for layer in layers for part in ("weight", "bias")}
    scalars |= {tag for name in parameters for tag in (f"gradient/{name}/norm", f"learning_speed/{name}")}
    assert scalars <= set(tags["scalars"])
    histograms = {f"weights/{name}" for name in parameters} | {f"error/{layer}/delta" for layer in layers}
    assert histograms <= set(tags["histograms"])
    assert {"weights/0.weight/image", "confusion", "most_wrong", "curves"} == set(tags["images"])
    assert tags["graph"]
    assert {f"precision_recall/{digit}" for digit in range(10)} <= set(tags["tensors"])
    assert {"config/text_summary", "env/text_summary"} <= set(tags["tensors"])
    rows = read_metrics(two_epochs)
    for tag, column in (("cost/test", "cost_test"), ("accuracy/train", "accuracy_train")):
        logged = [event.value for event in events.Scalars(tag)]
        assert logged == pytest.approx([float(row[column]) for row in rows])
    assert [event.step for event in events.Scalars("error/0/norm")] == list(range(0, 100, 20))
    assert [event.step for event in events.Scalars("agreement/0/weight")] == list(range(0, 100, 10))
    assert all(0 < event.value < 3.5e-4 for event in events.Scalars("agreement/0/weight"))


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_tracing_that_torch_deprecates_is_still_a_graph(run, tmp_path, monkeypatch, category):
    def trace(*arguments, **options):
        warnings.warn("`torch.jit.trace` is deprecated. Please switch to `torch.compile`.", category, stacklevel=2)
        return torch_trace(*arguments, **options)

    torch_trace = torch.jit.trace
    monkeypatch.setattr(torch.jit, "trace", trace)
    assert run("--epochs", "1", "--name", "mine") == 0
    assert EventAccumulator(str(tmp_path / "mine")).Reload().Tags()["graph"]


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_a_run_whose_model_cannot_be_traced_ends_well(run, tmp_path, monkeypatch, error):
    """Also where warnings are errors, as in these tests."""

    def trace(*_, **__):
        raise error("no such thing any more")

    monkeypatch.setattr(torch.jit, "trace", trace)
    assert run("--epochs", "1", "--name", "mine") == 0
    events = EventAccumulator(str(tmp_path / "mine")).Reload()
    assert not events.Tags()["graph"]
    (text,) = events.Tensors("graph/text_summary")[0].tensor_proto.string_val
    assert text.decode().startswith("The model could not be traced: ")
    assert text.decode().count("no such thing any more") == 1


def test_every_chart_of_the_overview_has_a_curve(run, tmp_path):
    looks = ("--inspect-every", "20", "--check-every", "20")
    assert run("--epochs", "1", "--activation", "relu", "--learning-rate", "0.1", "--name", "relu", *looks) == 0
    tags = EventAccumulator(str(tmp_path / "relu")).Reload().Tags()["scalars"]
    patterns = [pattern for charts in LAYOUT.values() for _, found in charts.values() for pattern in found]
    assert len(patterns) == 9
    assert [pattern for pattern in patterns if not any(re.match(pattern, tag) for tag in tags)] == []


def test_resume_goes_on_in_its_folder(run, two_epochs, tmp_path):
    assert run("--epochs", "3", "--name", "whole", "--check-every", "10") == 0
    assert main(["--resume", str(two_epochs), "--epochs", "3"]) == 0
    rest, whole = (torch.load(tmp_path / name / CHECKPOINT)["state"] for name in ("mine", "whole"))
    for part in ("weights", "biases"):
        assert all(torch.equal(a, b) for a, b in zip(rest[part], whole[part], strict=True))
    assert [row["epoch"] for row in read_metrics(two_epochs)] == ["1", "2", "3"]
    costs = EventAccumulator(str(two_epochs)).Reload().Scalars("cost/test")
    assert [event.step for event in costs] == [50, 100, 150]


def test_resume_into_a_new_folder_leaves_the_old(run, two_epochs, tmp_path):
    before = {path.name: path.read_bytes() for path in two_epochs.iterdir()}
    assert main(["--resume", str(two_epochs / CHECKPOINT), "--epochs", "3", "--name", "longer"]) == 0
    assert {path.name: path.read_bytes() for path in two_epochs.iterdir()} == before
    assert (tmp_path / "longer" / CHECKPOINT).exists()


def test_resume_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(run, two_epochs, tmp_path):
    for epochs, rows in (("1", 1), ("2", 2), ("2", 2)):
        assert run("--resume", "auto", "--name", "again", "--check-every", "10", "--epochs", epochs) == 0
        assert len(read_metrics(tmp_path / "again")) == rows
    again, whole = (torch.load(folder / CHECKPOINT)["state"] for folder in (tmp_path / "again", two_epochs))
    assert all(torch.equal(a, b) for a, b in zip(again["weights"], whole["weights"], strict=True))


def test_resume_auto_refuses_another_architecture(run, two_epochs, capsys):
    assert run("--resume", "auto", "--name", "mine", "--sizes", "784", "20", "10") == 2
    assert "--sizes: the checkpoint has (784, 30, 10), found (784, 20, 10)" in capsys.readouterr().err


UNFIT = {
    "sizes": (["--sizes", "784", "20", "10"], "--sizes: the checkpoint has (784, 30, 10), found (784, 20, 10)"),
    "dtype": (["--dtype", "float64"], "--dtype: the checkpoint has float32, found float64"),
    "recipe": (["--recipe", "best"], "--recipe: the checkpoint has chapter1, found best"),
}


@pytest.mark.parametrize(("arguments", "message"), UNFIT.values(), ids=UNFIT)
def test_a_checkpoint_of_another_architecture_is_refused(two_epochs, capsys, arguments, message):
    capsys.readouterr()
    assert main(["--resume", str(two_epochs), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_corrupt_checkpoint_is_refused(two_epochs, capsys):
    path = two_epochs / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["--resume", str(two_epochs)]) == 2
    assert f"error: --resume: expected a checkpoint of this program, found {path}" in capsys.readouterr().err
    assert path.stat().st_size == 1000


def test_a_missed_target_is_exit_status_1(run, capsys):
    assert run("--epochs", "1", "--target-accuracy", "100") == 1
    assert "missed: test accuracy" in capsys.readouterr().out


def test_a_stopped_run_is_exit_status_1_and_one_line(run, capsys, tmp_path):
    options = ["--activation", "relu", "--output", "identity", "--learning-rate", "1e30", "--name", "hot"]
    assert run("--epochs", "1", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("stopped: step 1 (epoch 1): the cost became")
    assert error.count("\n") == 1
    assert (tmp_path / "hot" / CHECKPOINT).exists()
    (mark,) = EventAccumulator(str(tmp_path / "hot")).Reload().Tensors("not_finite/text_summary")
    (text,) = mark.tensor_proto.string_val
    assert (mark.step, text.decode().removeprefix("- ")) == (1, error.removeprefix("stopped: ").partition(";")[0])


def test_a_cost_that_stays_finite_with_huge_weights_is_logged(run):
    # Saturated to the last neuron: histograms and norms of 1e38 must not end the run.
    assert run("--epochs", "1", "--learning-rate", "1e38", "--check-every", "0") == 0


def test_help_says_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--backprop", "--check-every", "--resume", "--target-accuracy", "status"))
