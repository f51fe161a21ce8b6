"""A model of ours and the `torch.nn` original with the same weights, and what a row compares of them."""

import torch
from torch import Tensor

from manual_backprop import Activation, nn
from manual_backprop.activations import ACTIVATIONS
from tests.cases import IN, OUT, params, softplus

TORCH = {name: f.module for name, f in ACTIVATIONS.items()} | {"softplus": torch.nn.Softplus}


def pair(
    sizes: tuple[int, ...] = (IN, 4, OUT), activation: str | Activation = "sigmoid", dtype: torch.dtype = torch.float64
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(ours, theirs): an `MLP`, and `torch.nn.Linear`s and activations with copies of its weights."""
    ours = nn.MLP(sizes, activation, dtype=dtype)
    return ours, torch_twin(ours)


def torch_twin(ours: nn.MLP) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for layer in ours:
        bias, dtype = layer.bias is not None, layer.weight.dtype
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias, dtype=dtype)
        linear.load_state_dict(layer.state_dict())
        layers += [linear, TORCH[layer.activation.name]()]
    return torch.nn.Sequential(*layers)


MODELS = params(
    {
        "sigmoid": lambda: pair(activation="sigmoid"),
        "tanh": lambda: pair(activation="tanh"),
        "relu": lambda: pair(activation="relu"),
        "linear": lambda: pair(activation="identity"),
        "own_activation": lambda: pair(activation=softplus),
    }
)


def run(module: torch.nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of Σ output² with respect to inputs and parameters."""
    output = module(*inputs)
    leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


def assert_same(ours: object, theirs: object, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    """The same shapes, dtypes and values, in tensors, lists, tuples and dictionaries of them."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
