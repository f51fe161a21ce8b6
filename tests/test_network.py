"""The algorithm without autograd, against autograd."""

import copy
import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from manual_backprop import Activation, Gradients, Network, kernels, nn
from manual_backprop.costs import Cost, quadratic
from tests.cases import (
    ACTIVATIONS,
    DTYPES,
    ELEMENTWISE,
    FEW_SHAPES,
    FLOAT64,
    NAMED_ACTIVATIONS,
    SHAPES,
    assert_close,
    assert_within_budget,
    needs_cuda,
    one_modified,
    steep_sigmoid,
)

# The costs of the book, the mean over the samples, written once more.
COSTS = {
    "quadratic": lambda a, y: (y - a).square().sum(-1).mean() / 2,
    "cross_entropy": lambda a, y: F.binary_cross_entropy(a, y, reduction="none").sum(-1).mean(),
}
SIZES = [
    pytest.param([2, 3], id="one_layer"),
    pytest.param([4, 5, 3], id="two_layers"),
    pytest.param([4, 5, 2, 3], id="three_layers"),
]


def by_autograd(net: Network, references, cost, x, y) -> tuple[torch.Tensor, Gradients]:
    """The cost, and its gradient for every weight, bias and weighted input."""
    weights, biases = ([p.detach().clone().requires_grad_() for p in ps] for ps in (net.weights, net.biases))
    zs, a = [], x
    for w, b, f in zip(weights, biases, references, strict=True):
        zs.append(F.linear(a, w, b))
        a = f(zs[-1])
    value = cost(a, y)
    grads = torch.autograd.grad(value, [*weights, *biases, *zs])
    n = len(weights)
    return value.detach(), Gradients(list(grads[:n]), list(grads[n : 2 * n]), list(grads[2 * n :]))


def assert_same(actual: Gradients, expected: Gradients) -> None:
    assert isinstance(actual, Gradients)
    for ours, theirs in zip(actual, expected, strict=True):
        assert isinstance(ours, list)
        for x, y in zip(ours, theirs, strict=True):
            assert_close(x, y)


def batch(net: Network, shape=(6,), dtype=FLOAT64):
    return (torch.rand(*shape, w, dtype=dtype) for w in (net.weights[0].shape[1], net.weights[-1].shape[0]))


def tame(net: Network) -> Network:
    """Weights so small and positive that every neuron, of whatever kind, puts out a number in (0, 1)."""
    for w, b in zip(net.weights, net.biases, strict=True):
        w.uniform_(0.01, 0.8 / w.shape[1])
        b.uniform_(0.01, 0.1)
    return net


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("output", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [param for param in ACTIVATIONS if param.id not in ("one_modified", "every_kind")])
def test_quadratic_cost(hidden, output, sizes):
    net = Network(sizes, hidden.activation, "quadratic", output.activation, dtype=FLOAT64)
    references = [hidden.reference] * (len(sizes) - 2) + [output.reference]
    x, y = batch(net)
    value, gradients = by_autograd(net, references, COSTS["quadratic"], x, y)
    assert_same(net.backprop(x, y), gradients)
    assert_close(net.mean_cost(x, y), value)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("output", [param for param in ACTIVATIONS if "z" not in param.id and "_" not in param.id])
