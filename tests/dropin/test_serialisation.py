"""Row: serialisation. What torch.nn saved, ours loads and trains on with, and the other way round."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model

from manual_backprop import nn
from manual_backprop.activations import activation_named
from tests.cases import BIAS, DTYPES, IN, OUT, params
from tests.dropin.models import MODELS, assert_same, pair, run

pytestmark = pytest.mark.row("serialisation")
LAYERS = [
    pytest.param(nn.Linear, torch.nn.Identity, id="Linear"),
    pytest.param(nn.LinearSigmoid, torch.nn.Sigmoid, id="LinearSigmoid"),
    pytest.param(nn.LinearTanh, torch.nn.Tanh, id="LinearTanh"),
    pytest.param(nn.LinearReLU, torch.nn.ReLU, id="LinearReLU"),
]
ALL_MATCHED = "<All keys matched successfully>"


def through_file(save, load):
    def saved_and_loaded(state, folder):
        save(state, folder / "state")
        return load(folder / "state")

    return saved_and_loaded


# What a state_dict goes through on its way.
WAYS = params(
    {
        "in_memory": lambda state, folder: state,
        "torch_save": through_file(torch.save, lambda file: torch.load(file, weights_only=True)),
        "torch_save_mmap": through_file(torch.save, lambda file: torch.load(file, weights_only=True, mmap=True)),
        "safetensors": through_file(save_file, load_file),
        "pickle": lambda state, folder: pickle.loads(pickle.dumps(state)),
    }
)
# What a whole module goes through.
COPIES = params(
    {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "torch_save": lambda module: saved_whole(module),
    }
)


def saved_whole(module):
    """`weights_only=False`, as for any module: torch loads only tensors and the types that it is told to trust."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def step(module):
    """An SGD step, and what comes out of it."""
    x = torch.linspace(-1, 1, 5 * IN, dtype=next(module.parameters()).dtype).reshape(5, IN)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    module(x).square().sum().backward()
    optimizer.step()
    return [module(x), *module.parameters()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize(("layer", "activation"), LAYERS)
def test_state_dict_both_ways(layer, activation, bias, dtype, way, tmp_path):
    """Strictly: the same keys, shapes and dtypes, and the same values trained on."""
    theirs = torch.nn.Linear(IN, OUT, bias, dtype=dtype)
    ours, back = layer(IN, OUT, bias, dtype=dtype), torch.nn.Linear(IN, OUT, bias, dtype=dtype)
    assert str(ours.load_state_dict(way(theirs.state_dict(), tmp_path), strict=True)) == ALL_MATCHED
    assert str(back.load_state_dict(way(ours.state_dict(), tmp_path), strict=True)) == ALL_MATCHED
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    trained = [step(ours), step(torch.nn.Sequential(back, activation()))]
    eps = torch.finfo(dtype).eps
    assert_same(*trained, rtol=16 * eps, atol=4 * eps)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("models", [param for param in MODELS if param.id != "own_activation"])
def test_whole_modules(models, copied):
    """A copy has weights of its own, and gradients like the original's."""
    x = torch.linspace(-1, 1, 5 * IN, dtype=torch.float64).reshape(5, IN).requires_grad_()
    ours, theirs = models()
    twin = copied(ours)
    assert repr(twin) == repr(ours)
    assert_same(run(twin, x), run(theirs, x))
    step(twin)
    assert_same(run(ours, x), run(theirs, x))  # The step moved the copy alone.


def test_weights_only_of_a_whole_module():
    """torch wants each class named that it is to trust: ours, and `activation_named`, beside those of torch.nn."""
    ours, theirs = pair()
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    file.seek(0)
    with torch.serialization.safe_globals([nn.MLP, nn.LinearActivation, activation_named, set]):
        loaded = torch.load(file, weights_only=True)
    x = torch.linspace(-1, 1, 5 * IN, dtype=torch.float64).reshape(5, IN).requires_grad_()
    assert_same(run(loaded, x), run(theirs, x))


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_safetensors_save_model_and_load_model(tied, tmp_path):
    """Tied weights are saved once, and are tied again after they are loaded."""
    found = []
    for model in pair((IN, IN, IN)):
        first, second = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
        fresh = copy.deepcopy(model)
        if tied:
            second.weight = first.weight
            first_fresh, second_fresh = (m for m in fresh.modules() if isinstance(m, torch.nn.Linear))
            second_fresh.weight = first_fresh.weight
        save_model(model, tmp_path / "model.safetensors")
        for parameter in fresh.parameters():
            torch.nn.init.zeros_(parameter)
        assert load_model(fresh, tmp_path / "model.safetensors") == (set(), [])
        found.append(step(fresh))
    assert_same(*found)


def test_optimizer_state_is_shared_with_the_original():
    """A run of torch.nn goes on with ours: the momentum, saved and loaded, moves the same parameters."""
    ours, theirs = pair()
    x = torch.linspace(-1, 1, 5 * IN, dtype=torch.float64).reshape(5, IN)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in (ours, theirs)]

    def train(model, optimizer):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    train(theirs, optimizers[1])
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data.copy_(other.data)
    optimizers[0].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        train(model, optimizer)
    assert_same(list(ours.parameters()), list(theirs.parameters()))
