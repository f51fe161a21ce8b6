"""The autograd Functions: gradcheck and gradgradcheck, and the contract of what a backward gives back and keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from manual_backprop import functional
from manual_backprop.activations import ACTIVATIONS as NAMED
from manual_backprop.functional import linear_activation
from manual_backprop.functions import ActivationFunction, CostFunction, LinearActivationFunction
from tests.cases import (
    ACTIVATIONS,
    BIAS,
    COSTS,
    DTYPES,
    FEW_SHAPES,
    FLOAT64,
    IN,
    LAYER_ARGUMENTS,
    LAYOUTS,
    OUT,
    REDUCTIONS,
    REQUIRES,
    SHAPES,
    StandInContext,
    assert_close,
    assert_within_budget,
    layer_inputs,
    softplus,
)

COST_REQUIRES = [
    pytest.param(True, False, id="input"),
    pytest.param(False, True, id="target"),
    pytest.param(True, True, id="input+target"),
]


def layer(case, arguments):
    """The layer as a function of the arguments that it is given: without "bias" there is no third one."""
    return lambda *args: linear_activation(*args, *(() if "bias" in arguments else (None,)), case.activation)


def requiring_grad(inputs):
    return [x for x in inputs if x is not None and x.requires_grad]


# gradcheck and gradgradcheck


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("arguments", "requires"), REQUIRES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_gradcheck_of_a_layer(case, arguments, requires, shape):
    inputs = layer_inputs(shape, requires=requires)[: len(arguments)]
    assert gradcheck(layer(case, arguments), inputs, check_batched_grad=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("arguments", "requires"), REQUIRES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_gradgradcheck_of_a_layer(case, arguments, requires, shape):
    inputs = layer_inputs(shape, requires=requires)[: len(arguments)]
    assert gradgradcheck(layer(case, arguments), inputs, check_batched_grad=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", [param for param in ACTIVATIONS if param.values[0].activation.needs == "z"])
def test_gradcheck_of_an_activation_alone(case, shape):
    def function(z):
        return ActivationFunction.apply(z, case.activation)

    z = torch.randn(*shape, OUT, dtype=FLOAT64, requires_grad=True)
    assert gradcheck(function, z, check_batched_grad=True)
    assert gradgradcheck(function, z, check_batched_grad=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("input_requires", "target_requires"), COST_REQUIRES)
@pytest.mark.parametrize("case", COSTS)
def test_gradcheck_of_a_cost(case, input_requires, target_requires, shape, reduction):
    input, target = case.inputs(shape)
    inputs = (input.requires_grad_(input_requires), target.requires_grad_(target_requires), reduction)
    if 0 in shape and reduction == "mean":
        assert case.function(*inputs).isnan()  # A mean of nothing, as in torch: no finite difference to be had.
        return
    assert gradcheck(case.function, inputs, check_batched_grad=True)
    assert gradgradcheck(case.function, inputs, check_batched_grad=True)


# grad_output in every layout


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_layouts_of_grad_output(case, bias, shape, layout):
    """Against autograd through torch's own linear and activation, with signs and sizes far from 1."""
    inputs = layer_inputs(shape, bias)
    grad_output = 10 * layout((*shape, OUT))
    leaves = requiring_grad(inputs)
    expected = torch.autograd.grad(case.reference(F.linear(*inputs)), leaves, grad_output)
    actual = torch.autograd.grad(linear_activation(*inputs, case.activation), leaves, grad_output)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_gradgradcheck_with_layouts_of_grad_output(case, bias, shape):
    inputs = layer_inputs(shape, bias)
    leaves = requiring_grad(inputs)

    def gradients(seed, *leaves):
        output = layer(case, LAYER_ARGUMENTS[: len(leaves)])(*leaves)
        # One number for every output, stride 0, or a transposed view: made inside, where its gradient flows back.
        grad_output = seed.expand(output.shape) if seed.dim() == 0 else seed.permute(*range(seed.dim() - 1, -1, -1))
        return torch.autograd.grad(output, leaves, grad_output, create_graph=True)

    for seed_shape in ((), (OUT, *shape[::-1])):
        seed = torch.randn(seed_shape, dtype=FLOAT64, requires_grad=True)
        assert gradcheck(gradients, (seed, *leaves))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", COSTS)