@pytest.mark.parametrize("hidden", NAMED_ACTIVATIONS)
def test_cross_entropy_cost(hidden, output, sizes):
    net = tame(Network(sizes, hidden.activation, "cross_entropy", output.activation, dtype=FLOAT64))
    references = [hidden.reference] * (len(sizes) - 2) + [output.reference]
    x, y = batch(net)
    value, gradients = by_autograd(net, references, COSTS["cross_entropy"], x, y)
    assert_same(net.backprop(x, y), gradients)
    assert_close(net.mean_cost(x, y), value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", ["sigmoid", steep_sigmoid, one_modified], ids=str)
def test_shapes(activation, cost, shape):
    reference = activation.function if isinstance(activation, Activation) else torch.sigmoid
    net = tame(Network([2, 3, 3], "tanh", cost, activation, dtype=FLOAT64))
    net.biases[-1].sub_(2.0)  # softplus, too, stays below 1
    x, y = batch(net, shape)
    gradients = net.backprop(x, y)
    assert_same(gradients, by_autograd(net, [torch.tanh, reference], COSTS[cost], x, y)[1])
    assert [g.shape for g in gradients.deltas] == [(*shape, 3), (*shape, 3)]
    if 0 in shape:
        assert not any(g.any() for g in gradients.weights + gradients.biases)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    n=st.integers(1, 5),
    hidden=st.sampled_from(sorted(ELEMENTWISE)),
    output=st.sampled_from(sorted(ELEMENTWISE)),
    seed=st.integers(0, 2**31),
)
def test_any_sizes(sizes, n, hidden, output, seed):
    torch.manual_seed(seed)
    hidden, output = ELEMENTWISE[hidden], ELEMENTWISE[output]
    net = Network(sizes, hidden.activation, "quadratic", output.activation, dtype=FLOAT64)
    x, y = (torch.randn(n, size, dtype=FLOAT64) for size in (sizes[0], sizes[-1]))
    references = [hidden.reference] * (len(sizes) - 2) + [output.reference]
    assert_same(net.backprop(x, y), by_autograd(net, references, COSTS["quadratic"], x, y)[1])


def test_cost_of_ones_own():
    """Half the fourth power: the gradient comes from its `derivative`."""
    fourth = Cost("fourth", lambda a, y: (a - y).pow(4).sum(-1), lambda a, y: 4 * (a - y).pow(3), lambda a, y: y)
    net = Network([4, 3, 2], cost=fourth, dtype=FLOAT64)
    x, y = batch(net)
    expected = by_autograd(net, [torch.sigmoid] * 2, lambda a, y: (a - y).pow(4).sum(-1).mean(), x, y)[1]
    assert_same(net.backprop(x, y), expected)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_saturated_sigmoid_output_with_cross_entropy(size):
    """δ^L = (a − y)/n, and not 0 · ∞."""
    net = Network([1, 1], cost="cross_entropy")
    net.weights[0].fill_(size)
    net.biases[0].zero_()
    x, y = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert_close(net.backprop(x, y).deltas[0], torch.tensor([[0.0], [-0.25], [0.25], [0.0]]))
    assert_close(net.mean_cost(x, y), torch.tensor(size / 2))


def test_only_the_sigmoid_has_the_short_form():
    """An activation of one's own that is called "sigmoid" is not taken for it."""
    impostor = Activation("sigmoid", steep_sigmoid.function, steep_sigmoid.derivative, "a")
    net = Network([2, 3], impostor, "cross_entropy", dtype=FLOAT64)
    x, y = batch(net)
    value, gradients = by_autograd(net, [steep_sigmoid.function], COSTS["cross_entropy"], x, y)
    assert_same(net.backprop(x, y), gradients)
    assert_close(net.mean_cost(x, y), value)


@pytest.mark.parametrize("case", NAMED_ACTIVATIONS)
def test_agrees_with_the_layers(case):
    net, mlp = Network([4, 5, 3], case.activation, dtype=FLOAT64), nn.MLP([4, 5, 3], case.activation, dtype=FLOAT64)
    for layer, w, b in zip(mlp, net.weights, net.biases, strict=True):
        layer.load_state_dict({"weight": w, "bias": b})
    x, y = batch(net)
    nn.QuadraticCost()(mlp(x), y).backward()
    gradients = net.backprop(x, y)
    assert_close(net.feedforward(x), mlp(x))
    for layer, w, b in zip(mlp, gradients.weights, gradients.biases, strict=True):
        assert_close(w, layer.weight.grad)
        assert_close(b, layer.bias.grad)


# The parts around backprop


