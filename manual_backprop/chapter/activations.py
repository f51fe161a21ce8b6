"""Activation functions beside their derivatives: one identity, and where each saturates.

Source: chapter 3, "Other models of artificial neuron", equations (109) to (111); chapter 2, "Insights": a neuron
saturates where σ′(z) ≈ 0, and then its weights learn slowly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manual_backprop.activations import Activation, sigmoid, tanh


def tanh_identity(z: Tensor) -> Tensor:
    """tanh(z) − (2σ(2z) − 1), which is 0 (equation (111), turned round)."""
    return tanh.function(z) - (2 * sigmoid.function(2 * z) - 1)


@dataclass(frozen=True)
class Saturation:
    """Where σ′ is below a bound: for all z ≤ ``below`` and all z ≥ ``above``; ``largest`` is max σ′."""

    activation: Activation
    below: float
    above: float
    largest: float


def saturation(activation: Activation, bound: float) -> Saturation:
    """Where σ′(z) < bound: found by bisection, for a σ′ that does not rise on the way out from 0.

    Args:
        bound: of σ′, positive.

    Example:
        >>> found = saturation(sigmoid, 0.01)
        >>> print(f"{found.below:.4f}, {found.above:.4f}, {found.largest}")
        -4.5849, 4.5849, 0.25
    """
    here = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    here = here.where(here.abs() > 1e-9, 0.0)  # the very 0, where the sigmoid's σ′ is largest

    def derivative(z: float) -> float:
        return float(activation.derivative_at(torch.tensor(z, dtype=torch.float64)))

    largest = float((torch.as_tensor(activation.derivative_at(here)) + 0 * here).max())
    above = _first(lambda z: derivative(z) < bound)
    below = -_first(lambda z: derivative(-z) < bound)
    return Saturation(activation, below, above, largest)


def _first(holds: Callable[[float], bool], far: float = 700.0) -> float:
    """The smallest z ≥ 0 from which on it holds: infinity where it does not hold far out."""
    if not holds(far):
        return math.inf
    if holds(0.0):
        return 0.0
    low, high = 0.0, far
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
