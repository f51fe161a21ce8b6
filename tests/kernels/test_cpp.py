"""Many steps in one call of C++: the same as step by step."""

import copy
import dataclasses
import shutil
import subprocess

import pytest
import torch

from manual_backprop import Network, kernels
from manual_backprop.activations import ACTIVATIONS as NAMED
from manual_backprop.kernels import cpp
from tests.cases import FLOAT64, params, softplus

needs_compiler = pytest.mark.skipif(not shutil.which(cpp._compiler()[0]), reason="no C++ compiler")
ACTIVATIONS = params({name: name for name, f in NAMED.items() if f.code is not None})
OPTIONS = params(
    {
        "plain": {},
        "l2": {"weight_decay": 0.01},
        "momentum": {"momentum": 0.9},
        "momentum-l2": {"momentum": 0.5, "weight_decay": 0.01},
    }
)


def twins(sizes, activation="sigmoid", cost="quadratic", output="sigmoid", dtype=FLOAT64):
    """The same network twice, one of them compiled; 25 samples."""
    eager, fast = (Network(sizes, activation, cost, output, dtype=dtype, compile=c) for c in (False, True))
    fast.weights, fast.biases = [w.clone() for w in eager.weights], [b.clone() for b in eager.biases]
    return eager, fast, torch.randn(25, sizes[0], dtype=dtype), torch.rand(25, sizes[-1], dtype=dtype)