@pytest.mark.parametrize("shape", FEW_SHAPES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_feedforward(case, shape):
    net = Network([4, 5, 3], "tanh", output_activation=case.activation, dtype=FLOAT64)
    x = torch.randn(*shape, 4, dtype=FLOAT64)
    hidden = torch.tanh(x @ net.weights[0].mT + net.biases[0])
    assert_close(net.feedforward(x), case.reference(hidden @ net.weights[1].mT + net.biases[1]))


def test_initialisation():
    torch.manual_seed(3)
    net = Network([784, 30, 10])
    assert [w.shape for w in net.weights] == [(30, 784), (10, 30)]
    assert [b.shape for b in net.biases] == [(30,), (10,)]
    assert net.cost is quadratic
    assert [f.name for f in net.activations] == ["sigmoid", "sigmoid"]
    assert abs(float(net.weights[0].mean())) < 0.03  # N(0, 1)
    assert abs(float(net.weights[0].std()) - 1) < 0.03
    torch.manual_seed(3)
    assert torch.equal(Network([784, 30, 10]).weights[1], net.weights[1])
    assert not torch.equal(Network([784, 30, 10]).weights[1], net.weights[1])


@pytest.mark.parametrize("cost", COSTS)
def test_update_is_one_step_of_gradient_descent(cost):
    net = Network([4, 5, 3], cost=cost, dtype=FLOAT64)
    x, y = batch(net)
    old = [p.clone() for p in net.weights + net.biases]
    expected = by_autograd(net, [torch.sigmoid] * 2, COSTS[cost], x, y)[1]
    parameters = net.weights + net.biases
    net.update(x, y, learning_rate=0.7)
    for new, was, gradient in zip(net.weights + net.biases, old, expected.weights + expected.biases, strict=True):
        assert_close(new, was - 0.7 * gradient)
    assert all(new is p for new, p in zip(net.weights + net.biases, parameters, strict=True))  # In place.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_torch_optim(momentum, weight_decay):
    """Three steps, so that there is a velocity; the weight decay is for weights and not for biases."""
    net = Network([4, 5, 3], dtype=FLOAT64)
    weights, biases = ([p.clone().requires_grad_() for p in ps] for ps in (net.weights, net.biases))
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=0.7, momentum=momentum)
    for _ in range(3):
        x, y = batch(net)
        a = x
        for w, b in zip(weights, biases, strict=True):
            a = torch.sigmoid(F.linear(a, w, b))
        optimizer.zero_grad()
        COSTS["quadratic"](a, y).backward()
        optimizer.step()
        net.update(x, y, 0.7, momentum, weight_decay)
    for ours, theirs in zip(net.weights + net.biases, weights + biases, strict=True):
        assert_close(ours, theirs.detach())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_sgd_is_an_update_a_mini_batch(batch_size):
    net, twin = (Network([4, 5, 3], dtype=FLOAT64) for _ in range(2))
    for ours, theirs in zip(net.weights + net.biases, twin.weights + twin.biases, strict=True):
        theirs.copy_(ours)
    x, y = batch(net, (7,))
    order = [3, 0, 6, 1, 5, 2, 4]
    net.sgd(x, y, batch_size, learning_rate=0.5, order=torch.tensor(order))
    for start in range(0, 7, batch_size):
        samples = order[start : start + batch_size]
        twin.update(x[samples], y[samples], 0.5)
    for ours, theirs in zip(net.weights + net.biases, twin.weights + twin.biases, strict=True):
        assert torch.equal(ours, theirs)


