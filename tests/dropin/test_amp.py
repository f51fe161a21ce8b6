"""Row: AMP. Dtypes and values under `torch.autocast` are those of torch.nn, and `GradScaler` trains both alike."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manual_backprop import functional, nn
from manual_backprop.activations import ACTIVATIONS
from manual_backprop.functions import CostFunction, LinearActivationFunction
from tests.cases import BIAS, COST_CASES, COSTS, IN, OUT, StandInContext, needs_cuda, needs_fake_cuda, params, softplus
from tests.dropin.models import TORCH, assert_same, torch_twin

row = pytest.mark.row("AMP")
LOW = params({"bfloat16": torch.bfloat16, "float16": torch.float16})
MODELS = params({name: name for name in ACTIVATIONS} | {"own_activation": softplus})
INPUTS = params({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})
BACKWARD = params({"backward_outside": False, "backward_inside": True})
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=needs_cuda)]


def models(activation="sigmoid", bias=True, device="cpu", dtype=torch.float32):
    ours = nn.MLP([IN, 4, OUT], activation, bias=bias, device=device, dtype=dtype)
    return ours, torch_twin(ours).to(device)


def assert_same_but_for_rounding(ours, theirs, dtype):
    # torch's sigmoid_backward rounds once where a·(1 − a)·grad rounds up to three times, in each of two layers.
    assert_same(ours, theirs, rtol=16 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@row
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("inside", BACKWARD)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("activation", MODELS)
def test_layers(activation, bias, inside, dtype, device):
    """The output in autocast's dtype, each gradient in that of its input or parameter."""
    found = []
    for model in models(activation, bias, device):
        x = torch.linspace(-1, 1, 5 * IN, device=device).reshape(5, IN).requires_grad_()
        with torch.autocast(device, dtype):
            output = model(x)
        assert output.dtype == dtype
        with torch.autocast(device, dtype) if inside else contextlib.nullcontext():
            gradients = torch.autograd.grad(output.float().square().sum(), [x, *model.parameters()])
        assert {g.dtype for g in gradients} == {torch.float32}
        found.append([output, *gradients])
    assert_same_but_for_rounding(*found, dtype)


@row
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("parameters", INPUTS)
def test_layers_of_every_dtype(parameters, input, dtype):
    """Whatever narrow float comes in, F.linear computes in autocast's, and gives back gradients as they came."""
    found = []
    for model in models(dtype=parameters):
        x = torch.linspace(-1, 1, 5 * IN).reshape(5, IN).to(input).requires_grad_()
        with torch.autocast("cpu", dtype):
            output = model(x)
        gradients = torch.autograd.grad(output.float().sum(), [x, *model.parameters()])
        assert [g.dtype for g in gradients] == [input, *[parameters] * 4]
        found.append([output, *gradients])
    # The narrowest of the three sets how much is rounded off.
    eps = max(torch.finfo(x).eps for x in (parameters, input, dtype))
    assert_same(*found, rtol=16 * eps, atol=4 * eps)


@row
@pytest.mark.parametrize("dtype", LOW)
def test_float64_is_left_alone(dtype):
    found = []
    for model in models(dtype=torch.float64):
        x = torch.linspace(-1, 1, 5 * IN, dtype=torch.float64).reshape(5, IN).requires_grad_()
        with torch.autocast("cpu", dtype):
            output = model(x)
            found.append([output, *torch.autograd.grad(output.sum(), [x, *model.parameters()])])
    assert {x.dtype for x in found[0]} == {torch.float64}
    assert_same(*found)


@row
@pytest.mark.parametrize("target", INPUTS)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("case", COSTS)
def test_costs(case, dtype, target):
    """In float32 whatever comes in, as torch's losses; gradients in the dtypes that came in."""
    input = case.inputs((5,))[0].to(dtype).requires_grad_()
    y = torch.rand(5, OUT).to(target).requires_grad_()
    found = []
    with torch.autocast("cpu", dtype):
        for cost in (case.function(input, y), case.factor(OUT) * case.torch_loss(input, y)):
            found.append([cost, *torch.autograd.grad(cost, (input, y))])
    assert [x.dtype for x in found[0]] == [torch.float32, dtype, target]
    # Computed in float32, and rounded once to the dtype of the gradient.
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs, rtol=2 * torch.finfo(theirs.dtype).eps + 1e-6, atol=1e-6)


