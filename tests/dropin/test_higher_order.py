"""Row: higher order."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.cases import COSTS, IN
from tests.dropin.models import MODELS, assert_same

pytestmark = pytest.mark.row("higher order")
FLOAT64 = torch.float64


@pytest.mark.parametrize("models", MODELS)
def test_gradient_penalty(models):
    """A step on a cost with ‖∂f/∂x‖² in it: a second derivative with respect to every weight."""

    def penalised(model):
        x = torch.linspace(-1, 1, 5 * IN, dtype=FLOAT64).reshape(5, IN).requires_grad_()
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return torch.autograd.grad(
            output.sum() + slope.square().sum(), [x, *model.parameters()], materialize_grads=True
        )

    ours, theirs = models()
    assert_same(penalised(ours), penalised(theirs))


@pytest.mark.parametrize("models", MODELS)
def test_hessian_vector_product(models):
    x = torch.randn(5, IN, dtype=FLOAT64)
    direction = torch.randn(5, IN, dtype=FLOAT64)

    def products(model):
        def cost(x):
            return model(x).square().sum()

        return [
            product(cost, x, direction)[1] for product in (torch.autograd.functional.hvp, torch.autograd.functional.vhp)
        ]

    ours, theirs = models()
    assert_same(products(ours), products(theirs))


@pytest.mark.parametrize("models", MODELS)
def test_gradcheck_and_gradgradcheck(models):
    ours, _ = models()
    inputs = [torch.randn(3, IN, dtype=FLOAT64, requires_grad=True), *ours.parameters()]

    def function(x, *_):
        return ours(x)

    assert gradcheck(function, inputs, raise_exception=False)
    assert gradgradcheck(function, inputs, raise_exception=False)


@pytest.mark.parametrize("case", COSTS)
def test_gradgradcheck_of_a_cost(case):
    inputs = [x.requires_grad_() for x in case.inputs((3,))]
    assert gradcheck(case.function, inputs, raise_exception=False)
    assert gradgradcheck(case.function, inputs, raise_exception=False)