def through_save(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "deepcopy": copy.deepcopy,
    "torch.save": through_save,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("cost", ["quadratic", "cross_entropy"])
def test_a_copy_in_the_middle_of_training(copied, cost):
    net = Network([4, 5, 3], cost=cost, dtype=FLOAT64)
    x, y = batch(net, (7,))
    options = {"batch_size": 3, "order": torch.arange(7), "momentum": 0.5}
    net.sgd(x, y, **options)
    twin = copied(net)
    assert twin.cost is net.cost
    for either in (net, twin):
        either.sgd(x, y, **options)
    for ours, theirs in zip(net.weights + net.biases, twin.weights + twin.biases, strict=True):
        assert torch.equal(ours, theirs)


def test_buffers_follow_the_dtype():
    net = Network([4, 3])
    x, y = torch.rand(7, 4), torch.rand(7, 3)
    with pytest.raises(RuntimeError):
        net.sgd(x.double(), y.double())
    net.sgd(x, y)
    net.weights, net.biases = [w.double() for w in net.weights], [b.double() for b in net.biases]
    net.sgd(x.double(), y.double())
    net.backprop(x.double(), y.double())


def test_backprop_in_several_threads():
    net = Network([4, 5, 3], dtype=FLOAT64)
    batches = [tuple(batch(net, (7,))) for _ in range(4)]
    expected = [net.backprop(x, y).weights[0] for x, y in batches]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda i: net.backprop(*batches[i % 4]).weights[0], range(400)))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(gradient, expected[i % 4]) for i, gradient in enumerate(found))


@pytest.mark.parametrize("compile", [False, True], ids=["steps", "compiled"])
def test_what_comes_out_are_ordinary_tensors(compile):
    net = Network([4, 5, 3], compile=compile)
    x, y = batch(net, dtype=torch.float32)
    net.sgd(x, y, momentum=0.5)
    net.update(x, y, 0.1, momentum=0.5)
    gradients = net.backprop(x, y)
    given = [*gradients.weights, *gradients.biases, *gradients.deltas, *net.velocities]
    for tensor in [*given, net.feedforward(x), net.mean_cost(x, y), *net.outputs_and_cost(x, y)]:
        tensor.mul_(2)
        leaf = torch.ones_like(tensor, requires_grad=True)
        (leaf * tensor).sum().backward()
        assert torch.equal(leaf.grad, tensor)


RATES = {
    "int": 1,
    "numpy": numpy.float32(0.5),
    "numpy array": numpy.array(0.5),
    "tensor": torch.tensor(0.5),
    "one each": [0.5, numpy.float32(0.25), torch.tensor(0.1)],
    "numpy, one each": numpy.array([0.5, 0.25, 0.1]),
    "tensor, one each": torch.tensor([0.5, 0.25, 0.1]),
}


@pytest.mark.parametrize("compile", [False, True], ids=["steps", "compiled"])
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
def test_a_learning_rate_is_any_number(rate, compile):
    net = Network([4, 3], dtype=FLOAT64, compile=compile)
    twin = copy.deepcopy(net)
    x, y = batch(net, (6,))
    net.sgd(x, y, 2, rate, order=torch.arange(6))
    each = [rate] * 3 if numpy.ndim(rate) == 0 else rate
    for start, own in zip((0, 2, 4), each, strict=True):
        twin.update(x[start : start + 2], y[start : start + 2], own)
    assert_close(net.weights[0], twin.weights[0])


@pytest.mark.parametrize("batch_size", [0, -1])
@pytest.mark.parametrize("compile", [False, True], ids=["steps", "compiled"])
def test_a_mini_batch_has_samples(batch_size, compile):
    net = Network([4, 3], dtype=FLOAT64, compile=compile)
    with pytest.raises(ValueError, match=f"batch_size: expected at least 1, found {batch_size}"):
        net.sgd(*batch(net), batch_size=batch_size)


def test_sgd_in_random_order_sees_each_sample_once(monkeypatch):
    net = Network([1, 2])
    seen = []
    monkeypatch.setattr(net, "_descend", lambda x, y, buffers, rate, *_: seen.append((x.flatten().tolist(), rate)))
    x = torch.arange(25.0).unsqueeze(1)
    net.sgd(x, x.expand(25, 2))
    assert [len(samples) for samples, _ in seen] == [10, 10, 5]
    assert {rate for _, rate in seen} == {3.0}
    samples = [sample for samples, _ in seen for sample in samples]
    assert sorted(samples) == x.flatten().tolist()
    assert samples != sorted(samples)


