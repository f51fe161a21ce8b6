"""Models as they are found, with the pairs that `convert` finds in them, and what the tests compare of a model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from tests.cases import params


def structure(model):
    """Every module by path with its class and all of its attributes; objects stand for themselves."""
    return [
        (path, module, type(module), {name: _shallow(value) for name, value in vars(module).items()})
        for path, module in model.named_modules(remove_duplicate=False)
    ]


def _shallow(value):
    return list(value.items()) if isinstance(value, dict) else value


def results(model):
    """The output, and the gradients of Σ output² with respect to input and parameters."""
    x = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(5, 4).requires_grad_()
    output = model(x)
    return [output, *torch.autograd.grad(output.square().sum(), [x, *model.parameters()])]


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def pair(act=nn.Sigmoid):
    return nn.Sequential(nn.Linear(4, 4), act())


class Net(nn.Module):
    """A forward of its own: `steps(self, x)` on a Linear `fc`, an activation `act` and a second Linear `out`."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = act
        self.log = []


class Called(Net):
    def forward(self, x):
        return self.out(self.act(self.fc(x)))


class Repeated(Net):
    """The same pair three times, as in a recurrent network."""

    def forward(self, x):
        for _ in range(3):
            x = self.act(self.fc(input=x))
        return self.out(x)


class InContainers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.acts = nn.ModuleDict({"first": nn.Tanh(), "second": nn.Sigmoid()})
        self.head = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))

    def forward(self, x, mask=None):
        x = self.acts["first"](self.layers[0](x))
        if mask is not None:
            x = x * mask
        x = self.acts["second"](self.layers[1](x))
        if self.training:
            x = F.dropout(x, 0.0)
        return self.head(x)


class TwoInputs(nn.Module):
    """One encoder for both: its layers are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Called(nn.Tanh())

    def forward(self, x):
        return self.encoder(x) - self.encoder(x.flip(0))


def tied_weights() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Tanh())
    model[2].weight = model[0].weight
    return model


def shared() -> nn.Module:
    act = nn.ReLU()
    return nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)


def nested() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 4)),
        nn.Sigmoid(),
        nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()), nn.Linear(4, 3)),
        nn.Tanh(),
    )


@dataclass(frozen=True)
class Convertible:
    """A model that takes inputs ``(*, 4)``, and the classes that its Linears get."""

    build: Callable[[], nn.Module]
    layers: dict[str, str]


CONVERTIBLE = params(
    {
        "sigmoid": Convertible(lambda: nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), {"0": "LinearSigmoid"}),
        "tanh": Convertible(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()), {"0": "LinearTanh"}),
        "relu": Convertible(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()), {"0": "LinearReLU"}),
        "relu_inplace": Convertible(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(True)), {"0": "LinearReLU"}),
        "nested": Convertible(nested, {"0.0": "LinearSigmoid", "2.1.0": "LinearReLU", "2.2": "LinearTanh"}),
        "tied_weights": Convertible(tied_weights, {"0": "LinearSigmoid", "2": "LinearTanh"}),
        "own_forward": Convertible(lambda: Called(nn.Sigmoid()), {"fc": "LinearSigmoid", "out": "Linear"}),
        "attribute": Convertible(lambda: Called(torch.tanh), {"fc": "LinearTanh", "out": "Linear"}),
        "attribute_of_functional": Convertible(lambda: Called(F.relu), {"fc": "LinearReLU", "out": "Linear"}),
        "repeated": Convertible(lambda: Repeated(nn.Sigmoid()), {"fc": "LinearSigmoid", "out": "Linear"}),
        "called_twice": Convertible(TwoInputs, {"encoder.fc": "LinearTanh", "encoder.out": "Linear"}),
        "containers": Convertible(
            InContainers, {"layers.0": "LinearTanh", "layers.1": "LinearSigmoid", "head.0": "LinearReLU"}
        ),
    }
)
