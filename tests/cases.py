"""The named cases that the tests share: dtypes, shapes, layouts, activations, costs, and the table of tolerances."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from manual_backprop import Activation, Cost, functional, per_neuron
from manual_backprop.activations import ACTIVATIONS as NAMED
from manual_backprop.activations import identity, relu, sigmoid, tanh
from manual_backprop.costs import cross_entropy, quadratic, sigmoid_cross_entropy

IN, OUT = 2, 3  # Features of a layer: unequal, so that a weight the wrong way round does not fit.


def params(table: dict) -> list:
    """A table of named cases as pytest parameters."""
    return [pytest.param(case, id=name) for name, case in table.items()]


# Numbers

FLOAT64 = torch.float64
DTYPES = params({"float64": FLOAT64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})

# dtype: (rtol, atol). These are the defaults of torch.testing.assert_close; a looser entry has its reason beside it.
TOLERANCES = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float16: (1e-3, 1e-5),
}

# Low precision is judged by a budget instead: the error against float64 from the same quantised inputs may be this
# many times the error of eager torch in that dtype, and one rounding of the largest element more, since eager may be
# exact by luck. 3, because a·(1 − a)·grad rounds up to three times where torch's fused sigmoid_backward rounds once.
BUDGET = 3.0


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal in shape and dtype, and in value within the table of tolerances."""
    rtol, atol = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def assert_within_budget(actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    """`actual` may be `BUDGET` times as far from `exact` (float64) as torch's own `eager` result of the same dtype."""
    assert actual.dtype == eager.dtype
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    if actual.dtype == FLOAT64:  # There is nothing more exact to be held against.
        assert_close(actual, exact)
    elif actual.numel():
        one_rounding = torch.finfo(actual.dtype).eps * exact.abs().max()
        budget = BUDGET * (eager.double() - exact).abs().max() + one_rounding
        assert (actual.double() - exact).abs().max() <= budget


# Shapes and layouts

SHAPES = params({"no_batch": (), "empty": (0,), "one": (1,), "odd": (7,), "3d": (2, 3), "3d_empty": (2, 0)})
FEW_SHAPES = params({"no_batch": (), "empty": (0,), "3d": (2, 3)})
BIAS = params({"bias": True, "no_bias": False})

# A grad_output as it comes in practice: from a transposed view, from .sum() (one number, stride 0), from a slice.
LAYOUTS = params(
    {
        "contiguous": lambda shape: torch.randn(shape, dtype=FLOAT64),
        "transposed": lambda shape: torch.randn(shape[::-1], dtype=FLOAT64).permute(*range(len(shape) - 1, -1, -1)),
        "stride_0": lambda shape: torch.randn((), dtype=FLOAT64).expand(shape),
        "stride_0_samples": lambda shape: torch.randn(shape[-1:], dtype=FLOAT64).expand(shape),
        "sliced": lambda shape: torch.randn(*shape[:-1], 2 * shape[-1] + 1, dtype=FLOAT64)[..., 1::2],
    }
)

LAYER_ARGUMENTS = ("input", "weight", "bias")


def _subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]


# Which arguments there are, and which of them require grad: every subset but the empty one.
REQUIRES = [
    pytest.param(arguments, subset, id="+".join(subset) + ("" if "bias" in arguments else "-no_bias"))
    for arguments in (LAYER_ARGUMENTS, LAYER_ARGUMENTS[:2])
    for subset in _subsets(arguments)
]


def layer_inputs(
    shape: tuple[int, ...],
    bias: bool = True,
    dtype: torch.dtype = FLOAT64,
    requires: tuple[str, ...] = LAYER_ARGUMENTS,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, weight, bias) of a layer of `IN` to `OUT` neurons; those named in `requires` require grad."""
    shapes = {"input": (*shape, IN), "weight": (OUT, IN), "bias": (OUT,)}
    tensors = {name: torch.randn(s, dtype=dtype).requires_grad_(name in requires) for name, s in shapes.items()}
    return tensors["input"], tensors["weight"], tensors["bias"] if bias else None


class StandInContext:
    """A ctx to call a `backward` with, without the autograd engine: that repairs shapes and dtypes before anyone sees
    them, and does not run on fake tensors."""

    def __init__(self, *needs_input_grad: bool) -> None:
        self.needs_input_grad = needs_input_grad

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        pass


# Activations


@dataclass(frozen=True)
class ActivationCase:
    """An activation, the same in torch's words (for autograd), and its formula for one number (from `math`)."""

    activation: Activation
    reference: Callable[[Tensor], Tensor]
    formula: Callable[[float], float]


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def _steep_sigmoid(z: Tensor) -> Tensor:
    return torch.sigmoid(3 * z)


