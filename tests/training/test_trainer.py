"""A run goes on bit for bit where it stopped, stops where it must, and leaves the last good checkpoint."""

import dataclasses
import math
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manual_backprop.training import checkpoint
from manual_backprop.training.agreement import TrainingStopped
from manual_backprop.training.data import Images, Mnist, load
from manual_backprop.training.trainer import Trainer

BACKPROPS = ("network", "layers", "autograd")
FAST = {"momentum": 0.5, "l2": 1.0, "shift": 1, "batch_size": 128}


def parameters(trainer):
    return trainer.network.weights + trainer.network.biases + trainer.learner.velocities()


def assert_same(first, second):
    for a, b in zip(parameters(first), parameters(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backprop", BACKPROPS)
def test_two_and_three_epochs_are_five(make_config, make_trainer, tmp_path, backprop):
    config = make_config(epochs=5, backprop=backprop, **FAST)
    whole = make_trainer(config, 1000)
    whole.fit()
    make_trainer(dataclasses.replace(config, epochs=2), 1000, folder=tmp_path).fit()
    rest = make_trainer(config, 1000)
    rest.resume(checkpoint.load(tmp_path))
    assert rest.epoch == 2
    rest.fit()
    assert_same(rest, whole)
    assert [row["epoch"] for row in rest.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_finishes_the_step_and_saves(make_config, make_trainer, tmp_path, monkeypatch, number):
    config = make_config(epochs=2, schedule="linear", **FAST)
    whole = make_trainer(config, 1000)
    whole.fit()

    def step_and_signal(trainer, *arguments):
        train_step(trainer, *arguments)
        if trainer.total_steps == 11:  # in the middle of the second epoch
            signal.raise_signal(number)

    train_step = Trainer._train_steps
    monkeypatch.setattr(Trainer, "_train_steps", step_and_signal)
    monkeypatch.setattr("manual_backprop.training.trainer.LOOK", 1)
    stopped = make_trainer(config, 1000, folder=tmp_path)
    stopped.fit()
    assert (stopped.interrupted, stopped.total_steps) == (number, 11)
    monkeypatch.undo()
    saved = checkpoint.load(tmp_path)
    assert (saved.epoch, saved.step) == (1, 3)
    rest = make_trainer(config, 1000)
    rest.resume(saved)
    rest.fit()
    assert_same(rest, whole)


def test_a_run_in_another_thread(make_config, make_trainer):
    """A notebook's worker, say: signals are the main thread's, and the run does without."""
    config = make_config(epochs=2, **FAST)
    here, there = (make_trainer(config, 1000) for _ in range(2))
    here.fit()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(there.fit).result()
    assert_same(there, here)


@pytest.mark.parametrize("backprop", BACKPROPS)
def test_a_cost_that_is_not_finite_names_the_first_step_and_layer(make_config, make_trainer, tmp_path, backprop):
    config = make_config(
        activation="relu", output="identity", learning_rate=1e3, batch_size=1, check_every=0, backprop=backprop
    )
    trainer = make_trainer(config, 300, folder=tmp_path)
    with pytest.raises(TrainingStopped, match=r"the cost became (nan|inf), first in layer [23] of 3") as stopped:
        trainer.fit()
    assert all(bool(w.isfinite().all()) for w in checkpoint.load(tmp_path).state["weights"])

    by_hand = make_trainer(config, 300)
    pixels, batches = by_hand._batches()
    for batch in batches:
        by_hand._train_steps(pixels, (batch,))
        if not math.isfinite(by_hand._cost(pixels, batch)):
            break
    assert str(stopped.value).startswith(f"step {by_hand.total_steps} (epoch 1)")


def test_the_linear_schedule_falls_to_zero(make_config, make_trainer):
    trainer = make_trainer(make_config(schedule="linear", epochs=4, learning_rate=2.0), 1000)
    rates = []
    for trainer.epoch in range(5):
        rates.append(trainer.learning_rate())
    assert rates == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_every_image_is_seen_once_an_epoch_in_another_order(make_config, make_trainer):
    trainer = make_trainer(make_config(batch_size=300), 1000)
    first = torch.cat(trainer._batches()[1])
    trainer.epoch = 1
    second = torch.cat(trainer._batches()[1])
    assert [len(batch) for batch in trainer._batches()[1]] == [300, 300, 300, 100]
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(second.sort().values, torch.arange(1000))
    assert not torch.equal(first, second)


def test_a_training_step_stays_on_its_device(make_config):
    """Without a GPU: fake tensors have a device and no values. (The autograd engine needs the GPU even so.)"""
    device = torch.device("cuda")
    config = make_config(momentum=0.5, l2=1.0, shift=1, check_every=0, batch_size=16)
    with FakeTensorMode():
        images = Images(
            torch.zeros(50, 784, device=device),
            torch.zeros(50, dtype=torch.int64, device=device),
            torch.zeros(50, 10, device=device),
        )
        trainer = Trainer(config, Mnist(images, images, images), device)
        order = torch.randperm(50).to(device)
        trainer._train_steps(images.x, (order[:16],))
        assert {p.device.type for p in parameters(trainer)} == {"cuda"}
        assert len(parameters(trainer)) == 8
        assert trainer.network.mean_cost(images.x, images.y).device.type == "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("backprop", BACKPROPS)
def test_a_run_on_cuda_learns_what_the_cpu_learns(make_config, backprop):
    config = make_config(epochs=1, dtype="float64", backprop=backprop, **{**FAST, "shift": 0})
    ends = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        trainer = Trainer(config, load(config, device)[0], device)
        trainer.fit()
        ends.append(parameters(trainer))
    for cpu, cuda in zip(*ends, strict=True):
        torch.testing.assert_close(cpu, cuda.cpu(), rtol=0, atol=1e-9)
