"""The zoo is what it says: each wrong one is shown to be wrong in plain torch, each right one passes gradcheck."""

import gc
import re
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from zoo_proofs import PROOFS, call, callable_of, vjp

from manual_backprop.validation import zoo
from manual_backprop.validation.zoo import ENTRIES, RIGHT, WRONG
from manual_backprop.validation.zoo.entry import Entry

FAMILIES = "123456789"
# gradcheck sees a jump of the slope at a kink, and knows neither nested tuples nor float32.
AT_KINKS = {
    "right-relu-at-the-kink",
    "right-abs-at-the-kink",
    "right-relu6-at-both-kinks",
    "right-hardtanh-closed-interval",
    "right-amax-ties-share",
}
NOT_FOR_GRADCHECK = {"right-stack-of-a-nested-tuple", "right-float32-only"}
NOT_TWICE = AT_KINKS | NOT_FOR_GRADCHECK | {"right-huber", "right-numpy-that-refuses-the-second-derivative"}


@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_wrong_one_is_wrong(entry: Entry) -> None:
    gc.collect()
    gc.disable()  # a circle of references has to be seen
    try:
        assert any(PROOFS[code](entry) for code in entry.codes)
    finally:
        gc.enable()


@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_wrong_one_has_a_right_forward(entry: Entry) -> None:
    """The forward is repeatable, finite, and the reference's where there is one."""
    outputs, again = call(entry.function, entry.inputs()), call(entry.function, entry.inputs())
    assert outputs
    for output, repeated in zip(outputs, again, strict=True):
        torch.testing.assert_close(output, repeated, rtol=0, atol=0)
        assert output.isfinite().all()
    if entry.reference:
        torch.testing.assert_close(outputs[0], entry.reference(*entry.inputs()))


@pytest.mark.parametrize("entry", RIGHT, ids=lambda entry: entry.name)
def test_right_one_passes_gradcheck(entry: Entry) -> None:
    function, inputs = callable_of(entry.function), entry.inputs()
    if entry.name == "right-stack-of-a-nested-tuple":
        assert gradcheck(lambda *parts: function(parts), *inputs) and gradgradcheck(
            lambda *parts: function(parts), *inputs
        )
        return
    if entry.name == "right-float32-only":
        torch.testing.assert_close(vjp(function, inputs, [torch.ones(4, 3)])[0], 3 * inputs[0].detach() ** 2)
        return
    if entry.name in AT_KINKS:
        reference = {"hardtanh": torch.sin}.get(entry.operation)
        inputs = tuple(
            (x.detach() + 0.013 * torch.arange(1, x.numel() + 1).view(x.shape)).requires_grad_() for x in inputs
        )
        assert reference or gradcheck(function, inputs)
    elif "MB1" not in entry.skip:
        assert gradcheck(function, inputs)
    if entry.name not in NOT_TWICE:
        assert gradgradcheck(function, inputs)


def test_names_are_unique_and_kebab_case() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


def test_there_are_enough() -> None:
    assert len(WRONG) >= 85
    assert len(RIGHT) >= 45
    assert len({entry.operation for entry in WRONG}) >= 15


def test_every_family_and_every_code_that_a_cpu_can_show_has_an_entry() -> None:
    codes = {code for entry in WRONG for code in entry.codes}
    assert codes <= PROOFS.keys()
    assert {code[2] for code in codes} == set(FAMILIES)
    # MB103 is a wrong forward, MB209 a waste and no mistake, MB903 wants a second device.
    assert codes == PROOFS.keys()


def test_each_entry_says_what_it_is_about() -> None:
    assert all(entry.mistake.strip().endswith(".") for entry in ENTRIES)
    assert all(entry.operation for entry in ENTRIES)


def test_the_wrong_line_is_marked() -> None:

    for path in Path(zoo.__path__[0]).glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400
        assert path.name.startswith("right") is ("# wrong" not in text) or path.name in {
            "entry.py",
            "__init__.py",
            "pointwise.py",
        }
