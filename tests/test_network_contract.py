"""What the algorithm without autograd keeps to: no graph, nothing written into, one device, shapes that fit."""

from itertools import chain

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manual_backprop import Network
from manual_backprop.costs import cross_entropy, quadratic
from tests.cases import ACTIVATIONS, needs_fake_cuda


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_no_graph_is_recorded(case):
    net = Network([3, 3, 3], case.activation)
    for p in net.weights + net.biases:
        p.requires_grad_()
    x, y = torch.rand(4, 3, requires_grad=True), torch.rand(4, 3, requires_grad=True)
    gradients = net.backprop(x, y)
    results = [net.feedforward(x), net.mean_cost(x, y), *gradients.weights, *gradients.biases, *gradients.deltas]
    assert all(not r.requires_grad and r.grad_fn is None and not r.is_inference() for r in results)
    net.update(x, y, 0.1)
    assert isinstance(net.evaluate(x, torch.zeros(4)), int)
    assert all(t.grad is None for t in (x, y, *net.weights, *net.biases))


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_inputs_and_parameters_are_left_alone(case):
    net = Network([3, 3, 3], case.activation)
    x, y = torch.rand(4, 3), torch.rand(4, 3)
    watched = [x, y, *net.weights, *net.biases]
    before = [t.clone() for t in watched]
    first, second = net.backprop(x, y), net.backprop(x, y)
    net.feedforward(x)
    net.mean_cost(x, y)
    net.evaluate(x, torch.zeros(4))
    assert all(torch.equal(t, old) and t._version == 0 for t, old in zip(watched, before, strict=True))
    same = zip(chain.from_iterable(first), chain.from_iterable(second), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


@needs_fake_cuda
@pytest.mark.parametrize("cost", ["quadratic", "cross_entropy"])
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_placement_on_cuda_without_a_gpu(case, cost):
    """A whole update, where each operation refuses tensors of two devices."""
    with FakeTensorMode():
        net = Network([4, 5, 3], "sigmoid", cost, case.activation, device="cuda")
        x, y = torch.rand(6, 4, device="cuda"), torch.rand(6, 3, device="cuda")
        gradients = net.backprop(x, y)
        net.update(x, y, 3.0)
        net.sgd(x, y, batch_size=4, order=torch.arange(6, device="cuda"))
        tensors = [*net.weights, *net.biases, net.feedforward(x), *chain.from_iterable(gradients)]
        assert {t.device.type for t in tensors} == {"cuda"}


# Bad input


@pytest.mark.parametrize("sizes", [[], [784]], ids=str)
def test_too_few_sizes(sizes):
    with pytest.raises(ValueError, match="sizes: expected at least an input and an output size") as error:
        Network(sizes)
    assert str(error.value).endswith(f"found {sizes}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"activation": "softmax"}, "activation: .*, found 'softmax'", id="activation"),
        pytest.param({"output_activation": "softmax"}, "activation: .*, found 'softmax'", id="output_activation"),
        pytest.param({"output_activation": ""}, "activation: .*, found ''", id="empty_output_activation"),
        pytest.param(
            {"cost": "mse"}, "cost: expected a Cost or one of quadratic, cross_entropy, found 'mse'", id="cost"
        ),
    ],
)
def test_unknown_names(options, message):
    with pytest.raises(ValueError, match=message):
        Network([3, 2], **options)


@pytest.mark.parametrize("cost", [quadratic, cross_entropy], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("y", [(6, 1), (3,), (5, 3), (6, 4), ()], ids=str)
def test_target_of_another_shape(y, activation, cost):
    """Nothing is broadcast: that would give a wrong gradient and say nothing."""
    net = Network([4, 3], activation, cost)
    for method in (net.backprop, net.mean_cost, lambda x, y: net.update(x, y, 0.1)):
        with pytest.raises(ValueError, match="y: expected the shape") as error:
            method(torch.rand(6, 4), torch.rand(y))
        assert str(error.value) == f"y: expected the shape (6, 3) of the outputs, found {y}"


@pytest.mark.parametrize("labels", [(6, 1), (6, 3), (5,), ()], ids=str)
def test_labels_of_another_shape(labels):
    net = Network([4, 3])
    with pytest.raises(ValueError, match=r"labels: expected the shape \(6,\), found "):
        net.evaluate(torch.rand(6, 4), torch.zeros(labels))


def test_input_of_another_size():
    with pytest.raises(RuntimeError, match="shape"):
        Network([4, 3]).feedforward(torch.rand(6, 5))
