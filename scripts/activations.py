"""Activation functions, their derivatives, and where each saturates: python scripts/activations.py --help"""

import sys
from dataclasses import dataclass

import torch

from manual_backprop.activations import relu, sigmoid, tanh
from manual_backprop.chapter import pictures
from manual_backprop.chapter.activations import saturation, tanh_identity
from manual_backprop.chapter.run import Run, RunOptions, main


@dataclass(frozen=True)
class Options(RunOptions):
    """σ, tanh and ReLU beside their derivatives; tanh(z) = 2σ(2z) - 1; where each saturates."""

    bound: float = 0.01
    """A neuron is called saturated where its derivative is below this."""


RULES = [("bound", "from 1e-6 to 0.25", lambda o: 1e-6 <= o.bound <= 0.25)]


def show(options: Options, run: Run) -> bool:
    found = [saturation(activation, options.bound) for activation in (sigmoid, tanh, relu)]
    rows = [
        (str(s.activation), f"{s.largest:g}", _side("z ≤", s.below), _side("z ≥", s.above)) for s in found
    ]  # fmt: skip
    run.table(f"saturated: f′(z) < {options.bound:g}", ("f", "largest f′", "on the left", "on the right"), rows)
    z = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    largest = float(tanh_identity(z).abs().max())
    run.say(f"tanh(z) − (2σ(2z) − 1): {largest:.1e} at most, for |z| up to 20, in float64")
    run.picture("activations", pictures.activations(found, options.bound))
    for name, f in (("sigmoid", sigmoid), ("tanh", tanh), ("relu", relu)):
        here = torch.arange(-60, 61, dtype=torch.float64) / 10  # TensorBoard's steps are whole: 10 z
        run.scalars(f"{name}/value", {round(10 * float(z)): float(f.function(z)) for z in here})
        run.scalars(f"{name}/derivative", {round(10 * float(z)): float(f.derivative_at(z)) for z in here})
    return largest < 1e-15


def _side(words: str, z: float) -> str:
    return "never" if abs(z) == float("inf") else f"{words} {z + 0:.4f}"


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
