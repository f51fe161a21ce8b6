"""Costs: against their formula, written with loops, against torch's losses, and where the outputs saturate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from manual_backprop.costs import COSTS as NAMED
from manual_backprop.costs import cost_named, cross_entropy, quadratic, reduce, sigmoid_cross_entropy
from manual_backprop.equations import output_error
from manual_backprop.functional import cross_entropy_cost, quadratic_cost, sigmoid_cross_entropy_cost
from tests.cases import (
    COST_CASES,
    COSTS,
    DTYPES,
    FLOAT64,
    OUT,
    REDUCTIONS,
    SHAPES,
    assert_close,
    assert_within_budget,
)


def by_loops(formula, input: Tensor, target: Tensor) -> Tensor:
    """The cost of each sample: the sum of the formula over the outputs."""
    outputs = input.shape[-1]
    a, y = (x.reshape(math.prod(x.shape[:-1]), outputs).tolist() for x in (input, target))
    costs = [sum(formula(a[n][j], y[n][j]) for j in range(outputs)) for n in range(len(a))]
    return torch.tensor(costs, dtype=input.dtype).reshape(input.shape[:-1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", COSTS)
def test_formula(case, shape):
    input, target = case.inputs(shape)
    each = by_loops(case.formula, input, target)
    assert_close(case.cost.value(input, target), each)
    assert_close(case.function(input, target, "none"), each)
    assert_close(case.function(input, target, "sum"), sum(each.flatten(), torch.zeros((), dtype=FLOAT64)))
    if each.numel():
        n = each.numel()
        assert_close(case.function(input, target), sum(each.flatten()) / n)
        assert torch.equal(case.function(input, target), case.function(input, target, "mean"))


@pytest.mark.parametrize("case", COSTS)
@given(
    shape=st.lists(st.integers(1, 4), max_size=2),
    outputs=st.integers(1, 5),
    data=st.data(),
)
def test_formula_of_any_values(case, shape, outputs, data):
    values = st.floats(0.001, 0.999) if case.inputs_are_probabilities else st.floats(-10, 10)
    size = (*shape, outputs)

    def draw(strategy):
        numbers = data.draw(st.lists(strategy, min_size=math.prod(size), max_size=math.prod(size)))
        return torch.tensor(numbers, dtype=FLOAT64).reshape(size)

    input, target = draw(values), draw(st.floats(0, 1))
    each = by_loops(case.formula, input, target)
    assert_close(case.function(input, target, "none"), each)
    assert_close(case.function(input, target, "mean"), each.mean())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", COSTS)
def test_losses_of_torch(case, shape, reduction):
    """Ours is `factor` times torch's, whose mean is over all n·o elements; value and both gradients."""
    input, target = (x.requires_grad_() for x in case.inputs(shape))
    ours = case.function(input, target, reduction)
    theirs = case.torch_loss(input, target, reduction="none" if reduction == "none" else "mean")
    if reduction == "none":
        theirs = theirs.mean(-1)
    elif reduction == "sum":
        theirs = theirs * math.prod(shape)
    theirs = theirs * case.factor(OUT)
    if math.prod(shape) or reduction == "none":  # else both are a mean of nothing
        assert_close(ours, theirs)
        grad_output = torch.randn_like(ours)
        expected = torch.autograd.grad(theirs, (input, target), grad_output)
        for actual, grad in zip(torch.autograd.grad(ours, (input, target), grad_output), expected, strict=True):
            assert_close(actual, grad)
    else:
        assert torch.equal(ours.isnan(), torch.tensor(reduction == "mean"))
        assert [g.shape for g in torch.autograd.grad(ours, (input, target))] == [input.shape, target.shape]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", COSTS)
def test_derivatives(case, shape):
    input, target = (x.requires_grad_() for x in case.inputs(shape))
    by_autograd = torch.autograd.grad(case.torch_loss(input, target, reduction="sum"), (input, target))
    per_output = case.factor(OUT) / OUT
    assert_close(case.cost.derivative(input, target), per_output * by_autograd[0])
    assert_close(case.cost.target_derivative(input, target), per_output * by_autograd[1])


def test_the_quadratic_cost_of_the_book():
    """C = 1/(2n) Σ_x ‖y − a‖² for two samples of two outputs."""
    a, y = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    assert quadratic_cost(a, y).item() == (1 + 4 + 0 + 16) / (2 * 2)


