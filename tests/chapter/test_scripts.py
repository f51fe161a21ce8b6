"""Each script runs, leaves a PNG and an event file, explains itself, and refuses a bad value in one line."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manual_backprop import network
from manual_backprop.chapter.run import RunOptions
from manual_backprop.programs import options as command_line
from manual_backprop.programs.options import InputError

SCRIPTS = Path(__file__).parents[2] / "scripts"

# The script: arguments that make it quick, what it must print, its pictures and one of its curves.
QUICK = {
    "explain": (["--neuron", "3", "2"], "δ^3_2 = ∂C/∂a^3_2 σ′(z^3_2) = ", ["explain"], "largest_difference/autograd"),
    "how_fast": (["--hidden", "2", "1", "--inputs", "20"], "31", ["how_fast"], "forward_passes/naive"),
    "gradient_descent": ([], "x = 2.2499646074278457 after 70 steps", ["gradient_descent"], "x/quartic_from_6"),
    "perceptron": (["--passes", "50"], "did not converge in 50 passes", ["perceptron"], "mistakes/xor"),
    "activations": ([], "4.5849", ["activations"], "tanh/derivative"),
    "learning_slowdown": (["--data-root", "/nowhere"], "5,000 images", ["mnist", "neuron"], "neuron_speeds/quadratic"),
    "modified_neuron": (["--skip", "MB806", "MB807"], "rules pass", ["modified_neuron"], "off_by/chapter_1"),
    "jacobian_layout": (["--sizes", "2", "3", "2"], "that is BP4", ["jacobian_layout"], "difference"),
}  # fmt: skip

REFUSED = {
    "explain": (["--neuron", "2", "4"], "--neuron: expected a neuron that its layer has, found (2, 4)"),
    "how_fast": (["--epsilon", "0"], "--epsilon: expected from 1e-12 to 0.1, found 0.0"),
    "gradient_descent": (["--rate", "nan"], "--rate: expected a finite positive number, found nan"),
    "perceptron": (["--passes", "0"], "--passes: expected from 1 to 10000, found 0"),
    "activations": (["--bound", "low"], "--bound"),
    "learning_slowdown": (["--epochs", "-1"], "--epochs: expected from 1 to 100000, found -1"),
    "modified_neuron": (["--skip", "MB999"], "--skip: expected codes of rules, such as MB806, found ('MB999',)"),
    "jacobian_layout": (["--sizes", "3", "4"], "--sizes"),
}


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs a script in this process, which spares it the imports: (exit status, stdout, stderr)."""

    def run(script, *arguments):
        path = str(SCRIPTS / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
        return stop.value.code or 0, *capsys.readouterr()

    return run


def test_every_script_of_the_notes_is_tried():
    notes = {path.stem for path in SCRIPTS.glob("*.py") if "manual_backprop.chapter" in path.read_text()}
    assert notes == set(QUICK) == set(REFUSED)


@pytest.mark.parametrize("script", QUICK)
def test_it_runs(script, tmp_path):
    arguments, words, pictures, curve = QUICK[script]
    command = [
        sys.executable,
        "-W",
        "error",
        SCRIPTS / f"{script}.py",
        *arguments,
        "--runs",
        tmp_path,
        "--name",
        "mine",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout
    folder = tmp_path / "mine"
    assert sorted(path.stem for path in folder.glob("*.png")) == pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    events = EventAccumulator(str(folder)).Reload()
    assert sorted(events.Tags()["images"]) == pictures
    assert len(events.Scalars(curve)) > 1
    assert (folder / "config.json").exists()
    assert (folder / "env.json").exists()


@pytest.mark.parametrize("script", QUICK)
def test_help_says_the_options(script, run_here):
    status, text, error = run_here(script, "--help")
    assert (status, error) == (0, "")
    assert all(words in text for words in ("--runs", "--name", REFUSED[script][0][0], "exit status"))


@pytest.mark.parametrize("script", REFUSED)
def test_a_bad_value_is_refused_in_one_line(script, run_here, tmp_path):
    arguments, message = REFUSED[script]
    status, _, error = run_here(script, *arguments, "--runs", tmp_path / "runs")
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_complaint_in_an_ascii_box_is_one_line_too():
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(InputError) as error:  # of no encoding
        command_line.parse(RunOptions, RunOptions(), ["--nope"])
    assert str(error.value) == "Unrecognized options: --nope"


def test_an_existing_run_is_never_overwritten(run_here, tmp_path):
    (tmp_path / "mine").mkdir()
    status, _, error = run_here("activations", "--runs", tmp_path, "--name", "mine")
    assert (status, error) == (2, f"error: --name: expected a new folder, found an existing run {tmp_path / 'mine'}\n")
    assert not list((tmp_path / "mine").iterdir())


def test_a_check_that_fails_is_exit_status_1(run_here, tmp_path, monkeypatch):
    right = network.hidden_error
    monkeypatch.setattr(network, "hidden_error", lambda w, *others: right(1.001 * w, *others))
    status, text, _ = run_here("explain", "--runs", tmp_path)
    assert status == 1
    assert "e-05 from autograd" in text
    assert len(list(tmp_path.glob("explain-*/explain.png"))) == 1
