"""Row: FSDP2."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tests.cases import IN
from tests.dropin.models import assert_same, pair
from tests.dropin.processes import SIZE, in_processes, mine

pytestmark = pytest.mark.row("FSDP2")
STEPS = 3


def sharded(model, **options):
    """Each layer, and the model around them; the model itself in the parent."""
    if not dist.is_initialized():
        return model
    mesh = init_device_mesh("cpu", (SIZE,))
    for module in (*(m for m in model if isinstance(m, torch.nn.Linear)), model):
        fully_shard(module, mesh=mesh, **options)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.1)


def train(model, optimizer, steps=range(STEPS)):
    """Outputs and gradients of the last step, and the parameters after it."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = mine(torch.randn(8, IN, dtype=torch.float64, generator=generator)).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        y = model(x)
        y.square().mean().backward()
        optimizer.step()
    return [y, *(p.grad for p in model.parameters()), *model.parameters()]


def assert_as_alone(ends, alone):
    """Of each process: what ours ends with is what theirs ends with, and what one process ends with."""
    for rank, (ours, theirs) in enumerate(ends):
        assert_same(ours, theirs)
        assert_same(ours, [alone[0].chunk(SIZE)[rank], *alone[1:]])


def trained(activation, options):
    models = [sharded(model, **options) for model in pair(activation=activation)]
    return [train(model, adam(model)) for model in models]


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("reshard", [True, False], ids=["reshard", "keep"])
def test_training(reshard, activation):
    ends = in_processes(trained, activation, {"reshard_after_forward": reshard})
    torch.manual_seed(0)  # The pair that the processes have too.
    alone = pair(activation=activation)[1]
    assert_as_alone(ends, train(alone, adam(alone)))


def mixed(param, reduce, output):
    policy = MixedPrecisionPolicy(param_dtype=param, reduce_dtype=reduce, output_dtype=output)
    models = [sharded(model, mp_policy=policy) for model in pair(dtype=torch.float32)]
    return [train(model, adam(model), range(1)) for model in models]


POLICIES = {
    "bfloat16": (torch.bfloat16, torch.float32, None),
    "bfloat16_reduced_too": (torch.bfloat16, torch.bfloat16, None),
    "float16_to_float32": (torch.float16, torch.float32, torch.float32),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_mixed_precision(policy):
    """Outputs of the policy's dtype, gradients and parameters of float32; values to a few roundings of the products."""
    param, _, output = policy
    for ours, theirs in in_processes(mixed, *policy):
        assert ours[0].dtype == (output or param)
        assert {x.dtype for x in ours[1:]} == {torch.float32}
        eps = torch.finfo(param).eps
        assert_same(ours[:5], theirs[:5], rtol=4 * eps, atol=eps / 4)  # Not the parameters: Adam steps by the sign.


def save(model, optimizer, folder):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    checkpoint.save(state, checkpoint_id=folder)


def load(model, optimizer, folder):
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return optimizer


def train_and_save(folders):
    for model, folder in zip(map(sharded, pair()), folders, strict=True):
        optimizer = adam(model)
        train(model, optimizer)
        save(model, optimizer, folder)


def load_and_train(folders):
    models = [sharded(model) for model in pair()]
    for model in models:
        torch.nn.init.zeros_(model[0].weight)  # What it was made with is not what it goes on with.
    optimizers = [load(model, adam(model), folder) for model, folder in zip(models, folders, strict=True)]
    return [
        train(model, optimizer, range(STEPS, 2 * STEPS)) for model, optimizer in zip(models, optimizers, strict=True)
    ]


def alone_after(steps):
    torch.manual_seed(0)
    model = pair()[1]
    return train(model, adam(model), range(steps))


# It is what is meant.
alone_on_purpose = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@alone_on_purpose
def test_saved_by_two_and_loaded_by_one(tmp_path):
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    in_processes(train_and_save, folders)
    ours, theirs = load_and_train(folders)
    assert_same(ours, theirs)
    assert_same(ours, alone_after(2 * STEPS))


@alone_on_purpose
def test_saved_by_one_and_loaded_by_two(tmp_path):
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    train_and_save(folders)
    assert_as_alone(in_processes(load_and_train, folders), alone_after(2 * STEPS))
