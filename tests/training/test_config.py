"""Every recipe is allowed; whatever cannot be run is refused in one line with exit status 2, and nothing is written."""

import pytest

from manual_backprop.training.cli import main, parse
from manual_backprop.training.config import RECIPES, check

REFUSED = {
    "unknown option": (["--colour", "red"], "--colour"),
    "unknown recipe": (["--recipe", "chapter9"], "--recipe: expected one of chapter1, chapter1-100, chapter3, best"),
    "unknown choice": (["--backprop", "magic"], "--backprop"),
    "unknown engine": (["--parallel", "magic"], "--parallel"),
    "auto without a folder": (["--resume", "auto"], "--resume: expected --name too where it is auto"),
    "sizes from 100": (["--sizes", "100", "10"], "--sizes: expected sizes that start with 784"),
    "sizes to 11": (["--sizes", "784", "11"], "--sizes: expected sizes that start with 784 and end with 10"),
    "sizes of one layer": (["--sizes", "784"], "--sizes"),
    "empty layer": (["--sizes", "784", "0", "10"], "--sizes"),
    "no epochs": (["--epochs", "0"], "--epochs: expected at least 1, found 0"),
    "batch of none": (["--batch-size", "0"], "--batch-size: expected at least 1, found 0"),
    "batch above the data": (["--batch-size", "50001"], "--batch-size: expected at most 50000 images, found 50001"),
    "rate nan": (["--learning-rate", "nan"], "--learning-rate: expected a finite positive number, found nan"),
    "rate infinite": (["--learning-rate", "inf"], "--learning-rate: expected a finite positive number, found inf"),
    "rate 0": (["--learning-rate", "0"], "--learning-rate: expected a finite positive number, found 0.0"),
    "rate negative": (["--learning-rate=-1"], "--learning-rate: expected a finite positive number, found -1.0"),
    "rate a word": (["--learning-rate", "fast"], "--learning-rate"),
    "momentum 1": (["--momentum", "1"], "--momentum: expected from 0 to below 1, found 1.0"),
    "l2 negative": (["--l2=-1"], "--l2: expected a finite number, 0 or more, found -1.0"),
    "cross-entropy of relu": (["--cost", "cross_entropy", "--output", "relu"], "--output: expected sigmoid"),
    "device unknown": (["--device", "abacus"], "--device: expected auto, cpu, cuda or cuda:N, found abacus"),
    "device absent": (["--device", "cuda:99"], "--device: expected a CUDA device that torch sees, found cuda:99"),
    "name a path": (["--name", "../up"], "--name: expected the name of one folder, found ../up"),
    "data root not writable": (["--data-root", "/dev/null/x"], "--data-root: expected MNIST, or a folder"),
    "runs not writable": (["--runs", "/dev/null"], "--runs: expected a folder to write to, found /dev/null"),
    "checkpoint absent": (["--resume", "/nowhere/checkpoint.pt"], "--resume: expected a checkpoint, found no file"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(arguments, message, data_root, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert main(["--data-root", str(data_root), "--runs", str(runs), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not runs.exists()


def test_an_existing_run_is_never_overwritten(data_root, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert main(["--data-root", str(data_root), "--runs", str(tmp_path), "--name", "mine"]) == 2
    assert "--name: expected a new folder, found an existing run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_allowed_and_know_their_name(recipe):
    check(RECIPES[recipe].config)
    assert RECIPES[recipe].config.recipe == recipe
    assert RECIPES[recipe].source


def test_every_option_overrides_the_recipe():
    config, saved = parse(["--recipe", "chapter3", "--epochs", "2", "--sizes", "784", "20", "10", "--l2", "0.5"])
    assert saved is None
    assert (config.epochs, config.sizes, config.l2) == (2, (784, 20, 10), 0.5)
    assert (config.cost, config.learning_rate) == ("cross_entropy", 0.1)
