"""The five steps of backpropagation on a small network, in numbers: python scripts/explain.py --help"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from manual_backprop.activations import Name
from manual_backprop.chapter import pictures
from manual_backprop.chapter.component import follow
from manual_backprop.chapter.explain import Steps, check, make
from manual_backprop.chapter.run import Run, RunOptions, main, off_by


@dataclass(frozen=True)
class Options(RunOptions):
    """The five steps of backpropagation on a small network, in numbers, beside autograd and finite differences."""

    sizes: tuple[int, ...] = (2, 3, 2)
    """Neurons a layer, the inputs first."""
    activation: Name = "sigmoid"
    """Of all layers; the outputs are sigmoid where the cost is cross_entropy."""
    cost: Literal["quadratic", "cross_entropy"] = "quadratic"
    """C, of the one sample."""
    neuron: tuple[int, int] = (2, 1)
    """Follow neuron j of layer l through the equations: l j, counted from 1 as in the book."""
    seed: int = 0
    """Of weights, biases and input."""


RULES = [
    ("sizes", "2 to 5 sizes from 1 to 9", lambda o: 2 <= len(o.sizes) <= 5 and all(1 <= n <= 9 for n in o.sizes)),
    ("neuron", "a layer from 2 to the last, and a neuron", lambda o: 2 <= o.neuron[0] <= len(o.sizes)),
    ("neuron", "a neuron that its layer has", lambda o: 1 <= o.neuron[1] <= o.sizes[o.neuron[0] - 1]),
    ("seed", "from 0 to 2**63 - 1", lambda o: 0 <= o.seed < 2**63),
]


def feedforward(steps: Steps) -> Iterator[tuple[str, ...]]:
    """A row a neuron: where it is, z, a and σ′(z)."""
    for j, x in enumerate(steps.x.tolist(), start=1):
        yield f"layer 1, neuron {j}", "", f"{x:.6f}", ""
    for layer in range(2, steps.layers + 1):
        columns = (steps.zs[layer - 2], steps.activations[layer - 1], steps.sigma_primes[layer - 2])
        for j, numbers in enumerate(zip(*(column.tolist() for column in columns), strict=True), start=1):
            yield f"layer {layer}, neuron {j}", *(f"{number:.6f}" for number in numbers)


def show(options: Options, run: Run) -> bool:
    steps = make(options.sizes, options.activation, options.cost, options.seed)
    checked = check(steps)
    run.table("1. input and 2. feedforward", ("", "z", "a", "σ′(z)"), feedforward(steps))
    rows = (
        (symbol, c.equation, f"{value:.6f}", f"{by_autograd:.6f}", off_by(abs(value - by_autograd)),
         f"{central:.6f}", off_by(abs(value - central)))
        for c in checked
        for symbol, value, by_autograd, central in c.components()
    )  # fmt: skip
    title = "3. output error, 4. error moved back, 5. gradient"
    run.table(title, ("", "by", "by hand", "autograd", "off by", "central", "off by"), rows, left=2)
    run.say("neuron {1} of layer {0}".format(*options.neuron), *follow(steps, *options.neuron), "")
    autograd, central = max(c.from_autograd for c in checked), max(c.from_central for c in checked)
    run.say(f"worst: {autograd:.1e} from autograd, {central:.1e} from central differences (allowed: 1e-12, 1e-7)")
    run.picture("explain", pictures.explain(steps, checked))
    run.scalars("largest_difference/autograd", [c.from_autograd for c in checked])
    run.scalars("largest_difference/central", [c.from_central for c in checked])
    return autograd < 1e-12 and central < 1e-7


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