def taken(net, x, y, batch_size, order):
    """Whether `sgd` goes through C++; the network is left as it was."""
    net = copy.deepcopy(net)
    cost, _ = net.cost.shortened(net.activations)
    rates = [0.0] * -(-len(order) // batch_size)
    return kernels.sgd(net.weights, net.biases, net.velocities, net.activations, cost, x, y, batch_size, rates, order)


def state(net):
    return net.weights + net.biases + net.velocities


@needs_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cost", ["quadratic", "cross_entropy"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", [[3, 2], [70, 13, 5], [33, 18, 17, 4]], ids=str)
def test_agrees_with_the_steps_one_by_one(activation, cost, options, sizes):
    """25 samples by 10: the last mini-batch is smaller; two epochs, so that a velocity counts."""
    eager, fast, x, y = twins(sizes, activation, cost)
    assert taken(fast, x, y, 10, torch.arange(25))
    for _ in range(2):
        order = torch.randperm(25)
        for net in (eager, fast):
            net.sgd(x, y, 10, [0.1, 0.2, 0.05], order, **options)
    torch.testing.assert_close(state(fast), state(eager), rtol=1e-10, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("batch_size", [1, 4, 7, 25, 40])
def test_any_batch_size(batch_size):
    eager, fast, x, y = twins([20, 6, 3])
    order = torch.randperm(25)
    for net in (eager, fast):
        net.sgd(x, y, batch_size, 0.5, order)
    torch.testing.assert_close(state(fast), state(eager), rtol=1e-10, atol=1e-12)


@needs_compiler
def test_float32():
    eager, fast, x, y = twins([50, 6, 3], dtype=torch.float32)
    order = torch.randperm(25)
    for net in (eager, fast):
        net.sgd(x, y, 10, 0.5, order)
    torch.testing.assert_close(state(fast), state(eager))


@needs_compiler
def test_saturated_and_not_finite():
    """σ at huge inputs without overflow, and a NaN stays one."""
    eager, fast, x, y = twins([3, 4, 2])
    x[0], x[1, 0] = 1e6, float("nan")
    order = torch.arange(25)
    for samples in (order[2:], order[:1], order[1:2]):
        for net in (eager, fast):
            net.sgd(x, y, 5, 0.5, samples)
        torch.testing.assert_close(state(fast), state(eager), equal_nan=True)
    assert fast.weights[0].isnan().any()


@needs_compiler
def test_an_index_out_of_range_is_refused():
    _, fast, x, y = twins([3, 2])
    before = fast.weights[0].clone()
    with pytest.raises(IndexError, match="order: expected indices of 25 samples, found 3 to 25"):
        fast.sgd(x, y, order=torch.tensor([3, 25]))
    assert torch.equal(fast.weights[0], before)


DO_NOT_FIT = {
    "narrow": (lambda x, order: (x[:, :1].contiguous(), order)),
    "wide": (lambda x, order: (torch.cat([x, x], 1), order)),
    "3d": (lambda x, order: (x.unsqueeze(1), order)),
    "order_bool": (lambda x, order: (x, order > 3)),
    "order_float": (lambda x, order: (x, order.double())),
    "order_2d": (lambda x, order: (x, order.reshape(5, 5))),
}


@pytest.mark.parametrize("change", DO_NOT_FIT.values(), ids=DO_NOT_FIT)
def test_what_does_not_fit_is_refused_as_step_by_step(change):
    *nets, x, y = twins([3, 2])
    x, order = change(x, torch.arange(25))
    y = y.reshape(*x.shape[:-1], 2)
    refused = []
    for net in nets:
        with pytest.raises((RuntimeError, IndexError, TypeError, ValueError)) as error:
            net.sgd(x, y, 10, [0.1] * -(-len(order) // 10), order)
        refused.append((error.type, str(error.value)))
    assert refused[0] == refused[1]


REPLACED = {
    "weight": lambda net: net.weights.__setitem__(1, torch.randn(2, 30, dtype=FLOAT64)),
    "bias": lambda net: net.biases.__setitem__(1, torch.randn(5, dtype=FLOAT64)),
    "velocity": lambda net: net.velocities.extend([torch.zeros(1, 1, dtype=FLOAT64)] * 4),
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
def test_parts_that_do_not_fit_are_left_to_torch(replace):
    """C++ would write behind them."""
    _, fast, x, y = twins([6, 3, 2])
    replace(fast)
    assert not taken(fast, x, y, 10, torch.arange(25))


LEFT_TO_TORCH = {
    "own_activation": lambda: twins([3, 2], output=softplus),
    "bfloat16": lambda: twins([3, 2], dtype=torch.bfloat16),
    "large": lambda: twins([2000, 2000]),
    "quadratic_by_cross_entropy_of_tanh": lambda: twins([3, 2], cost="cross_entropy", output="tanh"),
    "strided": lambda: (*twins([6, 2])[:2], torch.randn(25, 12, dtype=FLOAT64)[:, ::2], torch.rand(25, 2).double()),
}


@pytest.mark.parametrize("case", LEFT_TO_TORCH.values(), ids=LEFT_TO_TORCH)
def test_what_it_does_not_know_is_left_to_torch(case):
    eager, fast, x, y = case()
    order = torch.arange(25)
    assert not taken(fast, x, y, 10, order)
    if len(eager.weights[0]) < 100:
        for net in (eager, fast):
            net.sgd(x, y, 10, 0.1, order)
        torch.testing.assert_close(state(fast), state(eager), equal_nan=True)


@pytest.mark.parametrize("compiler", ["c++", "false", "nowhere"])
def test_without_a_compiler_it_warns_once_and_runs(compiler, monkeypatch, tmp_path):
    source = tmp_path / "sgd.cpp"
    source.write_text("this is no C++")
    monkeypatch.setattr(cpp, "SOURCES", (source,))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    cpp.library.cache_clear()
    eager, fast, x, y = twins([3, 2])
    order = torch.arange(25)
    with pytest.warns(UserWarning, match="could not be built"):
        fast.sgd(x, y, 10, 0.1, order)
    fast.sgd(x, y, 10, 0.1, order)  # a second warning would be an error
    cpp.library.cache_clear()
    for _ in range(2):
        eager.sgd(x, y, 10, 0.1, order)
    torch.testing.assert_close(state(fast), state(eager))


@pytest.fixture
def anew():
    """The library is looked for again, and once more after the test."""
    cpp.library.cache_clear()
    yield
    cpp.library.cache_clear()


PYTHON_CHANGED = {
    "arguments": (
        lambda patch: patch.setitem(cpp.FUNCTIONS, "sgd", "pppnn"),
        r"C\+\+ alone has function sgd float32 pppnnpddnpppn, .*; Python alone has function sgd float32 pppnn, ",
    ),
    "activation": (
        lambda patch: patch.setitem(cpp.ACTIVATIONS, "relu", dataclasses.replace(cpp.ACTIVATIONS["relu"], code=7)),
        r"C\+\+ alone has activation relu 2; Python alone has activation relu 7;",
    ),
    "new_activation": (
        lambda patch: patch.setitem(cpp.ACTIVATIONS, "softplus", dataclasses.replace(softplus, code=4)),
        "expects: Python alone has activation softplus 4;",
    ),
    "cost": (
        lambda patch: patch.setattr(cpp, "COSTS", {cost: 1 - code for cost, code in cpp.COSTS.items()}),
        "Python alone has cost quadratic 1, cost sigmoid_cross_entropy 0",
    ),
}


@needs_compiler
@pytest.mark.parametrize(("change", "words"), PYTHON_CHANGED.values(), ids=PYTHON_CHANGED)
def test_python_that_calls_it_otherwise_is_refused_in_words(change, words, anew, monkeypatch):
    """A call with other arguments, or with another code, would be a crash or a wrong number."""
    change(monkeypatch)
    eager, fast, x, y = twins([3, 2])
    with pytest.warns(UserWarning, match=words):
        fast.sgd(x, y, 10, 0.1, torch.arange(25))
    eager.sgd(x, y, 10, 0.1, torch.arange(25))
    torch.testing.assert_close(state(fast), state(eager))


CPP_CHANGED = {
    "order_of_the_enumeration": (
        lambda code: code.replace("CODE(sigmoid) CODE(tanh)", "CODE(tanh) CODE(sigmoid)"),
        r"C\+\+ alone has activation sigmoid 1, activation tanh 0; Python alone has",
    ),
    "an_argument_less": (
        lambda code: code.replace("double momentum, double weight_decay,", "double momentum, int64_t weight_decay,"),
        r"C\+\+ alone has function sgd float32 pppnnpdnnpppn",
    ),
    "no_table": (lambda code: code.replace("* table()", "* another()"), "it has no table of its functions"),
}


@needs_compiler
@pytest.mark.parametrize(("change", "words"), CPP_CHANGED.values(), ids=CPP_CHANGED)
def test_cpp_that_is_called_otherwise_is_refused_in_words(change, words, anew, monkeypatch, tmp_path):
    sources = [tmp_path / source.name for source in cpp.SOURCES]
    for old, new in zip(cpp.SOURCES, sources, strict=True):
        new.write_text(change(old.read_text()))
    assert [old.read_text() for old in cpp.SOURCES] != [new.read_text() for new in sources]
    monkeypatch.setattr(cpp, "SOURCES", sources)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    with pytest.warns(UserWarning, match=words):
        assert not cpp.can_be_built()
    assert not cpp.can_be_built()  # a second warning would be an error


@needs_compiler
def test_it_is_built_once_and_whole(anew, monkeypatch, tmp_path):
    """The next process finds it, and nothing unfinished beside it; another source is another library."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    source = tmp_path / "empty.cpp"
    source.write_text("int nothing;")
    monkeypatch.setattr(cpp, "SOURCES", (source,))
    built = cpp._built()
    assert {built, source} == set(tmp_path.iterdir())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert cpp._built() == built
    source.write_text("int another;")
    with pytest.raises(pytest.fail.Exception):
        cpp._built()