def test_layouts_of_grad_output_of_a_cost(case, shape, layout):
    input, target = (x.requires_grad_() for x in case.inputs(shape))
    grad_output = 10 * layout((*shape, OUT))[..., 0]
    each = case.torch_loss(input, target, reduction="none").mean(-1) * case.factor(OUT)
    expected = torch.autograd.grad(each, (input, target), grad_output)
    actual = torch.autograd.grad(case.function(input, target, "none"), (input, target), grad_output)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("case", ACTIVATIONS)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    features=st.integers(1, 5),
    bias=st.booleans(),
    layout=st.sampled_from([param.values[0] for param in LAYOUTS]),
    scale=st.floats(0.01, 30),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_size(case, shape, features, bias, layout, scale, seed):
    torch.manual_seed(seed)
    input = (scale * torch.randn(*shape, features, dtype=FLOAT64)).requires_grad_()
    weight = torch.randn(OUT, features, dtype=FLOAT64, requires_grad=True)
    b = torch.randn(OUT, dtype=FLOAT64, requires_grad=True) if bias else None
    leaves = requiring_grad((input, weight, b))
    ours, theirs = linear_activation(input, weight, b, case.activation), case.reference(F.linear(input, weight, b))
    assert_close(ours, theirs)
    grad_output = layout((*shape, OUT))
    expected = torch.autograd.grad(theirs, leaves, grad_output)
    for actual, grad in zip(torch.autograd.grad(ours, leaves, grad_output), expected, strict=True):
        assert_close(actual, grad)


# What a backward returns, writes and keeps


def raw_backward(function, inputs, needs, grad_output):
    """What `backward` itself returns."""
    output = function.forward(*inputs)
    ctx = StandInContext(*needs)
    function.setup_context(ctx, inputs, output)
    return function.backward(ctx, grad_output)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", FEW_SHAPES)
@pytest.mark.parametrize(("arguments", "requires"), REQUIRES)
@pytest.mark.parametrize("case", [param for param in ACTIVATIONS if param.values[0].activation.needs != "z"])
def test_raw_gradients_of_a_layer(case, arguments, requires, shape, dtype):
    """A gradient of the shape and dtype of its input where one is asked for, else None; never grad_output itself."""
    inputs = layer_inputs(shape, bias="bias" in arguments, dtype=dtype)
    needs = [name in requires for name in LAYER_ARGUMENTS]
    grad_output = torch.randn(*shape, OUT, dtype=dtype)
    with torch.no_grad():
        gradients = raw_backward(LinearActivationFunction, (*inputs, case.activation), (*needs, False), grad_output)
    assert [g is not None for g in gradients] == [*needs, False]
    for gradient, input in zip(gradients, inputs, strict=False):
        if gradient is not None:
            assert (gradient.shape, gradient.dtype) == (input.shape, input.dtype)
            assert gradient.untyped_storage().data_ptr() != grad_output.untyped_storage().data_ptr() or 0 in shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_raw_gradient_of_an_activation(shape, dtype):
    z, grad_output = torch.randn(*shape, OUT, dtype=dtype), torch.randn(*shape, OUT, dtype=dtype)
    gradient, nothing = raw_backward(ActivationFunction, (z, softplus), (True, False), grad_output)
    assert nothing is None
    assert (gradient.shape, gradient.dtype) == (z.shape, z.dtype)
    assert gradient is not grad_output


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("input_requires", "target_requires"), COST_REQUIRES)
@pytest.mark.parametrize("case", COSTS)
def test_raw_gradients_of_a_cost(case, input_requires, target_requires, shape, dtype):
    inputs = case.inputs(shape, dtype)
    needs = (input_requires, target_requires, False)
    gradients = raw_backward(CostFunction, (*inputs, case.cost), needs, torch.randn(shape).to(dtype))
    assert [g is not None for g in gradients] == list(needs)
    assert all(g is None or (g.shape, g.dtype) == (inputs[0].shape, dtype) for g in gradients)


def bytes_of(tensors):
    return [None if x is None else bytes(x.detach().untyped_storage().tolist()) for x in tensors]


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_a_layer_writes_into_nothing(case, bias):
    inputs = layer_inputs((5,), bias)
    grad_output = torch.randn(5, 2 * OUT, dtype=FLOAT64)[:, ::2]
    before = bytes_of(inputs)
    output = linear_activation(*inputs, case.activation)
    watched = [*inputs, output, grad_output, *output.grad_fn.saved_tensors]
    all_before, versions = bytes_of(watched), versions_of(watched)
    gradients = torch.autograd.grad(output, requiring_grad(inputs), grad_output, retain_graph=True)
    assert bytes_of(watched) == all_before
    assert bytes_of(inputs) == before
    assert versions_of(watched) == versions  # a is written over z, before anybody sees it
    assert not any(versions_of(inputs))
    again = torch.autograd.grad(output, requiring_grad(inputs), grad_output)
    assert all(torch.equal(first, second) for first, second in zip(gradients, again, strict=True))


