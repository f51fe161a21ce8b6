"""A step captured and replayed is the step. Without CUDA a replay runs it again, with what was fixed."""

from functools import partial

import pytest
import torch

from manual_backprop import Network
from manual_backprop.kernels.cuda_graph import CapturedStep
from tests.kernels.test_cpp import OPTIONS, state, twins


def replayed(network, monkeypatch):
    """Make `sgd` go through a captured step; returns the list of what was captured."""
    captures = []

    def capture(step):
        captures.append(step)
        return step

    step, descend = CapturedStep(capture), network._descend

    def stepped(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(network, "_descend", descend)
            step(network._descend, lambda: network.weights + network.biases + network.velocities, *arguments)

    monkeypatch.setattr(network, "_descend", stepped)
    return captures


@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_the_steps_one_by_one(options, monkeypatch):
    """25 samples by 5; the second epoch is replayed whole."""
    eager, fast, x, y = twins([7, 6, 3])
    fast.compile = False
    captures = replayed(fast, monkeypatch)
    for _ in range(2):
        order = torch.randperm(25)
        for net in (eager, fast):
            net.sgd(x, y, 5, 0.1, order, **options)
    torch.testing.assert_close(state(fast), state(eager), rtol=1e-12, atol=1e-15)
    assert len(captures) == 1


def test_what_the_graph_has_fixed_is_captured_anew(monkeypatch):
    """Another η, a smaller mini-batch, other weights: none of them runs by the old graph."""
    eager, fast, x, y = twins([7, 6, 3])
    fast.compile = False
    captures = replayed(fast, monkeypatch)
    for rate, batch_size in ((0.1, 5), (0.2, 5), (0.2, 10), (0.2, 5)):
        for net in (eager, fast):
            net.sgd(x, y, batch_size, rate, torch.arange(25))
    fast.weights = [w.clone() for w in fast.weights]
    for net in (eager, fast):
        net.sgd(x, y, 5, 0.2, torch.arange(25))
    torch.testing.assert_close(state(fast), state(eager), rtol=1e-12, atol=1e-15)
    assert len(captures) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", OPTIONS)
def test_cuda_graphs_agree_with_the_steps_one_by_one(options):
    make = partial(Network, [70, 13, 5], device="cuda", dtype=torch.float64)
    eager, fast = make(), make(compile=True)
    fast.weights, fast.biases = [w.clone() for w in eager.weights], [b.clone() for b in eager.biases]
    x = torch.randn(45, 70, dtype=torch.float64, device="cuda")
    y = torch.rand(45, 5, dtype=torch.float64, device="cuda")
    for rate in (0.1, 0.2):
        order = torch.randperm(45, device="cuda")
        for net in (eager, fast):
            net.sgd(x, y, 10, rate, order, **options)
    torch.testing.assert_close(state(fast), state(eager), rtol=1e-10, atol=1e-12)