def _steep_sigmoid_prime(a: Tensor) -> Tensor:
    return 3 * a * (1 - a)


softplus = Activation("softplus", F.softplus, torch.sigmoid, needs="z")
steep_sigmoid = Activation("steep_sigmoid", _steep_sigmoid, _steep_sigmoid_prime, needs="a")
one_modified = per_neuron(["sigmoid", "sigmoid", softplus])  # One for each of the `OUT` neurons.
every_kind = per_neuron(["relu", "identity", steep_sigmoid])

ELEMENTWISE = {
    "sigmoid": ActivationCase(sigmoid, torch.nn.Sigmoid(), _logistic),
    "tanh": ActivationCase(tanh, torch.nn.Tanh(), math.tanh),
    "relu": ActivationCase(relu, torch.nn.ReLU(), lambda z: max(0.0, z)),
    "identity": ActivationCase(identity, torch.nn.Identity(), lambda z: z),
    "own_needs_z": ActivationCase(softplus, torch.nn.Softplus(), lambda z: math.log1p(math.exp(z))),
    "own_needs_a": ActivationCase(steep_sigmoid, lambda z: (3 * z).sigmoid(), lambda z: _logistic(3 * z)),
}


def _one_modified_reference(z: Tensor) -> Tensor:
    return torch.cat([torch.sigmoid(z[..., :2]), F.softplus(z[..., 2:])], dim=-1)


def _every_kind_reference(z: Tensor) -> Tensor:
    return torch.cat([F.relu(z[..., :1]), z[..., 1:2], torch.sigmoid(3 * z[..., 2:])], dim=-1)


PER_NEURON = {
    "one_modified": ActivationCase(one_modified, _one_modified_reference, math.nan.__add__),
    "every_kind": ActivationCase(every_kind, _every_kind_reference, math.nan.__add__),
}

ELEMENTWISE_ACTIVATIONS = params(ELEMENTWISE)
ACTIVATIONS = params(ELEMENTWISE | PER_NEURON)
NAMED_ACTIVATIONS = params({name: ELEMENTWISE[name] for name in NAMED})


# Costs


@dataclass(frozen=True)
class CostCase:
    """A cost, its formula for one output and one target, and torch's loss, which is this cost divided by `factor`."""

    cost: Cost
    function: Callable[..., Tensor]
    formula: Callable[[float, float], float]
    torch_loss: Callable[..., Tensor]
    factor: Callable[[int], float]
    inputs_are_probabilities: bool

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype = FLOAT64) -> tuple[Tensor, Tensor]:
        """(input, target) of shape (*shape, OUT), from inside the domain of the cost."""
        input = torch.randn(*shape, OUT, dtype=dtype)
        if self.inputs_are_probabilities:
            input = input.sigmoid()
        return input, torch.rand(*shape, OUT, dtype=dtype)


def _binary_cross_entropy(a: float, y: float) -> float:
    return -(y * math.log(a) + (1 - y) * math.log(1 - a))


COST_CASES = {
    "quadratic": CostCase(
        quadratic,
        functional.quadratic_cost,
        lambda a, y: (y - a) ** 2 / 2,
        F.mse_loss,
        lambda outputs: outputs / 2,
        inputs_are_probabilities=False,
    ),
    "cross_entropy": CostCase(
        cross_entropy,
        functional.cross_entropy_cost,
        _binary_cross_entropy,
        F.binary_cross_entropy,
        lambda outputs: outputs,
        inputs_are_probabilities=True,
    ),
    "sigmoid_cross_entropy": CostCase(
        sigmoid_cross_entropy,
        functional.sigmoid_cross_entropy_cost,
        lambda z, y: _binary_cross_entropy(_logistic(z), y),
        F.binary_cross_entropy_with_logits,
        lambda outputs: outputs,
        inputs_are_probabilities=False,
    ),
}
COSTS = params(COST_CASES)
REDUCTIONS = params({"none": "none", "mean": "mean", "sum": "sum"})

# Devices

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def _cuda_can_be_faked() -> bool:
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda").uniform_()[:1]
    except RuntimeError:
        return False
    return True


needs_fake_cuda = pytest.mark.skipif(
    not _cuda_can_be_faked(),
    reason="fake CUDA tensors: torch is built without CUDA, or asks for its driver, as 2.9 does",
)
