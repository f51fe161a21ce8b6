"""The modules against torch.nn: the same weights, values, gradients, state_dict, initialisation and random stream."""

import copy
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jacrev, vmap

from manual_backprop import Activation, nn
from manual_backprop.activations import identity
from manual_backprop.functions import ActivationFunction, CostFunction, LinearActivationFunction
from tests.cases import (
    ACTIVATIONS,
    BIAS,
    COSTS,
    DTYPES,
    FEW_SHAPES,
    FLOAT64,
    IN,
    NAMED_ACTIVATIONS,
    OUT,
    REDUCTIONS,
    SHAPES,
    StandInContext,
    assert_close,
    needs_cuda,
    needs_fake_cuda,
    softplus,
    steep_sigmoid,
)

LAYERS = [
    pytest.param(nn.Linear, torch.nn.Identity, id="Linear"),
    pytest.param(nn.LinearSigmoid, torch.nn.Sigmoid, id="LinearSigmoid"),
    pytest.param(nn.LinearTanh, torch.nn.Tanh, id="LinearTanh"),
    pytest.param(nn.LinearReLU, torch.nn.ReLU, id="LinearReLU"),
]
COST_MODULES = pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(nn.QuadraticCost, "quadratic", id="QuadraticCost"),
        pytest.param(nn.CrossEntropyCost, "cross_entropy", id="CrossEntropyCost"),
        pytest.param(nn.SigmoidCrossEntropyCost, "sigmoid_cross_entropy", id="SigmoidCrossEntropyCost"),
    ],
)


def gradients(module, input, grad_output):
    input = input.clone().requires_grad_()
    output = module(input)
    return output, torch.autograd.grad(output, (input, *module.parameters()), grad_output)


def assert_same(ours, theirs, input):
    """Values, and the gradients of the input and of every parameter."""
    grad_output = 10 * torch.randn_like(ours(input))
    (value, grads), (expected, expected_grads) = (gradients(m, input, grad_output) for m in (ours, theirs))
    assert_close(value, expected)
    assert len(grads) == len(expected_grads)
    for actual, grad_of_torch in zip(grads, expected_grads, strict=True):
        assert_close(actual, grad_of_torch)


# One layer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize(("layer", "activation"), LAYERS)
def test_layer_is_linear_and_activation(layer, activation, bias, shape):
    ours = layer(IN, OUT, bias=bias, dtype=FLOAT64)
    linear = torch.nn.Linear(IN, OUT, bias=bias, dtype=FLOAT64)
    linear.load_state_dict(ours.state_dict(), strict=True)
    assert_same(ours, torch.nn.Sequential(linear, activation()), torch.randn(*shape, IN, dtype=FLOAT64))


@pytest.mark.parametrize("shape", FEW_SHAPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_layer_of_any_activation(case, bias, shape):
    ours = nn.LinearActivation(IN, OUT, case.activation, bias=bias, dtype=FLOAT64)

    class Reference(torch.nn.Linear):
        def forward(self, input):
            return case.reference(super().forward(input))

    reference = Reference(IN, OUT, bias=bias, dtype=FLOAT64)
    reference.load_state_dict(ours.state_dict())
    assert_same(ours, reference, torch.randn(*shape, IN, dtype=FLOAT64))


@pytest.mark.parametrize("case", NAMED_ACTIVATIONS)
def test_activation_by_name(case):
    named, given = (nn.LinearActivation(IN, OUT, f) for f in (case.activation.name, case.activation))
    assert named.activation is given.activation is case.activation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize(("layer", "_"), LAYERS)
def test_state_dict_and_initialisation_are_those_of_linear(layer, _, bias, dtype):
    torch.manual_seed(5)
    ours, ours_next = layer(IN, OUT, bias=bias, dtype=dtype), torch.rand(())
    torch.manual_seed(5)
    theirs, theirs_next = torch.nn.Linear(IN, OUT, bias=bias, dtype=dtype), torch.rand(())
    assert torch.equal(ours_next, theirs_next)  # The random stream goes on from the same place.
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) and state[key].dtype == dtype for key in state)
    for to, other in ((layer, theirs), (torch.nn.Linear, ours)):
        fresh = to(IN, OUT, bias=bias, dtype=dtype)
        assert str(fresh.load_state_dict(other.state_dict(), strict=True)) == "<All keys matched successfully>"
        assert torch.equal(fresh.weight, other.weight)


