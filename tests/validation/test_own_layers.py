"""The project's own Functions, layers and costs answer every probe without a failure or a warning."""

import pytest
import torch

import manual_backprop as mb
from manual_backprop import functional as F

FLOAT64 = torch.float64


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, dtype=FLOAT64, generator=generator).requires_grad_() for shape in shapes)


def in_unit_interval(*shapes):
    return tuple(torch.sigmoid(x.detach()).requires_grad_() for x in drawn(*shapes))


def linear_softplus(input, weight, bias):
    softplus = mb.Activation("softplus", torch.nn.functional.softplus, torch.sigmoid, needs="z")
    return F.linear_activation(input, weight, bias, softplus)


def linear_per_neuron(input, weight, bias):
    return F.linear_activation(input, weight, bias, mb.per_neuron(["sigmoid", "tanh", "identity"]))


def torch_of(activation):
    return lambda input, weight, bias=None: activation(torch.nn.functional.linear(input, weight, bias))


LAYER = drawn((5, 4), (3, 4), (3,))


def weighted(cost):
    """The cost of each sample, with the weight as an input too."""
    return lambda input, target, weight: cost(input, target, "none", weight)


CASES = {
    "linear": (F.linear, LAYER, torch.nn.functional.linear),
    "linear_sigmoid": (F.linear_sigmoid, LAYER, torch_of(torch.sigmoid)),
    "linear_sigmoid without bias": (F.linear_sigmoid, LAYER[:2], torch_of(torch.sigmoid)),
    "linear_sigmoid of rank 3": (F.linear_sigmoid, drawn((2, 3, 4), (3, 4), (3,)), torch_of(torch.sigmoid)),
    "linear_tanh": (F.linear_tanh, LAYER, torch_of(torch.tanh)),
    "linear_relu": (F.linear_relu, LAYER, torch_of(torch.relu)),
    "linear_softplus": (linear_softplus, LAYER, torch_of(torch.nn.functional.softplus)),
    "linear_per_neuron": (linear_per_neuron, LAYER, None),
    "quadratic_cost": (F.quadratic_cost, drawn((5, 3), (5, 3)), None),
    "cross_entropy_cost": (F.cross_entropy_cost, in_unit_interval((5, 3), (5, 3)), None),
    "sigmoid_cross_entropy_cost": (F.sigmoid_cross_entropy_cost, drawn((5, 3), (5, 3)), None),
    "weighted quadratic_cost": (weighted(F.quadratic_cost), drawn((5, 3), (5, 3), (3,)), None),
    "weighted cross_entropy_cost": (
        weighted(F.cross_entropy_cost),
        (*in_unit_interval((5, 3), (5, 3)), *drawn((3,))),
        None,
    ),
    "sigmoid_cross_entropy_cost with pos_weight": (
        lambda z, y, w, p: F.sigmoid_cross_entropy_cost(z, y, "none", w, p),
        drawn((5, 3), (5, 3), (5, 1), (3,)),
        None,
    ),
    "LinearSigmoid": (mb.nn.LinearSigmoid(4, 3, dtype=FLOAT64), LAYER[:1], None),
    "MLP": (mb.nn.MLP([4, 3, 2], dtype=FLOAT64), LAYER[:1], None),
    "QuadraticCost": (mb.nn.QuadraticCost("none"), drawn((5, 3), (5, 3)), None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("func", "inputs", "reference"), CASES.values(), ids=CASES)
def test_every_probe_passes(func, inputs, reference):
    report = mb.validate(func, inputs, reference=reference, batch_dim=0)
    assert not report.failures, str(report)
    assert not report.warnings, str(report)
    assert {finding.family for finding in report.findings if finding.status == "pass"} == {
        "calculus", "contract", "linearity", "layout", "state", "numbers", "edges", "transforms", "runtime",
    }  # fmt: skip


@pytest.mark.parametrize("equation", ["output_error", "input_gradient", "bias_gradient", "weight_gradient"])
def test_a_broken_equation_is_found(monkeypatch, equation):
    right = getattr(mb.functions, equation)
    monkeypatch.setattr(mb.functions, equation, lambda *arguments: 1.01 * right(*arguments))
    assert not mb.validate(F.linear_sigmoid, LAYER, only="MB101")
