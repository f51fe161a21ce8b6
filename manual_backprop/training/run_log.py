"""The traces that a run leaves: TensorBoard's events, `metrics.csv`, `config.json`, `env.json` and the pictures."""

import csv
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from manual_backprop import _torch
from manual_backprop.feedforward import layers
from manual_backprop.monitor.monitor import LAYOUT, Monitor
from manual_backprop.network import Network
from manual_backprop.programs.environment import environment
from manual_backprop.programs.folder import describe, keep
from manual_backprop.training import pictures
from manual_backprop.training.agreement import Disagreement
from manual_backprop.training.config import Config, as_plain
from manual_backprop.training.data import DIGITS, Images
from manual_backprop.training.evaluation import Score
from manual_backprop.training.learners import LEARNERS, Learner, ModuleLearner
from manual_backprop.training.parallel import Workers

PROJECTED = 1000
"""Test digits in the projector."""


class RunLog:
    """Writes the run in ``folder``.

    Args:
        folder: the run's, already there.
        learner: what is trained. The algorithm without autograd has no module to follow: there, on the steps that are
            inspected, the drop-in layers are given the same weights and mini-batch, and are followed in its place.
        purge_step: steps from this one on that an earlier, interrupted writer left are hidden by TensorBoard.
    """

    def __init__(
        self, folder: Path, config: Config, device: torch.device, learner: Learner, purge_step: int | None = None
    ) -> None:
        self.folder, self.config, self.network = folder, config, learner.network
        # The queue holds everything that one look at the layers writes, so training does not wait for the file.
        self.writer = SummaryWriter(str(folder), purge_step=purge_step, max_queue=1000)
        describe(folder, self.writer, {"config": as_plain(config), "env": environment(device)})
        self.writer.add_custom_scalars(LAYOUT)
        self.module = learner if isinstance(learner, ModuleLearner) else _twin(learner.network, config)
        self.apart = self.module is not learner
        layers = self.module.model.named_modules()
        self.paths = [path for path, layer in layers if isinstance(layer, torch.nn.Linear)]
        # The twin runs only on steps that are to be recorded, so the monitor records each of its passes.
        every = 1 if self.apart else config.inspect_every
        self.monitor = Monitor(self.module.parallel, self.writer, every) if config.inspect_every else None
        self._followed = False

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self.monitor:
            self.monitor.close()
        self.writer.close()

    def before_step(self, x: Tensor, y: Tensor, number: int) -> None:
        """Before the learner's step on a mini-batch."""
        if self.monitor is None:
            return
        self.monitor.step = number
        self._followed = self.apart and number % self.config.inspect_every == 0
        if self._followed:
            (self.module.cost(self.module.model(x), y) / len(x)).backward()
            self.module.model.zero_grad()

    def after_step(self) -> None:
        """After it: the weights have moved."""
        if self.monitor and self._followed:
            self.monitor.flush()

    def paused(self) -> AbstractContextManager[None]:
        """Forward passes in this block are no steps."""
        return self.monitor.paused() if self.monitor else nullcontext()

    def batch(self, step: int, cost: float) -> None:
        self.writer.add_scalar("cost/batch", cost, step)

    def not_finite(self, step: int, found: str) -> None:
        """A step that spoilt the cost, where the monitor may not have looked."""
        self.writer.add_text("not_finite", f"- {found}", step)

    def disagreement(self, step: int, found: Disagreement) -> None:
        for path, weight, bias in zip(self.paths, found.weights, found.biases, strict=True):
            self.writer.add_scalar(f"agreement/{path}/weight", weight, step)
            self.writer.add_scalar(f"agreement/{path}/bias", bias, step)

    def epoch(self, step: int, history: list[dict[str, float]]) -> None:
        """The scores of the epoch, the last row of ``history``."""
        for name, value in history[-1].items():
            what, _, part = name.partition("_")
            self.writer.add_scalar(f"{what}/{part}" if part in ("train", "validation", "test") else name, value, step)
        self._write_metrics(history)

    def results(self, test: Images, score: Score, history: list[dict[str, float]], step: int) -> None:
        """The pictures, and the hyper-parameters with the final figures."""
        outputs = self.network.feedforward(test.x)
        drawn = {
            "curves": pictures.curves(history),
            "confusion": pictures.confusion(score.confusion),
            "most_wrong": pictures.most_wrong(test, outputs),
        }
        for name, figure in drawn.items():
            keep(figure, name, self.folder, self.writer, step)
        self._precision_and_recall(test.labels, outputs, step)
        self._graph(test.x[:1])
        if self.config.projector:
            self._projector(test, step)
        options = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in as_plain(self.config).items()
        }
        # In this order the table begins with the accuracies.
        final = {f"final/{name}": value for name, value in sorted(history[-1].items())}
        # run_name "." keeps it in this run; it would be a run of its own otherwise.
        self.writer.add_hparams(options, final, run_name=".")

    def _precision_and_recall(self, labels: Tensor, outputs: Tensor, step: int) -> None:
        """A curve a digit: its output as the score, from 0 to 1 as TensorBoard takes it."""
        outputs = outputs.float().nan_to_num()
        low, high = min(0.0, float(outputs.min())), max(1.0, float(outputs.max()))
        for digit in range(DIGITS):
            self.writer.add_pr_curve(
                f"precision_recall/{digit}", labels == digit, (outputs[:, digit] - low) / (high - low), step
            )

    def _graph(self, x: Tensor) -> None:
        """The model on "Graphs"; or on "Text" why it is not there, because a run is not to fail by its last picture."""
        try:
            with self.paused():
                _torch.show_graph(self.writer, self.module.model, x)
        except Exception as error:  # whatever tracing raises in this version of torch
            self.writer.add_text("graph", f"The model could not be traced: {type(error).__name__}: {error}")

    def _projector(self, test: Images, step: int) -> None:
        """The activations of the last hidden layer, each with its digit and picture."""
        images = test.x[:PROJECTED]
        activations = [
            a for _, a in layers(self.network.weights, self.network.biases, self.network.activations, images)
        ]
        hidden = [images, *activations][-2]
        thumbnails = 1 - images.float().reshape(-1, 1, 28, 28)
        digits = test.labels[:PROJECTED].tolist()
        self.writer.add_embedding(hidden.float(), digits, thumbnails, step, tag="hidden")

    def _write_metrics(self, history: list[dict[str, float]]) -> None:
        with open(self.folder / "metrics.csv", "w", newline="") as file:
            rows = csv.DictWriter(file, history[0].keys())
            rows.writeheader()
            rows.writerows(history)


def _twin(network: Network, config: Config) -> ModuleLearner:
    """The drop-in layers over the very tensors of the network, whichever of the two trains them."""
    twin = LEARNERS["layers"](network, config, 0.0, Workers())
    assert isinstance(twin, ModuleLearner)
    return twin
