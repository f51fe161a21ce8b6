"""`convert` swaps what it may, leaves the rest with the reason, and `revert` undoes it exactly."""

import copy
import gc
import itertools
import pickle
import sys
import warnings
import weakref

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.utils import prune

import manual_backprop as mb
from manual_backprop.conversion import FUSIONS
from tests.conversion.models_left_alone import STAYING, KeepsInAttribute, KeepsInList
from tests.conversion.models_to_convert import (
    CONVERTIBLE,
    Called,
    Net,
    assert_same,
    nested,
    pair,
    results,
    structure,
)

FLOAT64 = torch.float64


# What is swapped


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_a_pair_becomes_the_fused_layer(case):
    model = case.build().double()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules, keys, expected = [path for path, _ in model.named_modules()], list(model.state_dict()), results(model)
    report = mb.conversions(mb.convert(model))
    assert {row.path: row.after for row in report.rows} == case.layers
    for path, name in case.layers.items():
        assert type(model.get_submodule(path)) is getattr(torch.nn if name == "Linear" else mb.nn, name)
    assert not any(type(module) in [fusion.module for fusion in FUSIONS] for module in model.modules())
    assert [path for path, _ in model.named_modules()] == modules
    assert list(model.state_dict()) == keys
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in parameters.items())
    assert_same(results(model), expected)


LAYERS = ["Linear", "Linear", "Sigmoid", "Tanh", "ReLU", "ReLU(inplace)", "Identity", "LayerNorm", "Softplus", "ours"]
MAKE = {
    "Linear": lambda: torch.nn.Linear(4, 4),
    "ReLU(inplace)": lambda: torch.nn.ReLU(inplace=True),
    "LayerNorm": lambda: torch.nn.LayerNorm(4),
    "ours": lambda: mb.nn.LinearTanh(4, 4),
}
STACKS = st.recursive(st.sampled_from(LAYERS), lambda inner: st.lists(inner, max_size=4), max_leaves=12)


def built(stack):
    if isinstance(stack, str):
        return MAKE[stack]() if stack in MAKE else getattr(torch.nn, stack)()
    return torch.nn.Sequential(*map(built, stack))


def flat(stack):
    return [stack] if isinstance(stack, str) else [layer for inner in stack for layer in flat(inner)]


@given(stack=st.lists(STACKS, min_size=1, max_size=5), linears=st.booleans())
def test_any_nested_sequential(stack, linears):
    row = ["Linear", *flat(stack)]
    # An in-place ReLU may overwrite what the backward of the layer before it needs, which torch refuses.
    assume(all(a in ("Linear", "LayerNorm") for a, b in itertools.pairwise(row) if b == "ReLU(inplace)"))
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), built(stack)).double()
    before, keys, expected = structure(model), list(model.state_dict()), results(model)
    is_pair = [after in ("Sigmoid", "Tanh", "ReLU", "ReLU(inplace)") for after in (*row[1:], "")]
    report = mb.conversions(mb.convert(model, linears=linears))
    assert len(report.swapped) == sum(
        layer == "Linear" and (linears or paired) for layer, paired in zip(row, is_pair, strict=True)
    )
    assert list(model.state_dict()) == keys
    assert_same(results(model), expected)
    mb.revert(model)
    assert structure(model) == before


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda fusion: fusion.layer.__name__)
def test_every_fusion_of_the_table(fusion):
    """Module, functions and layer are the same function."""
    for act in (fusion.module(), *fusion.functions):
        model = Called(act).double()
        expected = results(model)
        mb.convert(model)
        assert type(model.fc) is fusion.layer
        assert_same(results(model), expected)


def test_lone_linears_if_asked():
    model = nested()
    model.append(torch.nn.Linear(3, 2))
    assert not [row for row in mb.conversions(mb.convert(model)).swapped if row.path == "4"]
    assert [(row.path, row.after) for row in mb.conversions(mb.convert(model, linears=True)).swapped] == [
        ("4", "manual_backprop.nn.Linear")
    ]
    assert type(model[4]) is mb.nn.Linear
    mb.revert(model)
    assert type(model[4]) is torch.nn.Linear


def test_a_linear_that_is_the_model():
    linear = torch.nn.Linear(2, 2)
    assert mb.conversions(mb.convert(linear, linears=True)).swapped[0].path == ""
    assert type(linear) is mb.nn.Linear
    mb.revert(linear)
    assert type(linear) is torch.nn.Linear


@pytest.mark.parametrize("case", STAYING)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_it_is_left_alone_and_the_report_says_why(case):
    model = case.build()
    before = structure(model)
    (row,) = [row for row in mb.conversions(mb.convert(model)).left if row.path == case.path]
    assert row.why.startswith(case.why)
    if case.path != "fc":  # Of a Sequential: the other pairs stay too.
        assert structure(model) == before
    assert type(model.get_submodule(case.path)).__name__ == row.after == row.before


