"""What a run leaves behind: TensorBoard's events, `metrics.csv`, `config.json`, `env.json` and the pictures."""

import csv
import importlib.metadata
import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from manual_backprop import kernels
from manual_backprop.activations import Activation
from manual_backprop.network import Network
from manual_backprop.training import pictures
from manual_backprop.training.config import Config, as_plain
from manual_backprop.training.data import Images
from manual_backprop.training.evaluation import Score

SATURATED = 0.01
"""A neuron is called saturated where σ′(z) is below this: for the sigmoid, whose σ′ is at most 0.25, |z| above 4.6."""

INSPECTED = 1000
"""Training images that δ, gradients and saturation are taken on after each epoch."""

LAYOUT = {
    "Learning": {what: ["Multiline", [f"{what}/train", f"{what}/test"]] for what in ("cost", "accuracy")},
    "Layer by layer": {what: ["Multiline", [f"{what}/layer.*"]] for what in ("error", "gradient", "saturation")},
}


class Monitor:
    """Writes the run in ``folder``.

    Args:
        folder: the run's, already there.
        purge_step: steps from this one on that an earlier, interrupted writer left are hidden by TensorBoard.
    """

    def __init__(self, folder: Path, config: Config, device: torch.device, purge_step: int | None = None) -> None:
        self.folder, self.config = folder, config
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        for name, content in (("config", as_plain(config)), ("env", environment(device))):
            text = json.dumps(content, indent=2)
            (folder / f"{name}.json").write_text(text + "\n")
            self.writer.add_text(name, f"```json\n{text}\n```")
        self.writer.add_custom_scalars(LAYOUT)

    def batch(self, step: int, cost: float) -> None:
        self.writer.add_scalar("cost/batch", cost, step)

    def disagreement(self, step: int, worst: float) -> None:
        self.writer.add_scalar("agreement/worst_relative_error", worst, step)

    def epoch(self, step: int, history: list[dict[str, float]], network: Network, train: Images) -> None:
        """The scores of the epoch, the last row of ``history``, and a look inside each layer."""
        for name, value in history[-1].items():
            what, _, part = name.partition("_")
            self.writer.add_scalar(f"{what}/{part}" if part in ("train", "validation", "test") else name, value, step)
        self._inspect(step, network, train)
        self._write_metrics(history)

    def close(self, network: Network, test: Images, score: Score, history: list[dict[str, float]], step: int) -> None:
        """The pictures, and the hyper-parameters with the final figures."""
        drawn = {
            "curves": pictures.curves(history),
            "confusion": pictures.confusion(score.confusion),
            "most_wrong": pictures.most_wrong(test, network.feedforward(test.x)),
        }
        for name, figure in drawn.items():
            figure.savefig(self.folder / f"{name}.png", dpi=120)
            self.writer.add_figure(name, figure, step, close=False)
        options = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in as_plain(self.config).items()
        }
        final = {f"final/{name}": value for name, value in history[-1].items()}
        # run_name "." keeps it in this run; it would be a run of its own otherwise.
        self.writer.add_hparams(options, final, run_name=".")
        self.writer.close()

    def _inspect(self, step: int, network: Network, train: Images) -> None:
        x, y = train.x[:INSPECTED], train.y[:INSPECTED]
        gradients = network.backprop(x, y)
        inputs = x
        for layer, (w, b, f) in enumerate(zip(network.weights, network.biases, network.activations, strict=True)):
            z = torch.nn.functional.linear(inputs, w, b)
            inputs = f.function(z)
            # δ belongs to the mean cost; times N it is the error of one image.
            error = gradients.deltas[layer] * len(x)
            scalars = {
                "error": error.float().norm(dim=-1).mean(),
                "gradient/weights": gradients.weights[layer].float().norm(),
                "gradient/biases": gradients.biases[layer].float().norm(),
                "saturation": saturated(f, z, inputs),
            }
            histograms = {
                "weights": w,
                "biases": b,
                "gradients/weights": gradients.weights[layer],
                "gradients/biases": gradients.biases[layer],
                "deltas": error,
            }
            for group, scalar in scalars.items():
                self.writer.add_scalar(_tag(group, layer), scalar, step)
            for group, values in histograms.items():
                self._histogram(_tag(group, layer), values, step)
        self.writer.add_image("weights/layer1", weight_images(network.weights[0]), step)

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        # add_histogram squares the values, has no bin above 1e20, and raises where it counts nothing.
        finite = values.double()[values.isfinite()].clamp(-1e19, 1e19)
        if len(finite):
            self.writer.add_histogram(tag, finite, step)

    def _write_metrics(self, history: list[dict[str, float]]) -> None:
        with open(self.folder / "metrics.csv", "w", newline="") as file:
            rows = csv.DictWriter(file, history[0].keys())
            rows.writeheader()
            rows.writerows(history)


def _tag(group: str, layer: int) -> str:
    first, _, rest = group.partition("/")
    return "/".join(part for part in (first, f"layer{layer + 1}", rest) if part)


def saturated(activation: Activation, z: Tensor, a: Tensor) -> float:
    """The share of neurons with σ′(z) below `SATURATED`."""
    derivative = torch.as_tensor(activation.derivative_at(z, a))
    return float((derivative < SATURATED).float().mean())


def weight_images(weight: Tensor, most: int = 100) -> Tensor:
    """The incoming weights of the first neurons as 28 × 28 pictures in one, ``(1, height, width)``: grey is 0."""
    from torchvision.utils import make_grid

    rows = weight[:most].float()
    scaled = 0.5 + 0.5 * rows / rows.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return make_grid(scaled.reshape(-1, 1, 28, 28), nrow=10, pad_value=1.0)[:1]


def environment(device: torch.device) -> dict:
    """Everything that a run depends on and its configuration does not say."""
    packages = ("torchvision", "tensorboard", "manual_backprop")
    return {
        "command": " ".join(sys.argv),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel": kernels.chosen(),
        **{name: importlib.metadata.version(name) for name in packages},
        "torch": torch.__version__,  # with its build, which the metadata leaves out
    }


def _git_commit() -> str | None:
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