def versions_of(tensors):
    return [0 if x is None else x._version for x in tensors]


@pytest.mark.parametrize("case", COSTS)
def test_a_cost_writes_into_nothing(case):
    inputs = [x.requires_grad_() for x in case.inputs((5,))]
    cost = case.function(*inputs, "none")
    grad_output = torch.randn(5, dtype=FLOAT64)
    watched = [*inputs, cost, grad_output]
    before = bytes_of(watched)
    torch.autograd.grad(cost, inputs, grad_output)
    assert bytes_of(watched) == before
    assert all(x._version == 0 for x in watched)


@pytest.mark.parametrize(("arguments", "requires"), REQUIRES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_a_layer_saves_only_what_it_needs(case, arguments, requires):
    input, weight, bias = layer_inputs((5,), bias="bias" in arguments, requires=requires)
    output = linear_activation(input, weight, bias, case.activation)
    node, saved_of_activation = output.grad_fn, []
    if case.activation.needs == "z":
        saved_of_activation, node = list(node.saved_tensors), node.next_functions[0][0]
    saved_input, saved_weight, saved_output = node.saved_tensors

    assert (saved_input is None) == ("weight" not in requires)
    assert (saved_weight is None) == ("input" not in requires)
    assert (saved_output is None) == (case.activation.needs != "a")
    assert saved_input is None or saved_input.data_ptr() == input.data_ptr()
    assert saved_weight is None or saved_weight.data_ptr() == weight.data_ptr()
    assert saved_output is None or saved_output.data_ptr() == output.data_ptr()
    if case.activation.needs == "z":  # z, and not a beside it.
        assert [torch.allclose(x, F.linear(input, weight, bias)) for x in saved_of_activation] == [True]


def test_nothing_is_saved_where_nothing_requires_grad():
    output = functional.linear_sigmoid(*layer_inputs((5,), requires=()))
    assert output.grad_fn is None
    assert not output.requires_grad


# Dtypes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_precision_of_a_layer(case, bias, dtype):
    quantised = [x.detach() for x in layer_inputs((7,), bias, dtype) if x is not None]
    grad_output = torch.randn(7, OUT).to(dtype)

    def run(cast, function):
        leaves = [x.to(cast, copy=True).requires_grad_() for x in quantised]
        output = function(*leaves, *(() if bias else (None,)))
        return [output.detach(), *torch.autograd.grad(output, leaves, grad_output.to(cast))]

    def reference(*inputs):
        return case.reference(F.linear(*inputs))

    ours = run(dtype, lambda *inputs: linear_activation(*inputs, case.activation))
    for actual, eager, exact in zip(ours, run(dtype, reference), run(FLOAT64, reference), strict=True):
        assert actual.dtype == dtype
        assert_within_budget(actual, eager, exact)


# functional


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("name", ["identity", "sigmoid", "tanh", "relu"])
def test_the_named_layers(name, bias):
    function = functional.linear if name == "identity" else getattr(functional, f"linear_{name}")
    input, weight, b = layer_inputs((5,), bias)
    expected = NAMED[name].module()(F.linear(input, weight, b))
    assert_close(function(input, weight, b) if bias else function(input, weight), expected)
    assert torch.equal(linear_activation(input, weight, b, name), function(input, weight, b))


@pytest.mark.parametrize("weight", [(IN,), (2, OUT, IN), ()], ids=str)
def test_weight_that_is_not_a_matrix(weight):
    with pytest.raises(ValueError, match="weight: expected a matrix") as error:
        functional.linear_sigmoid(torch.zeros(5, IN), torch.zeros(weight))
    assert str(error.value) == f"weight: expected a matrix (out_features, in_features), found shape {weight}"


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation: expected an Activation or one of .*, found 'softmax'"):
        linear_activation(torch.zeros(5, IN), torch.zeros(OUT, IN), None, "softmax")


@pytest.mark.parametrize(
    ("input", "bias"),
    [pytest.param((5, IN + 1), (OUT,), id="input"), pytest.param((5, IN), (OUT + 1,), id="bias")],
)
def test_shapes_that_do_not_fit(input, bias):
    with pytest.raises(RuntimeError, match=r"shape|size"):
        functional.linear(torch.zeros(input), torch.zeros(OUT, IN), torch.zeros(bias))


def test_dtypes_that_do_not_fit():
    with pytest.raises(RuntimeError, match="dtype"):
        functional.linear(torch.zeros(5, IN), torch.zeros(OUT, IN, dtype=FLOAT64))
