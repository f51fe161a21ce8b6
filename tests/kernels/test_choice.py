"""The choice of a kernel: who sees it, and what the environment variable may do, and when."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manual_backprop import kernels
from manual_backprop.kernels import choice, onednn


@pytest.fixture(autouse=True)
def aten_in_the_process(monkeypatch):
    monkeypatch.setattr(onednn, "there", lambda: True)  # nothing is computed here: two choices that differ will do
    monkeypatch.setattr(choice, "_of_process", choice.ATEN)


@pytest.fixture
def elsewhere():
    """What another thread finds chosen."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda: pool.submit(kernels.chosen).result()


def test_using_is_seen_by_its_own_thread_alone(elsewhere):
    assert elsewhere() == "aten"  # the thread runs from here on
    with kernels.using("onednn"):
        assert kernels.chosen() == "onednn"
        assert elsewhere() == "aten"
        with ThreadPoolExecutor(1) as of_the_block:
            assert of_the_block.submit(kernels.chosen).result() == "aten"
    assert kernels.chosen() == "aten"


def test_use_is_seen_by_every_thread(elsewhere):
    assert elsewhere() == "aten"
    kernels.use("onednn")
    assert kernels.chosen() == elsewhere() == "onednn"


def test_a_block_keeps_its_choice(elsewhere):
    """`use` within it is for the process, and shows when the block has ended."""
    with kernels.using("aten"):
        kernels.use("onednn")
        assert kernels.chosen() == "aten"
        assert elsewhere() == "onednn"
    assert kernels.chosen() == "onednn"


def test_blocks_nest_and_end_with_an_exception():
    with kernels.using("onednn"):
        with pytest.raises(ZeroDivisionError), kernels.using("aten"):
            assert 1 / (kernels.chosen() != "aten")
        assert kernels.chosen() == "onednn"
    assert kernels.chosen() == "aten"


def test_a_block_of_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel: expected one of auto, aten, onednn, compiled, found 'mkl'"):
        kernels.using("mkl").__enter__()
    assert kernels.chosen() == "aten"


IMPORT = "import warnings; warnings.simplefilter('error'); import torch, manual_backprop as mb; mb.nn.LinearSigmoid"
RUN = "mb.nn.LinearSigmoid(3, 2)(torch.ones(1, 3))"
FIRST_USE = {
    "misspelt": ("mkl", f"try: {RUN}\nexcept ValueError as e: print(e)"),
    "no_compiler": ("compiled", f"try: {RUN}\nexcept UserWarning as e: print(e)"),
    "known": ("aten", "print(mb.kernels.chosen())"),
}
SAID = {
    "misspelt": "MANUAL_BACKPROP_KERNEL: expected one of auto, aten, onednn, compiled, found 'mkl'",
    "no_compiler": "compiled.cpp could not be built: there is no nowhere; torch's operations run instead",
    "known": "aten",
}


@pytest.mark.parametrize("case", FIRST_USE)
def test_the_variable_is_read_when_the_first_layer_runs(case, tmp_path):
    """To import the package builds nothing, raises nothing, and warns of nothing."""
    kernel, use = FIRST_USE[case]
    code = f"{IMPORT}\nprint('imported', len(list(mb.kernels.cpp.Path('{tmp_path}').iterdir())))\n{use}"
    environment = os.environ | {choice.VARIABLE: kernel, "CXX": "nowhere", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["imported 0", SAID[case]], run.stderr


def test_an_error_of_the_variable_comes_again(monkeypatch):
    """The first layer that finds it may be one whose error somebody catches."""
    monkeypatch.setattr(choice, "_of_process", None)
    monkeypatch.setenv(choice.VARIABLE, "mkl")
    for _ in range(2):
        with pytest.raises(ValueError, match="MANUAL_BACKPROP_KERNEL"):
            kernels.chosen()
    monkeypatch.setenv(choice.VARIABLE, "aten")
    assert kernels.chosen() == "aten"