@pytest.mark.parametrize(("layer", "_"), LAYERS)
def test_layer_is_a_linear(layer, _):
    module = layer(IN, OUT)
    assert isinstance(module, torch.nn.Linear)
    assert repr(module) == f"{layer.__name__}(in_features={IN}, out_features={OUT}, bias=True)"
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        input = torch.randn(4, IN)
        assert torch.equal(twin(input), module(input))
        assert twin.weight is not module.weight
    module.reset_parameters()  # As inherited.
    assert not torch.equal(module.weight, twin.weight)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(("layer", "_"), LAYERS)
def test_frozen_parameter(layer, _, frozen):
    module = layer(IN, OUT)
    getattr(module, frozen).requires_grad_(False)
    module(torch.ones(4, IN)).sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is None} == {frozen}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer", "_"), LAYERS)
def test_dtype(layer, _, dtype):
    module = layer(IN, OUT, dtype=dtype)
    input = torch.randn(4, IN, dtype=dtype, requires_grad=True)
    output = module(input)
    output.sum().backward()
    assert {x.dtype for x in (output, input.grad, module.weight.grad, module.bias.grad)} == {dtype}


def test_repr_names_the_activation():
    assert repr(nn.LinearActivation(4, 3, softplus, bias=False)) == (
        "LinearActivation(in_features=4, out_features=3, bias=False, activation=softplus)"
    )


# MLP


@pytest.mark.parametrize("shape", FEW_SHAPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("output", [*NAMED_ACTIVATIONS, pytest.param(None, id="same")])
@pytest.mark.parametrize("hidden", NAMED_ACTIVATIONS)
def test_mlp_is_a_stack_of_layers(hidden, output, bias, shape):
    sizes = [4, 5, 3, 2]
    last = None if output is None else output.activation
    ours = nn.MLP(sizes, hidden.activation.name, last, bias=bias, dtype=FLOAT64)
    theirs = torch.nn.Sequential()
    for layer, f in zip(ours, [hidden, hidden, output or hidden], strict=True):
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=bias, dtype=FLOAT64)
        linear.load_state_dict(layer.state_dict())
        theirs += torch.nn.Sequential(linear, f.reference)
    assert [(m.in_features, m.out_features) for m in ours] == [(4, 5), (5, 3), (3, 2)]
    assert_same(ours, theirs, torch.randn(*shape, 4, dtype=FLOAT64))


def test_mlp_by_default():
    ours = nn.MLP([4, 3, 2])
    assert [layer.activation.name for layer in ours] == ["sigmoid", "sigmoid"]
    assert list(ours.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert {p.dtype for p in ours.parameters()} == {torch.float32}


def test_mlp_has_a_second_derivative():
    """A gradient penalty, through hidden layers of every kind."""
    ours = torch.nn.Sequential(
        *(nn.LinearActivation(3, 3, f, dtype=FLOAT64) for f in ("sigmoid", "tanh", softplus, steep_sigmoid))
    )

    def penalty(input):
        (gradient,) = torch.autograd.grad(ours(input).sum(), input, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(penalty, torch.randn(2, 3, dtype=FLOAT64, requires_grad=True))


# Costs


@pytest.mark.parametrize("reduction", REDUCTIONS)
@COST_MODULES
def test_cost_module(module, name, reduction):
    case = next(param.values[0] for param in COSTS if param.id == name)
    input, target = case.inputs((5,))
    cost = module(reduction)
    assert torch.equal(cost(input, target), case.function(input, target, reduction))
    assert repr(cost) == f"{module.__name__}(reduction={reduction!r})"
    assert torch.equal(module()(input, target), case.function(input, target, "mean"))
    assert not cost.state_dict()


def test_weights_of_a_cost_are_buffers():
    """As in torch.nn.BCEWithLogitsLoss: they move with the module, and are saved with it."""
    weight, pos_weight = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5])
    ours = nn.SigmoidCrossEntropyCost("sum", weight, pos_weight)
    theirs = torch.nn.BCEWithLogitsLoss(weight, reduction="sum", pos_weight=pos_weight)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not list(ours.parameters())
    moved = ours.double()
    z, y = torch.randn(4, OUT, dtype=FLOAT64), torch.rand(4, OUT, dtype=FLOAT64)
    assert moved.weight.dtype == moved.pos_weight.dtype == FLOAT64
    assert_close(moved(z, y), theirs.double()(z, y))


