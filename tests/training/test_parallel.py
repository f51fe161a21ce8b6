"""Two processes end where one does: the gradients are those of the same global batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from manual_backprop.training.cli import main

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_mnist.py"


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backprop", "parallel"),
    [("layers", "ddp"), ("autograd", "ddp"), ("layers", "fsdp"), ("layers", "tensor"), ("autograd", "tensor")],
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
