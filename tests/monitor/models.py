"""The models that the monitor is tried on."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import manual_backprop as mb


def train(model, steps=1, lr=0.5, x=None, y=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x = torch.rand(6, 4) if x is None else x
    y = torch.rand(6, 2) if y is None else y
    for _ in range(steps):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()


class Attention(nn.Module):
    """One of each: an embedding, a convolution with an in-place activation, attention, a norm, a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.conv = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.recur = nn.LSTM(8, 5, batch_first=True)
        self.out = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.GELU(), nn.Linear(7, 2))

    def forward(self, words):
        x = self.embed(words)
        x = self.conv(x.mT).mT
        x = x + self.attend(x, x, value=x)[0]
        return self.out(self.recur(self.norm(x))[0].mean(1))


class Checkpointed(nn.Module):
    """Two activations that are computed anew in the backward pass, and two that the checkpoint keeps."""

    def __init__(self):
        super().__init__()
        self.kept = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.anew = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), mb.nn.LinearTanh(4, 2))

    def forward(self, x):
        operators = [torch.ops.aten.tanh.default, torch.ops.aten.addmm.default]
        keep = partial(create_selective_checkpoint_contexts, operators)
        x = checkpoint(self.kept, x, use_reentrant=False, context_fn=keep)
        return checkpoint(self.anew, x, use_reentrant=False)


MODELS = {
    "ours": (lambda: mb.nn.MLP([4, 3, 2]), lambda: torch.rand(6, 4)),
    "softplus": (
        lambda: mb.nn.MLP([4, 3, 2], mb.Activation("softplus", nn.functional.softplus, torch.sigmoid, needs="z")),
        lambda: torch.rand(6, 4),
    ),
    "torch": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), lambda: torch.rand(6, 4)),
    "checkpointed": (Checkpointed, lambda: torch.rand(6, 4)),
    "attention": (Attention, lambda: torch.randint(9, (6, 5))),
    "one layer": (lambda: mb.nn.LinearReLU(4, 2), lambda: torch.rand(6, 4)),
    "image": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)),
        lambda: torch.rand(6, 3, 8, 8),
    ),
}
each_model = pytest.mark.parametrize(("make", "inputs"), MODELS.values(), ids=MODELS)
