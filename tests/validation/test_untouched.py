"""Nothing of the caller's is changed by `validate`, and nothing that the caller has set makes a right Function fail."""

import logging
import os
import random
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from manual_backprop import validate
from manual_backprop.validation import untouched
from tests.validation.cases import made, matrix, sigmoid

SIGMOID = sigmoid("Sigmoid", lambda g, a: g * a * (1 - a))
SOME = ("MB1", "MB2", "MB3")


class Device:
    """A kind of accelerator as `torch.cuda` is one, with a single number as the random state of each of two devices."""

    def __init__(self, initialized: bool) -> None:
        self.initialized, self.states = initialized, [3, 4]

    def is_initialized(self) -> bool:
        return self.initialized

    def get_rng_state_all(self) -> list[int]:
        assert self.initialized
        return list(self.states)

    def set_rng_state_all(self, states: list[int]) -> None:
        self.states = list(states)

    def manual_seed_all(self, seed: int) -> None:
        assert self.initialized
        self.states = [seed, seed]


@pytest.fixture
def device(monkeypatch, request) -> Device:
    device = Device(request.param)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: device)
    return device


def queued_seeds() -> list:
    return list(vars(torch.cuda._lazy_seed_tracker).values())


def filters_of_loggers() -> list:
    loggers = [found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)]
    return [place.filters[:] for logger in loggers for place in [logger, *logger.handlers] if place.filters]


STATES = {
    "random numbers of torch": (lambda: torch.get_rng_state().tolist(), lambda: torch.manual_seed(7)),
    "random numbers of Python": (random.getstate, lambda: random.seed(7)),
    "random numbers of NumPy": (lambda: np.random.get_state()[1].tolist(), lambda: np.random.seed(7)),
    "seeds that wait for CUDA": (queued_seeds, lambda: torch.manual_seed(7)),
    "default dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
    "default device": (torch.get_default_device, lambda: torch.set_default_device("cpu:0")),
    "grad mode": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(True)),
    "warnings": (lambda: warnings.filters[:], lambda: warnings.simplefilter("always")),
    "environment": (
        lambda: dict(os.environ),
        lambda: os.environ.update(TORCHINDUCTOR_CACHE_DIR="x", HOME="y"),
    ),
    "a variable taken away": (lambda: dict(os.environ), lambda: os.environ.pop("PATH", None)),
    "loggers": (filters_of_loggers, lambda: None),
}


@pytest.mark.parametrize(("state", "change"), STATES.values(), ids=STATES)
def test_everything_of_the_callers_is_as_it_was(state, change) -> None:
    before = state()

    def meddles(x):
        change()
        return SIGMOID.apply(x)

    validate(meddles, matrix(), only=SOME)
    assert state() == before


