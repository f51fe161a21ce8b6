"""Row: torch.func."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from manual_backprop import functions
from tests.cases import COSTS, IN, OUT, softplus
from tests.dropin.models import MODELS, assert_same

FLOAT64 = torch.float64


def of_parameters(model, x):
    """The cost Σ output² as a function of the parameters."""
    return lambda parameters: functional_call(model, parameters, (x,)).square().sum()


def per_sample_gradients(model, x):
    def cost(parameters, sample):
        return functional_call(model, parameters, (sample,)).square().sum()

    return vmap(grad(cost), in_dims=(None, 0))(dict(model.named_parameters()), x)


def vmapped_in(place):
    """The gradients for samples that stand in dimension `place` of x."""

    def gradients(model, x):
        moved = x.movedim(0, place)
        return vmap(grad(lambda sample: model(sample).square().sum()), in_dims=place, out_dims=place)(moved)

    return gradients


def one_direction(function):
    """The derivative of `function` at x in the direction of the cosines of x."""
    return lambda x: jvp(function, (x,), (x.cos(),))[1]


TRANSFORMS = {
    "grad": lambda model, x: grad(of_parameters(model, x))(dict(model.named_parameters())),
    "grad_of_grad": lambda model, x: grad(lambda x: grad(lambda x: model(x).square().sum())(x).sin().sum())(x),
    "vjp": lambda model, x: vjp(model, x)[1](torch.linspace(-1, 1, OUT * len(x), dtype=x.dtype).reshape(-1, OUT)),
    "jvp": lambda model, x: jvp(model, (x,), (x.cos(),)),
    "vmap": lambda model, x: vmap(grad(lambda sample: model(sample).square().sum()))(x),
    "vmap_in_the_last_dimension": vmapped_in(1),
    "jacrev": lambda model, x: jacrev(model)(x),
    "jacfwd": lambda model, x: jacfwd(model)(x),
    "hessian": lambda model, x: hessian(of_parameters(model, x))(dict(model.named_parameters())),
    "jacrev_of_jacrev": lambda model, x: jacrev(jacrev(lambda x: model(x).square().sum()))(x),
    "jacfwd_of_jacrev": lambda model, x: jacfwd(jacrev(lambda x: model(x).square().sum()))(x),
    "jacrev_of_jacfwd": lambda model, x: jacrev(jacfwd(lambda x: model(x).square().sum()))(x),
    "per_sample": per_sample_gradients,
}


@pytest.mark.row("torch.func")
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("models", MODELS)
def test_transform(models, transform):
    ours, theirs = models()
    x = torch.randn(3, IN, dtype=FLOAT64)
    assert_same(_by_position(transform(ours, x)), _by_position(transform(theirs, x)))


@pytest.mark.row("torch.func")
@pytest.mark.parametrize("models", MODELS)
def test_ensemble(models):
    """Three networks at once: vmap over the weights."""
    pairs = [models() for _ in range(3)]
    x = torch.randn(3, IN, dtype=FLOAT64)

    def gradients(ensemble):
        parameters, buffers = stack_module_state(ensemble)

        def cost(parameters, buffers):
            return functional_call(ensemble[0], (parameters, buffers), (x,)).square().sum()

        return _by_position(vmap(grad(cost))(parameters, buffers))

    assert_same(*(gradients(list(ensemble)) for ensemble in zip(*pairs, strict=True)))


@pytest.mark.row("torch.func")
@pytest.mark.parametrize("case", COSTS)
@pytest.mark.parametrize("transform", [jacrev, jacfwd, hessian], ids=["jacrev", "jacfwd", "hessian"])
def test_transform_of_a_cost(transform, case):
    a, y = case.inputs((3,))

    def theirs(a, y):
        return case.torch_loss(a, y) * case.factor(OUT)

    assert_same(transform(case.function, (0, 1))(a, y), transform(theirs, (0, 1))(a, y))


@pytest.mark.parametrize("models", MODELS)
@pytest.mark.parametrize("forward", [jacfwd, one_direction], ids=["jacfwd", "jvp"])
def test_forward_mode_within_forward_mode_is_left_to_torch(forward, models):
    """No row, since no backward or jvp of ours runs: through a Function torch gives wrong values there."""
    ours, theirs = models()
    x = torch.randn(3, IN, dtype=FLOAT64)
    assert_same(*(forward(forward(lambda x, model=model: model(x).square().sum()))(x) for model in (ours, theirs)))


def test_why_forward_mode_within_forward_mode_is_left_to_torch():
    """When this fails, pytorch issue 197867 is mended, and `TwoForms.apply` needs no exception."""
    x = torch.tensor([0.5], dtype=FLOAT64)
    through_the_function = jacfwd(jacfwd(lambda x: functions.ActivationFunction.apply(x, softplus)))(x)
    assert float(through_the_function) == 0 != float(jacfwd(jacfwd(torch.nn.functional.softplus))(x))


def _by_position(result):
    """Parameters have other names in a stack with activations of its own: their order is the same."""
    if isinstance(result, dict):
        return [_by_position(value) for value in result.values()]
    return result
