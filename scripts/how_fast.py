"""Backpropagation against a forward pass for every weight: python scripts/how_fast.py --help"""

import math
import sys
from dataclasses import dataclass

from manual_backprop.chapter import pictures
from manual_backprop.chapter.how_fast import compare, growth
from manual_backprop.chapter.run import Run, RunOptions, main


@dataclass(frozen=True)
class Options(RunOptions):
    """The naive gradient, (C(w + ε e_j) - C(w))/ε for every weight, against one backward pass."""

    hidden: tuple[int, ...] = (1, 3, 10, 30)
    """Hidden neurons of each network; all have --inputs before and 10 outputs behind them."""
    inputs: int = 784
    """Inputs of each network."""
    samples: int = 10
    """In the mini-batch, which goes through the network as one."""
    epsilon: float = 1e-6
    """ε; the naive gradient is in float64, and off by about ε."""
    seed: int = 0
    """Of the weights and the mini-batch."""


RULES = [
    ("hidden", "2 numbers or more, all different, from 1 to 1000", lambda o: _different(o.hidden)),
    ("inputs", "from 1 to 784", lambda o: 1 <= o.inputs <= 784),
    ("samples", "from 1 to 1000", lambda o: 1 <= o.samples <= 1000),
    ("epsilon", "from 1e-12 to 0.1", lambda o: 1e-12 <= o.epsilon <= 0.1),
    ("seed", "from 0 to 2**63 - 1", lambda o: 0 <= o.seed < 2**63),
]


def _different(hidden: tuple[int, ...]) -> bool:
    return len(hidden) == len(set(hidden)) >= 2 and all(1 <= n <= 1000 for n in hidden)


def show(options: Options, run: Run) -> bool:
    networks = ((options.inputs, n, 10) for n in sorted(options.hidden))
    found = [compare(sizes, options.samples, options.epsilon, seed=options.seed) for sizes in networks]
    rows = [
        ("-".join(map(str, c.sizes)), f"{c.weights:,}", f"{c.naive.passes.forward:,}", f"{c.naive.seconds:.3f}",
         f"{c.backprop.passes.forward} + {c.backprop.passes.backward}", f"{c.backprop.seconds:.6f}", f"{c.ratio:,.0f}")
        for c in found
    ]  # fmt: skip
    columns = ("network", "weights", "naive: forward passes", "s", "backprop: forward + backward", "s", "times faster")
    run.table("two ways to ∂C/∂w: passes and seconds", columns, rows)
    naive, backprop = growth(found, lambda c: c.naive.seconds), growth(found, lambda c: c.backprop.seconds)
    run.say(f"seconds grow as weights^{naive:.2f} the naive way, and as weights^{backprop:.2f} by backpropagation")
    run.say(f"the two gradients differ by {max(c.difference for c in found):.1e} at most (ε = {options.epsilon:g})")
    run.picture("how_fast", pictures.how_fast(found))
    run.scalars("seconds/naive", {c.weights: c.naive.seconds for c in found})
    run.scalars("seconds/backprop", {c.weights: c.backprop.seconds for c in found})
    run.scalars("forward_passes/naive", {c.weights: c.naive.passes.forward for c in found})
    run.scalars("times_faster", {c.weights: c.ratio for c in found})
    return all(c.naive.passes.forward == c.weights + 1 and math.isfinite(c.ratio) for c in found)


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