@pytest.mark.parametrize("case", [case for case in STAYING if case.values[0].path == "fc"])
def test_looking_at_a_forward_leaves_no_trace(case):
    """No hooks run, no attributes are set, no random numbers are drawn, and the mode stays."""
    model = case.build().eval()
    model.register_forward_hook(lambda *_: pytest.fail("a hook ran"))
    before, random = structure(model), torch.get_rng_state()
    log = list(model.log) if isinstance(model, Net) else None
    mb.convert(model)
    assert structure(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert log is None or log == model.log


def test_a_forward_that_draws_random_numbers():
    class Noisy(Net):
        def forward(self, x):
            return self.act(self.fc(x + torch.randn(4)))

    model, random = Noisy(torch.nn.Tanh()), torch.get_rng_state()
    assert len(mb.conversions(mb.convert(model)).swapped) == 1
    assert torch.equal(torch.get_rng_state(), random)


def test_a_forward_that_warns_is_followed_quietly():
    class Warns(Net):
        def forward(self, x):
            warnings.warn("an old interface", stacklevel=1)
            return self.act(self.fc(x))

    assert len(mb.conversions(mb.convert(Warns(torch.nn.Tanh()))).swapped) == 1


def test_a_forward_without_linears_is_not_looked_at():
    class Other(torch.nn.Module):
        def forward(self, x):
            pytest.fail("it was run")

    assert len(mb.conversions(mb.convert(torch.nn.Sequential(Other(), pair()))).swapped) == 1


def test_lone_linears_with_hooks_keep_them():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    seen = []
    model[0].register_forward_hook(lambda module, _, output: seen.append(output))
    assert len(mb.conversions(mb.convert(model, linears=True)).swapped) == 1
    output = model(torch.randn(2, 4))
    assert_same(seen[0].tanh(), output)


# Hooks, modes, frozen and changed parameters


def test_hooks_that_see_no_difference_stay():
    """On the input of the Linear, on its parameters, on the modules around it, on its state_dict."""
    model, calls = nested().double(), []
    linear = model[2][1][0]
    linear.register_forward_pre_hook(lambda *_: calls.append("input"))
    linear.weight.register_hook(lambda gradient: calls.append("weight") or 2 * gradient)
    model[2].register_forward_hook(lambda *_: calls.append("around"))
    linear.register_state_dict_post_hook(lambda *_: calls.append("state_dict"))
    expected, before = results(model), list(calls)
    swapped = mb.conversions(mb.convert(model)).swapped
    assert [row.path for row in swapped] == ["0.0", "2.1.0"]  # not 2.2, whose output is what `around` sees
    assert calls == before
    assert_same(results(model), expected)
    assert calls == 2 * before == 2 * ["input", "around", "weight"]
    model.state_dict()
    assert calls[-1] == "state_dict"


def test_frozen_parameters_stay_frozen():
    model = nested().double()
    model[0].requires_grad_(False)
    mb.convert(model)
    assert [parameter.requires_grad for parameter in model[0].parameters()] == [False, False]
    model(torch.randn(2, 4, dtype=FLOAT64)).sum().backward()
    assert model[0][0].weight.grad is None
    assert model[2][1][0].weight.grad is not None


def test_the_mode_goes_along():
    model = pair().eval()
    act = model[1]
    mb.convert(model)
    assert not any(module.training for module in model.modules())
    model.train()
    mb.revert(model)
    assert model[1] is act
    assert act.training


def test_pruned_weights():
    """A weight that is no parameter, but computed before each forward."""
    model = pair().double()
    prune.random_unstructured(model[0], "weight", 0.5)
    expected = results(model)
    assert len(mb.conversions(mb.convert(model)).swapped) == 1
    assert_same(results(model), expected)


def test_hooks_on_the_identity_are_on_the_activation_afterwards():
    model, calls = pair(), []
    mb.convert(model)
    model[1].register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    model(torch.randn(2, 4))
    mb.revert(model)
    model(torch.randn(2, 4))
    assert calls == ["Identity", "Sigmoid"]


def test_attributes_of_an_activation_come_back():
    model = pair()
    model[1].name = "mine"
    mb.convert(model)
    mb.revert(model)
    assert model[1].name == "mine"
    assert not any("converted" in name for module in model.modules() for name in vars(module))


def test_the_linear_is_the_same_object():
    """Whoever holds it, a list of the user's or a sharded model, holds the layer that runs."""
    model = pair().double()
    linear = model[0]
    mb.convert(model)
    assert model[0] is linear
    calls = []
    linear.register_forward_hook(lambda *_: calls.append(1))
    linear.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=FLOAT64))
    assert_same(model(torch.randn(2, 4, dtype=FLOAT64))[0], linear.bias.sigmoid())
    assert calls == [1]


def test_an_activation_in_another_model_is_not_touched():
    act = torch.nn.Tanh()
    model, other = torch.nn.Sequential(torch.nn.Linear(4, 4), act), torch.nn.Sequential(act)
    mb.convert(model)
    assert type(model[1]) is torch.nn.Identity
    assert type(other[0]) is torch.nn.Tanh
    assert_same(other(torch.ones(1)), torch.ones(1).tanh())


