"""The passes are counted by the network itself, and both ways end at the same gradient."""

from itertools import pairwise

import pytest
import torch

from manual_backprop import Network
from manual_backprop.activations import sigmoid
from manual_backprop.chapter.how_fast import Comparison, Passes, Way, compare, growth, naive_gradient


@pytest.mark.parametrize("sizes", [(3, 2), (4, 3, 2), (5, 4, 3, 2)], ids=str)
@pytest.mark.parametrize("samples", [1, 7])
def test_counts_are_exact(sizes, samples):
    found = compare(sizes, samples, repeats=2)
    weights = sum(i * o for i, o in pairwise(sizes))
    assert found.weights == weights
    assert found.naive.passes == Passes(forward=weights + 1, backward=0)
    assert found.backprop.passes == Passes(forward=1, backward=1)
    assert found.difference < 1e-6
    assert found.ratio == found.naive.seconds / found.backprop.seconds


def test_passes_are_counted_where_they_happen():
    passes = Passes()
    network = Network([3, 2], output_activation=passes.counting(sigmoid))
    x, y = torch.rand(1, 3), torch.rand(1, 2)
    for _ in range(3):
        network.feedforward(x)
    network.mean_cost(x, y)
    network.backprop(x, y)
    assert passes == Passes(forward=5, backward=1)


def test_the_naive_gradient_of_a_known_cost_and_the_weights_left_as_they_were():
    network = Network([1, 1], activation="identity", dtype=torch.float64)
    network.weights, network.biases = [torch.tensor([[3.0]]).double()], [torch.zeros(1).double()]
    x, y = torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double()
    (gradient,) = naive_gradient(network, x, y, epsilon=0.5)
    # C = (2w − 1)²/2: the slope between w = 3 and w = 3.5 is (18 − 12.5)/0.5.
    assert gradient.item() == 11.0
    assert network.weights[0].item() == 3.0


def test_a_smaller_epsilon_is_nearer_down_to_the_rounding():
    far, near = (compare((4, 3, 2), epsilon=epsilon).difference for epsilon in (1e-3, 1e-6))
    assert near < far / 500


def test_growth_is_the_exponent():
    def timed(weights):
        ways = Way([], Passes(), 2.0 * weights**1.5), Way([], Passes(), 7.0)
        return Comparison((1, weights), weights, *ways)

    found = [timed(weights) for weights in (10, 100, 1000)]
    assert growth(found, lambda c: c.naive.seconds) == pytest.approx(1.5)
    assert growth(found, lambda c: c.backprop.seconds) == pytest.approx(0.0)