# δ^L of a sigmoid output


@pytest.mark.parametrize("shape", SHAPES)
def test_short_form_is_the_product_of_bp1(shape):
    """(a − y)/(a(1 − a)) ⊙ a(1 − a) = a − y."""
    z, y = torch.randn(*shape, OUT, dtype=FLOAT64), torch.rand(*shape, OUT, dtype=FLOAT64)
    a = torch.sigmoid(z)
    short = cross_entropy.of_weighted_input["sigmoid"]
    assert short is sigmoid_cross_entropy
    assert_close(short.derivative(z, y), a - y)
    assert_close(short.derivative(z, y), output_error(cross_entropy.derivative(a, y), a * (1 - a)))
    assert_close(short.value(z, y), cross_entropy.value(a, y))
    assert not quadratic.of_weighted_input


@pytest.mark.parametrize("size", [20.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_form_where_the_output_saturates(dtype, size):
    """A badly wrong neuron costs |z| and is told to move by 1; a right one costs nothing and stays."""
    z = torch.tensor([[-size], [-size], [size], [size]]).to(dtype).requires_grad_()
    y = torch.tensor([[0.0], [1.0], [0.0], [1.0]]).to(dtype).requires_grad_()
    cost = sigmoid_cross_entropy_cost(z, y, "none")
    grad_z, grad_y = torch.autograd.grad(cost.sum(), (z, y))
    expected = torch.tensor([0.0, size, size, 0.0]).to(dtype)
    small = 1e-8  # σ(−20), and what a cost has where it is right
    torch.testing.assert_close(cost, expected, rtol=torch.finfo(dtype).eps, atol=small)
    torch.testing.assert_close(grad_z, torch.tensor([[0.0], [-1.0], [1.0], [0.0]]).to(dtype), rtol=0, atol=small)
    assert torch.equal(grad_y, -z)


@given(z=st.floats(-(2.0**100), 2.0**100, width=32), y=st.floats(0, 1, width=32))
def test_short_form_is_finite_for_any_z(z, y):
    z, y = torch.tensor([z], requires_grad=True), torch.tensor([y])
    cost = sigmoid_cross_entropy_cost(z, y)
    (delta,) = torch.autograd.grad(cost, z)
    assert torch.isfinite(cost)
    assert cost >= 0
    assert delta.abs() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_saturated_outputs(dtype):
    """At a = 0 and a = 1 the logarithm is held at −100, as torch has it, and the gradients are finite."""
    a = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=dtype, requires_grad=True)
    cost = cross_entropy_cost(a, y, "none")
    assert torch.equal(cost, torch.tensor([0.0, 100.0, 100.0, 0.0], dtype=dtype))
    grad_a, grad_y = torch.autograd.grad(cost.sum(), (a, y))
    assert torch.isfinite(grad_a).all()
    assert torch.equal(grad_a.sign(), torch.tensor([[0.0], [-1.0], [1.0], [0.0]], dtype=dtype))
    assert torch.equal(grad_y, torch.tensor([[100.0], [100.0], [-100.0], [-100.0]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saturated_outputs_as_torch_has_them(dtype):
    a = torch.tensor([0.0, 0.0, 1.0, 1.0, 1e-30, 0.25], dtype=dtype, requires_grad=True)
    y = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.5], dtype=dtype)
    ours, theirs = cross_entropy_cost(a, y), torch.nn.functional.binary_cross_entropy(a, y, reduction="sum")
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours, a)[0], torch.autograd.grad(theirs, a)[0])


# Weights

WEIGHT_SHAPES = pytest.mark.parametrize("weight_shape", [(), (OUT,), (4, 1), (4, OUT)], ids=str)


@WEIGHT_SHAPES
@pytest.mark.parametrize("case", COSTS)
def test_gradcheck_of_a_weighted_cost(case, weight_shape):
    """The weight's own gradient too."""
    inputs = [x.requires_grad_() for x in (*case.inputs((4,)), torch.randn(weight_shape, dtype=FLOAT64))]

    def function(input, target, weight):
        return case.function(input, target, "none", weight)

    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_batched_grad=True)


@WEIGHT_SHAPES
def test_gradcheck_of_a_pos_weight(weight_shape):
    case = COST_CASES["sigmoid_cross_entropy"]
    inputs = [x.requires_grad_() for x in (*case.inputs((4,)), torch.rand(weight_shape, dtype=FLOAT64))]

    def function(input, target, pos_weight):
        return case.function(input, target, "none", pos_weight=pos_weight)

    assert gradcheck(function, inputs, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_batched_grad=True)


