"""Row: devices, dtypes. Where a model is made, how it is moved, and what it refuses."""

import contextlib

import pytest
import torch
from torch.nn.utils import skip_init

from manual_backprop import nn
from manual_backprop.activations import ACTIVATIONS
from tests.cases import BIAS, IN, OUT, needs_cuda, params, softplus
from tests.dropin.models import TORCH, assert_same, pair, run, torch_twin

pytestmark = pytest.mark.row("devices, dtypes")
ALL_MATCHED = "<All keys matched successfully>"
MODELS = params({name: name for name in ACTIVATIONS} | {"own_activation": softplus})


def samples(dtype=torch.float64, device="cpu"):
    return torch.linspace(-1, 1, 5 * IN, dtype=dtype, device=device).reshape(5, IN).requires_grad_()


def assert_same_but_for_rounding(ours, theirs):
    eps = torch.finfo(ours[0].dtype).eps
    assert_same(ours, theirs, rtol=16 * eps, atol=8 * eps)


# Where it is made


def made_on_meta(sizes):
    return nn.MLP(sizes, device="meta")


def made_under_a_device(sizes):
    with torch.device("meta"):
        return nn.MLP(sizes)


def made_under_the_default_device(sizes):
    torch.set_default_device("meta")
    try:
        return nn.MLP(sizes)
    finally:
        torch.set_default_device(None)


def moved_to_meta(sizes):
    return nn.MLP(sizes).to("meta")


@pytest.mark.parametrize(
    "make",
    [made_on_meta, made_under_a_device, made_under_the_default_device, moved_to_meta],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
def test_meta_and_back(make, assign):
    """No memory until `to_empty` or `load_state_dict(assign=True)`, then the weights of a torch.nn model."""
    ours = make([IN, 4, OUT])
    theirs = torch.nn.Sequential(torch.nn.Linear(IN, 4), torch.nn.Linear(4, OUT))
    assert {p.device.type for p in ours.parameters()} == {"meta"}
    assert ours(torch.zeros(5, IN, device="meta")).shape == (5, OUT)
    if not assign:
        ours.to_empty(device="cpu")
    assert str(ours.load_state_dict(theirs.state_dict(), assign=assign)) == ALL_MATCHED
    x = samples(torch.float32)
    assert_same_but_for_rounding(run(ours, x), run(torch_twin(ours), x))


def test_a_training_step_on_meta():
    """Shapes and dtypes of everything, with no numbers; then the same on the CPU, with them."""
    found = []
    for model in pair():
        on_meta = run(model.to("meta"), samples(device="meta"))
        model.to_empty(device="cpu")
        for n, parameter in enumerate(model.parameters()):
            torch.nn.init.constant_(parameter, 0.3 * n)
        found.append(run(model, samples()))
        assert [(x.shape, x.dtype) for x in on_meta] == [(x.shape, x.dtype) for x in found[-1]]
    assert_same(*found)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS])
def test_skip_init(activation):
    layer = {"identity": nn.Linear, "sigmoid": nn.LinearSigmoid, "tanh": nn.LinearTanh, "relu": nn.LinearReLU}[
        activation
    ]
    ours = skip_init(layer, IN, OUT, dtype=torch.float64)
    linear = torch.nn.Linear(IN, OUT, dtype=torch.float64)
    ours.load_state_dict(linear.state_dict())
    assert_same(run(ours, samples()), run(torch.nn.Sequential(linear, TORCH[activation]()), samples()))