# Torch's own transformer: its fast path reads the weights, and calls a kernel of its own


@pytest.mark.parametrize("norm_first", [False, True], ids=["norm_last", "norm_first"])
@pytest.mark.parametrize("activation", ["relu", torch.nn.ReLU()], ids=["function", "module"])
def test_the_fast_path_of_a_transformer_layer(activation, norm_first):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation, batch_first=True, norm_first=norm_first)
    model = torch.nn.TransformerEncoder(layer.double(), 2, enable_nested_tensor=False).eval()
    before, x = structure(model), torch.randn(3, 5, 8, dtype=FLOAT64)
    with torch.no_grad():
        fast = model(x)
    slow = model(x)
    assert {row.path: row.after for row in mb.conversions(mb.convert(model)).swapped} == {
        "layers.0.linear1": "LinearReLU",
        "layers.1.linear1": "LinearReLU",
    }
    with torch.no_grad():
        assert torch.equal(model(x), fast)
    torch.testing.assert_close(model(x), slow)
    mb.revert(model)
    assert structure(model) == before


def test_a_transformer_layer_with_its_own_forward_is_followed():
    class Layer(torch.nn.TransformerEncoderLayer):
        def forward(self, src):
            return self.linear1(src)

    (row,) = [row for row in mb.conversions(mb.convert(Layer(4, 2, 4))).left if row.path == "linear1"]
    assert row.why == "its output is what Layer returns"


def test_a_compiled_model_notices():
    model = pair(torch.nn.Tanh).double()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = results(compiled)
    assert len(mb.conversions(mb.convert(compiled)).swapped) == 1
    assert_same(results(compiled), expected)
    mb.revert(compiled)
    assert_same(results(compiled), expected)
    torch._dynamo.reset()


# The report, and bad input


def test_the_report_is_a_table():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid(), torch.nn.Linear(4, 4), torch.nn.Dropout())
    report = mb.conversions(mb.convert(model))
    assert str(report) == (
        "1 of 2 Linears swapped\n"
        "path  before  after          why not\n"
        "0     Linear  LinearSigmoid\n"
        "2     Linear  Linear         its output goes to Dropout"
    )
    assert [row.path for row in report.swapped] == ["0"]
    assert [row.path for row in report.left] == ["2"]


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_convert_and_revert_return_the_model(case):
    """`model = mb.convert(model)`, as with torch's own."""
    model = case.build()
    assert mb.convert(model) is model
    assert mb.revert(model) is model


def test_the_report_is_of_the_last_call():
    model = nested()
    converted = mb.conversions(mb.convert(model))
    assert mb.conversions(model) is converted
    assert len(mb.conversions(mb.revert(model)).swapped) == len(converted.swapped) > 0
    assert mb.conversions(model) is not converted


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle], ids=["deepcopy", "pickle"])
def test_the_report_is_not_in_the_model(copied):
    """Neither in its attributes nor in its state_dict, and it goes with the model."""
    model = pair()
    keys = set(vars(model))
    report = weakref.ref(mb.conversions(mb.convert(model)))
    assert set(vars(model)) == keys
    twin = copied(model)
    for unknown in (twin, model[0], pair()):
        with pytest.raises(ValueError, match=f"^model: expected one that .* found another {type(unknown).__name__} "):
            mb.conversions(unknown)
    assert len(mb.conversions(mb.revert(twin)).swapped) == 1
    del model, unknown
    gc.collect()
    assert report() is None


def test_a_model_without_linears():
    assert str(mb.conversions(mb.convert(torch.nn.ReLU()))) == "0 of 0 Linears swapped\npath  before  after  why not"


@pytest.mark.parametrize("function", [mb.convert, mb.revert, mb.conversions])
@pytest.mark.parametrize(
    ("model", "found"), [(3, "int"), (torch.nn.Linear, "type"), ([torch.nn.Linear(2, 2)], "list")], ids=str
)
def test_bad_input_is_refused(function, model, found):
    with pytest.raises(TypeError, match=f"^model: expected a torch.nn.Module, found {found}$"):
        function(model)


def test_the_analysis_stops_at_an_error_and_puts_everything_back(monkeypatch):
    def fails(*_):
        raise RuntimeError("in between")

    monkeypatch.setattr(sys.modules["manual_backprop.conversion.swap"], "follow", fails)
    model = nested()
    before = structure(model)
    with pytest.raises(RuntimeError, match="in between"):
        mb.convert(model)
    assert structure(model) == before


@pytest.mark.parametrize("build", [KeepsInAttribute, KeepsInList])
def test_what_a_forward_keeps_is_z_as_before(build):
    model = build(torch.nn.Tanh())
    mb.convert(model)
    x = torch.randn(2, 4)
    output = model(x)
    kept = model.z if build is KeepsInAttribute else model.log[0]
    assert_same(kept.tanh(), output)
