"""The cost of a network as one autograd node: the same as the layers and the cost one by one."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import manual_backprop as mb
from manual_backprop.functional import network_cost
from tests.cases import ACTIVATIONS, BIAS, COST_CASES, FLOAT64, IN, OUT, params, softplus

COSTS = params({name: COST_CASES[name].cost for name in ("quadratic", "cross_entropy")})
REDUCTIONS = params({"mean": "mean", "sum": "sum"})
SHAPES = params({"no_batch": (), "one": (1,), "odd": (7,), "3d": (2, 3), "empty": (0,)})


def network(bias=True, hidden=OUT):
    sizes = [(hidden, IN), (hidden, hidden), (OUT, hidden)]
    weights = [torch.randn(size, dtype=FLOAT64, requires_grad=True) for size in sizes]
    return weights, [torch.randn(o, dtype=FLOAT64, requires_grad=True) if bias else None for o, _ in sizes]


def one_by_one(x, y, weights, biases, activations, cost, reduction="mean"):
    """In plain torch, by autograd."""
    a = x
    for w, b, f in zip(weights, biases, activations, strict=True):
        a = f.function(torch.nn.functional.linear(a, w, b))
    costs = cost.value(a, y)
    return costs.mean() if reduction == "mean" else costs.sum()


@pytest.mark.parametrize("case", ACTIVATIONS)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_and_gradients(case, bias, shape, cost, reduction):
    if 0 in shape and reduction == "mean":
        pytest.skip("the mean of nothing is not a number")
    weights, biases = network(bias)
    activations = [case.activation, mb.activations.tanh, mb.activations.sigmoid]
    x = torch.randn(*shape, IN, dtype=FLOAT64, requires_grad=True)
    y = torch.rand(*shape, OUT, dtype=FLOAT64)
    leaves = [x, *weights, *(b for b in biases if b is not None)]
    ours = network_cost(x, y, weights, biases, activations, cost, reduction)
    theirs = one_by_one(x, y, weights, biases, activations, cost, reduction)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))
    assert type(ours.grad_fn).__name__ == "NetworkCostFunctionBackward"


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_parameters(frozen):
    weights, biases = network()
    parameters = weights + biases
    parameters[frozen].requires_grad_(False)
    asked = [p for p in parameters if p.requires_grad]
    activations = [mb.activations.relu, softplus, mb.activations.sigmoid]
    x, y = torch.randn(5, IN, dtype=FLOAT64), torch.rand(5, OUT, dtype=FLOAT64)
    arguments = (x, y, weights, biases, activations, COST_CASES["quadratic"].cost)
    torch.testing.assert_close(
        torch.autograd.grad(network_cost(*arguments), asked), torch.autograd.grad(one_by_one(*arguments), asked)
    )


@pytest.mark.parametrize("cost", COSTS)
def test_gradcheck_and_gradgradcheck(cost):
    """The second derivative too, though the a^l that the node keeps are cut off from the graph."""
    weights, biases = network()
    x, y = torch.randn(3, IN, dtype=FLOAT64, requires_grad=True), torch.rand(3, OUT, dtype=FLOAT64)

    def function(x, *parameters):
        return network_cost(x, y, parameters[:3], parameters[3:], ["tanh", softplus, "sigmoid"], cost)

    inputs = (x, *weights, *biases)
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs)


def test_every_probe_passes():
    weights, biases = network()

    def function(x, y, *parameters):
        return network_cost(x, y, parameters[:3], parameters[3:], ["tanh", "sigmoid", "sigmoid"])

    x, y = torch.randn(5, IN, dtype=FLOAT64, requires_grad=True), torch.rand(5, OUT, dtype=FLOAT64)
    inputs = (x, y, *weights, *biases)
    report = mb.validate(function, inputs, skip=("MB7", "MB606"))
    assert not report.failures, str(report)


def test_the_module_trains_like_its_layers():
    one, layers = mb.nn.NetworkCost(mb.nn.MLP([IN, 4, OUT], dtype=FLOAT64)), mb.nn.MLP([IN, 4, OUT], dtype=FLOAT64)
    layers.load_state_dict(one.network.state_dict())
    x, y = torch.randn(5, IN, dtype=FLOAT64), torch.rand(5, OUT, dtype=FLOAT64)
    for model, cost in ((one, lambda: one(x, y)), (layers, lambda: mb.nn.QuadraticCost()(layers(x), y))):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            cost().backward()
            optimizer.step()
    torch.testing.assert_close(list(one.parameters()), list(layers.parameters()))


def _two_layers_of_one_weight(w):
    return [w, w], torch.ones(5, OUT, dtype=FLOAT64)


def _tied(w):
    return [w, w.mT], torch.ones(5, OUT, dtype=FLOAT64)


def _input_of_the_weight(w):
    return [w, w.detach()], torch.ones(5, OUT, dtype=FLOAT64) @ w


SHARED = params({"twice": _two_layers_of_one_weight, "transposed": _tied, "input": _input_of_the_weight})


@pytest.mark.parametrize("share", SHARED)
@pytest.mark.parametrize("create_graph", [False, True], ids=["first", "second"])
def test_a_weight_that_comes_twice(share, create_graph):
    w, y = torch.randn(OUT, OUT, dtype=FLOAT64, requires_grad=True), torch.rand(5, OUT, dtype=FLOAT64)
    found = []
    for cost in (network_cost, one_by_one):
        weights, x = share(w)
        arguments = (x, y, weights, [None, None], [mb.activations.sigmoid] * 2, COST_CASES["quadratic"].cost)
        (grad,) = torch.autograd.grad(cost(*arguments), w, create_graph=create_graph)
        found += [(grad, *torch.autograd.grad(grad.square().sum(), w))] if create_graph else [(grad,)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bfloat16], ids=str)
def test_a_target_of_another_dtype(dtype):
    network = mb.nn.MLP([IN, OUT])
    x, y = torch.randn(5, IN), torch.ones(5, OUT, dtype=dtype)
    found, expected = mb.nn.NetworkCost(network)(x, y), mb.nn.QuadraticCost()(network(x), y)
    torch.testing.assert_close(found, expected)  # their dtypes too


def test_a_module_that_is_no_layer_is_refused():
    network = mb.nn.MLP([IN, OUT]).append(torch.nn.ReLU())
    with pytest.raises(TypeError, match="network: expected layers of manual_backprop alone, found ReLU"):
        mb.nn.NetworkCost(network)(torch.randn(5, IN), torch.rand(5, OUT))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"reduction": "none"}, "reduction: expected 'mean' or 'sum', found 'none'"), ({"y": (5, 1)}, "target: expected")],
    ids=["reduction", "target"],
)
def test_bad_input(change, message):
    weights, biases = network()
    y = torch.zeros(change.pop("y", (5, OUT)), dtype=FLOAT64)
    with pytest.raises(ValueError, match=message):
        network_cost(torch.zeros(5, IN, dtype=FLOAT64), y, weights, biases, ["tanh"] * 3, **change)
