"""Cost functions: the cost of each sample, and its derivatives written by hand.

n is the number of samples and y the desired output. A `Cost` speaks of one sample, ``(*, o)`` to ``(*,)``; the factor
1/n comes in with `reduce` and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from manual_backprop.activations import ACTIVATIONS, Activation, identity

Reduction = Literal["none", "mean", "sum"]

REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda cost: cost,
    "mean": torch.mean,
    "sum": torch.sum,
}


@dataclass(frozen=True)
class Cost:
    """The cost C of one sample as a function of the output a and the target y.

    Args:
        name: as it is printed, and looked up in `COSTS`.
        value: C(a, y), ``(*, o), (*, o) -> (*,)``.
        derivative: ∂C/∂a, ``(*, o)``.
        target_derivative: ∂C/∂y, ``(*, o)``, for targets that are themselves computed.
        of_weighted_input: for the activations named, the same cost as a function of z instead of a, where that is
            shorter: its `derivative` is then δ^L itself, with no σ′(z^L) in it.
        derivative_into: `derivative` written into a third tensor, where there is such a form.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    target_derivative: Callable[[Tensor, Tensor], Tensor]
    of_weighted_input: Mapping[str, "Cost"] = field(default_factory=dict)
    derivative_into: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def shortened(self, activations: Sequence[Activation]) -> tuple["Cost", list[Activation]]:
        """The cost and the activations of a network as it is differentiated: where the cost is shorter as a function
        of z^L, that one and linear outputs, else what is given.

        Example:
            >>> cross_entropy.shortened([ACTIVATIONS["tanh"], ACTIVATIONS["sigmoid"]])
            (sigmoid_cross_entropy, [tanh, identity])
            >>> quadratic.shortened([ACTIVATIONS["sigmoid"]])
            (quadratic, [sigmoid])
        """
        output = activations[-1]
        # The name alone does not tell, because an activation of one's own may be called "sigmoid" too.
        ready = output.name in self.of_weighted_input and ACTIVATIONS.get(output.name) is output
        return (self.of_weighted_input[output.name], [*activations[:-1], identity]) if ready else (self, [*activations])

    def gradient(self, a: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """∂C/∂a, written into ``out``."""
        if self.derivative_into is None:
            return out.copy_(self.derivative(a, y))
        return self.derivative_into(a, y, out)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """The ready ones are copied and saved as their names, as activations are."""
        if _READY.get(self.name) is self:
            return _ready, (self.name,)
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return self.name


quadratic = Cost(
    "quadratic",
    value=lambda a, y: (a - y).square().sum(-1) / 2,
    derivative=lambda a, y: a - y,
    target_derivative=lambda a, y: y - a,
    derivative_into=lambda a, y, out: torch.sub(a, y, out=out),
)
"""C = ½ ‖y − a‖² for a sample, 1/(2n) Σ_x ‖y − a‖² with ``reduction="mean"``; ∂C/∂a = a − y. Chapter 1, equation (6).

`torch.nn.MSELoss` is the mean over all n·o elements and has no ½: this cost is o/2 times that one.
"""

sigmoid_cross_entropy = Cost(
    "sigmoid_cross_entropy",
    value=lambda z, y: ((1 - y) * z - torch.nn.functional.logsigmoid(z)).sum(-1),
    derivative=lambda z, y: torch.sigmoid(z) - y,
    target_derivative=lambda z, y: -z,
    derivative_into=lambda z, y, out: torch.sigmoid(z, out=out).sub_(y),
)
"""The cross-entropy of a = σ(z) as a function of z: C = Σ_j [(1 − y)z − ln σ(z)], so δ^L = ∂C/∂z = a − y.

The σ′(z) of BP1 has cancelled against the a(1 − a) of ∂C/∂a: a badly wrong neuron learns fast. No exponential
overflows and no logarithm sees 0, at any finite z. Chapter 3, equations (66) to (68).

`torch.nn.BCEWithLogitsLoss` is the mean over all n·o elements: this cost is o times that one.
"""


def _log(x: Tensor) -> Tensor:
    return x.log().clamp(min=-100)


def _not_zero(x: Tensor) -> Tensor:
    # In float16, which has no 1e-12, the smallest normal number stands for it.
    return x.clamp(min=max(1e-12, torch.finfo(x.dtype).tiny))


cross_entropy = Cost(
    "cross_entropy",
    value=lambda a, y: -(y * _log(a) + (1 - y) * _log(1 - a)).sum(-1),
    derivative=lambda a, y: (a - y) / _not_zero(a * (1 - a)),
    target_derivative=lambda a, y: _log(1 - a) - _log(a),
    of_weighted_input={"sigmoid": sigmoid_cross_entropy},
)
"""C = −Σ_j [y ln a + (1 − y) ln(1 − a)] for a sample, its mean with ``reduction="mean"``; ∂C/∂a = (a − y)/(a(1 − a)).

Chapter 3, equation (63). At a = 0 and a = 1 the logarithm is held at −100 and the denominator at 1e-12, the bounds of
`torch.nn.BCELoss`, which is the mean over all n·o elements: this cost is o times that one. Outputs that come from a
sigmoid are better served by `sigmoid_cross_entropy`, which needs no bounds.
"""


COSTS = {cost.name: cost for cost in (quadratic, cross_entropy)}
_READY = COSTS | {sigmoid_cross_entropy.name: sigmoid_cross_entropy}


def _ready(name: str) -> Cost:
    return _READY[name]


def cost_named(cost: str | Cost) -> Cost:
    """The cost of that name, or the given `Cost` itself.

    Raises:
        ValueError: no cost of that name.
    """
    if isinstance(cost, Cost):
        return cost
    if cost not in COSTS:
        raise ValueError(f"cost: expected a Cost or one of {', '.join(COSTS)}, found {cost!r}")
    return COSTS[cost]


def reduce(cost: Tensor, reduction: str) -> Tensor:
    """The costs of the samples, ``(*,)``, as they are, their mean (the 1/n of the book) or their sum.

    Raises:
        ValueError: no reduction of that name.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, found {reduction!r}")
    return REDUCTIONS[reduction](cost)
