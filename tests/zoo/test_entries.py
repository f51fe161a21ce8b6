"""The zoo is what it says: each wrong one is shown to be wrong in plain torch, each right one passes gradcheck."""

import gc
import inspect
import re
import sys
from collections import Counter

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from manual_backprop.zoo import ENTRIES, RIGHT, WRONG
from manual_backprop.zoo.entry import Entry
from manual_backprop.zoo.pointwise import TABLE
from tests.zoo.calls import call, callable_of
from tests.zoo.proofs import PROOFS

# The slope jumps there, which gradcheck takes for a mistake: it is asked beside the kinks.
AT_KINKS = {
    "right-relu-at-the-kink",
    "right-abs-at-the-kink",
    "right-relu6-at-both-kinks",
    "right-hardtanh-closed-interval",
    "right-huber",
    "right-amax-ties-share",
}
REFUSES_TWICE = "right-numpy-that-refuses-the-second-derivative"


def beside_kinks(inputs: tuple) -> tuple:
    (x,) = inputs
    return ((x.detach() + 0.013 * torch.arange(1, x.numel() + 1, dtype=x.dtype).view(x.shape)).requires_grad_(),)


@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_wrong_one_is_wrong(entry: Entry) -> None:
    gc.collect()
    gc.disable()  # a circle of references has to be seen
    try:
        assert any(PROOFS[code](entry) for code in entry.codes if code in PROOFS)
    finally:
        gc.enable()


@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_wrong_one_has_a_right_forward(entry: Entry) -> None:
    """The forward is repeatable, finite, and the reference's where there is one, but for the entries of MB103."""
    outputs, again = call(entry.function, entry.inputs()), call(entry.function, entry.inputs())
    assert outputs
    for output, repeated in zip(outputs, again, strict=True):
        torch.testing.assert_close(output, repeated, rtol=0, atol=0)
        assert output.isfinite().all()
    if entry.reference and "MB103" not in entry.codes:
        torch.testing.assert_close(outputs[0], entry.reference(*entry.inputs()))


@pytest.mark.parametrize("entry", RIGHT, ids=lambda entry: entry.name)
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_right_one_passes_gradcheck(entry: Entry) -> None:
    function, inputs = callable_of(entry.function), entry.inputs()
    if isinstance(inputs[0], tuple):  # gradcheck does not look into it
        function, inputs = (lambda *parts: callable_of(entry.function)(parts)), inputs[0]
    if entry.name in AT_KINKS:
        inputs = beside_kinks(inputs)
    loose = {"eps": 1e-2, "atol": 1e-1} if inputs[0].dtype == torch.float32 else {}
    if "MB1" not in entry.skip:
        assert gradcheck(function, inputs, **loose)
    if entry.name == REFUSES_TWICE:
        with pytest.raises(RuntimeError, match="not twice differentiable"):
            gradgradcheck(function, inputs)
    else:
        assert gradgradcheck(function, inputs, **loose)


def test_names_are_unique_and_kebab_case() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


def test_each_entry_says_what_it_is_about() -> None:
    assert all(entry.operation and entry.mistake.strip().endswith(".") for entry in ENTRIES)


def test_every_wrong_line_is_marked() -> None:
    """Outside of the table, whose rows are the wrong lines."""
    rows = {name for name, *_ in TABLE}
    functions = Counter(f.__module__ for f in {entry.function for entry in WRONG if entry.name not in rows})
    for module, count in functions.items():
        assert inspect.getsource(sys.modules[module]).count("# wrong") == count
