"""The five steps agree with autograd to machine precision, and each line of a component is true as it stands."""

import re

import pytest
import torch

from manual_backprop.activations import ACTIVATIONS
from manual_backprop.chapter.component import follow
from manual_backprop.chapter.explain import check, five_steps, make

SIZES = [(2, 3, 2), (3, 1), (1, 2, 3, 2), (9, 9, 9, 9, 9)]
COSTS = ["quadratic", "cross_entropy"]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_derivative_agrees(sizes, activation, cost):
    checked = check(make(sizes, activation, cost))
    # Some roundings in a sum of nine: machine precision.
    assert max(c.from_autograd for c in checked) < 20 * torch.finfo(torch.float64).eps
    assert max(c.from_central for c in checked) < 1e-9
    assert [c.equation for c in checked] == ["∇_a C", "BP1", "BP3", "BP4", *["BP2", "BP3", "BP4"] * (len(sizes) - 2)]


def test_a_wrong_derivative_is_far_from_both():
    steps = make((2, 3, 2))
    steps.gradients.deltas[0] = steps.gradients.deltas[0] * 1.001
    wrong = {c.symbol: c for c in check(steps)}
    assert wrong["δ^2"].from_autograd > 1e-6
    assert wrong["δ^2"].from_central > 1e-6
    assert wrong["δ^3"].from_autograd < 1e-15


def test_the_network_by_hand():
    """One neuron: z = 2·0.5 + (−1) = 0, a = 1/2, ∇_a C = −1/2, δ = −1/8, ∂C/∂w = −1/16."""
    steps = make((1, 1))
    steps.network.weights = [torch.tensor([[2.0]]).double()]
    steps.network.biases = [torch.tensor([-1.0]).double()]
    steps = five_steps(steps.network, torch.tensor([0.5]).double(), torch.tensor([1.0]).double())
    assert [steps.zs[0].item(), steps.activations[1].item(), steps.sigma_primes[0].item()] == [0, 0.5, 0.25]
    assert steps.grad_a.item() == -0.5
    assert [part[0].item() for part in steps.gradients] == [-1 / 16, -1 / 8, -1 / 8]


def test_components_have_the_indices_of_the_book():
    by_symbol = {c.symbol: list(c.components()) for c in check(make((2, 3, 2)))}
    weights = make((2, 3, 2)).gradients.weights[0]
    symbols = [symbol for symbol, *_ in by_symbol["∂C/∂w^2"]]
    assert symbols == ["∂C/∂w^2_11", "∂C/∂w^2_12", "∂C/∂w^2_21", "∂C/∂w^2_22", "∂C/∂w^2_31", "∂C/∂w^2_32"]
    assert [value for _, value, *_ in by_symbol["∂C/∂w^2"]] == weights.flatten().tolist()
    assert [symbol for symbol, *_ in by_symbol["δ^3"]] == ["δ^3_1", "δ^3_2"]


def value(words):
    """The value of numbers joined by + − · and brackets."""
    python = words.replace("−", "-").replace("·", "*")
    assert re.fullmatch(r"[-+*(). \d]+", python), words
    return eval(python)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(("layer", "neuron"), [(2, 1), (2, 3), (3, 2), (4, 1)])
def test_a_component_with_its_numbers_put_in(layer, neuron, cost):
    steps = make((2, 3, 4, 2), "tanh", cost, seed=1)
    lines = follow(steps, layer, neuron)
    for line in lines:
        if line.startswith("a^"):
            continue
        _, *numbers = re.sub(r" {3}\(.*\)$", "", line).split(" = ")
        sums = [value(words) for words in numbers if re.search(r"\d{6}", words)]
        assert sums, line
        assert sums == pytest.approx([sums[-1]] * len(sums), abs=2e-5), line
    delta = float(steps.gradients.deltas[layer - 2][neuron - 1])
    (error,) = [line for line in lines if line.startswith(f"δ^{layer}_{neuron} = ")]
    assert error.endswith("(BP2)" if layer < 4 else "(BP1)" if cost == "quadratic" else "(BP1, σ′ cancels)")
    assert value(re.sub(r" {3}\(.*\)$", "", error).split(" = ")[-1]) == pytest.approx(delta, abs=1e-6)
    assert len(lines) == 4 + len(steps.activations[layer - 2])


def test_bp2_is_written_as_in_the_book():
    lines = follow(make((2, 3, 2)), 2, 1)
    assert lines[2].startswith("δ^2_1 = Σ_k w^3_k1 δ^3_k σ′(z^2_1) = (")
    assert lines[-1].startswith("∂C/∂w^2_12 = a^1_2 δ^2_1 = ")
