"""Does the hand-written gradient agree with autograd's, while training goes on?"""

from typing import NamedTuple

import torch
from torch import Tensor

from manual_backprop.monitor.measures import relative_error
from manual_backprop.training.learners import Learner, autograd_gradients


class TrainingStopped(Exception):
    """Training cannot go on; the message is one line and says where it stopped and why."""


class Disagreement(NamedTuple):
    """The relative error ‖hand-written − autograd‖/‖autograd‖ of each parameter, layer by layer."""

    weights: list[float]
    biases: list[float]

    @property
    def worst(self) -> float:
        return max(self.weights + self.biases)


def bound(dtype: torch.dtype) -> float:
    """The largest relative error that passes: √ε of the dtype, that is, half of its digits agree.

    Both sides run the same products in another order, so an error is some ε; a wrong equation is off by far more.
    """
    return torch.finfo(dtype).eps ** 0.5


def measure(learner: Learner, x: Tensor, y: Tensor) -> Disagreement:
    """Hold the hand-written gradient on a mini-batch against autograd's.

    The hand-written one is the learner's own; for the plain torch control it is that of `Network.backprop`.
    """
    reference = autograd_gradients(learner.network, x, y)
    errors = [relative_error(g, r) for g, r in zip(learner.written_gradients(x, y), reference, strict=True)]
    layers = len(learner.network.weights)
    return Disagreement(errors[:layers], errors[layers:])


def require_agreement(found: Disagreement, step: int, dtype: torch.dtype) -> None:
    """Stop where the hand-written gradient is wrong.

    Raises:
        TrainingStopped: names the step, the layer nearest to the output that is wrong, the equation and the size.
    """
    allowed = bound(dtype)
    layers = len(found.weights)
    for layer in reversed(range(layers)):
        weight, bias = found.weights[layer], found.biases[layer]
        # Not `>`: an error that is not a number is no agreement.
        wrong = {"w": not weight <= allowed, "b": not bias <= allowed}
        if any(wrong.values()):
            # A wrong δ spoils both gradients of its layer, a wrong BP3 or BP4 only one.
            both = "BP1 (δ of the output)" if layer == layers - 1 else "BP2 (δ of a hidden layer)"
            equation = both if all(wrong.values()) else "BP4 (∂C/∂w)" if wrong["w"] else "BP3 (∂C/∂b)"
            raise TrainingStopped(
                f"step {step}, layer {layer + 1} of {layers}: the hand-written gradient is not autograd's, {equation}: "
                f"relative error {weight:.1e} in the weights, {bias:.1e} in the biases, allowed {allowed:.1e}"
            )
