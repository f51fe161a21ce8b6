"""The four equations of backpropagation (Nielsen, *Neural Networks and Deep Learning*, chapter 2).

The autograd Functions (`functions.py`) and the algorithm without autograd (`network.py`) both call them, for the
gradients that are asked for as for the steps that train. They stand once more in C++ (`kernels/layer.h`), which tests
and the live check of the training hold against autograd.

Symbols, for a layer l with i inputs and o outputs. Rows are samples: ``*`` stands for any number of leading
dimensions, none and empty ones among them.

==============================  ==========  ====================================
book                            shape       code
==============================  ==========  ====================================
a^{l-1}                         ``(*, i)``  ``input``
w^l                             ``(o, i)``  ``weight``, row j: to neuron j
z^l = w^l a^{l-1} + b^l         ``(*, o)``  ``z``
a^l = σ(z^l)                    ``(*, o)``  ``a``
∂C/∂a^l                         ``(*, o)``  ``grad_a``
σ′(z^l)                         ``(*, o)``  ``activation_derivative``
δ^l = ∂C/∂z^l                   ``(*, o)``  ``delta``
==============================  ==========  ====================================

The book writes one sample as a column and differentiates in *denominator layout* (the gradient of a column is a
column). Here a sample is a row, so each matrix product stands the other way round: (wᵀδ)ᵀ = δᵀw is ``delta @ weight``.

Every function takes tensors of one floating dtype and returns that dtype; torch raises ``RuntimeError`` where shapes do
not fit. All are made of differentiable torch operations, so a backward built from them can itself be differentiated;
written into a tensor that is given (``out``, ``into``), they are for a caller that records nothing.
"""

from torch import Tensor

from manual_backprop.activations import Derivative
from manual_backprop.kernels import addmm_, hadamard, matmul

FEW = 16
"""Samples up to which BP3 may be added to a bias one by one, in a single call: each addition rounds the bias."""


def output_error(
    grad_a: Tensor, activation_derivative: Tensor | float | Derivative, out: Tensor | None = None
) -> Tensor:
    r"""BP1: the error of the output layer, δ^L = ∇_a C ⊙ σ′(z^L).

    Component by component: δ^L_j = ∂C/∂a^L_j · σ′(z^L_j).

    As a matrix product: δ^L = Σ′(z^L) ∇_a C, with Σ′(z^L) the diagonal matrix of the σ′(z^L_j). This is the chain rule
    in denominator layout, δ = (∂a/∂z) ∇_a C. torch's Jacobians (`torch.func.jacrev`) are in numerator layout,
    J[k, j] = ∂a_k/∂z_j, where the chain rule reads δ = Jᵀ ∇_a C; one layout is the transpose of the other, and Σ′ is
    diagonal, so here the two agree. They do not where J is not symmetric, as in BP2, where ∂z^{l+1}/∂z^l is
    w^{l+1} Σ′(z^l) in numerator layout and Σ′(z^l) (w^{l+1})ᵀ in denominator layout.

    Args:
        grad_a: ∂C/∂a^L, ``(*, o)``.
        activation_derivative: σ′(z^L), ``(*, o)``, or the number 1 of a linear neuron; or an
            `Activation.derivative_of`, which is computed and multiplied in one.
        out: where δ^L is written, ``(*, o)``; a new tensor where it is None.

    Returns:
        δ^L, ``(*, o)``; ``grad_a`` itself where ``out`` is, or for the `Activation.derivative_of` of a linear neuron.

    Example:
        >>> output_error(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))  # the book's Hadamard product
        tensor([3., 8.])

    Source: chapter 2, equations (BP1), (BP1a) and the problem on Σ′(z^L).
    """
    return hadamard(grad_a, activation_derivative, out)


def input_gradient(weight: Tensor, delta: Tensor, out: Tensor | None = None) -> Tensor:
    """The first half of BP2: ∂C/∂a^{l-1} = (w^l)ᵀ δ^l, the error moved back through the weights.

    Component by component: ∂C/∂a^{l-1}_k = Σ_j w^l_jk δ^l_j. A layer under autograd returns this as the gradient of
    its input; the layer below multiplies it by its own σ′ (BP1 with this as its ∂C/∂a), which completes BP2.

    Args:
        weight: w^l, ``(o, i)``.
        delta: δ^l, ``(*, o)``.
        out: where it may be written, ``(*, i)``; a new tensor where it is None.

    Returns:
        ∂C/∂a^{l-1}, ``(*, i)``.

    Source: chapter 2, proof of (BP2).
    """
    return matmul(delta, weight, out)


