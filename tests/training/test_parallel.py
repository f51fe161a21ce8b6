"""Two processes end where one does: the gradients are those of the same global batch."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from manual_backprop.training import agreement, checkpoint
from manual_backprop.training.cli import main
from manual_backprop.training.config import Config
from manual_backprop.training.data import Images, Mnist
from manual_backprop.training.learners import clone_state
from manual_backprop.training.parallel import ENGINES, Workers, from_environment
from manual_backprop.training.trainer import Trainer
from tests.dropin.processes import in_processes

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_mnist.py"


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backprop", "parallel"),
    [("layers", "ddp"), ("autograd", "ddp"), ("layers", "fsdp"), ("layers", "tensor")],
    ids=lambda option: option,
)
def test_two_processes_train_as_one(data_root, tmp_path, backprop, parallel):
    # 999: the halves of a batch differ, and the last batch is a smaller one.
    arguments = ["--data-root", str(data_root), "--runs", str(tmp_path), "--backprop", backprop, "--dtype", "float64"]
    arguments += ["--epochs", "1", "--batch-size", "999", "--momentum", "0.5", "--check-every", "20"]
    done = torchrun(*arguments, "--parallel", parallel, "--name", "two")
    assert done.returncode == 0, done.stderr
    assert main([*arguments, "--name", "one"]) == 0
    two, one = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("two", "one"))
    for part in ("weights", "biases", "velocities"):
        for a, b in zip(two["state"][part], one["state"][part], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    for metric in ("cost_train", "accuracy_train", "cost_test", "accuracy_test"):
        assert two["history"][0][metric] == pytest.approx(one["history"][0][metric], rel=1e-9)
    assert len(list((tmp_path / "two").glob("events*"))) == len(list((tmp_path / "one").glob("events*")))


@pytest.mark.slow
def test_the_network_is_one_process(data_root, tmp_path):
    done = torchrun("--data-root", str(data_root), "--runs", str(tmp_path))
    assert done.returncode != 0
    assert "--backprop: expected layers or autograd for 2 processes, found network" in done.stderr


def options(backprop, parallel):
    # 7 and 5 neurons: two processes do not get the same number. 3 images are left for the last mini-batch.
    sizes = {"sizes": (784, 7, 5, 10), "init": "scaled", "dtype": "float64", "momentum": 0.5, "l2": 1.0}
    return Config(backprop=backprop, parallel=parallel, batch_size=10, check_every=4, **sizes)


def trainer_of(config, epochs, folder=None):
    """On made-up images; one of the processes, where there are many."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(10, (43,), generator=generator)
    x = torch.rand(43, 784, dtype=torch.float64, generator=generator)
    images = Images(x, labels, torch.nn.functional.one_hot(labels, 10).double())
    workers = Workers(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Workers()
    config = dataclasses.replace(config, epochs=epochs)
    return Trainer(config, Mnist(images, images, images), torch.device("cpu"), workers, folder)


def train(config, epochs, save_to=None, resume_from=None):
    """The state at the end, how far apart the gradients were at each look, and how the parameters were divided."""
    trainer, looks, measure = trainer_of(config, epochs, save_to), [], agreement.measure

    def seen(*arguments):
        looks.append(measure(*arguments))
        return looks[-1]

    if resume_from:
        trainer.resume(checkpoint.load(resume_from))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "measure", seen)
        trainer.fit()
    divided = [str(getattr(parameter, "placements", "whole")) for parameter in trainer.learner.trained]
    return clone_state(trainer.learner), [look.worst for look in looks], divided


DIVIDED = {
    "ddp": ["whole"] * 6,
    "fsdp": ["(Shard(dim=0),)"] * 6,
    # By columns, by rows, by columns: Nielsen's rows are the neurons, which is what the columns are of.
    "tensor": [f"({how},)" for how in ("Shard(dim=0)", "Shard(dim=1)", "Shard(dim=0)")]
    + [f"({how},)" for how in ("Shard(dim=0)", "Replicate()", "Shard(dim=0)")],
}


@pytest.mark.parametrize("parallel", ENGINES)
@pytest.mark.parametrize("backprop", ["layers", "autograd"])
def test_two_processes_are_one(backprop, parallel):
    config = options(backprop, parallel)
    alone, _, _ = train(config, 2)
    for state, looks, divided in in_processes(train, config, 2):
        torch.testing.assert_close(state, alone, rtol=0, atol=1e-12)
        assert len(looks) == 3  # of ten steps, every fourth
        assert max(looks) < 1e-9
        assert divided == DIVIDED[parallel]


@pytest.mark.parametrize("parallel", ENGINES)
@pytest.mark.parametrize("first", ["one_then_two", "two_then_one"])
def test_a_checkpoint_goes_on_in_another_number_of_processes(tmp_path, first, parallel):
    config = options("layers", parallel)
    whole, _, _ = train(config, 4)
    if first == "one_then_two":
        train(config, 2, save_to=tmp_path)
        ends = in_processes(train, config, 4, None, tmp_path)
    else:
        in_processes(train, config, 2, tmp_path)
        ends = [train(config, 4, resume_from=tmp_path)]
    for state, _, _ in ends:
        torch.testing.assert_close(state, whole, rtol=0, atol=1e-12)


def test_one_process_has_nothing_to_divide():
    for parallel in ENGINES:
        assert train(options("layers", parallel), 1)[2] == ["whole"] * 6


def test_restarts_need_a_checkpoint_to_go_on_from(data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert from_environment().restarts == 3
    assert main(["--data-root", str(data_root), "--runs", str(tmp_path)]) == 2
    assert "--resume: expected auto with --max-restarts 3, found nothing to go on from" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
