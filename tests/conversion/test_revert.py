"""`revert` undoes `convert` exactly, on the model, on a copy and on a part of it."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils import parametrizations

import manual_backprop as mb
from tests.cases import params
from tests.conversion.models_to_convert import (
    CONVERTIBLE,
    Called,
    InContainers,
    assert_same,
    nested,
    pair,
    results,
    shared,
    structure,
)

FLOAT64 = torch.float64


@pytest.mark.parametrize("case", CONVERTIBLE)
def test_revert_undoes_it_exactly(case):
    model = case.build().double()
    before, expected = structure(model), results(model)
    converted = mb.conversions(mb.convert(model))
    reverted = mb.conversions(mb.revert(model))
    assert structure(model) == before
    assert_same(results(model), expected)
    assert [(row.path, row.after, row.before) for row in reverted.rows] == [
        (row.path, row.before, row.after) for row in converted.swapped
    ]


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = params({"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_save})


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("build", params({"modules": InContainers, "attribute": lambda: Called(torch.tanh)}))
def test_a_copy_can_be_reverted(build, copied):
    model = build().double()
    expected = results(model)
    classes = [type(module) for module in model.modules()]
    mb.convert(model)
    twin = copied(model)
    mb.revert(twin)
    assert [type(module) for module in twin.modules()] == classes
    assert_same(results(twin), expected)
    assert_same(results(model), expected)
    assert len(mb.conversions(mb.convert(model)).swapped) == 0


def test_copies_of_a_layer_in_one_model():
    layer = pair().double()
    mb.convert(layer)
    model = torch.nn.Sequential(layer, copy.deepcopy(layer))
    expected = results(model)
    assert len(mb.conversions(mb.revert(model)).swapped) == 2
    assert_same(results(model), expected)
    assert [type(module) for module in model[1]] == [torch.nn.Linear, torch.nn.Sigmoid]


def test_layers_that_were_ours_stay():
    model = torch.nn.Sequential(
        mb.nn.LinearSigmoid(4, 4), mb.nn.LinearActivation(4, 4, "tanh"), torch.nn.Linear(4, 4), torch.nn.Tanh()
    )
    before = structure(model)
    why = "it has a hand-written backward already"
    assert [(row.path, row.why) for row in mb.conversions(mb.convert(model)).left] == [("0", why), ("1", why)]
    mb.revert(model)
    assert structure(model) == before


def test_twice_is_once():
    model = nested()
    before = structure(model)
    mb.convert(model)
    assert mb.conversions(mb.convert(model)).swapped == ()
    mb.revert(model)
    assert structure(model) == before
    assert mb.conversions(mb.revert(model)).rows == ()
    assert structure(model) == before


def test_a_part_can_be_reverted():
    model = torch.nn.Sequential(pair(), pair())
    mb.convert(model)
    mb.revert(model[0])
    assert [type(module) for module in model[0]] == [torch.nn.Linear, torch.nn.Sigmoid]
    assert [type(module) for module in model[1]] == [mb.nn.LinearSigmoid, torch.nn.Identity]


@pytest.mark.parametrize(
    "part",
    params(
        {
            "without_identity": lambda model: torch.nn.Sequential(model[0][0]),
            "inner_sequential": lambda model: model[0],
        }
    ),
)
def test_half_a_pair_stays_fused(part):
    """A Linear without its activation would compute something else."""
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.Sigmoid()).double()
    expected = results(model)
    mb.convert(model)
    half = part(model)
    (row,) = mb.conversions(mb.revert(half)).left
    assert row.why == "what stood in the place of its activation is not in this model"
    assert_same(results(half), expected)


def test_an_activation_without_its_layer_stays_out():
    model = pair().double()
    mb.convert(model)
    model[0] = torch.nn.Linear(4, 4, dtype=FLOAT64)
    expected = results(model)
    assert mb.conversions(mb.revert(model)).rows == ()
    assert_same(results(model), expected)


def test_a_class_changed_since_is_refused():
    model = torch.nn.Sequential(*nested(), *shared())
    mb.convert(model)
    parametrizations.weight_norm(model[0][0])
    before = structure(model)
    message = r"^model: expected the layer '0.0' as convert left it, found ParametrizedLinearSigmoid: undo first"
    with pytest.raises(ValueError, match=message):
        mb.revert(model)
    assert structure(model) == before
    torch.nn.utils.parametrize.remove_parametrizations(model[0][0], "weight")
    mb.revert(model)
    assert type(model[0][0]) is torch.nn.Linear