def hidden_error(
    weight_next: Tensor,
    delta_next: Tensor,
    activation_derivative: Tensor | float | Derivative,
    out: Tensor | None = None,
) -> Tensor:
    """BP2: the error in terms of the error of the next layer, δ^l = ((w^{l+1})ᵀ δ^{l+1}) ⊙ σ′(z^l).

    Component by component: δ^l_j = Σ_k w^{l+1}_kj δ^{l+1}_k σ′(z^l_j).

    As matrix products: δ^l = Σ′(z^l) (w^{l+1})ᵀ δ^{l+1}.

    Args:
        weight_next: w^{l+1}, ``(o_next, o)``.
        delta_next: δ^{l+1}, ``(*, o_next)``.
        activation_derivative: σ′(z^l), as in `output_error`.
        out: where it may be written, ``(*, o)``; a new tensor where it is None.

    Returns:
        δ^l, ``(*, o)``.

    Source: chapter 2, equation (BP2).
    """
    return output_error(input_gradient(weight_next, delta_next, out), activation_derivative, out)


def bias_gradient(
    delta: Tensor,
    into: Tensor | None = None,
    keep: float = 0.0,
    scale: float = 1.0,
    columns: Tensor | None = None,
    ones: Tensor | None = None,
) -> Tensor:
    """BP3: the gradient of the bias, ∂C/∂b^l = δ^l, summed over the samples.

    Component by component: ∂C/∂b^l_j = Σ_n δ^l_nj; the book writes it for one sample n. The factor 1/N of a mean is
    in δ already, since it belongs to the cost.

    Args:
        delta: δ^l, ``(*, o)``.
        into, keep, scale: as in `weight_gradient`, with ``into`` ``(o,)``.
        columns, ones: δ^l with a column a sample, as in the book, ``delta.mT``, and 1 for each sample, ``(N,)``, the
            input that a bias is the weight of. With both, which a caller with up to `FEW` samples keeps, it is one
            product; else it is a sum first.

    Returns:
        ∂C/∂b^l, ``(o,)``, zeros for an empty batch; or ``into``.

    Source: chapter 2, equation (BP3).
    """
    if into is None:
        return _samples(delta).sum(0)
    if columns is None or ones is None:  # summed first, because a product of N columns rounds ``into`` N times
        columns, ones = delta.sum(0, keepdim=True).mT, delta.new_ones(1)
    return into.addmv_(columns, ones, beta=keep, alpha=scale)


def weight_gradient(
    delta: Tensor,
    input: Tensor,
    into: Tensor | None = None,
    keep: float = 0.0,
    scale: float = 1.0,
    columns: Tensor | None = None,
) -> Tensor:
    """BP4: the gradient of the weights, ∂C/∂w^l = δ^l (a^{l-1})ᵀ, summed over the samples.

    Component by component: ∂C/∂w^l_jk = Σ_n δ^l_nj a^{l-1}_nk; the book writes it for one sample, as a_in δ_out.

    Args:
        delta: δ^l, ``(*, o)``.
        input: a^{l-1}, ``(*, i)``, with the same leading dimensions.
        into: where it is given, ``(o, i)``, it becomes keep · into + scale · ∂C/∂w^l, in place and in one product: with
            w^l for ``into`` and −η for ``scale`` a step of gradient descent. 0 for ``keep`` forgets a NaN. The samples
            are then rows, ``(N, o)`` and ``(N, i)``.
        columns: δ^l with a column a sample, as in the book, ``delta.mT``, if the caller keeps that view.

    Returns:
        ∂C/∂w^l, ``(o, i)``, zeros for an empty batch; or ``into``.

    Example:
        >>> w = torch.tensor([[1.0, 2.0]])
        >>> weight_gradient(torch.tensor([[0.5]]), torch.tensor([[4.0, 6.0]]), into=w, keep=1.0, scale=-0.1)
        tensor([[0.8000, 1.7000]])

    Source: chapter 2, equation (BP4); chapter 1, equation (16) for the step.
    """
    if into is None:
        return matmul(_samples(delta).mT, _samples(input))
    return addmm_(into, delta.mT if columns is None else columns, input, keep, scale)


def _samples(x: Tensor) -> Tensor:
    """``(*, n)`` as ``(N, n)``: one row a sample, whatever the leading dimensions (no -1: n may be 0)."""
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])
