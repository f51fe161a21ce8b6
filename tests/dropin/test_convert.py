"""Row: convert. A converted model beside an unconverted copy of it."""

import copy

import pytest
import torch

import manual_backprop as mb
from tests.dropin.models import assert_same, run
from tests.models_to_convert import CONVERTIBLE

pytestmark = pytest.mark.row("convert")
FLOAT64 = torch.float64


@pytest.fixture(params=[False, True], ids=["pairs", "linears_too"])
def linears(request):
    return request.param


def both(case):
    """(ours, theirs): two copies of the same model; nothing is converted yet."""
    theirs = case.build().double()
    return copy.deepcopy(theirs), theirs


def train(model, optimizer, steps):
    """The cost at each step, and the parameters after the last."""
    generator = torch.Generator().manual_seed(1)
    costs = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(torch.randn(6, 4, dtype=FLOAT64, generator=generator))
        cost = (output - 0.3).square().mean()
        cost.backward()
        optimizer.step()
        costs.append(cost.detach())
    return [*costs, *model.state_dict().values()]


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.05)


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_values_and_gradients(case, linears):
    ours, theirs = both(case)
    assert mb.convert(ours, linears).swapped
    x = torch.randn(5, 4, dtype=FLOAT64, requires_grad=True)
    assert_same(run(ours, x), run(theirs, x))


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_20_steps_with_the_optimizer_that_was_there_before(case, linears):
    ours, theirs = both(case)
    optimizer = adam(ours)
    assert mb.convert(ours, linears).swapped
    assert_same(train(ours, optimizer, 20), train(theirs, adam(theirs), 20))


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_converted_and_reverted_in_the_middle_of_training(case):
    """The moments of the optimizer go on through both."""
    ours, theirs = both(case)
    our_optimizer, their_optimizer = adam(ours), adam(theirs)
    for change in (lambda model: None, mb.convert, mb.revert):
        change(ours)
        assert_same(train(ours, our_optimizer, 7), train(theirs, their_optimizer, 7))
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_state_dicts_fit_both_ways(case):
    ours, theirs = both(case)
    mb.convert(ours)
    x = torch.randn(5, 4, dtype=FLOAT64, requires_grad=True)
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.mul_(1.5)
        target.load_state_dict(source.state_dict(), strict=True)
        assert_same(run(ours, x), run(theirs, x))


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_a_hook_on_a_parameter(case):
    """Registered before, it sees the gradient of our backward, and its change counts."""
    ours, theirs = both(case)
    for model in (ours, theirs):
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient * 2 + 1)
    mb.convert(ours)
    assert_same(train(ours, adam(ours), 3), train(theirs, adam(theirs), 3))


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_a_compiled_model(case):
    """Converted after it was compiled and run."""
    ours, theirs = both(case)
    compiled = torch.compile(ours, backend="eager")
    x = torch.randn(5, 4, dtype=FLOAT64, requires_grad=True)
    compiled(x)
    mb.convert(compiled)
    assert_same(run(compiled, x), run(theirs, x))
