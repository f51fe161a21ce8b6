"""Row: tensor parallel.

Between a column-wise and a row-wise layer each process has half of the neurons, and takes σ of those. Behind a row-wise
layer the weighted inputs are sums that lie on both processes: there σ has to be taken of the whole, not of the parts.
"""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from manual_backprop import nn, per_neuron
from tests.cases import IN, softplus
from tests.dropin.models import assert_same, torch_twin
from tests.dropin.processes import SIZE, in_processes

row = pytest.mark.row("tensor parallel")
HIDDEN, OUT = 4, 2 * SIZE
WHOLE = {"output_layouts": Replicate()}

# How the first and the second layer are split.
PLANS = {
    "columns_rows": (ColwiseParallel(), RowwiseParallel()),
    "columns_columns": (ColwiseParallel(**WHOLE), ColwiseParallel(**WHOLE)),
    "rows_rows": (RowwiseParallel(input_layouts=Replicate()), RowwiseParallel(input_layouts=Replicate())),
    # Outside of the two layers each process has a part of the sequence.
    "sequence": (ColwiseParallel(input_layouts=Shard(1)), RowwiseParallel(output_layouts=Shard(1))),
}

ACTIVATIONS = {
    "sigmoid_linear": ("sigmoid", "identity"),
    "relu_sigmoid": ("relu", "sigmoid"),
    "tanh_tanh": ("tanh", "tanh"),
    "own_own": (softplus, softplus),
}


def pair(activations, bias=True):
    """(ours, theirs)"""
    ours = nn.MLP([IN, HIDDEN, OUT], *activations, bias=bias, dtype=torch.float64)
    return ours, torch_twin(ours)


def mesh():
    return init_device_mesh("cpu", (SIZE,))


def parallelized(model, plan):
    linears = [name for name, module in model.named_children() if isinstance(module, torch.nn.Linear)]
    return parallelize_module(model, mesh(), dict(zip(linears, PLANS[plan], strict=True)))


def samples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 2 * SIZE, IN, dtype=torch.float64, generator=generator)


def train(model, x, whole=lambda y: y):
    """The first output, the first gradients, and the parameters after some steps."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        y = whole(model(x))
        y.square().mean().backward()
        found = found or [y, *(parameter.grad.clone() for parameter in model.parameters())]
        optimizer.step()
    return [*found, *model.parameters()]


def train_in_parallel(activations, bias, plan):
    """(ours, theirs)"""
    of_sequence = [Shard(1)] if plan == "sequence" else [Replicate()]
    x = distribute_tensor(samples(), mesh(), of_sequence).to_local()

    def whole(y):
        return DTensor.from_local(y, mesh(), of_sequence).full_tensor()

    return [train(parallelized(model, plan), x, whole) for model in pair(activations, bias)]


@row
@pytest.mark.parametrize("activations", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("plan", PLANS)
def test_training(plan, activations):
    assert_as_alone(activations, True, plan)


@row
def test_training_without_bias():
    assert_as_alone(("sigmoid", "sigmoid"), False, "columns_rows")


def assert_as_alone(activations, bias, plan):
    ends = in_processes(train_in_parallel, activations, bias, plan)
    torch.manual_seed(0)  # The pair that the processes have too.
    alone = train(pair(activations, bias)[1], samples())
    for ours, theirs in ends:
        assert_same(ours, theirs)
        assert_same(ours, alone)


COSTS = {
    "quadratic": (nn.QuadraticCost(), lambda a, y: torch.nn.functional.mse_loss(a, y) * OUT / 2),
    "cross_entropy": (nn.CrossEntropyCost(), lambda a, y: torch.nn.functional.binary_cross_entropy(a, y) * OUT),
}


def cost_of_parts(cost):
    """Of the outputs that a column-wise layer leaves where they are: C, and the gradients."""
    model = pair(("tanh", "sigmoid"))[0]
    plan = {"0": ColwiseParallel(**WHOLE), "1": ColwiseParallel(use_local_output=False)}
    a = parallelize_module(model, mesh(), plan)(samples())
    y = distribute_tensor(torch.full_like(a.full_tensor(), 0.25), mesh(), [Shard(2)])
    c = COSTS[cost][0](a, y)
    return [c, *torch.autograd.grad(c, list(model.parameters()))]


@row
@pytest.mark.parametrize("cost", COSTS)
def test_cost_of_outputs_on_both_processes(cost):
    ends = in_processes(cost_of_parts, cost)
    torch.manual_seed(0)
    theirs = pair(("tanh", "sigmoid"))[1]
    a = theirs(samples())
    c = COSTS[cost][1](a, torch.full_like(a, 0.25))
    for ours in ends:
        assert_same(ours, [c.detach(), *torch.autograd.grad(c, list(theirs.parameters()), retain_graph=True)])


def neurons_that_differ():
    differing = per_neuron(["sigmoid", "tanh", "relu", "sigmoid"])
    model = nn.MLP([IN, HIDDEN, OUT], differing, "sigmoid", dtype=torch.float64)
    with pytest.raises(RuntimeError) as refused:
        parallelized(model, "columns_rows")(samples())
    return str(refused.value)


def test_an_activation_that_tells_neurons_apart_is_refused():
    """A process that has half of them cannot know which; torch stops it, and nothing is computed wrongly."""
    for message in in_processes(neurons_that_differ):
        assert "unbind along the sharded dimension" in message
