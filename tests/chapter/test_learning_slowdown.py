"""At the start the cross-entropy learns fastest and the quadratic cost slowest: the book's neurons, then MNIST."""

import math
from pathlib import Path

import pytest
import torch

from manual_backprop.chapter.learning_slowdown import COSTS, mnist, neuron
from manual_backprop.training import data
from manual_backprop.training.config import Config


@pytest.fixture(scope="module")
def neurons():
    return {cost: neuron(cost) for cost in COSTS}


@pytest.mark.parametrize(
    ("start", "first", "last"), [((0.6, 0.9), 0.82, 0.09), ((2.0, 2.0), 0.98, 0.20)], ids=["wrong", "badly wrong"]
)
def test_the_quadratic_neurons_of_the_book(start, first, last):
    outputs = neuron("quadratic", *start).outputs
    assert (round(outputs[0], 2), round(outputs[-1], 2)) == (first, last)


def test_the_cross_entropy_neuron_learns_fastest_at_the_start_and_the_quadratic_one_slowest(neurons):
    assert neurons["cross_entropy"].fastest == 0
    assert neurons["quadratic"].slowest == 0
    assert neurons["cross_entropy"].speeds[0] > 50 * neurons["quadratic"].speeds[0]
    assert neurons["cross_entropy"].slowest == 300
    assert neurons["quadratic"].fastest == 215
    assert neurons["cross_entropy"].outputs[-1] < neurons["quadratic"].outputs[-1]


def test_delta_with_and_without_sigma_prime(neurons):
    for cost, found in neurons.items():
        for a, delta, speed, value in zip(found.outputs, found.deltas, found.speeds, found.costs, strict=True):
            assert delta == pytest.approx(a * a * (1 - a) if cost == "quadratic" else a, rel=1e-12)
            assert speed == delta  # the input is 1
            assert value == pytest.approx(a * a / 2 if cost == "quadratic" else -math.log(1 - a), rel=1e-12)
    assert len(neurons["quadratic"].deltas) == 301


def test_the_descent_is_gradient_descent(neurons):
    # z = w + b, so that a step moves it by −2ηδ.
    zs = [math.log(a / (1 - a)) for a in neurons["quadratic"].outputs]
    assert zs[0] == pytest.approx(4)
    assert zs[1] == pytest.approx(4 - 2 * 0.15 * neurons["quadratic"].deltas[0])


@pytest.fixture(scope="module")
def trainings():
    config = Config(validation=False, data_root=Path("/nowhere"))
    images, _ = data.load(config, torch.device("cpu"), download=False)
    return {cost: mnist(cost, images.train, images.test, epochs=1) for cost in COSTS}


def test_mnist_from_a_badly_wrong_start(trainings):
    quadratic, cross_entropy = trainings["quadratic"], trainings["cross_entropy"]
    # The same network and images at the start: nine of ten outputs are near 1 and should be 0.
    assert quadratic.without[0] == cross_entropy.without[0] == pytest.approx(3, abs=0.1)
    assert quadratic.with_sigma_prime[0] == cross_entropy.with_sigma_prime[0] < 0.05
    # δ^L by the quadratic cost is smallest at the start, and by the cross-entropy largest.
    assert min(quadratic.with_sigma_prime) == quadratic.with_sigma_prime[0]
    assert max(cross_entropy.without) == cross_entropy.without[0]
    early = quadratic.steps.index(84)
    assert cross_entropy.accuracies[early] > 50 > 15 > quadratic.accuracies[early]
    assert cross_entropy.accuracies[-1] > 80 > quadratic.accuracies[-1]


def test_mnist_is_looked_at_from_the_start_to_the_end(trainings):
    found = trainings["quadratic"]
    assert (found.steps[0], found.steps[-1]) == (0, 420)
    assert len(found.steps) == len(found.accuracies) == len(found.without) == len(found.with_sigma_prime) == 21
