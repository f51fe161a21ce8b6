"""The perceptron separates what a line separates, says so of XOR where it does not, and the network learns XOR."""

import pytest
import torch

from manual_backprop.chapter.perceptron import SEVEN, XOR, learn, learn_xor, output, points, right


@pytest.mark.parametrize("learning_rate", [0.5, 1.0, 8.0])
def test_the_seven_points_are_all_right(learning_rate):
    found = learn(SEVEN, learning_rate)
    assert len(SEVEN.y) == 7
    assert set(SEVEN.y.tolist()) == {0.0, 1.0}
    assert found.converged
    assert torch.equal(output(found.weight, SEVEN.x), SEVEN.y)
    # From w = 0, η scales the weights and nothing else.
    assert torch.equal(found.weight, learning_rate * learn(SEVEN).weight)
    assert found.mistakes == learn(SEVEN).mistakes


def test_the_rule_by_hand():
    # (1, 2) should be 1 and is 0: w becomes (1, 1, 2). (1, 1) should be 0 and is 1: w becomes (0, 0, 1).
    found = learn(points((1, 2, 1), (1, 1, 0)), passes=1)
    assert found.weight.tolist() == [0, 0, 1]
    assert found.mistakes == [2]


def test_the_pass_that_finds_no_mistake_is_the_last():
    found = learn(SEVEN)
    assert found.mistakes[-1] == 0
    assert 0 not in found.mistakes[:-1]
    assert not learn(SEVEN, passes=found.passes - 1).converged


@pytest.mark.parametrize("passes", [1, 100, 500])
def test_xor_does_not_converge(passes):
    found = learn(XOR, passes=passes)
    assert not found.converged
    assert found.passes == passes
    assert right(output(found.weight, XOR.x), XOR) < 4


@pytest.mark.parametrize("gate", [(0, 0, 0, 1), (0, 1, 1, 1), (1, 1, 1, 0)], ids=["AND", "OR", "NAND"])
def test_the_gates_that_a_line_separates(gate):
    data = points(*((x1, x2, y) for (x1, x2), y in zip(XOR.x.tolist(), gate, strict=True)))
    assert learn(data).converged


def test_a_network_learns_xor():
    network, costs = learn_xor()
    outputs = network.feedforward(XOR.x)[:, 0]
    assert [w.shape for w in network.weights] == [(2, 2), (1, 2)]
    assert right(outputs, XOR) == 4
    assert (outputs - XOR.y).abs().max() < 0.01
    assert len(costs) == 2001
    assert costs[-1] < 0.005 < 0.6 < costs[0]


def test_from_some_starts_it_does_not():
    network, costs = learn_xor(seed=3)
    assert right(network.feedforward(XOR.x)[:, 0], XOR) < 4
    assert costs[-1] > 0.3


def test_right_counts():
    assert right(torch.tensor([0.4, 0.6, 0.4, 0.6]), XOR) == 2
