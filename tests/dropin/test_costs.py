"""Row: the costs. Ours beside torch's loss, which is ours divided by the documented factor."""

import pytest
import torch

from manual_backprop import nn
from tests.cases import COST_CASES, COSTS, FLOAT64, OUT, REDUCTIONS, params
from tests.dropin.models import assert_same

pytestmark = pytest.mark.row("costs")
SAMPLES = 4
MODULES = {
    "quadratic": nn.QuadraticCost,
    "cross_entropy": nn.CrossEntropyCost,
    "sigmoid_cross_entropy": nn.SigmoidCrossEntropyCost,
}

# As torch broadcasts them to (SAMPLES, OUT).
WEIGHTS = params(
    {
        "no_weight": None,
        "of_each_output": (OUT,),
        "of_each_sample": (SAMPLES, 1),
        "of_each_element": (SAMPLES, OUT),
        "one_number": (),
    }
)
TARGETS = params(
    {
        "soft": lambda: torch.rand(SAMPLES, OUT, dtype=FLOAT64),
        "hard": lambda: torch.randint(2, (SAMPLES, OUT)).to(FLOAT64),
    }
)


def drawn(shape):
    return None if shape is None else 0.1 + torch.rand(shape, dtype=FLOAT64)


def torchs(case, input, target, reduction, weight=None, **weights):
    """torch's loss times the factor: o/2 or o for its mean, 1/2 or 1 for a sum, over the outputs or over everything."""
    if weight is not None:
        weight = weight.expand(input.shape)  # F.mse_loss wants the whole shape
    loss = case.torch_loss(input, target, weight=weight, reduction=reduction, **weights)
    of_an_output = case.factor(OUT) / OUT
    if reduction == "none":
        return of_an_output * loss.sum(-1)
    if reduction == "mean" and weight is not None and case is COST_CASES["quadratic"]:
        loss = loss * weight.mean()  # F.mse_loss divides by Σ w, where every other loss of torch's divides by n o
    return of_an_output * loss * (OUT if reduction == "mean" else 1)


def with_gradients(cost, input, target):
    grad_output = torch.linspace(-1, 2, cost.numel(), dtype=FLOAT64).reshape(cost.shape) if cost.dim() else None
    return [cost, *torch.autograd.grad(cost, (input, target), grad_output)]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", COSTS)
def test_value_and_gradients(case, reduction, weight, targets):
    input, target, w = case.inputs((SAMPLES,))[0].requires_grad_(), targets().requires_grad_(), drawn(weight)
    ours = MODULES[case.cost.name](reduction, w)(input, target)
    theirs = torchs(case, input, target, reduction, w)
    assert_same(with_gradients(ours, input, target), with_gradients(theirs, input, target))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("weight", params({"no_weight": None, "of_each_sample": (SAMPLES, 1)}))
@pytest.mark.parametrize("pos_weight", WEIGHTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pos_weight(reduction, pos_weight, weight, targets):
    case = COST_CASES["sigmoid_cross_entropy"]
    input, target = case.inputs((SAMPLES,))[0].requires_grad_(), targets().requires_grad_()
    w, p = drawn(weight), drawn(pos_weight)
    ours = nn.SigmoidCrossEntropyCost(reduction, w, p)(input, target)
    theirs = torchs(case, input, target, reduction, w, pos_weight=p)
    assert_same(with_gradients(ours, input, target), with_gradients(theirs, input, target))


@pytest.mark.parametrize(
    ("name", "theirs", "factor"),
    [
        pytest.param("quadratic", torch.nn.MSELoss(), OUT / 2, id="MSELoss"),
        pytest.param("cross_entropy", torch.nn.BCELoss(), OUT, id="BCELoss"),
        pytest.param("sigmoid_cross_entropy", torch.nn.BCEWithLogitsLoss(), OUT, id="BCEWithLogitsLoss"),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)], ids=str)
def test_modules_with_the_documented_factor(name, theirs, factor, shape):
    """However many samples there are, and in however many dimensions."""
    input, target = (x.requires_grad_() for x in COST_CASES[name].inputs(shape))
    ours = MODULES[name]()(input, target)
    assert_same(with_gradients(ours, input, target), with_gradients(factor * theirs(input, target), input, target))


@pytest.mark.parametrize("size", [0.0, 30.0, 800.0], ids=str)
def test_saturated_logits(size):
    """Where σ(z) is 0 or 1 in float64 the gradients are those of BCEWithLogitsLoss, weighted or not."""
    z = torch.tensor([[-size, size]], dtype=FLOAT64).expand(2, 2).clone().requires_grad_()
    y = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=FLOAT64, requires_grad=True)
    for p in (None, torch.tensor([3.0, 0.0], dtype=FLOAT64)):
        ours = nn.SigmoidCrossEntropyCost("sum", pos_weight=p)(z, y)
        theirs = torch.nn.BCEWithLogitsLoss(reduction="sum", pos_weight=p)(z, y)
        assert torch.isfinite(ours)
        assert_same(with_gradients(ours, z, y), with_gradients(theirs, z, y))
