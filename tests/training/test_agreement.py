"""Each equation and each part of the update rule, broken where it runs, stops the training and is named."""

import ctypes
import math
import shutil

import pytest
import torch

from manual_backprop import functions, kernels, network
from manual_backprop.kernels import cpp
from manual_backprop.network import Network
from manual_backprop.training.agreement import Disagreement, TrainingStopped, bound, require_agreement
from tests.kernels.test_cpp import needs_compiler

WAYS = {
    "network": {"backprop": "network"},
    "compiled": {"backprop": "network", "compile": True},
    "layers": {"backprop": "layers"},
    "autograd": {"backprop": "autograd"},
}
UPDATES = {"plain": {}, "momentum-l2": {"momentum": 0.5, "l2": 30.0}}
NAMED = {
    "BP1": ("layer 3 of 3", "BP1 (δ of the output)"),
    "BP2": ("layer 2 of 3", "BP2 (δ of a hidden layer)"),
    "BP3": ("layer 3 of 3", "BP3 (∂C/∂b)"),
    "BP4": ("layer 3 of 3", "BP4 (∂C/∂w)"),
    "momentum": ("layer 3 of 3", "the update rule (momentum)"),
    "weight decay": ("layer 3 of 3", "the update rule (weight decay)"),
}
EQUATIONS = [part for part in NAMED if part.startswith("BP")]


# How a way of training is broken: a factor before one of NAMED.


def times(equation, factor):
    def broken(*arguments, **options):
        if "into" in options:
            return equation(*arguments, **{**options, "scale": factor * options["scale"]})
        return equation(*arguments).mul_(factor)  # in place: the network reads its buffers

    return broken


def break_functions(monkeypatch, module, names, part, factor):
    name = dict(zip(EQUATIONS, names, strict=True))[part]
    monkeypatch.setattr(module, name, times(getattr(module, name), factor))


def break_network(monkeypatch, trainer, part, factor):
    if part in EQUATIONS:
        names = ("output_error", "hidden_error", "bias_gradient", "weight_gradient")
        break_functions(monkeypatch, network, names, part, factor)
        return
    descend, (mu, decay) = Network._descend, {"momentum": (factor, 1), "weight decay": (1, factor)}[part]
    monkeypatch.setattr(Network, "_descend", lambda *given: descend(*given[:-2], mu * given[-2], decay * given[-1]))


def break_optimizer(monkeypatch, trainer, part, factor):
    for group in trainer.learner.optimizer.param_groups:
        group[part.replace(" ", "_")] *= factor


def break_layers(monkeypatch, trainer, part, factor):
    if part in EQUATIONS:
        names = ("output_error", "input_gradient", "bias_gradient", "weight_gradient")
        break_functions(monkeypatch, functions, names, part, factor)
    else:
        break_optimizer(monkeypatch, trainer, part, factor)


def break_autograd(monkeypatch, trainer, part, factor):
    if part not in EQUATIONS:
        break_optimizer(monkeypatch, trainer, part, factor)
        return
    w2, w3, b2, b3 = trainer.learner.trained
    for parameter in {"BP1": (w2, w3, b2, b3), "BP2": (w2, b2), "BP3": (b2, b3), "BP4": (w2, w3)}[part]:
        parameter.register_hook(lambda gradient: factor * gradient)


FACTORS = {part: f"T(factors[{number}])" for number, part in enumerate(NAMED)}
IN_CPP = {
    '#include "layer.h"': 'extern "C" { double factors[] = {1, 1, 1, 1, 1, 1}; }',
    "sigmoid_cross_entropy ? error : times_derivative(activation, error, out);": (
        f"network.deltas.back()[i * outputs + j] *= {FACTORS['BP1']};"
    ),
    "output_error(layers[l - 1].activation, below, a[l - 1].data(), n * layer.inputs, below);": (
        f"for (int64_t i = 0; i < n * layer.inputs; ++i) below[i] *= {FACTORS['BP2']};"
    ),
    "bias_gradient(delta, samples, outputs, sums.data());": f"for (T& sum : sums) sum *= {FACTORS['BP3']};",
    "inputs, outputs, momentum, mean": f"* {FACTORS['BP4']}",
    "1 - rate * decay, -rate * mean": f"* {FACTORS['BP4']}",
    "momentum = step.momentum": f"* {FACTORS['momentum']}",
    "decay = step.weight_decay": f"* {FACTORS['weight decay']}",
}
"""Pieces of the source, and what is written behind them."""


@pytest.fixture(scope="module")
def factors(tmp_path_factory):
    """The C++ that trains, built with a factor before each part, which the tests turn."""
    folder = tmp_path_factory.mktemp("cpp")
    source, layer = cpp.SOURCES
    name, source = source.name, source.read_text()
    for piece, behind in IN_CPP.items():
        assert source.count(piece) == 1
        source = source.replace(piece, f"{piece}\n{behind}")
    shutil.copy(layer, folder)
    (folder / name).write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp, "SOURCES", (folder / name, folder / layer.name))
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        cpp.library.cache_clear()
        assert cpp.library()
        (built,) = folder.rglob("*.so")
        yield (ctypes.c_double * len(NAMED)).in_dll(ctypes.CDLL(str(built)), "factors")
        cpp.library.cache_clear()


