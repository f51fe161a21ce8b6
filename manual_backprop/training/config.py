"""The options of a training run, the recipes that set them, and the rules that refuse them."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from manual_backprop import activations
from manual_backprop.programs import options as command_line
from manual_backprop.programs.options import InputError as InputError

AUTO = Path("auto")
"""The value of ``--resume`` that looks for a checkpoint; a folder of that name is ./auto."""


@dataclass(frozen=True)
class Config:
    """Train a network on MNIST with hand-written backpropagation."""

    recipe: str = "chapter1"
    """A named configuration, which every other option overrides: chapter1, chapter1-100, chapter3, best."""
    backprop: Literal["network", "layers", "autograd"] = "network"
    """network: the algorithm with no autograd; layers: the drop-in layers under autograd; autograd: plain torch.nn."""
    compile: bool = False
    """Many steps of network in one call of C++, where the network is small; needs a C++ compiler."""
    parallel: Literal["ddp", "fsdp", "tensor"] = "ddp"
    """How the processes of torchrun share the work: ddp: the images of a mini-batch; fsdp: the images, and the
    parameters too; tensor: the neurons. One process has nothing to divide."""
    sizes: tuple[int, ...] = (784, 30, 10)
    """Neurons a layer, from 784 pixels to 10 digits."""
    activation: activations.Name = "sigmoid"
    """Of the hidden layers."""
    output: activations.Name = "sigmoid"
    """Activation of the output layer."""
    cost: Literal["quadratic", "cross_entropy"] = "quadratic"
    """quadratic: mean over images of half the squared norm; cross_entropy: needs sigmoid outputs."""
    init: Literal["normal", "scaled", "torch"] = "normal"
    """Weights from N(0, 1), from N(0, 1/inputs) with biases from N(0, 1), or as torch.nn.Linear draws both."""
    epochs: int = 30
    """Passes through the training images."""
    batch_size: int = 10
    """Images a mini-batch, over all processes."""
    learning_rate: float = 3.0
    """η."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: η falls to 0 at the end of the last epoch."""
    momentum: float = 0.0
    """μ, from 0 to below 1."""
    l2: float = 0.0
    """λ of the L2 term λ/2n Σw², n the number of training images; biases are left out."""
    shift: int = 0
    """Displace each training image at random by up to so many pixels, anew each epoch."""
    validation: bool = True
    """Hold a sixth of the training images out for validation, as the book does (10,000 of 60,000)."""
    data_root: Path = Path("data")
    """Folder with MNIST/raw/*-ubyte; downloaded into it where absent."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes CUDA where there is one."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    """Of weights, activations and gradients."""
    seed: int = 0
    """Of the weights, the order of the images and their shifts."""
    threads: int = 1
    """Threads that torch computes with; 0 leaves torch's own choice. Batches of ten are too small to share."""
    check_every: int = 1000
    """Hold the step taken against that of autograd and torch.optim.SGD every so many steps; 0: never."""
    inspect_every: int = 5000
    """Look into the layers (δ, saturation, gradients, learning speed) every so many steps; 0: never."""
    projector: bool = False
    """Lay the hidden activations of test digits into TensorBoard's projector."""
    target_accuracy: float = 0.0
    """Exit with status 1 if the test accuracy ends below so many percent."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str = ""
    """Folder of this run; recipe, backprop, seed and time where it is empty. Never an existing one."""
    resume: Path | None = None
    """Go on from a checkpoint (the file, or the folder of its run), with its options and in its folder. auto: from that
    of --name where there is one, else from the start; what torchrun --max-restarts needs."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device)


class Recipe(NamedTuple):
    """A configuration with its source, and the percentage that the source reports for it, on which images."""

    config: Config
    source: str
    reported: float | None
    measured_on: Literal["test", "validation"]


