"""Rows: torch.compile and torch.export."""

from functools import partial

import pytest
import torch
from torch.export import Dim, export

from tests.cases import IN, OUT
from tests.dropin.models import MODELS, assert_same, run

FLOAT64 = torch.float64
# Inductor takes seconds a model: it gets one.
COMPILED = [pytest.param(*models.values, "aot_eager", id=f"{models.id}-aot_eager") for models in MODELS]
COMPILED += [pytest.param(*MODELS[0].values, "inductor", id="sigmoid-inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()


@pytest.mark.row("torch.compile")
@pytest.mark.parametrize(("models", "backend"), COMPILED)
def test_fullgraph(models, backend):
    ours, theirs = models()
    x = torch.randn(5, IN, dtype=FLOAT64, requires_grad=True)
    assert_same(run(torch.compile(ours, fullgraph=True, backend=backend), x), run(theirs, x))


@pytest.mark.row("torch.compile")
@pytest.mark.parametrize(("models", "backend"), COMPILED)
def test_dynamic_batch(models, backend):
    """One graph for every batch size."""
    ours, theirs = models()
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=backend)
    for samples in (5, 7, 64):
        x = torch.randn(samples, IN, dtype=FLOAT64, requires_grad=True)
        with torch.compiler.set_stance("default" if samples == 5 else "fail_on_recompile"):
            assert_same(run(compiled, x), run(theirs, x))


@pytest.mark.row("torch.compile")
@pytest.mark.parametrize(("models", "backend"), COMPILED)
def test_training(models, backend):
    """Forward and cost in one graph with its backward, the optimizer's step in another."""
    ours, theirs = models()
    x, y = torch.randn(8, IN, dtype=FLOAT64), torch.rand(8, OUT, dtype=FLOAT64)

    def train(model, compile):
        """Five steps; after the second one nothing may be compiled."""
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        cost_of = compile(lambda: torch.nn.functional.mse_loss(model(x), y), fullgraph=True)
        update = compile(optimizer.step)
        costs = []
        for stance in ("default", "default", "fail_on_recompile", "fail_on_recompile", "fail_on_recompile"):
            with torch.compiler.set_stance(stance):
                optimizer.zero_grad()
                costs.append(cost_of())
                costs[-1].backward()
                update()
        return [*costs, *model.parameters()]

    compiled = train(ours, partial(torch.compile, backend=backend))
    assert_same(compiled, train(theirs, lambda function, fullgraph=False: function))


@pytest.mark.row("torch.compile", ignored=True)
@pytest.mark.parametrize("models", MODELS)
def test_gradient_within_the_graph(models):
    """`torch.compile(torch.func.grad(f))` differentiates the bare forward: see `functions.py`."""
    ours, theirs = models()
    x = torch.randn(5, IN, dtype=FLOAT64)

    def slope(model):
        return torch.func.grad(lambda x: model(x).square().sum())

    assert_same(torch.compile(slope(ours), fullgraph=True, backend="aot_eager")(x), slope(theirs)(x))


@pytest.mark.row("torch.export", ignored=True)
@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
@pytest.mark.parametrize("models", MODELS)
def test_export(models, strict):
    """The program runs with another batch size. It can be trained, by torch's derivative and not by our backward:
    a traced Function would have none at all in strict mode."""
    ours, theirs = models()
    example = torch.randn(5, IN, dtype=FLOAT64)
    program = export(ours, (example,), dynamic_shapes=({0: Dim("samples")},), strict=strict)
    x = torch.randn(9, IN, dtype=FLOAT64, requires_grad=True)
    assert_same(run(program.module(), x), run(theirs, x))