def break_compiled(factors):
    def turn(monkeypatch, trainer, part, factor):
        factors[list(NAMED).index(part)] = factor

    return turn


BREAKS = {"network": break_network, "layers": break_layers, "autograd": break_autograd}


@pytest.fixture(params=[pytest.param(way, marks=[needs_compiler] * (way == "compiled")) for way in WAYS])
def way(request):
    """A way of training: its options, and how a part of it is broken."""
    if request.param != "compiled":
        yield WAYS[request.param], BREAKS[request.param]
        return
    factors = request.getfixturevalue("factors")
    yield WAYS["compiled"], break_compiled(factors)
    factors[:] = [1.0] * len(NAMED)


def train_seven_steps(trainer):
    pixels, batches = trainer._batches()
    trainer._train_until_look(pixels, batches[:7])


CASES = [(part, update) for part in NAMED for update in UPDATES if part in EQUATIONS or UPDATES[update]]


@pytest.mark.parametrize("factor", [-1.0, 1.01], ids=["sign", "a hundredth"])
@pytest.mark.parametrize(("part", "update"), CASES)
def test_a_wrong_part_stops_the_run_and_is_named(make_config, make_trainer, monkeypatch, way, part, update, factor):
    options, broken = way
    trainer = make_trainer(make_config(check_every=7, batch_size=50, **options, **UPDATES[update]), 1000)
    train_seven_steps(trainer)
    assert trainer.worst_disagreement < bound(torch.float32)
    broken(monkeypatch, trainer, part, factor)
    with pytest.raises(TrainingStopped) as stopped:
        trainer.fit()
    layer, equation = NAMED[part]
    assert str(stopped.value).startswith(f"step 7, {layer}: the step taken is not that of autograd and torch.optim.SGD")
    assert equation in str(stopped.value)


@pytest.mark.parametrize("part", EQUATIONS)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_a_wrong_sign_is_found_in_every_dtype(make_config, make_trainer, monkeypatch, dtype, part):
    trainer = make_trainer(make_config(check_every=7, batch_size=50, dtype=dtype), 1000)
    train_seven_steps(trainer)
    break_network(monkeypatch, trainer, part, -1.0)
    with pytest.raises(TrainingStopped) as stopped:
        trainer.fit()
    assert all(words in str(stopped.value) for words in NAMED[part])


@needs_compiler
def test_noise_in_place_of_the_epoch_in_cpp_stops_the_run(make_config, make_trainer, monkeypatch):
    def noise(weights, biases, *_):
        for parameter in weights + biases:
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        return True

    trainer = make_trainer(make_config(batch_size=50, compile=True), 1000)
    monkeypatch.setattr(kernels, "sgd", noise)
    with pytest.raises(TrainingStopped, match=r"step 0, layer 3 of 3: .* BP1"):
        trainer.fit()


def test_a_velocity_that_is_not_kept_stops_the_run(make_config, make_trainer, monkeypatch):
    """The weights move rightly in the step that is checked, and wrongly in the next one."""
    trainer = make_trainer(make_config(check_every=7, batch_size=50, momentum=0.5), 1000)
    train_seven_steps(trainer)
    descend = Network._descend

    def forgetful(net, *given):
        descend(net, *given)
        for velocity in net.velocities:
            velocity.mul_(0.9)

    monkeypatch.setattr(Network, "_descend", forgetful)
    with pytest.raises(TrainingStopped, match="step 7, layer 3 of 3"):
        trainer.fit()


def test_a_wrong_learning_rate_is_told_from_a_wrong_gradient_by_the_velocities(make_config, make_trainer, monkeypatch):
    trainer = make_trainer(make_config(check_every=7, batch_size=50, momentum=0.5), 1000)
    train_seven_steps(trainer)
    descend = Network._descend
    monkeypatch.setattr(
        Network, "_descend", lambda net, x, y, buffers, rate, *r: descend(net, x, y, buffers, 2 * rate, *r)
    )
    with pytest.raises(TrainingStopped, match=r"layer 3 of 3: .*, the update rule \(w → w − ηv\)"):
        trainer.fit()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_to_look_changes_nothing(make_config, make_trainer, way, update):
    ends = []
    for check_every in (0, 3):
        trainer = make_trainer(make_config(check_every=check_every, batch_size=64, **way, **update), 1000)
        trainer.fit()
        ends.append(trainer.network.weights + trainer.network.biases + trainer.learner.velocities())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("recipe", ["chapter1", "chapter3", "best"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("backprop", ["network", "layers"])
def test_a_right_step_passes(make_config, make_trainer, recipe, dtype, backprop):
    trainer = make_trainer(make_config(recipe, backprop=backprop, dtype=dtype, batch_size=20, check_every=1), 400)
    trainer.fit()
    assert trainer.worst_disagreement < bound(trainer.config.torch_dtype)


def test_an_error_that_is_not_a_number_is_no_agreement():
    with pytest.raises(TrainingStopped, match="BP4"):
        require_agreement(Disagreement([math.nan], [0.0], [""]), 0, torch.float32)
