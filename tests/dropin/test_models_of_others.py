"""Row: other libraries. Torch's transformer and torchvision's MLP blocks, converted, trained beside the original."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn

import manual_backprop as mb
from tests.cases import params
from tests.dropin.models import assert_same

pytestmark = pytest.mark.row("other libraries")
FLOAT64 = torch.float64


@dataclass(frozen=True)
class Other:
    """A model, the shapes of its inputs, and the Linears that become fused layers."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    fused: dict[str, str]


def train(model, shapes):
    """The losses of 20 steps of Adam and the weights after them; dropout draws the same masks for every model."""
    torch.manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(*(torch.randn(shape, dtype=FLOAT64) for shape in shapes)) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), model.state_dict()


def encoder(norm_first, activation, batch_first=True, dropout=0.1):
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, dropout, activation, batch_first=batch_first, norm_first=norm_first, dtype=FLOAT64
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def fused_in(paths, layer):
    return {path: f"Linear{layer}" for path in paths}


IN_ENCODER = ("layers.0.linear1", "layers.1.linear1")
ENCODERS = {
    f"encoder-{norm}-{name}": Other(
        lambda norm=norm, activation=activation: encoder(norm == "norm_first", activation),
        ((3, 5, 8),),
        fused_in(IN_ENCODER, layer),
    )
    for norm in ("norm_first", "norm_last")
    for name, activation, layer in (
        ("relu", "relu", "ReLU"),
        ("ReLU()", nn.ReLU(), "ReLU"),
        ("sigmoid", torch.sigmoid, "Sigmoid"),
        ("Tanh()", nn.Tanh(), "Tanh"),
    )
}


def transformer():
    return nn.Transformer(8, 2, 1, 1, 16, norm_first=True, batch_first=True, dtype=FLOAT64)


def vision_transformer():
    """Its MLP blocks have GELU: with ReLU in its place they are pairs."""
    model = torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 16, dropout=0.1, num_classes=3)
    for block in model.encoder.layers:
        block.mlp[1] = nn.ReLU()
    nn.init.normal_(model.heads.head.weight)  # Torchvision has zeros there, and then nothing below learns at first.
    return model.double()


def alexnet_head():
    """The classifier of AlexNet, each of its layers 256 times narrower."""
    with torch.device("meta"):
        classifier = torchvision.models.alexnet(num_classes=768).classifier
    narrow = [
        nn.Linear(layer.in_features // 256, layer.out_features // 256) if isinstance(layer, nn.Linear) else layer
        for layer in classifier
    ]
    return nn.Sequential(*narrow).double()


TORCHVISION = {
    f"torchvision.ops.MLP-{layer}": Other(
        lambda layer=layer: torchvision.ops.MLP(
            4, [6, 5, 3], activation_layer=getattr(nn, layer), dropout=0.1
        ).double(),
        ((5, 4),),
        fused_in(["0", "3"], layer),
    )
    for layer in ("ReLU", "Sigmoid", "Tanh")
} | {
    "torchvision.ops.MLP-inplace": Other(
        lambda: torchvision.ops.MLP(4, [6, 3], inplace=True).double(), ((5, 4),), fused_in(["0"], "ReLU")
    ),
    "vision_transformer": Other(
        vision_transformer,
        ((3, 3, 8, 8),),
        fused_in([f"encoder.layers.encoder_layer_{i}.mlp.0" for i in (0, 1)], "ReLU"),
    ),
    "alexnet_head": Other(alexnet_head, ((4, 36),), fused_in(["1", "4"], "ReLU")),
}

OTHERS = params(
    ENCODERS
    | TORCHVISION
    | {
        "encoder-sequence_first": Other(
            lambda: encoder(False, "relu", batch_first=False), ((5, 3, 8),), fused_in(IN_ENCODER, "ReLU")
        ),
        "transformer": Other(
            transformer,
            ((3, 5, 8), (3, 4, 8)),
            fused_in(["encoder.layers.0.linear1", "decoder.layers.0.linear1"], "ReLU"),
        ),
    }
)


@pytest.mark.parametrize("linears", [False, True], ids=["pairs", "linears_too"])
@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_20_steps_with_the_losses_of_the_original(case, linears):
    theirs = case.build()
    ours = copy.deepcopy(theirs)
    report = mb.conversions(mb.convert(ours, linears))
    assert {row.path: row.after for row in report.swapped if row.after != "manual_backprop.nn.Linear"} == case.fused
    our_losses, our_weights = train(ours, case.shapes)
    their_losses, their_weights = train(theirs, case.shapes)
    assert_same(our_losses, their_losses)
    assert_same(dict(our_weights), dict(their_weights), rtol=1e-6, atol=1e-8)
    assert their_losses[-1] < their_losses[0]


@pytest.mark.parametrize("norm_first", [True, False], ids=["norm_first", "norm_last"])
def test_masks_and_checkpoints_of_an_encoder(norm_first):
    """A causal mask, a padding mask, and each layer recomputed in the backward pass."""
    theirs = encoder(norm_first, "relu", dropout=0.0)
    ours = copy.deepcopy(theirs)
    mb.convert(ours)
    x = torch.randn(3, 5, 8, dtype=FLOAT64, requires_grad=True)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=FLOAT64)
    padding = torch.zeros(3, 5, dtype=FLOAT64).index_fill(1, torch.tensor([4]), -torch.inf)

    def gradients(model):
        output = x
        for layer in model.layers:
            output = torch.utils.checkpoint.checkpoint(layer, output, mask, padding, use_reentrant=False)
        return [output, *torch.autograd.grad(output.square().sum(), [x, *model.parameters()])]

    assert_same(gradients(ours), gradients(theirs))
