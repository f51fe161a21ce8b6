"""Row: other libraries. Per-sample gradients of Opacus, and a run of Lightning."""

import opacus
import pytest
import pytorch_lightning
import torch

from manual_backprop import nn
from tests.cases import IN, OUT, params
from tests.dropin.models import MODELS, assert_same, pair

row = pytest.mark.row("other libraries")
SHAPES = params({"batch": (5, IN), "batch_of_sequences": (5, 3, IN)})


def samples(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# Opacus. It looks a layer up by its exact class, and ours are none of those that it knows: it differentiates them by
# `vmap(grad(...))`, through our backward. (Its rule for torch.nn.Linear takes what comes in for δ; here that is ∂C/∂a.)


@row
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("models", MODELS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("functorch", [False, True], ids=["by_class", "functorch"])
def test_gradients_of_each_sample(functorch, reduction, models, shape):
    """`grad_sample` of every parameter, and the sum over the samples in `grad`."""
    found = []
    for model in models():
        private = opacus.GradSampleModule(model, loss_reduction=reduction, force_functorch=functorch)
        cost = private(samples(*shape).requires_grad_()).square()
        (cost.sum() if reduction == "sum" else cost.flatten(1).sum(1).mean()).backward()
        found.append([*(p.grad_sample for p in model.parameters()), *(p.grad for p in model.parameters())])
    assert [g.shape[0] for g in found[0][:4]] == [shape[0]] * 4
    assert_same(*found)


@row
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("models", MODELS)
@pytest.mark.parametrize("ghost", [False, True], ids=["norms_of_gradients", "ghost"])
def test_norms_of_the_gradients_of_each_sample(ghost, models, shape):
    """Fast gradient clipping: torch's own layers by the rule for their class, ours by `vmap(grad(...))`."""
    found = []
    for model in models():
        private = opacus.grad_sample.GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=ghost
        )
        private(samples(*shape).requires_grad_()).square().sum().backward()
        found.append([private.get_norm_sample(), private.get_clipping_coef()])
    assert_same(*found)


@row
@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")  # The input is data.
@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")
@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_private_training(mode):
    """Two steps of DP-SGD: clipped a sample at a time, with the same noise."""
    found = []
    data = torch.utils.data.TensorDataset(samples(8, IN), samples(8, OUT).sigmoid())
    for model in pair():
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        private, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=torch.utils.data.DataLoader(data, batch_size=4),
            noise_multiplier=0.1,
            max_grad_norm=0.5,
            poisson_sampling=False,
            grad_sample_mode=mode,
            noise_generator=torch.Generator().manual_seed(3),
        )
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(private(x), y).backward()
            optimizer.step()
        found.append(list(model.parameters()))
    assert_same(*found)


def test_expanded_weights_are_refused():
    """Opacus' mode "ew" gives F.linear weights of a class that torch knows for its own functions alone: no gradient of
    ours is left out in silence."""
    private = opacus.grad_sample.GradSampleModuleExpandedWeights(nn.MLP([IN, OUT]))
    with pytest.raises(RuntimeError, match="Expanded Weights encountered but cannot handle function"):
        private(torch.zeros(5, IN))


# Lightning


class Regression(pytorch_lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model, self.costs = model, []

    def training_step(self, batch, _):
        x, y = batch
        cost = torch.nn.functional.mse_loss(self.model(x), y)
        self.costs.append(cost.detach())
        return cost

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@row
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # Lightning's, of torch
@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        pytest.param({}, 1e-6, id="float32"),
        pytest.param({"gradient_clip_val": 0.01}, 1e-6, id="clipped"),
        pytest.param({"accumulate_grad_batches": 2}, 1e-6, id="accumulated"),
        pytest.param({"precision": "bf16-mixed"}, 0.02, id="bf16-mixed"),
        pytest.param({"precision": "64-true"}, 1e-7, id="64-true"),
    ],
)
def test_two_steps_of_a_trainer(options, rtol):
    found = []
    for model in pair(dtype=torch.float32):
        data = torch.utils.data.TensorDataset(samples(16, IN).float(), samples(16, OUT).sigmoid().float())
        module = Regression(model)
        trainer = pytorch_lightning.Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
        assert trainer.global_step == 2
        assert len(module.costs) == 2 * options.get("accumulate_grad_batches", 1)
        found.append([*module.costs, *model.parameters()])
    assert_same(*found, rtol=rtol, atol=rtol)
