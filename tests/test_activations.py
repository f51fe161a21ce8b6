"""Activations: the value against its formula, the derivative against autograd, and what it is taken from."""

import copy
import pickle
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from manual_backprop import Activation, per_neuron
from manual_backprop.activations import ACTIVATIONS as NAMED
from manual_backprop.activations import Name, activation_named, identity, relu, sigmoid, tanh
from tests.cases import (
    ACTIVATIONS,
    DTYPES,
    ELEMENTWISE_ACTIVATIONS,
    FLOAT64,
    NAMED_ACTIVATIONS,
    OUT,
    PER_NEURON,
    SHAPES,
    assert_close,
    assert_within_budget,
    softplus,
    steep_sigmoid,
)


@pytest.mark.parametrize("case", ELEMENTWISE_ACTIVATIONS)
@given(zs=st.lists(st.floats(-30, 30), max_size=5))
def test_value_is_the_formula(case, zs):
    expected = torch.tensor([case.formula(z) for z in zs], dtype=FLOAT64)
    assert_close(case.activation.function(torch.tensor(zs, dtype=FLOAT64)), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_value_and_derivative_are_those_of_torch(case, shape):
    z = torch.randn(*shape, OUT, dtype=FLOAT64, requires_grad=True)
    expected = case.reference(z)
    assert_close(case.activation.function(z), expected)
    (expected_derivative,) = torch.autograd.grad(expected.sum(), z)
    derivative = torch.as_tensor(case.activation.derivative_at(z), dtype=FLOAT64)
    assert_close(derivative.expand_as(z), expected_derivative)


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_jacobian_is_the_diagonal_of_the_derivative(case):
    z = torch.randn(OUT, dtype=FLOAT64)
    derivative = torch.as_tensor(case.activation.derivative_at(z), dtype=FLOAT64)
    assert_close(torch.diag(derivative.expand(OUT)), jacrev(case.activation.function)(z))


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_derivative_is_differentiable(case):
    def derivative(z):
        return z * case.activation.derivative_at(z)

    z = torch.randn(4, OUT, dtype=FLOAT64, requires_grad=True)
    assert torch.autograd.gradcheck(derivative, z, check_batched_grad=True)


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_the_given_activation_is_used(case):
    """σ′ from a, where it is known already: σ is not computed again, and what needs z does not look at a."""
    calls = []
    counting = Activation(
        "counting",
        lambda z: calls.append(z) or case.activation.function(z),
        case.activation.derivative,
        case.activation.needs,
    )
    z = torch.randn(OUT, dtype=FLOAT64)
    a = case.activation.function(z)
    with_a = counting.derivative_at(z, a)
    assert not calls
    without_a = counting.derivative_at(z)
    assert len(calls) == (case.activation.needs == "a")
    assert torch.equal(torch.as_tensor(with_a), torch.as_tensor(without_a))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_dtype(case, dtype):
    z = torch.randn(5, OUT).to(dtype)
    exact_z = z.double().requires_grad_()
    exact = case.reference(exact_z)
    (exact_derivative,) = torch.autograd.grad(exact.sum(), exact_z)
    eager_z = z.clone().requires_grad_()
    eager = case.reference(eager_z)
    (eager_derivative,) = torch.autograd.grad(eager.sum(), eager_z)
    assert_within_budget(case.activation.function(z), eager, exact)
    derivative = case.activation.derivative_at(z)
    if isinstance(derivative, torch.Tensor):  # A number has no dtype of its own, and takes that of grad_output.
        assert_within_budget(derivative, eager_derivative, exact_derivative)
    else:
        assert derivative == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_finite_where_it_saturates(case, dtype):
    z = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]).to(dtype).unsqueeze(-1).expand(7, OUT)
    assert torch.isfinite(case.activation.function(z)).all()
    assert torch.isfinite(torch.as_tensor(case.activation.derivative_at(z))).all()


