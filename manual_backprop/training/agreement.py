"""Is the step that the training took the one of autograd and `torch.optim.SGD`?

A step is a map from weights, biases and velocities to new ones. The training takes it by its own equations; torch takes
it once more, on copies of where it began, and both have to end in the same place. So whatever computes the step is
held against torch where it runs, and nothing is run for the check alone but torch's side.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from manual_backprop.network import Network
from manual_backprop.training.learners import TORCH_COSTS, State, in_torch


class TrainingStopped(Exception):
    """Training cannot go on; the message is one line and says where it stopped and why."""


class Step(NamedTuple):
    """One step of the training: its mini-batch, all processes together, and the numbers of the update rule."""

    x: Tensor
    y: Tensor
    learning_rate: float
    momentum: float
    weight_decay: float


class Disagreement(NamedTuple):
    """The relative error of the step (see `bound`) in each parameter, layer by layer; and the part of the update rule
    that explains the error of a layer, "" where none does."""

    weights: list[float]
    biases: list[float]
    rules: list[str]

    @property
    def worst(self) -> float:
        return max(self.weights + self.biases)


def bound(dtype: torch.dtype) -> float:
    """The largest relative error of a step that passes: √ε of the dtype, that is, half of its digits agree.

    The error of a weight is |w − w′| / (η s + 4√ε (|w| + η|v|)), for the w that the training and the w′ that torch came
    to, s the largest ∂C/∂w of the layer's weights, and v the velocity; the largest counts. So a weight may be off by
    √ε η s + 4ε (|w| + η|v|): half of the digits of the gradient, and eight roundings of what it is added to, because
    w − ηg keeps only those digits of ηg that w has room for. A velocity may likewise be off by √ε s + 4ε |v|.

    Both sides run the same products in another order, so an error is some ε s beside the roundings; a wrong equation is
    off by far more. Where the step is less than the roundings of most weights, as in bfloat16, the small weights tell,
    and the velocities.
    """
    return torch.finfo(dtype).eps ** 0.5


def by_torch(network: Network, before: State, step: Step) -> tuple[State, list[Tensor]]:
    """Where autograd and `torch.optim.SGD` come to from the same place, with nothing but torch.nn; and the gradient of
    the cost, of the weights, then of the biases."""
    layers = len(before["weights"])
    parameters = [p.clone().requires_grad_() for p in before["weights"] + before["biases"]]
    cost, activations = network.cost.shortened(network.activations)
    a = step.x  # a loop of its own, because nothing of ours is to be on this side
    for w, b, f in zip(parameters[:layers], parameters[layers:], activations, strict=True):
        a = in_torch(f)()(torch.nn.functional.linear(a, w, b))
    gradients = list(torch.autograd.grad(TORCH_COSTS[cost.name](a, step.y) / len(step.x), parameters))
    moved, velocities = [p.detach() for p in parameters], [v.clone() for v in before["velocities"]]
    velocities = velocities or [torch.zeros_like(p) for p in moved]
    for part, decay in ((slice(layers), step.weight_decay), (slice(layers, None), 0.0)):
        # The arithmetic of torch.optim.SGD without the class, because making one imports the compiler: a second.
        sgd(
            moved[part],
            gradients[part],
            [*velocities[part]],
            weight_decay=decay,
            momentum=step.momentum,
            lr=step.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
    return {"weights": moved[:layers], "biases": moved[layers:], "velocities": velocities}, gradients


class _Way(NamedTuple):
    """Where a parameter and its velocity were, and where training and torch came to, in float64. A velocity that there
    is none of is 0."""

    before: Tensor
    after: Tensor
    expected: Tensor
    velocity_before: Tensor
    velocity: Tensor
    expected_velocity: Tensor
    gradient: Tensor
    learning_rate: float
    digits: float  # √ε

    @property
    def off(self) -> Tensor:
        return self.after - self.expected

    def error_of(self, off: Tensor) -> float:
        """The relative error that `bound` speaks of, if the parameter is off by so much."""
        rounded = self.before.abs() + self.learning_rate * self.expected_velocity.abs()
        return self._largest(off, self.learning_rate, rounded)

    @property
    def velocity_error(self) -> float:
        return self._largest(self.velocity - self.expected_velocity, 1.0, self.expected_velocity.abs())

    def _largest(self, off: Tensor, rate: float, rounded: Tensor) -> float:
        allowed = rate * self.gradient.abs().max() + 4 * self.digits * rounded
        return float(torch.where(off == 0, 0.0, off.abs() / allowed).max())

    @property
    def error(self) -> float:
        """0 where by torch too the step leaves the finite numbers, because that is told by the cost."""
        if not bool(self.expected.isfinite().all()):
            return 0.0
        errors = torch.tensor([self.error_of(self.off), self.velocity_error])
        return float(errors.max())  # a NaN in either is the largest


def measure(network: Network, before: State, after: State, step: Step) -> Disagreement:
    """Hold the step that led from ``before`` to ``after`` against that of autograd and `torch.optim.SGD`."""
    expected, gradients = by_torch(network, before, step)
    layers, digits = len(gradients) // 2, bound(gradients[0].dtype)
    exact = [_in_float64(state) for state in (before, after, expected)]
    places, speeds = [state["weights"] + state["biases"] for state in exact], [state["velocities"] for state in exact]
    slopes = [gradient.double() for gradient in gradients]
    ways = [_Way._make((*way, step.learning_rate, digits)) for way in zip(*places, *speeds, slopes, strict=True)]
    errors = [way.error for way in ways]
    of_layer = [[k for k in (layer, layer + layers) if not errors[k] <= digits] for layer in range(layers)]
    rules = [_rule([ways[k] for k in wrong]) for wrong in of_layer]
    return Disagreement(errors[:layers], errors[layers:], rules)


def _in_float64(state: State) -> State:
    exact = {name: [tensor.double() for tensor in tensors] for name, tensors in state.items()}
    return exact | {"velocities": exact["velocities"] or [p * 0 for p in exact["weights"] + exact["biases"]]}


def _rule(wrong: list[_Way]) -> str:
    """The part of the update rule that alone makes these parameters of a layer wrong: they are off by a multiple of
    their velocities (a wrong μ) or of themselves (a wrong λ), or their velocities are right and they are not."""
    if sum(way.off.numel() for way in wrong) < 2:
        return ""
    for name, directions in (
        ("momentum", [way.velocity_before for way in wrong]),
        ("weight decay", [way.before for way in wrong]),
    ):
        length = sum(float(d.square().sum()) for d in directions)
        along = sum(float((way.off * d).sum()) for way, d in zip(wrong, directions, strict=True))
        multiple = along / length if length else 0.0
        rest = [way.error_of(way.off - multiple * d) for way, d in zip(wrong, directions, strict=True)]
        if multiple and max(rest) <= wrong[0].digits:
            return name
    moving = all(bool(way.expected_velocity.any()) for way in wrong)
    return "w → w − ηv" if moving and max(way.velocity_error for way in wrong) <= wrong[0].digits else ""


def require_agreement(found: Disagreement, step: int, dtype: torch.dtype) -> None:
    """Stop where the step taken is wrong.

    Raises:
        TrainingStopped: names the step, the layer nearest to the output that is wrong, counted as in the book (2 is the
            first one with weights), the equation or the part of the update rule, and the size of the error.
    """
    allowed, layers = bound(dtype), len(found.weights)
    for layer in reversed(range(layers)):
        weight, bias = found.weights[layer], found.biases[layer]
        # Not `>`: an error that is not a number is no agreement.
        wrong = {"w": not weight <= allowed, "b": not bias <= allowed}
        if any(wrong.values()):
            # A wrong δ spoils both gradients of its layer, a wrong BP3 or BP4 only one.
            both = "BP1 (δ of the output)" if layer == layers - 1 else "BP2 (δ of a hidden layer)"
            equation = both if all(wrong.values()) else "BP4 (∂C/∂w)" if wrong["w"] else "BP3 (∂C/∂b)"
            rule = found.rules[layer]
            raise TrainingStopped(
                f"step {step}, layer {layer + 2} of {layers + 1}: the step taken is not that of autograd and "
                f"torch.optim.SGD, {f'the update rule ({rule})' if rule else equation}: relative error {weight:.1e} "
                f"in the weights, {bias:.1e} in the biases, allowed {allowed:.1e}"
            )