# Bad input


@pytest.mark.parametrize("sizes", [[], [784]], ids=str)
def test_too_few_sizes(sizes):
    with pytest.raises(ValueError, match="sizes: expected at least an input and an output size") as error:
        nn.MLP(sizes)
    assert str(error.value).endswith(f"found {sizes}")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.LinearActivation(2, 3, "softmax"), id="LinearActivation"),
        pytest.param(lambda: nn.MLP([2, 3], "softmax"), id="MLP"),
        pytest.param(lambda: nn.MLP([2, 3], output_activation="softmax"), id="MLP_output"),
    ],
)
def test_unknown_activation(make):
    with pytest.raises(ValueError, match=r"activation: expected an Activation or one of .*, found 'softmax'"):
        make()


@COST_MODULES
def test_bad_input_of_a_cost(module, name):
    with pytest.raises(ValueError, match="target: expected the shape"):
        module()(torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="reduction: expected one of none, mean, sum, found 'average'"):
        module("average")(torch.zeros(4, 3), torch.zeros(4, 3))


MISFITS = {
    "features": (torch.zeros(5, 7), "input of 4 features, found (5, 7)"),
    "features_are_samples": (torch.zeros(4, 1), "input of 4 features, found (4, 1)"),
    "no_dimension": (torch.zeros(()), "input of 4 features, found ()"),
    "wider": (torch.zeros(5, 4, dtype=FLOAT64), "input of torch.float32, found torch.float64"),
    "integers": (torch.zeros(5, 4, dtype=torch.long), "input of torch.float32, found torch.int64"),
    "complex": (torch.zeros(5, 4, dtype=torch.complex64), "input of torch.float32, found torch.complex64"),
    "device": (torch.zeros(5, 4, device="meta"), "input on cpu, found meta"),
    "list": ([1.0, 2.0, 3.0, 4.0], "a tensor, found list"),
    "none": (None, "a tensor, found NoneType"),
}


