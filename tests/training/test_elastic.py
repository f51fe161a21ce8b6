"""A worker that dies costs an elastic run what it did since its last checkpoint, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from manual_backprop.training import checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_mnist.py"
EPOCHS = 3


def start(*arguments):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "3", str(SCRIPT), "--backprop", "layers", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_epoch(process, folder, epoch):
    """Until that many are in the checkpoint, which is written whole or not at all."""
    deadline = time.monotonic() + 200
    while not (folder / checkpoint.FILE_NAME).exists() or checkpoint.load(folder).epoch < epoch:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in Linux's /proc")
def test_a_killed_worker_changes_nothing(data_root, tmp_path):
    options = ["--data-root", str(data_root), "--runs", str(tmp_path), "--parallel", "ddp", "--resume", "auto"]
    options += ["--epochs", str(EPOCHS), "--batch-size", "1000", "--momentum", "0.5", "--check-every", "0"]
    runs = {name: start(*options, "--name", name) for name in ("disturbed", "undisturbed")}
    wait_for_epoch(runs["disturbed"], tmp_path / "disturbed", 1)
    before = checkpoint.load(tmp_path / "disturbed").history[0]
    os.kill(children(runs["disturbed"])[-1], signal.SIGKILL)
    complaints = {name: process.communicate(timeout=300)[1] for name, process in runs.items()}
    assert {name: process.returncode for name, process in runs.items()} == dict.fromkeys(runs, 0), complaints
    # Each start opens a file of events, and so does the end; restarted workers that fail to meet are started once more.
    events = {name: len(list((tmp_path / name).glob("events*"))) for name in runs}
    assert events["disturbed"] > events["undisturbed"] == 2
    disturbed, undisturbed = (checkpoint.load(tmp_path / name) for name in runs)
    assert [row["epoch"] for row in disturbed.history] == list(range(1, EPOCHS + 1))
    assert disturbed.history[0] == before  # its seconds too: that epoch was not trained again
    for part, tensors in undisturbed.state.items():
        assert len(tensors) == (4 if part == "velocities" else 2)
        assert all(torch.equal(a, b) for a, b in zip(disturbed.state[part], tensors, strict=True))
