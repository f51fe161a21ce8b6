"""The caller's state is given back as it was, whatever a user's function and torch's compiler do to it meanwhile.

Only one validation runs at a time in a process; a second thread waits. The reason is that the random generators,
`warnings.filters`, `os.environ`, the loggers and the Function that is validated belong to the process, so two
validations at once would give back each other's states.
"""

import contextlib
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from manual_backprop import _torch

_ONE_AT_A_TIME = threading.RLock()
_callers: list[torch.device | None] = []  # the default devices that callers have set, the innermost last
CPU = torch.device("cpu")


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """A block in which gradients are recorded and warnings are silent, and after which everything is as it was.

    Given back are the random states of torch on every device, of Python and of NumPy, the default dtype and device,
    the grad and inference mode, ``warnings.filters``, ``os.environ`` and torch's loggers, which are silent in the
    block. In the block the default device is the CPU; the user's forward runs with `callers_device`.
    """
    with (
        _ONE_AT_A_TIME,
        _random_states(),
        _default_dtype(),
        _default_device(),
        _environment(),
        _silent_loggers(),
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        yield


def seed_all(seed: int) -> None:
    """Seeds torch on every device that is in use, Python and NumPy.

    Unlike `torch.manual_seed` it queues no seed for a CUDA that the caller has not initialised yet.
    """
    torch.default_generator.manual_seed(seed)
    for module in _accelerators():
        _of_all_devices(module, "manual_seed")(seed)
    random.seed(seed)
    if (numpy := _numpy()) is not None:
        numpy.random.seed(seed % 2**32)


def callers_device() -> contextlib.AbstractContextManager[Any]:
    """The default device that the caller has set, for the user's forward, which may lean on it.

    The autograd engine hides it from every backward, so only a forward sees it. Dynamo cannot enter a
    device that was made outside, so compiled code keeps the CPU.
    """
    device = None if torch.compiler.is_compiling() or not _callers else _callers[-1]
    return contextlib.nullcontext() if device is None else device


# --- random numbers -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    numpy = _numpy()
    state, of_python = torch.get_rng_state(), random.getstate()
    of_numpy = numpy.random.get_state() if numpy is not None else None
    of_devices = {module: _of_all_devices(module, "get_rng_state")() for module in _accelerators()}
    queued = [(queue, dict(vars(queue))) for queue in _torch.seed_queues()]
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(of_python)
        if numpy is not None:
            numpy.random.set_state(of_numpy)
        for module in _accelerators():
            if module in of_devices:
                _of_all_devices(module, "set_rng_state")(of_devices[module])
            else:  # first used in the block: it starts from the seed of the caller's last `torch.manual_seed`
                _of_all_devices(module, "manual_seed")(torch.initial_seed())
        for queue, before in queued:
            vars(queue).update(before)


def _accelerators() -> list[ModuleType]:
    """`torch.cuda` and its like, where they are initialised, because asking the others for a state initialises them."""
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cuda"} | ({accelerator.type} if accelerator is not None else set())
    modules = [torch.get_device_module(kind) for kind in sorted(kinds)]
    return [module for module in modules if getattr(module, "is_initialized", lambda: True)()]


def _of_all_devices(module: ModuleType, name: str) -> Any:
    """`torch.cuda.get_rng_state_all`; of a kind that has one device, such as `torch.mps`, `get_rng_state`."""
    return getattr(module, f"{name}_all", None) or getattr(module, name)


def _numpy() -> Any:
    """NumPy where somebody has imported `numpy.random`; it is not imported here, because that would cost a second."""
    return sys.modules["numpy"] if "numpy.random" in sys.modules else None


# --- settings of torch --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


@contextlib.contextmanager
def _default_device() -> Iterator[None]:
    """A block with the CPU as the default device, because the validator's own generators are on the CPU."""
    before = _device()
    if before == CPU:
        try:
            yield
        finally:
            if _device() != CPU:
                torch.set_default_device(None)
        return
    _callers.append(before)
    try:
        with CPU:
            yield
    finally:
        _callers.pop()
        if _device() != before:
            torch.set_default_device(before)


def _device() -> torch.device | None:
    """The default device; None where it is a device that this machine lacks."""
    try:
        return torch.get_default_device()
    except (AssertionError, RuntimeError):
        return None


# --- the process --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """A block after which the environment is as before, because torch's compiler sets ``TORCHINDUCTOR_CACHE_DIR``."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextlib.contextmanager
def _silent_loggers() -> Iterator[None]:
    """A block in which torch's loggers are silent, because compile, export and fake tensors log all that they refuse,
    and ``torch.__trace`` writes thousands of records.

    The handlers are silenced too, because a logger that is made in the block hands its records to those above it.
    """

    def no_record(record: logging.LogRecord) -> bool:
        return False

    known = list(logging.root.manager.loggerDict.items())
    loggers = [found for name, found in known if name.split(".")[0] == "torch" and isinstance(found, logging.Logger)]
    silenced = [*loggers, *dict.fromkeys(handler for logger in loggers for handler in logger.handlers)]
    for place in silenced:
        place.addFilter(no_record)
    try:
        yield
    finally:
        for place in silenced:
            place.removeFilter(no_record)
