"""Row: checkpointing, offload."""

from functools import partial

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from tests.cases import IN
from tests.dropin.models import MODELS, assert_same

pytestmark = pytest.mark.row("checkpointing, offload")
FLOAT64 = torch.float64


class Under(torch.nn.Module):
    """The model, called in some way."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x):
        return self.call(self.model, x)


def inside(context):
    def call(model, x):
        with context():
            return model(x)

    return call


def as_numpy():
    """Every saved tensor leaves torch and comes back as another one."""
    return saved_tensors_hooks(lambda tensor: tensor.detach().numpy().copy(), torch.from_numpy)


def without_early_stop(model, x):
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return checkpoint(model, x, use_reentrant=False)


def hooks_around_a_checkpoint(model, x):
    with as_numpy():
        return checkpoint(model, x, use_reentrant=False)


def selective(model, x):
    """The products are kept, and what follows them is computed again."""
    kept = [torch.ops.aten.addmm.default, torch.ops.aten.mm.default]
    contexts = partial(create_selective_checkpoint_contexts, kept)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)


CALLS = {
    "selective": selective,
    "reentrant": lambda model, x: checkpoint(model, x, use_reentrant=True),
    "non_reentrant": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "non_reentrant_without_early_stop": without_early_stop,
    "layer_by_layer": lambda model, x: checkpoint_sequential(model, 2, x, use_reentrant=False),
    "save_on_cpu": inside(save_on_cpu),
    "hooks": inside(as_numpy),
    "hooks_around_a_checkpoint": hooks_around_a_checkpoint,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("models", MODELS)
def test_gradients(models, call):
    ours, theirs = models()
    x = torch.randn(5, IN, dtype=FLOAT64, requires_grad=True)
    assert_same(_gradients(ours, call, x), _gradients(theirs, call, x))


def _gradients(model, call, x):
    """By `.backward()`, since reentrant checkpoints refuse `torch.autograd.grad`."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    output = call(model, x)
    output.square().sum().backward()
    return [output, x.grad, *(p.grad for p in model.parameters())]
