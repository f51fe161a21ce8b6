"""Row: DDP."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.cases import IN, OUT
from tests.dropin.models import assert_same, pair
from tests.dropin.processes import in_processes, mine

pytestmark = pytest.mark.row("DDP")
SAMPLES, STEPS = 8, 3

OPTIONS = {
    "static_graph": {"static_graph": True},
    "dynamic_graph": {"static_graph": False},
    "gradients_are_views": {"gradient_as_bucket_view": True},
    "small_buckets": {"bucket_cap_mb": 1e-5},
}


def samples(step):
    return torch.randn(SAMPLES, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(model):
    """Parameters after some steps, and the last step's gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(mine(samples(step))).square().mean().backward()
        optimizer.step()
    return [x for parameter in model.parameters() for x in (parameter, parameter.grad)]


def trained(activation, options):
    return [train(DistributedDataParallel(model, **options)) for model in pair(activation=activation)]


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training(options, activation):
    ends = in_processes(trained, activation, options)
    torch.manual_seed(0)  # The pair that the processes have too.
    alone = train(pair(activation=activation)[1])
    for ours, theirs in ends:
        assert_same(ours, theirs)
        assert_same(ours, alone)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def accumulate(model, quietly=contextlib.nullcontext):
    """The gradients after samples that a process keeps to itself, and after more, when it shares the sum."""
    found = []
    for step, context in enumerate((quietly, contextlib.nullcontext)):
        with context():
            model(mine(samples(step))).square().mean().backward()
        found.append(gradients(model))
    return found


def accumulated():
    parallel = [DistributedDataParallel(model) for model in pair()]
    return [accumulate(model, model.no_sync) for model in parallel]


def test_no_sync_accumulation():
    ends = in_processes(accumulated)
    torch.manual_seed(0)
    _, alone = accumulate(pair()[1])
    for ours, theirs in ends:
        assert_same(ours, theirs)
        assert_same(ours[1], alone)
    (kept_by_first, _), (kept_by_second, _) = (ours for ours, _ in ends)
    assert not torch.allclose(kept_by_first[0], kept_by_second[0])


class Fork(torch.nn.Module):
    """A layer, and one of two behind it."""

    def __init__(self, first, *ways):
        super().__init__()
        self.first, self.ways = first, torch.nn.ModuleList(ways)

    def forward(self, x, way):
        return self.ways[way](self.first(x))


def forks():
    """(ours, theirs)"""
    return [Fork(*parts) for parts in zip(pair(), pair((OUT, OUT), "tanh"), pair((OUT, 4, 1)), strict=True)]


def each_its_way():
    """Each process leaves one of the two ways unused, in two steps."""
    for model in (parallel := [DistributedDataParallel(m, find_unused_parameters=True) for m in forks()]):
        for step in range(2):
            model(mine(samples(step)), dist.get_rank()).square().mean().backward()
    return [gradients(model) for model in parallel]


def test_find_unused_parameters():
    ends = in_processes(each_its_way)
    torch.manual_seed(0)
    _, alone = forks()
    for step in range(2):
        for way, half in enumerate(samples(step).chunk(2)):
            (alone(half, way).square().mean() / 2).backward()
    for ours, theirs in ends:
        assert_same(ours, theirs)
        assert_same(ours, gradients(alone))
