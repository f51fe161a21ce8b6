"""The Jacobians behind the equations, in both layouts, and the products of matrices that they make.

*Numerator* layout, that of torch, has a row for each component of what is differentiated: J[k, j] = ∂f_k/∂x_j.
*Denominator* layout, that of the book, is its transpose: the gradient of a number with respect to a column is a column.

Source: chapter 2, the problem "Alternate presentation of the equations of backpropagation" (equations (33) to (35)).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from manual_backprop.activations import sigmoid
from manual_backprop.network import Gradients, Network


@dataclass(frozen=True)
class Identity:
    """Two ways to the same tensor."""

    words: str
    left: Tensor
    right: Tensor

    @property
    def difference(self) -> float:
        """The largest difference between the two."""
        return float((self.left - self.right).abs().max())


@dataclass(frozen=True)
class Layouts:
    """The Jacobians of a three-layer network on one sample; float64.

    Args:
        sigma_prime: Σ′(z^2), the diagonal matrix with σ′(z^2_j) on the diagonal, ``(o, o)``.
        numerator: ∂z^3/∂z^2 as torch has it, ``(o_next, o)``.
        denominator: the same as the book has it, ``(o, o_next)``.
        third_order: ∂z^2/∂w^2, ∂z_j/∂w_mk at [j, m, k], ``(o, o, i)``: as many slices as neurons, a row of each not 0.
        gradients: by BP1 to BP4.
        identities: what holds between them.
    """

    sigma_prime: Tensor
    numerator: Tensor
    denominator: Tensor
    third_order: Tensor
    gradients: Gradients
    identities: list[Identity]


def layouts(sizes: tuple[int, int, int] = (3, 4, 2), seed: int = 0) -> Layouts:
    """The Jacobians by torch, by the diagonal matrices, and by BP1 to BP4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(sizes, dtype=torch.float64)
        x, y = torch.rand(sizes[0], dtype=torch.float64), torch.rand(sizes[-1], dtype=torch.float64)
    (w2, w3), (b2, b3) = network.weights, network.biases
    z2 = torch.nn.functional.linear(x, w2, b2)
    z3 = torch.nn.functional.linear(sigmoid.function(z2), w3, b3)
    grad_a = network.cost.derivative(sigmoid.function(z3), y)
    sigma2, sigma3 = (torch.diag(torch.as_tensor(sigmoid.derivative_at(z))) for z in (z2, z3))
    gradients = network.backprop(x, y)
    delta2, delta3 = gradients.deltas

    jacobian = torch.func.jacrev
    da_dz = jacobian(sigmoid.function)(z2)
    numerator = jacobian(lambda z: torch.nn.functional.linear(sigmoid.function(z), w3, b3))(z2)
    third_order = jacobian(lambda w: torch.nn.functional.linear(x, w, b2))(w2)
    identities = [
        Identity("∂a^2/∂z^2 = Σ′(z^2) (numerator)", da_dz, sigma2),
        Identity("∂a^2/∂z^2 = Σ′(z^2) (denominator)", da_dz.T, sigma2),
        Identity("δ^3 = Σ′(z^3) ∇_a C, that is BP1", sigma3 @ grad_a, delta3),
        Identity("∂z^3/∂z^2 = w^3 Σ′(z^2) (numerator)", numerator, w3 @ sigma2),
        Identity("∂z^3/∂z^2 = Σ′(z^2) (w^3)ᵀ (denominator)", numerator.T, sigma2 @ w3.T),
        Identity("δ^2 = Jᵀ δ^3, J in numerator layout", numerator.T @ delta3, delta2),
        Identity("δ^2 = Σ′(z^2) (w^3)ᵀ δ^3, that is BP2", sigma2 @ w3.T @ delta3, delta2),
        Identity("δ^2 = Σ′(z^2) (w^3)ᵀ Σ′(z^3) ∇_a C", sigma2 @ w3.T @ sigma3 @ grad_a, delta2),
        Identity("∂z^2_j/∂w^2_mk = x_k where j = m, else 0", third_order, _by_hand(x, len(z2))),
        Identity("Σ_j δ^2_j ∂z^2_j/∂w^2 = δ^2 xᵀ, that is BP4", *_contracted(third_order, gradients)),
    ]
    return Layouts(sigma2, numerator, numerator.T, third_order, gradients, identities)


def _by_hand(x: Tensor, neurons: int) -> Tensor:
    return torch.einsum("jm,k->jmk", torch.eye(neurons, dtype=x.dtype), x)


def _contracted(third_order: Tensor, gradients: Gradients) -> tuple[Tensor, Tensor]:
    """The sum over j of δ_j ∂z_j/∂w, and BP4's outer product."""
    return torch.einsum("j,jmk->mk", gradients.deltas[0], third_order), gradients.weights[0]