@pytest.mark.parametrize(("input", "words"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize(("layer", "_"), LAYERS)
def test_input_that_does_not_fit(layer, _, autocast, input, words):
    """The type of exception of torch.nn.Linear and, after the layer, the expected and the found, its words."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises((RuntimeError, TypeError)) as theirs:
            torch.nn.Linear(4, 3)(input)
        with pytest.raises(type(theirs.value)) as ours:
            layer(4, 3)(input)
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == (f"{layer.__name__}(in_features=4, out_features=3): expected {words} ({theirs.value})")


def test_input_of_a_layer_on_another_device():
    with pytest.raises(RuntimeError, match=r"^LinearTanh\(.*\): expected input on meta, found cpu \("):
        nn.LinearTanh(4, 3, device="meta")(torch.zeros(5, 4))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), TypeError("of another kind")], ids=repr)
def test_an_error_of_another_kind_is_left_alone(error):
    def function(z):
        raise error

    layer = nn.LinearActivation(4, 3, Activation("failing", function, torch.sigmoid, needs="a"))
    for input, autocast in ((torch.zeros(5, 4), False), (torch.zeros(5, 4, dtype=torch.bfloat16), True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(type(error)) as raised:
            layer(input)
        assert raised.value is error


# Transforms: one of each


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_gradients_of_each_sample(case):
    """vmap(grad()) of the parameters against one backward a sample."""
    module = torch.nn.Sequential(
        nn.LinearActivation(IN, OUT, case.activation, dtype=FLOAT64), nn.Linear(OUT, 2).double()
    )
    cost = nn.QuadraticCost()
    x, y = torch.randn(4, IN, dtype=FLOAT64), torch.randn(4, 2, dtype=FLOAT64)
    parameters = dict(module.named_parameters())

    def cost_of_one(parameters, x, y):
        return cost(functional_call(module, parameters, x), y)

    each = vmap(grad(cost_of_one), in_dims=(None, 0, 0))(parameters, x, y)
    for n in range(len(x)):
        expected = torch.autograd.grad(cost(module(x[n]), y[n]), parameters.values())
        for name, gradient in zip(parameters, expected, strict=True):
            assert_close(each[name][n], gradient)


@pytest.mark.parametrize(("layer", "activation"), LAYERS)
def test_jacobian(layer, activation):
    module = layer(IN, OUT, dtype=FLOAT64)
    f, x = activation(), torch.randn(IN, dtype=FLOAT64)
    expected = jacrev(lambda x: f(torch.nn.functional.linear(x, module.weight, module.bias)))(x)
    assert_close(jacrev(module)(x), expected)


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_compiled(case):
    module = nn.LinearActivation(IN, OUT, case.activation, dtype=FLOAT64)
    cost, y = nn.QuadraticCost(), torch.randn(5, OUT, dtype=FLOAT64)

    def step(x):
        return cost(module(x), y)

    x = torch.randn(5, IN, dtype=FLOAT64, requires_grad=True)
    leaves = (x, *module.parameters())
    expected = torch.autograd.grad(step(x), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for actual, gradient in zip(torch.autograd.grad(compiled(x), leaves), expected, strict=True):
        assert_close(actual, gradient)


# Devices


@needs_fake_cuda
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_placement_on_cuda_without_a_gpu(case):
    with FakeTensorMode():
        module = nn.LinearActivation(IN, OUT, case.activation, device="cuda")
        input = torch.randn(4, IN, device="cuda")
        output = module(input)
        cost = nn.QuadraticCost()(output, torch.zeros(4, OUT, device="cuda"))
        assert {x.device.type for x in (output, cost, *module.parameters())} == {"cuda"}
        grad_output = torch.randn(4, OUT, device="cuda")
        for function, inputs in (
            (LinearActivationFunction, (input, module.weight, module.bias, identity)),
            (ActivationFunction, (output, case.activation)),
        ):
            ctx = StandInContext(*[True] * len(inputs))
            function.setup_context(ctx, inputs, output)
            *gradients, for_the_activation = function.backward(ctx, grad_output)
            assert for_the_activation is None
            assert [(g.shape, g.device.type) for g in gradients] == [(x.shape, "cuda") for x in inputs[:-1]]


@pytest.mark.parametrize("case", COSTS)
def test_placement_of_a_cost_on_cuda_without_a_gpu(case):
    with FakeTensorMode():
        a, y = torch.rand(4, OUT, device="cuda"), torch.rand(4, OUT, device="cuda")
        ctx = StandInContext(True, True, False)
        CostFunction.setup_context(ctx, (a, y, case.cost), CostFunction.forward(a, y, case.cost))
        gradients = CostFunction.backward(ctx, torch.ones(4, device="cuda"))
        assert {g.device.type for g in gradients[:2]} == {"cuda"}


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_cuda_agrees_with_cpu(case, dtype):
    module = nn.LinearActivation(IN, OUT, case.activation, dtype=dtype)
    input, grad_output = torch.randn(7, IN, dtype=dtype), torch.randn(7, OUT, dtype=dtype)
    value, grads = gradients(module, input, grad_output)
    value_cuda, grads_cuda = gradients(module.cuda(), input.cuda(), grad_output.cuda())
    for actual, expected in zip((value_cuda, *grads_cuda), (value, *grads), strict=True):
        assert actual.device.type == "cuda"
        # Two devices round a low-precision sum in another order: a few units in the last place of the largest.
        atol = 8 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=atol)


def test_a_slice_of_an_mlp():
    mlp = nn.MLP([4, 3, 2])
    assert mlp[0] is mlp[:1][0]
    assert mlp[-1] is list(mlp)[1]
    assert type(mlp[:1]) is torch.nn.Sequential
