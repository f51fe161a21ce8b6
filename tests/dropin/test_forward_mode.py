"""Row: forward mode, together with `torch.compile` of the same layer."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck

from tests.cases import COSTS, IN
from tests.dropin.models import MODELS, assert_same, run

pytestmark = pytest.mark.row("forward mode")
FLOAT64 = torch.float64


def tangents(model, x):
    """The output and its tangent, for tangents of x and of every parameter."""
    with forward_ad.dual_level():
        parameters = {name: forward_ad.make_dual(p.detach(), p.detach().cos()) for name, p in model.named_parameters()}
        output = torch.func.functional_call(model, parameters, (forward_ad.make_dual(x, x.sin()),))
        return list(forward_ad.unpack_dual(output))


@pytest.mark.parametrize("models", MODELS)
def test_dual_numbers(models):
    ours, theirs = models()
    x = torch.randn(5, IN, dtype=FLOAT64)
    assert_same(tangents(ours, x), tangents(theirs, x))


@pytest.mark.parametrize("models", MODELS)
def test_gradcheck_forward(models):
    ours, _ = models()
    inputs = [torch.randn(3, IN, dtype=FLOAT64, requires_grad=True), *ours.parameters()]
    names = [name for name, _ in ours.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(ours, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_forward_grad=True, raise_exception=False)


@pytest.mark.parametrize("case", COSTS)
def test_gradcheck_forward_of_a_cost(case):
    inputs = [x.requires_grad_() for x in case.inputs((3,))]
    assert gradcheck(
        case.function, inputs, check_forward_ad=True, check_batched_forward_grad=True, raise_exception=False
    )


@pytest.mark.parametrize("models", MODELS)
def test_the_same_layer_compiled(models):
    """A Function with a jvp is refused by `torch.compile`; one layer has both."""
    ours, theirs = models()
    x = torch.randn(5, IN, dtype=FLOAT64, requires_grad=True)
    assert_same(tangents(ours, x.detach()), tangents(theirs, x.detach()))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, x), run(theirs, x))
    assert_same(tangents(ours, x.detach()), tangents(theirs, x.detach()))
