"""Rosenblatt's perceptron, what it cannot learn, and a network of sigmoid neurons that can.

Source: chapter 1, "Perceptrons" (the neuron: equations (1), (2); that perceptrons compute NAND); Rosenblatt, *The
Perceptron*, 1958 (the rule). XOR is Minsky and Papert's, *Perceptrons*, 1969.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from manual_backprop.network import Network


class Points(NamedTuple):
    """``x`` the inputs ``(N, 2)``, ``y`` the desired outputs 0 and 1, ``(N,)``."""

    x: Tensor
    y: Tensor


def points(*rows: tuple[float, float, int]) -> Points:
    """From (x_1, x_2, y) a row."""
    table = torch.tensor(rows, dtype=torch.float64)
    return Points(table[:, :2], table[:, 2])


SEVEN = points((1, 1, 0), (2, 1, 0), (1, 2, 0), (3, 1, 0), (2, 4, 1), (4, 2, 1), (3, 3, 1))
"""Seven points that a line separates, for example x_1 + x_2 = 5. Our own: the coordinates of the notes' seven were not
to be had."""

XOR = points((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))


class Perceptron(NamedTuple):
    """The end of the rule.

    ``weight`` is (b, w_1, w_2): the bias is the weight of an input that is always 1. ``mistakes`` counts the wrong
    answers of each pass; the last is 0 where the rule converged.
    """

    weight: Tensor
    mistakes: list[int]

    @property
    def passes(self) -> int:
        return len(self.mistakes)

    @property
    def converged(self) -> bool:
        return self.mistakes[-1] == 0


def output(weight: Tensor, x: Tensor) -> Tensor:
    """1 where w·x + b > 0, else 0 (equation (2)): ``(3,), (*, 2) -> (*,)``.

    >>> output(torch.tensor([3.0, -2.0, -2.0]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))  # the book's NAND
    tensor([1., 0.])
    """
    return (_with_one(x) @ weight > 0).to(x.dtype)


def learn(data: Points, learning_rate: float = 1.0, passes: int = 100) -> Perceptron:
    """Rosenblatt's rule, w ← w + η (y − o) x for one point after the other, from w = 0, until a pass has no mistake.

    It converges where a line separates the points (Novikoff, 1962), and never where none does.

    Args:
        learning_rate: η. From w = 0 it scales w and changes no answer.
        passes: through all points, at most.
    """
    weight = data.x.new_zeros(data.x.shape[-1] + 1)
    mistakes: list[int] = []
    while len(mistakes) < passes and (not mistakes or mistakes[-1]):
        mistakes.append(0)
        for x, y in zip(data.x, data.y, strict=True):
            wrong = y - output(weight, x)
            weight += learning_rate * wrong * _with_one(x)
            mistakes[-1] += int(wrong != 0)
    return Perceptron(weight, mistakes)


def right(answers: Tensor, data: Points) -> int:
    """How many answers are on the right side of a half."""
    return int(((answers > 0.5) == (data.y > 0.5)).sum())


class Learnt(NamedTuple):
    """The network, and its cost before each step and after the last."""

    network: Network
    costs: list[float]


def learn_xor(learning_rate: float = 2.0, steps: int = 2000, seed: int = 0) -> Learnt:
    """A 2-2-1 network of sigmoid neurons learns XOR by gradient descent on the cross-entropy of all four points.

    Args:
        learning_rate: η.
        steps: of gradient descent.
        seed: of the weights and biases, from N(0, 1). From some the descent ends in a valley with 3 of 4 right.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network([2, 2, 1], cost="cross_entropy", dtype=torch.float64)
    x, y = XOR.x, XOR.y[:, None]
    costs = [float(network.mean_cost(x, y))]
    for _ in range(steps):
        network.update(x, y, learning_rate)
        costs.append(float(network.mean_cost(x, y)))
    return Learnt(network, costs)


def _with_one(x: Tensor) -> Tensor:
    """(1, x_1, x_2): the bias folded into the weights."""
    return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