def test_a_run_of_every_rule_leaves_the_environment(monkeypatch) -> None:
    """torch's compiler sets TORCHINDUCTOR_CACHE_DIR the first time that it runs."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    before = dict(os.environ)
    assert validate(SIGMOID, matrix(), only=("MB806", "MB807"))
    assert dict(os.environ) == before


@pytest.mark.parametrize("device", [True], ids=["initialised"], indirect=True)
def test_the_random_numbers_of_every_device_are_as_they_were(device) -> None:
    def meddles(x):
        device.states = [x.numel(), 0]
        return SIGMOID.apply(x)

    validate(meddles, matrix(), only="MB3")
    assert device.states == [3, 4]


@pytest.mark.parametrize("device", [False], ids=["not initialised"], indirect=True)
def test_a_device_that_is_first_used_inside_starts_from_the_callers_seed(device) -> None:
    def uses(x):
        device.initialized = True
        return SIGMOID.apply(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        validate(uses, matrix(), only="MB3")
    assert device.states == [11, 11]


def test_a_right_one_is_seeded_on_every_device_alike(monkeypatch) -> None:
    device = Device(initialized=True)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: device)
    with untouched.untouched():
        untouched.seed_all(5)
        first = torch.rand(2), random.random(), np.random.rand(), list(device.states)
        untouched.seed_all(5)
        assert [*first[0].tolist(), *first[1:]] == [
            *torch.rand(2).tolist(), random.random(), np.random.rand(), device.states,
        ]  # fmt: skip


# --- what the caller has set ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "meta", "cuda"])
@pytest.mark.parametrize("as_block", [False, True], ids=["set", "block"])
def test_a_default_device_makes_nothing_fail(kind, as_block) -> None:
    inputs = matrix()
    if as_block:
        with torch.device(kind):
            report = validate(SIGMOID, inputs, batch_dim=0)
    else:
        torch.set_default_device(kind)
        try:
            report = validate(SIGMOID, inputs, batch_dim=0)
        finally:
            torch.set_default_device(None)
    undisturbed = validate(SIGMOID, inputs, batch_dim=0)
    assert [(f.code, f.status) for f in report.findings] == [(f.code, f.status) for f in undisturbed.findings]


def test_the_users_code_keeps_the_default_device() -> None:
    """In forward; torch hides it from a backward, within `validate` or without."""
    seen = set()

    def forward(ctx, x):
        seen.add(torch.empty(0).device.type)
        return x * 2

    def backward(ctx, grad):
        assert torch.empty(0).device.type == "cpu"
        return grad * 2

    doubled = made("Doubled", forward, backward)
    inputs = matrix()
    with torch.device("meta"):
        assert validate(doubled, inputs, only="MB3")
        assert torch.empty(0).device.type == "meta"
    assert seen == {"meta"}


@pytest.mark.parametrize("function", [SIGMOID, torch.nn.Linear(3, 2, dtype=torch.float64)], ids=["Function", "module"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad], ids=["inference_mode", "no_grad"])
def test_a_mode_without_gradients_makes_nothing_fail(function, mode) -> None:
    inputs = matrix()
    with mode():
        report = validate(function, inputs, only=SOME)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert report
    assert report.count("pass") == validate(function, inputs, only=SOME).count("pass")


@pytest.mark.parametrize("name", ["x", "weight"])
def test_a_tensor_of_inference_mode_is_refused_by_name(name) -> None:
    with torch.inference_mode(name == "weight"):
        linear = torch.nn.Linear(3, 2)
    with torch.inference_mode(name == "x"):
        x = torch.ones(4, 3, requires_grad=True)
    linear.forward = lambda x: torch.nn.functional.linear(x, linear.weight)
    with pytest.raises(ValueError, match=rf"^inputs: `{name}` was made under torch.inference_mode, [^\n]*$"):
        validate(linear, (x,))


# --- several threads, and the terminal ------------------------------------------------------------------------------


def test_several_threads_at_once_leave_everything_as_it_was() -> None:
    states = [STATES[name][0] for name in ("random numbers of torch", "random numbers of Python", "warnings")]
    before = [state() for state in states]
    backward = SIGMOID.__dict__["backward"]
    verdicts: list[bool] = []
    inputs = matrix()
    threads = [
        threading.Thread(target=lambda: verdicts.append(bool(validate(SIGMOID, inputs, only=SOME)))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 6
    assert [state() for state in states] == before
    assert SIGMOID.__dict__["backward"] is backward


def test_a_function_may_validate_another_one() -> None:
    def asks(x):
        with torch.no_grad():
            assert validate(SIGMOID, matrix(), only="MB301")
        return SIGMOID.apply(x)

    assert validate(asks, matrix(), only="MB301")


def test_compilation_is_quiet(caplog) -> None:
    """torch writes thousands of debugging records, which pytest would show with a failing report."""
    caplog.set_level(0)
    assert validate(SIGMOID, matrix(), only="MB806")
    assert "torch.__trace" not in {record.name for record in caplog.records}


NOISY = """
import torch
from manual_backprop import validate

class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.n = max(1, int(x.sum().item()))  # depends on the data: torch.export and torch.compile say so at length
        ctx.rows = x.detach().nonzero().shape[0]
        return x[: ctx.n] * torch.ones(ctx.n).expand(ctx.n)

    @staticmethod
    def backward(ctx, g):
        return torch.cat([g, g.new_zeros(len(g) + 5)])[:3]

validate(Cut, (torch.ones(3, requires_grad=True),), only="MB8")
"""


def test_nothing_is_written_to_the_terminal() -> None:
    found = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