@given(zs=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_ranges(zs):
    z = torch.tensor(zs, dtype=FLOAT64)
    for activation, low, high, steepest in ((sigmoid, 0, 1, 0.25), (tanh, -1, 1, 1)):
        a, derivative = activation.function(z), activation.derivative_at(z)
        assert low <= a.min()
        assert a.max() <= high
        assert derivative.min() >= 0
        assert derivative.max() <= steepest


@given(zs=st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_tanh_is_a_stretched_sigmoid(zs):
    z = torch.tensor(zs, dtype=FLOAT64)
    assert_close(tanh.function(z), 2 * sigmoid.function(2 * z) - 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_at_the_kink(dtype):
    z = torch.tensor([-1.0, -0.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=dtype)
    assert torch.equal(relu.derivative_at(z), expected)
    assert torch.equal(torch.autograd.grad(torch.relu(z).sum(), z)[0], expected)  # As torch has it.


def test_the_linear_neuron():
    z = torch.randn(3)
    assert torch.equal(identity.function(z), z)
    assert identity.derivative_at(z) == 1
    assert identity.needs is None


def test_what_each_derivative_needs():
    assert {name: activation.needs for name, activation in NAMED.items()} == {
        "sigmoid": "a",
        "tanh": "a",
        "relu": "a",
        "identity": None,
    }


@pytest.mark.parametrize("case", NAMED_ACTIVATIONS)
def test_what_a_row_names_of_torch_is_the_same(case):
    z = torch.tensor([-2.0, -0.0, 0.5, torch.inf, torch.nan])
    a = case.activation.function(z)
    for twin in (case.activation.module(), *case.activation.functions):
        torch.testing.assert_close(twin(z), a, rtol=0, atol=0, equal_nan=True)


def test_the_names_of_the_command_lines_are_those_of_the_table():
    assert get_args(Name) == tuple(NAMED)


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_split_is_the_activation_in_two(case):
    """σ′ is computed from the output of the first, which is all that a layer keeps."""
    z = torch.randn(4, OUT, dtype=FLOAT64)
    of_product, after = case.activation.split()
    value = of_product.function(z)
    assert_close(after.function(value), case.activation.function(z))
    derivative = torch.as_tensor(case.activation.derivative(value), dtype=FLOAT64)
    assert_close(derivative.expand_as(z), torch.as_tensor(case.activation.derivative_at(z)).expand_as(z).double())


@pytest.mark.parametrize("case", NAMED_ACTIVATIONS)
def test_lookup(case):
    assert activation_named(case.activation.name) is case.activation
    assert activation_named(case.activation) is case.activation
    assert repr(case.activation) == case.activation.name


@pytest.mark.parametrize("activation", [softplus, steep_sigmoid])
def test_ones_own_activation_needs_no_lookup(activation):
    assert activation_named(activation) is activation


def test_unknown_activation():
    message = "activation: expected an Activation or one of sigmoid, tanh, relu, identity, found 'sigmoidal'"
    with pytest.raises(ValueError, match=message):
        activation_named("sigmoidal")
    with pytest.raises(ValueError, match=message):
        per_neuron(["sigmoid", "sigmoidal"])


# A layer with an activation for each neuron


def test_per_neuron_of_one_kind_is_that_kind():
    z = torch.randn(4, 3, dtype=FLOAT64)
    for activation in (sigmoid, tanh, relu, softplus):
        layer = per_neuron([activation] * 3)
        assert torch.equal(layer.function(z), activation.function(z))
        assert torch.equal(layer.derivative_at(z), activation.derivative_at(z))
    assert torch.equal(per_neuron(["identity"] * 3).derivative_at(z), torch.ones(4, 3, dtype=FLOAT64))


def test_a_single_modified_neuron_changes_its_own_column_only():
    z = torch.randn(4, 3, dtype=FLOAT64)
    modified = per_neuron(["sigmoid", "tanh", "sigmoid"])
    for part in ("function", "derivative_at"):
        ours, plain, changed = (getattr(activation, part)(z) for activation in (modified, sigmoid, tanh))
        assert torch.equal(ours[:, [0, 2]], plain[:, [0, 2]])
        assert torch.equal(ours[:, 1], changed[:, 1])


def test_per_neuron_says_what_it_is_made_of():
    activation = PER_NEURON["one_modified"].activation
    assert activation.name == "per_neuron(sigmoid, sigmoid, softplus)"
    assert activation.needs == "z"


@pytest.mark.parametrize("neurons", [2, 4])
def test_per_neuron_for_a_layer_of_another_size(neurons):
    activation = PER_NEURON["one_modified"].activation
    for part in (activation.function, activation.derivative):
        with pytest.raises(ValueError, match=f"per_neuron: expected a layer of 3 neurons, found {neurons}"):
            part(torch.zeros(5, neurons))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_there_is_one_of_each_named_activation(copied):
    """Also after a copy or a pickle; one of one's own is copied as any dataclass, whatever it is called."""
    assert all(copied(activation) is activation for activation in NAMED.values())
    namesake = Activation("sigmoid", torch.tanh, torch.sigmoid, needs="z")
    for own in (softplus, steep_sigmoid, namesake):
        assert copied(own) == own
        assert copied(own) is not own