RECIPES = {
    "chapter1": Recipe(
        # Seven of the seeds 0 to 19 end at 95 % or more on the test images, this one at 95.06; the mean is 94.5, or
        # 94.9 without seed 10, where one digit is never learnt. The book shows the best of three runs.
        Config(seed=14),
        'chapter 1, "Implementing our network to classify digits"',
        reported=95.42,
        measured_on="test",
    ),
    "chapter1-100": Recipe(
        Config(recipe="chapter1-100", sizes=(784, 100, 10)),
        'chapter 1, "Implementing our network to classify digits"',
        reported=96.59,
        measured_on="test",
    ),
    "chapter3": Recipe(
        Config(
            recipe="chapter3",
            sizes=(784, 100, 10),
            cost="cross_entropy",
            learning_rate=0.1,
            l2=5.0,
            epochs=60,
        ),
        'chapter 3, "Overfitting and regularization"',
        reported=98.04,
        measured_on="validation",
    ),
    "best": Recipe(
        Config(
            recipe="best",
            sizes=(784, 800, 10),
            activation="relu",
            cost="cross_entropy",
            init="torch",
            epochs=20,
            batch_size=100,
            learning_rate=0.1,
            schedule="linear",
            momentum=0.9,
            shift=1,
            validation=False,
            threads=0,
            inspect_every=500,
        ),
        'our own; one hidden layer of 800 as in Simard, Steinkraus and Platt (2003), shifts as in chapter 3, "Other '
        'techniques for regularization"',
        reported=None,
        measured_on="test",
    ),
}

RULES: list[command_line.Rule] = [
    ("sizes", "sizes that start with 784 and end with 10, each at least 1", lambda c: _sizes_fit(c.sizes)),
    ("epochs", "at least 1", lambda c: c.epochs >= 1),
    ("batch_size", "at least 1", lambda c: c.batch_size >= 1),
    ("learning_rate", "a finite positive number", lambda c: math.isfinite(c.learning_rate) and c.learning_rate > 0),
    ("momentum", "from 0 to below 1", lambda c: 0 <= c.momentum < 1),
    ("l2", "a finite number, 0 or more", lambda c: math.isfinite(c.l2) and c.l2 >= 0),
    ("shift", "from 0 to 4 pixels, the margin of the digits", lambda c: 0 <= c.shift <= 4),
    ("threads", "0 or more", lambda c: c.threads >= 0),
    ("check_every", "0 or more", lambda c: c.check_every >= 0),
    ("inspect_every", "0 or more", lambda c: c.inspect_every >= 0),
    ("seed", "from 0 to 2**63 - 1", lambda c: 0 <= c.seed < 2**63),
    ("target_accuracy", "from 0 to 100 percent", lambda c: 0 <= c.target_accuracy <= 100),
    ("output", "sigmoid, where the cost is cross_entropy", lambda c: c.cost == "quadratic" or c.output == "sigmoid"),
    ("compile", "network as --backprop", lambda c: not c.compile or c.backprop == "network"),
    ("name", "the name of one folder", lambda c: command_line.is_folder_name(c.name)),
    ("resume", "--name too where it is auto, for the folder to look in", lambda c: c.resume != AUTO or c.name),
    ("device", "auto, cpu, cuda or cuda:N", lambda c: c.device in ("auto", "cpu") or _is_cuda(c.device)),
    ("device", "a CUDA device that torch sees", lambda c: not _is_cuda(c.device) or _cuda_exists(c.device)),
]


def check(config: Config) -> None:
    """Refuse a configuration that cannot be run.

    Raises:
        InputError: the first option that cannot be used, what was found and what is expected.
    """
    command_line.check(config, RULES)


def as_plain(config: Config) -> dict:
    """The configuration in JSON's types."""
    plain = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def from_plain(plain: dict) -> Config:
    """The inverse of `as_plain`."""
    paths = {name: Path(plain[name]) for name in ("data_root", "runs")}
    return Config(**{**plain, **paths, "sizes": tuple(plain["sizes"]), "resume": None})


def _sizes_fit(sizes: tuple[int, ...]) -> bool:
    return len(sizes) >= 2 and sizes[0] == 784 and sizes[-1] == 10 and min(sizes) >= 1


def _is_cuda(device: str) -> bool:
    kind, _, index = device.partition(":")
    return kind == "cuda" and (device == "cuda" or index.isdecimal())


def _cuda_exists(device: str) -> bool:
    return torch.cuda.is_available() and int(device.partition(":")[2] or 0) < torch.cuda.device_count()
