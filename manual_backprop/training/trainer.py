"""The training loop: epochs of mini-batches, with a look at every so many steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_backprop.feedforward import layers
from manual_backprop.network import Network
from manual_backprop.training import agreement, checkpoint
from manual_backprop.training.agreement import Step, TrainingStopped
from manual_backprop.training.checkpoint import Checkpoint
from manual_backprop.training.config import Config
from manual_backprop.training.data import Mnist, displaced
from manual_backprop.training.evaluation import Score, score
from manual_backprop.training.learners import LEARNERS, Learner, State, clone_state, initial_network, load_state
from manual_backprop.training.parallel import Workers
from manual_backprop.training.progress import Progress
from manual_backprop.training.run_log import RunLog

LOOK = 250
"""Steps between two looks at the cost: nothing waits for the device, or is copied from it, in between."""


class Trainer:
    """Trains one network on MNIST.

    Args:
        config: what to train, and how.
        data: on ``device``.
        device: where everything is computed.
        workers: the processes; rank 0 alone writes.
        folder: where checkpoints go; None for a run that leaves nothing.
        log: what is logged; None in all processes but the first.
        progress: what is shown.

    Attributes:
        learner: the way to the gradient; ``learner.network`` holds the weights.
        epoch, step: complete epochs, and steps in the current one.
        history: a row an epoch.
        interrupted: the signal that stopped training, or None.
    """

    def __init__(
        self,
        config: Config,
        data: Mnist,
        device: torch.device,
        workers: Workers | None = None,
        folder: Path | None = None,
        log: RunLog | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.data, self.device, self.workers = config, data, device, workers or Workers()
        self.folder, self.log, self.progress = folder, log, progress or Progress(config, shown=False)
        network = initial_network(config, device)
        self.weight_decay = config.l2 / len(data.train)
        self.learner: Learner = LEARNERS[config.backprop](network, config, self.weight_decay, self.workers)
        self.steps_per_epoch = -(-len(data.train) // config.batch_size)
        self.epoch = self.step = 0
        self.history: list[dict[str, float]] = []
        self.worst_disagreement = self.last_cost = 0.0
        self.interrupted: signal.Signals | None = None

    @property
    def network(self) -> Network:
        return self.learner.network

    @property
    def total_steps(self) -> int:
        """Since the start of the run."""
        return self.epoch * self.steps_per_epoch + self.step

    def resume(self, saved: Checkpoint) -> None:
        """Go on where a checkpoint was written."""
        load_state(self.learner, saved.state)
        self.epoch, self.step, self.history = saved.epoch, saved.step, saved.history
        self.worst_disagreement = saved.worst_disagreement

    def fit(self) -> Score:
        """Train to the last epoch, or until a signal comes, and score the network on the test images.

        Raises:
            TrainingStopped: the cost is not finite, or a step is not that of autograd and `torch.optim.SGD`.
        """
        self.save()  # so that there is a last good checkpoint from the start
        with self._signals(), self.progress:
            while self.epoch < self.config.epochs and not self.interrupted:
                self._train_epoch()
                self.save()
        return score(self.network, self.data.test, self.workers)

    def save(self) -> None:
        state = clone_state(self.learner)  # asked of all processes, because each may have a part of it
        if self.folder and self.workers.first:
            content = (self.config, self.epoch, self.step, state, self.history, self.worst_disagreement)
            checkpoint.save(Checkpoint(*content), self.folder)

    def learning_rate(self, ahead: int = 0) -> float:
        """η, so many steps ahead of the current one."""
        if self.config.schedule == "constant":
            return self.config.learning_rate
        done = (self.total_steps + ahead) / (self.config.epochs * self.steps_per_epoch)
        return self.config.learning_rate * (1 - done)

    def _train_epoch(self) -> None:
        pixels, batches = self._batches()
        started, first_step = time.perf_counter(), self.step
        while self.step < self.steps_per_epoch and not self.interrupted:
            self._train_until_look(pixels, batches[self.step : self.step + LOOK])
            images = min(self.step * self.config.batch_size, len(self.data.train))
            rate = (self.step - first_step) * self.config.batch_size / (time.perf_counter() - started)
            self.progress.look(self.epoch, images, len(self.data.train), self.last_cost, rate)
        if self.step == self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0
            self._end_epoch(time.perf_counter() - started)

    def _batches(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The pixels of this epoch and the indices of its mini-batches: they follow from the seed and the epoch."""
        train = self.data.train
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.epoch + 1) % 2**63)
        order = torch.randperm(len(train), generator=generator).to(self.device)
        pixels = displaced(train.x, self.config.shift, generator) if self.config.shift else train.x
        return pixels, order.split(self.config.batch_size)

    def _train_until_look(self, pixels: Tensor, batches: tuple[Tensor, ...]) -> None:
        before = clone_state(self.learner), self.step
        rest = batches
        while rest and not (self.interrupted and self.workers.size == 1):
            count = self._steps_in_one_call()
            self._train_steps(pixels, rest[:count])
            rest = rest[count:]
        self.learner.gather()
        self._agree_on_interruption()
        self.last_cost = self._cost(pixels, batches[-1])
        if not (_finite(self.last_cost) and self._parameters_finite()):
            load_state(self.learner, before[0])
            self.step = before[1]
            self._name_the_step(pixels, batches)
        if self.log:
            self.log.batch(self.total_steps, self.last_cost)

    def _train_steps(self, pixels: Tensor, batches: tuple[Tensor, ...]) -> None:
        """With nothing in between; the first of them is held against torch's where that is due."""
        targets = self.data.train.y
        # Each process takes its share of the images, but not under tensor parallel, which divides the neurons.
        whole = self.workers.size == 1 or self.config.parallel == "tensor"
        mine = batches if whole else [batch[self.workers.rank :: self.workers.size] for batch in batches]
        rates = [self.learning_rate(step) for step in range(len(batches))]

        def take(part: slice) -> None:
            if batches[part]:
                self.learner.steps(pixels, targets, mine[part], [len(batch) for batch in batches[part]], rates[part])

        if self.log:
            self.log.before_step(pixels[mine[0]], targets[mine[0]], self.total_steps)
        if self.config.check_every and self.total_steps % self.config.check_every == 0:
            before = self._state()
            take(slice(0, 1))
            self._check(before, pixels[batches[0]], targets[batches[0]], rates[0])
            take(slice(1, None))
        else:
            take(slice(None))
        if self.log:
            self.log.after_step()
        self.step += len(batches)

    def _state(self) -> State:
        """A copy, brought together from all processes."""
        self.learner.gather()
        return clone_state(self.learner)

    def _steps_in_one_call(self) -> int:
        """Up to the next one that is checked or inspected; one that is inspected is alone."""
        inspect_every = self.config.inspect_every if self.log else 0
        if inspect_every and self.total_steps % inspect_every == 0:
            return 1
        return min(
            every - self.total_steps % every for every in (self.config.check_every, inspect_every, LOOK) if every
        )

    def _check(self, before: State, x: Tensor, y: Tensor, learning_rate: float) -> None:
        """Hold the step just taken from ``before`` on the mini-batch x, y against torch's.

        Raises:
            TrainingStopped: it is another one.
        """
        step = Step(x, y, learning_rate, self.config.momentum, self.weight_decay)
        found = agreement.measure(self.network, before, self._state(), step)
        self.worst_disagreement = max(self.worst_disagreement, found.worst)
        if self.log:
            self.log.disagreement(self.total_steps, found)
        agreement.require_agreement(found, self.total_steps, self.config.torch_dtype)

    def _cost(self, pixels: Tensor, batch: Tensor) -> float:
        return float(self.network.mean_cost(pixels[batch], self.data.train.y[batch]))

    def _parameters_finite(self) -> bool:
        parameters = self.network.weights + self.network.biases
        # The sum is asked first, because it takes less time, and is finite only where all are.
        return all(bool(p.sum().isfinite()) or bool(p.isfinite().all()) for p in parameters)

    def _name_the_step(self, pixels: Tensor, batches: tuple[Tensor, ...]) -> None:
        """Take the steps since the last look again, one by one, up to the one that spoils the cost."""
        for batch in batches:
            self._train_steps(pixels, (batch,))
            self.learner.gather()
            cost = self._cost(pixels, batch)
            if not (_finite(cost) and self._parameters_finite()):
                layer = first_layer_not_finite(self.network, pixels[batch])
                found = (
                    f"step {self.total_steps} (epoch {self.epoch + 1}): the cost became {cost:g}, first in layer "
                    f"{layer} of {len(self.network.weights) + 1}"
                )
                if self.log:
                    self.log.not_finite(self.total_steps, found)
                raise TrainingStopped(f"{found}; the last good checkpoint is kept; a smaller --learning-rate may help")

    def _end_epoch(self, seconds: float) -> None:
        row: dict[str, float] = {"epoch": self.epoch}
        for part, images in self.data._asdict().items():
            if len(images):
                found = score(self.network, images, self.workers)
                row |= {f"cost_{part}": found.cost, f"accuracy_{part}": found.accuracy}
        self.worst_disagreement = self.workers.maximum(self.worst_disagreement, self.device)
        row |= {"seconds": seconds, "images_per_second": len(self.data.train) / seconds}
        self.history.append(row)
        self.progress.epoch(row)
        if self.log:
            self.log.epoch(self.total_steps, self.history)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def interrupt(number: int, frame: Any) -> None:
            self.interrupted = signal.Signals(number)

        # Python gives signals to the main thread only; in another one (of a notebook, say) nothing is caught.
        caught = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, interrupt) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _agree_on_interruption(self) -> None:
        """All processes stop at the same step, or none."""
        number = int(self.workers.maximum(self.interrupted or 0, self.device))
        self.interrupted = signal.Signals(number) if number else None


def first_layer_not_finite(network: Network, x: Tensor) -> int:
    """The first layer, counted as in the book (2 is the first with weights), whose weights, biases or weighted inputs
    are NaN or infinite; else the last, whose finite outputs have an infinite cost."""
    passed = layers(network.weights, network.biases, network.activations, x)
    for layer, (w, b, (z, _)) in enumerate(zip(network.weights, network.biases, passed, strict=True), start=2):
        if not all(bool(tensor.isfinite().all()) for tensor in (w, b, z)):
            return layer
    return len(network.weights) + 1


def _finite(x: float) -> bool:
    return x - x == 0