@pytest.mark.parametrize("case", COSTS)
def test_a_weight_is_a_number_of_times(case):
    """A weight of k counts an output k times, one of 0 leaves it out, and the mean is still over the samples."""
    input, target = case.inputs((4,))
    weight, columns = torch.tensor([2.0, 0.0, 1.0], dtype=FLOAT64), [0, 0, 2]
    for reduction in ("none", "sum", "mean"):
        assert_close(
            case.function(input, target, reduction, weight),
            case.function(input[:, columns], target[:, columns], reduction),
        )


def test_a_pos_weight_by_loops():
    z, y, p = torch.randn(4, OUT, dtype=FLOAT64), torch.rand(4, OUT, dtype=FLOAT64), [2.0, 0.5, 0.0]
    a = torch.sigmoid(z).tolist()
    expected = [
        sum(-p[j] * t * math.log(a[n][j]) - (1 - t) * math.log(1 - a[n][j]) for j, t in enumerate(row))
        for n, row in enumerate(y.tolist())
    ]
    cost = sigmoid_cross_entropy_cost(z, y, "none", pos_weight=torch.tensor(p, dtype=FLOAT64))
    assert_close(cost, torch.tensor(expected, dtype=FLOAT64))


@pytest.mark.parametrize("shape", [(2,), (5, 1), (1, 4, OUT), (4,)], ids=str)
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_weights_that_do_not_broadcast(name, shape):
    z = torch.zeros(4, OUT)
    with pytest.raises(ValueError, match="weight: expected a shape") as error:
        sigmoid_cross_entropy_cost(z, z, **{name: torch.ones(shape)})
    assert str(error.value) == f"{name}: expected a shape that broadcasts to that of input, (4, {OUT}), found {shape}"


# Dtypes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", COSTS)
def test_dtype(case, dtype):
    input, target = case.inputs((5,), dtype)
    results = []
    for cast in (dtype, FLOAT64):
        leaves = [x.to(cast, copy=True).requires_grad_() for x in (input, target)]
        for function in (case.function, lambda a, y: case.torch_loss(a, y, reduction="none").mean(-1).mean()):
            cost = function(*leaves)
            factor = 1 if function is case.function else case.factor(OUT)
            results.append([factor * x for x in (cost, *torch.autograd.grad(cost, leaves))])
    ours, eager, _, exact = results
    for actual, torchs, reference in zip(ours, eager, exact, strict=True):
        assert actual.dtype == dtype
        assert_within_budget(actual.detach(), torchs.detach(), reference.detach())


# Bad input


@pytest.mark.parametrize("case", COSTS)
@pytest.mark.parametrize(
    ("input", "target"),
    [
        pytest.param((4, 3), (4, 1), id="would_broadcast_outputs"),
        pytest.param((4, 3), (3,), id="would_broadcast_samples"),
        pytest.param((4, 3), (4,), id="labels"),
        pytest.param((4, 3), (5, 3), id="samples"),
        pytest.param((), (), id="no_dimension"),
    ],
)
def test_shapes_that_differ(case, input, target):
    with pytest.raises(ValueError, match="target: expected the shape") as error:
        case.function(torch.zeros(input), torch.zeros(target))
    assert str(error.value) == f"target: expected the shape (*, outputs) of input, {input}, found {target}"


@pytest.mark.parametrize("case", COSTS)
def test_unknown_reduction(case):
    with pytest.raises(ValueError, match="reduction: expected one of none, mean, sum, found 'average'"):
        case.function(torch.zeros(2, 3), torch.zeros(2, 3), "average")
    with pytest.raises(ValueError, match="found 'average'"):
        reduce(torch.zeros(2), "average")


def test_lookup():
    assert list(NAMED.items()) == [("quadratic", quadratic), ("cross_entropy", cross_entropy)]
    assert cost_named("quadratic") is quadratic
    assert cost_named(sigmoid_cross_entropy) is sigmoid_cross_entropy
    assert [repr(case.cost) for case in COST_CASES.values()] == ["quadratic", "cross_entropy", "sigmoid_cross_entropy"]
    with pytest.raises(ValueError, match="cost: expected a Cost or one of quadratic, cross_entropy, found 'mse'"):
        cost_named("mse")
