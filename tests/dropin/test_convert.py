"""Row: convert. A converted model beside an unconverted copy of it."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import manual_backprop as mb
from tests.conversion.models_to_convert import CONVERTIBLE
from tests.dropin.models import assert_same, run

pytestmark = pytest.mark.row("convert")
FLOAT64 = torch.float64


@pytest.fixture(params=[False, True], ids=["pairs", "linears_too"])
def linears(request):
    return request.param


@pytest.fixture
def process_group():
    """Of this one process; the rows DDP and FSDP2 have more."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


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
    assert mb.conversions(mb.convert(ours, linears)).swapped
    x = torch.randn(5, 4, dtype=FLOAT64, requires_grad=True)
    assert_same(run(ours, x), run(theirs, x))


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_20_steps_with_the_optimizer_that_was_there_before(case, linears):
    ours, theirs = both(case)
    optimizer = adam(ours)
    assert mb.conversions(mb.convert(ours, linears)).swapped
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


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_a_model_inside_of_ddp(case, process_group):
    """The wrapper goes on to see the parameters that it was made with."""
    ours, theirs = both(case)
    wrapped = DistributedDataParallel(ours)
    optimizer = adam(wrapped)
    report = mb.conversions(mb.convert(wrapped))
    assert {row.path.removeprefix("module."): row.after for row in report.rows} == case.layers
    assert_same(train(wrapped, optimizer, 3), train(theirs, adam(theirs), 3))


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_a_sharded_model(case, process_group):
    """fully_shard changes the class of the model, and puts the parameters into the Linears before each forward."""
    ours, theirs = both(case)
    fully_shard(ours, mesh=init_device_mesh("cpu", (1,)))
    optimizer = adam(ours)
    assert {row.path: row.after for row in mb.conversions(mb.convert(ours)).rows} == case.layers
    trained = [x.full_tensor() if isinstance(x, DTensor) else x for x in train(ours, optimizer, 3)]
    assert_same(trained, train(theirs, adam(theirs), 3))