LAZY = params(
    {
        "LazyLinear": (nn.LazyLinear, "identity"),
        "LazyLinearSigmoid": (nn.LazyLinearSigmoid, "sigmoid"),
        "LazyLinearTanh": (nn.LazyLinearTanh, "tanh"),
        "LazyLinearReLU": (nn.LazyLinearReLU, "relu"),
    }
)


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("first", ["forward", "load_state_dict"])
@pytest.mark.parametrize("lazy", LAZY)
def test_lazy_layers(lazy, first, bias):
    """Two of them beside torch's: the same parameters from the same random stream, and the same gradients."""
    layer, activation = lazy
    options = {"bias": bias, "dtype": torch.float64}
    ours = torch.nn.Sequential(layer(4, **options), layer(OUT, **options))
    theirs = torch.nn.Sequential(
        torch.nn.LazyLinear(4, **options), TORCH[activation](), torch.nn.LazyLinear(OUT, **options), TORCH[activation]()
    )
    for model in (ours, theirs):
        torch.manual_seed(2)
        if first == "load_state_dict":
            loaded = torch.nn.Sequential(torch.nn.Linear(IN, 4, **options), torch.nn.Linear(4, OUT, **options))
            keys = model.state_dict()
            model.load_state_dict(dict(zip(keys, loaded.state_dict().values(), strict=True)))
        else:
            model(samples())
    assert_same(run(ours, samples()), run(theirs, samples()))
    assert [type(m).__name__ for m in ours] == [layer.__name__.removeprefix("Lazy")] * 2


# How it is moved

MOVES = params(
    {
        "half": lambda model: model.half(),
        "bfloat16": lambda model: model.bfloat16(),
        "float": lambda model: model.float(),
        "double": lambda model: model.double(),
        "to_dtype": lambda model: model.to(torch.float32),
        "to_like": lambda model: model.to(torch.zeros((), dtype=torch.bfloat16)),
        "type": lambda model: model.type(torch.float32),
        "there_and_back": lambda model: model.half().double(),
    }
)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("activation", MODELS)
def test_moved_to_another_dtype(activation, move):
    ours, theirs = (move(model) for model in pair(activation=activation))
    x = samples(next(theirs.parameters()).dtype)
    results = run(ours, x)
    assert {r.dtype for r in results} == {x.dtype}
    assert_same_but_for_rounding(results, run(theirs, x))


@needs_cuda
@pytest.mark.parametrize("activation", MODELS)
def test_moved_to_cuda(activation):
    ours, theirs = (model.to("cuda") for model in pair(activation=activation))
    results = run(ours, samples(device="cuda"))
    assert {r.device.type for r in results} == {"cuda"}
    assert_same(results, run(theirs, samples(device="cuda")))
    back = run(ours.cpu(), samples())
    assert_same(back, [r.cpu() for r in results])


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype(dtype):
    """Of parameters made under it, and of nothing else: what was made before keeps its own."""
    before = pair()
    with default_dtype(dtype):
        ours = nn.MLP([IN, 4, OUT])
        theirs = torch_twin(ours)
        assert {p.dtype for p in ours.parameters()} == {dtype}
        assert_same_but_for_rounding(run(ours, samples(dtype)), run(theirs, samples(dtype)))
        assert_same(run(before[0], samples()), run(before[1], samples()))
        cost = nn.QuadraticCost()(torch.rand(5, OUT), torch.rand(5, OUT))
        assert cost.dtype == dtype


# What it refuses

REFUSED = params(
    {
        "narrower_input": lambda x: x.float(),
        "integers": lambda x: x.long(),
        "features": lambda x: x[:, :1],
        "another_device": lambda x: x.to("meta"),
    }
)


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("activation", MODELS)
def test_refused_with_torchs_own_words(activation, refused):
    """The same type and, behind the name of the layer, the same words; the next input that fits is none the worse."""
    said, found = [], []
    for model in pair(activation=activation):
        with pytest.raises(RuntimeError) as error:
            model(refused(samples()))
        said.append((type(error.value), str(error.value)))
        found.append(run(model, samples()))
    (our_type, ours), (their_type, theirs) = said
    assert our_type is their_type
    assert ours.startswith(f"LinearActivation(in_features={IN}, out_features=4): expected input ")
    assert ours.endswith(f" ({theirs})")
    assert_same(*found)