@row
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("overflow", [False, True], ids=["", "overflow"])
def test_grad_scaler(overflow, dtype, device):
    """Scaled cost, unscaled gradients, the step, and the scale that follows; no step where a gradient is infinite."""
    found = []
    for model in models("tanh", device=device):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2)
        x, y = torch.linspace(-1, 1, 5 * IN, device=device).reshape(5, IN), torch.ones(5, OUT, device=device)
        for step in range(4):
            optimizer.zero_grad()
            with torch.autocast(device, dtype):
                cost = torch.nn.functional.mse_loss(model(x), y)
            scaler.scale(cost * (torch.inf if overflow and step == 1 else 1)).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        scale = torch.tensor(scaler.get_scale())
        assert scale == (2.0**10 if overflow else 2.0**12)
        found.append([scale, *model.parameters(), *(p.grad for p in model.parameters())])
    assert_same_but_for_rounding(*found, dtype)


# The CUDA code path, without a GPU: on fake tensors, where autograd does not run.


@contextlib.contextmanager
def cuda_autocast(dtype):
    """`torch.autocast("cuda")`, which turns itself off without a GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
        torch.clear_autocast_cache()


@needs_fake_cuda
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("activation", MODELS)
def test_dtypes_of_layers_on_cuda_without_a_gpu(activation, dtype):
    with FakeTensorMode(), cuda_autocast(dtype):
        ours = nn.LinearActivation(IN, OUT, activation, device="cuda")
        theirs = torch.nn.Sequential(torch.nn.Linear(IN, OUT, device="cuda"), TORCH[ours.activation.name]())
        x = torch.randn(5, IN, device="cuda")
        # Autocast's own dtype, but for the activations that CUDA always computes in float32.
        assert ours(x).dtype == theirs(x).dtype == (torch.float32 if activation is softplus else dtype)


@pytest.mark.parametrize("dtype", LOW)
def test_gradients_of_a_layer_on_cuda_without_a_gpu(dtype):
    """Outside of autocast, where a backward belongs, it gives back the dtypes of what the forward took."""
    with FakeTensorMode():
        inputs = [torch.randn(s, device="cuda", dtype=dtype) for s in ((5, IN), (OUT, IN), (OUT,))]
        ctx = StandInContext(True, True, True, False)
        with cuda_autocast(dtype):
            output = LinearActivationFunction.forward(*inputs, ACTIVATIONS["sigmoid"])
            LinearActivationFunction.setup_context(ctx, (*inputs, ACTIVATIONS["sigmoid"]), output)
        *gradients, _ = LinearActivationFunction.backward(ctx, torch.randn(5, OUT, device="cuda", dtype=dtype))
        assert {x.dtype for x in (output, *gradients)} == {dtype}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("case", COSTS)
def test_dtypes_of_costs_on_cuda_without_a_gpu(case, dtype):
    with FakeTensorMode(), cuda_autocast(dtype):
        input, target = torch.rand(5, OUT, device="cuda", dtype=dtype), torch.rand(5, OUT, device="cuda")
        assert case.function(input, target).dtype == torch.float32
        ctx = StandInContext(True, True, False)
        of_float32 = (input.float(), target, case.cost)
        CostFunction.setup_context(ctx, of_float32, CostFunction.forward(*of_float32))
        gradients = CostFunction.backward(ctx, torch.ones(5, device="cuda"))[:2]
        assert {g.dtype for g in gradients} == {torch.float32}


def test_torch_refuses_its_own_cross_entropy_on_cuda():
    """Because its backward would run in float16; ours runs in float32, and is allowed."""
    case = COST_CASES["cross_entropy"]
    with FakeTensorMode(), cuda_autocast(torch.float16):
        input = torch.rand(5, OUT, device="cuda", dtype=torch.float16)
        with pytest.raises(RuntimeError, match=r"binary_cross_entropy and torch\.nn\.BCELoss are unsafe to autocast"):
            case.torch_loss(input, input)
        assert functional.cross_entropy_cost(input, input).dtype == torch.float32
