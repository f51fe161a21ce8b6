"""tanh as a stretched sigmoid, and where each activation saturates."""

import math

import pytest
import torch

from manual_backprop.activations import relu, sigmoid, tanh
from manual_backprop.chapter.activations import saturation, tanh_identity


def test_tanh_is_a_stretched_sigmoid():
    z = torch.linspace(-50, 50, 100_001, dtype=torch.float64)
    # Both are of size 1 at most: two roundings, of σ and of 2σ − 1.
    assert tanh_identity(z).abs().max() <= 2 * torch.finfo(torch.float64).eps
    assert tanh_identity(torch.tensor([0.7], dtype=torch.float64)).abs() < 1e-15


@pytest.mark.parametrize("bound", [1e-6, 0.01, 0.2])
def test_where_the_sigmoid_saturates(bound):
    found = saturation(sigmoid, bound)
    a = (1 + math.sqrt(1 - 4 * bound)) / 2  # the root of a(1 − a) = bound
    assert found.above == pytest.approx(math.log(a / (1 - a)), rel=1e-9)
    assert found.below == pytest.approx(-found.above, rel=1e-9)
    assert found.largest == 0.25


@pytest.mark.parametrize("bound", [1e-6, 0.01, 0.2])
def test_where_tanh_saturates(bound):
    found = saturation(tanh, bound)
    assert found.above == pytest.approx(math.atanh(math.sqrt(1 - bound)), rel=1e-9)
    assert found.below == pytest.approx(-found.above, rel=1e-9)
    assert found.largest == 1


def test_relu_is_dead_on_the_left_and_never_saturates_on_the_right():
    found = saturation(relu, 0.01)
    assert (found.below, found.above, found.largest) == (0, math.inf, 1)


def test_a_sigmoid_that_is_everywhere_below_the_bound():
    assert saturation(sigmoid, 0.3).above == 0
