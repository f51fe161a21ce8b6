"""Row: pipeline."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleavedZeroBubble,
    SplitPoint,
    pipeline,
)

from tests.cases import IN, OUT
from tests.dropin.canary import wrong_backward
from tests.dropin.models import assert_same, pair
from tests.dropin.processes import SIZE, in_processes

MICRO_BATCHES = 4
SCHEDULES = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    # Takes the gradient of the inputs first and that of the weights later: two walks through the same backward.
    "zero_bubble": lambda stage, *arguments, **options: ScheduleInterleavedZeroBubble([stage], *arguments, **options),
}


def models(activation):
    """(ours, theirs): three layers, which do not divide evenly."""
    return pair((IN, 4, 4, OUT), activation)


def cost(a, y):
    return (a - y).square().sum()


def samples():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(8, n, dtype=torch.float64, generator=generator) for n in (IN, OUT))
    return x, y


def divided(model, first):
    """The stage of this process: the first modules of the model, or the others."""
    modules = list(model)
    part = torch.nn.Sequential(*(modules[:first] if dist.get_rank() == 0 else modules[first:]))
    return PipelineStage(part, dist.get_rank(), SIZE, torch.device("cpu"))


def run_stage(stage, schedule):
    """Outputs and costs (of the last stage), and the gradients of the parameters that it has."""
    x, y = samples()
    costs = []
    schedule = SCHEDULES[schedule](stage, MICRO_BATCHES, loss_fn=cost, scale_grads=False)
    output = schedule.step(x) if stage.is_first else schedule.step(target=y, losses=costs)
    return {
        "outputs": [] if output is None else [output],
        "costs": costs,
        "gradients": [parameter.grad for parameter in stage.submod.parameters()],
    }


def run_stages(activation, schedule):
    ours, theirs = models(activation)
    # One layer of ours is two modules of theirs.
    return [run_stage(divided(model, first), schedule) for model, first in ((ours, 1), (theirs, 2))]


@pytest.mark.row("pipeline")
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_stages(schedule, activation):
    stages = in_processes(run_stages, activation, schedule)
    for ours, theirs in stages:
        assert_same(ours, theirs)
    assert_as_undivided([ours for ours, _ in stages], activation)


def assert_as_undivided(stages, activation):
    torch.manual_seed(0)  # The pair that the processes have too.
    undivided = models(activation)[1]
    x, y = samples()
    a = undivided(x)
    gradients = list(torch.autograd.grad(cost(a, y), list(undivided.parameters())))
    assert_same([gradient for stage in stages for gradient in stage["gradients"]], gradients)
    assert_same(stages[-1]["outputs"], [a.detach()])
    assert_same(sum(stages[-1]["costs"]), cost(a, y).detach())


def run_traced_stages():
    ours, _ = models("sigmoid")
    split = {"1": SplitPoint.BEGINNING}
    pipe = pipeline(ours, (samples()[0].chunk(MICRO_BATCHES)[0],), split_spec=split)
    return run_stage(pipe.build_stage(dist.get_rank(), torch.device("cpu")), "gpipe")


def test_stages_cut_by_tracing_leave_our_backward_behind():
    """`pipeline` cuts what `torch.export` makes of the model, where there are only operators, with torch's backward.

    The gradients are right; ours is not what computes them, so this is no row: cut the model by hand, as above.
    """
    with wrong_backward():
        stages = in_processes(run_traced_stages)
    assert_as_undivided(stages, "sigmoid")