def test_it_learns_exclusive_or():
    net = Network([2, 4, 1], cost="cross_entropy", dtype=FLOAT64)
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=FLOAT64)
    y = torch.tensor([[0], [1], [1], [0]], dtype=FLOAT64)
    for _ in range(2000):
        net.update(x, y, learning_rate=1.0)
    assert torch.equal(net.feedforward(x).round(), y)


def test_evaluate_counts_what_is_right():
    net = Network([3, 3], "identity")
    net.weights[0].copy_(torch.eye(3))
    net.biases[0].zero_()
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.3, 0.2, 0.1]])
    right = net.evaluate(x, torch.tensor([0, 1, 1, 0]))
    assert right == 3
    assert isinstance(right, int)
    assert net.evaluate(x[:0], torch.zeros(0, dtype=torch.int64)) == 0


# Dtypes and devices


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "identity"])
def test_precision(activation, cost, dtype):
    net = tame(Network([4, 5, 3], activation, cost, "sigmoid", dtype=dtype))
    exact_net = Network([4, 5, 3], dtype=FLOAT64)
    exact_net.weights, exact_net.biases = ([p.double() for p in ps] for ps in (net.weights, net.biases))
    references = [ELEMENTWISE[activation].reference, torch.sigmoid]
    x, y = batch(net, dtype=dtype)
    ours = net.backprop(x, y)
    eager = by_autograd(net, references, COSTS[cost], x, y)[1]
    exact = by_autograd(exact_net, references, COSTS[cost], x.double(), y.double())[1]
    for actual, torchs, reference in zip(*map(chain.from_iterable, (ours, eager, exact)), strict=True):
        assert actual.dtype == dtype
        assert_within_budget(actual.clone(), torchs, reference)
    assert net.feedforward(x).dtype == dtype
    net.update(x, y, 0.5)
    assert {p.dtype for p in net.weights + net.biases} == {dtype}


@needs_cuda
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("case", NAMED_ACTIVATIONS)
def test_cuda_agrees_with_cpu(case, cost):
    net = tame(Network([4, 5, 3], case.activation, cost, dtype=FLOAT64))
    twin = Network([4, 5, 3], case.activation, cost, device="cuda", dtype=FLOAT64)
    twin.weights, twin.biases = ([p.cuda() for p in ps] for ps in (net.weights, net.biases))
    x, y = batch(net)
    order = torch.randperm(6)
    net.sgd(x, y, 4, 0.1, order)
    twin.sgd(x.cuda(), y.cuda(), 4, 0.1, order.cuda())
    for ours, cuda in zip(net.weights + net.biases, twin.weights + twin.biases, strict=True):
        assert cuda.device.type == "cuda"
        assert_close(cuda.cpu(), ours)
    labels = torch.arange(6) % 3
    assert net.evaluate(x, labels) == twin.evaluate(x.cuda(), labels.cuda())


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "weight_decay": 1e-3}], ids=["plain", "momentum-l2"])
@pytest.mark.parametrize("cost", ["quadratic", "cross_entropy"])
def test_nothing_is_allocated_after_the_first_steps(cost, options):
    """By ATen: oneDNN's operation has no place to write to."""
    net, x, y, order = Network([8, 6, 3], cost=cost), torch.rand(25, 8), torch.rand(25, 3), torch.arange(25)
    with kernels.using("aten"):
        net.sgd(x, y, 10, 3.0, order, **options)
    with kernels.using("aten"), torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        net.sgd(x, y, 10, 3.0, order, **options)
    allocations = {event.name: event.cpu_memory_usage for event in profile.function_events if event.cpu_memory_usage}
    assert any(event.name == "aten::addmm" for event in profile.function_events)
    assert not allocations
