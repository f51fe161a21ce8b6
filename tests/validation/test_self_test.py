"""The validator notices where one of its mechanisms is broken, and does without private torch where it can."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop import _torch
from manual_backprop.validation import self_test, validate
from manual_backprop.validation.audit import Audit
from manual_backprop.validation.subject import Graph
from tests.cases import params


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    self_test.broken_mechanisms.cache_clear()
    yield
    self_test.broken_mechanisms.cache_clear()


def raises(*_: Any) -> Any:
    raise RuntimeError("it is another in this version")


# What each part would answer where it went wrong without a word, and a word of the sentence that tells it.
BROKEN: dict[str, tuple[str, Callable[..., Any], str]] = {
    "no Function is found": ("functions_of_node", lambda node: (), "the Functions behind an output are not found"),
    "another Function is found": ("functions_of_node", lambda node: (Function,), "are not found"),
    "a node has no Function to ask for": ("functions_of_node", raises, "are not found"),
    "the raw return is not seen": ("functions_of_node", lambda node: (), "a gradient of the wrong shape is not seen"),
    "no node is hand-written": ("is_hand_written", lambda node: False, "taken for one of torch's own"),
    "every node is hand-written": ("is_hand_written", lambda node: True, "taken for one of torch's own"),
    "no writing is counted": ("written_in_place", lambda clone: False, "an input that forward writes into"),
    "everything counts as written": ("written_in_place", lambda clone: True, "an input that forward writes into"),
    "memory is never freed": ("watch_memory", lambda tensor: lambda: True, "memory that outlives a pass"),
    "memory is freed at once": ("watch_memory", lambda tensor: lambda: False, "memory that outlives a pass"),
    "zeros seem to have memory": ("has_no_memory", lambda tensor: False, "zeros without memory"),
    "nothing has memory": ("has_no_memory", lambda tensor: True, "zeros without memory"),
    "a view without its bit": ("negative_view", torch.neg, "no tensor with the negative bit"),
    "a view of x itself": ("negative_view", lambda x: x, "no tensor with the negative bit"),
    "nested arguments are one leaf": ("flatten", lambda value: ([value], None), "nested arguments"),
    "leaves have no paths": ("leaf_paths", lambda value: [""] * 3, "nested arguments"),
    "leaves are not put back": ("unflatten", lambda leaves, structure: leaves, "nested arguments"),
}


def test_nothing_is_broken() -> None:
    assert self_test.broken_mechanisms() == ()


@pytest.mark.parametrize("case", params(BROKEN))
def test_a_broken_part_is_told(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    part, instead, words = case
    monkeypatch.setattr(_torch, part, instead)
    told = self_test.broken_mechanisms()
    assert any(words in sentence and torch.__version__ in sentence for sentence in told), told


def nothing_recorded(subject: Any) -> Any:
    return Audit([], Graph([], []), None, None, [])


# The same for what the validator does itself.
BROKEN_HERE: dict[str, tuple[str, Callable[..., Any], str]] = {
    "the raw return is recorded nowhere": ("audited", nothing_recorded, "of the wrong shape"),
    "raw memory is read unseen": ("reads_raw_memory", lambda subject: False, "NumPy"),
    "raw memory is seen everywhere": ("reads_raw_memory", lambda subject: True, "NumPy"),
}


@pytest.mark.parametrize("case", params(BROKEN_HERE))
def test_a_broken_audit_is_told(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead, words = case
    monkeypatch.setattr(self_test, name, instead)
    assert any(words in sentence for sentence in self_test.broken_mechanisms())


@pytest.mark.parametrize(
    ("header", "broken"), [("struct CppNode : Node", False), ("struct Other", True), (None, False)], ids=str
)
def test_the_name_of_a_node_in_cpp(
    header: str | None, broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "include/torch/csrc/autograd/custom_function.h"
    place.parent.mkdir(parents=True)
    if header is not None:
        place.write_text(header)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert any("C++" in sentence for sentence in self_test.broken_mechanisms()) == broken


# --- where it is asked ------------------------------------------------------------------------------------------------

SETTINGS = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", params(SETTINGS))
def test_nothing_is_broken_in_any_setting(setting: Any) -> None:
    before = torch.get_rng_state()
    with setting():
        assert self_test.broken_mechanisms() == ()
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_test.broken_mechanisms() == ()
    monkeypatch.setattr(_torch, "functions_of_node", lambda node: ())
    assert self_test.broken_mechanisms() == ()


# --- without the private parts ----------------------------------------------------------------------------------------


class NotSummed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return grad_output, grad_output  # wrong: the bias has no dimension for the samples


@pytest.fixture(params=[*_torch.PARTS, "all"])
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without one of its private parts, or without all."""
    alone = {request.param} | ({*TREE} if request.param in TREE else set())
    for name in alone if request.param != "all" else _torch.PARTS:
        monkeypatch.setattr(_torch, name, _torch.PARTS[name].fallback)


TREE = ("flatten", "unflatten", "leaf_paths")  # they go together


@pytest.mark.usefixtures("bare")
def test_without_a_private_part_the_fallback_works() -> None:
    assert self_test.broken_mechanisms() == ()
    report = validate(
        NotSummed, (torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)), only="MB203"
    )
    assert [finding.status for finding in report.findings] == ["fail"]
