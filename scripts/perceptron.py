"""Rosenblatt's perceptron, and a network that learns XOR: python scripts/perceptron.py --help"""

import math
import sys
from dataclasses import dataclass

from manual_backprop.chapter import pictures
from manual_backprop.chapter.perceptron import SEVEN, XOR, learn, learn_xor, output, right
from manual_backprop.chapter.run import Run, RunOptions, main


@dataclass(frozen=True)
class Options(RunOptions):
    """Rosenblatt's perceptron separates seven points and fails on XOR, which a 2-2-1 sigmoid network learns."""

    learning_rate: float = 1.0
    """η of the perceptron."""
    passes: int = 100
    """Through the points, at most, before the perceptron is said not to converge."""
    network_learning_rate: float = 2.0
    """η of the network."""
    steps: int = 2000
    """Of gradient descent, for the network."""
    seed: int = 0
    """Of the network's weights; from some (3, 5, 6, 10) it ends in a valley with fewer than 4 right."""


RULES = [
    ("learning_rate", "a positive number, at most 1000", lambda o: 0 < o.learning_rate <= 1000),
    ("passes", "from 1 to 10000", lambda o: 1 <= o.passes <= 10_000),
    ("network_learning_rate", "a finite positive number", lambda o: 0 < o.network_learning_rate < math.inf),
    ("steps", "from 1 to 100000", lambda o: 1 <= o.steps <= 100_000),
    ("seed", "from 0 to 2**63 - 1", lambda o: 0 <= o.seed < 2**63),
]


def show(options: Options, run: Run) -> bool:
    seven = learn(SEVEN, options.learning_rate, options.passes)
    xor = learn(XOR, options.learning_rate, options.passes)
    network = learn_xor(options.network_learning_rate, options.steps, options.seed)
    outputs = network.network.feedforward(XOR.x)[:, 0]
    run.say(f"Rosenblatt's perceptron, η = {options.learning_rate:g}")
    for name, found, data in (("seven points", seven, SEVEN), ("XOR", xor, XOR)):
        b, w1, w2 = found.weight.tolist()
        ended = "converged" if found.converged else "did not converge"
        run.say(
            f"{name}: {right(output(found.weight, data.x), data)} of {len(data.y)} right; "
            f"{ended} in {found.passes} passes; {w1:g} x_1 {w2:+g} x_2 {b:+g} > 0"
        )
    answered = right(outputs, XOR)
    run.say(
        f"2-2-1 sigmoid network, XOR: {answered} of 4 right; cost {network.costs[-1]:.4f} after {options.steps} steps"
    )
    rows = [
        (f"{x1:g}, {x2:g}", f"{y:g}", f"{a:.4f}") for (x1, x2), y, a in zip(*map(list, (*XOR, outputs)), strict=True)
    ]
    run.table("XOR by the network", ("x_1, x_2", "y", "output"), rows)
    run.picture("perceptron", pictures.perceptron(seven, xor, network))
    run.scalars("mistakes/seven_points", seven.mistakes)
    run.scalars("mistakes/xor", xor.mistakes)
    run.scalars("cost/xor_by_the_network", network.costs)
    return True


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
