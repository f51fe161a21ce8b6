"""BP1 to BP4 against their component-wise definitions, written with loops, and against torch's Jacobians."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev

from manual_backprop.equations import bias_gradient, hidden_error, input_gradient, output_error, weight_gradient
from tests.cases import DTYPES, FLOAT64, SHAPES, assert_close

I, O, O_NEXT = 4, 3, 2  # noqa: E741 (the sizes that the shapes in the docstrings are written with)


def rows(x: Tensor) -> Tensor:
    """``(*, n)`` as ``(N, n)``."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# The definitions of the book, component by component, for every sample n.


def output_error_by_loops(grad_a: Tensor, derivative: Tensor) -> Tensor:
    delta = torch.zeros_like(rows(grad_a))
    for n in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            delta[n, j] = rows(grad_a)[n, j] * rows(derivative)[n, j]
    return delta.reshape(grad_a.shape)


def input_gradient_by_loops(weight: Tensor, delta: Tensor) -> Tensor:
    grad = delta.new_zeros(len(rows(delta)), weight.shape[1])
    for n in range(grad.shape[0]):
        for k in range(grad.shape[1]):
            for j in range(weight.shape[0]):
                grad[n, k] += weight[j, k] * rows(delta)[n, j]
    return grad.reshape(*delta.shape[:-1], weight.shape[1])


def hidden_error_by_loops(weight_next: Tensor, delta_next: Tensor, derivative: Tensor) -> Tensor:
    delta = torch.zeros_like(rows(derivative))
    for n in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            for k in range(weight_next.shape[0]):
                delta[n, j] += weight_next[k, j] * rows(delta_next)[n, k] * rows(derivative)[n, j]
    return delta.reshape(derivative.shape)


def bias_gradient_by_loops(delta: Tensor) -> Tensor:
    grad = delta.new_zeros(delta.shape[-1])
    for n in range(len(rows(delta))):
        for j in range(delta.shape[-1]):
            grad[j] += rows(delta)[n, j]
    return grad


def weight_gradient_by_loops(delta: Tensor, input: Tensor) -> Tensor:
    grad = delta.new_zeros(delta.shape[-1], input.shape[-1])
    for n in range(len(rows(delta))):
        for j in range(delta.shape[-1]):
            for k in range(input.shape[-1]):
                grad[j, k] += rows(delta)[n, j] * rows(input)[n, k]
    return grad


# equation, its definition, the shapes of its arguments: (leading dimensions?, features)
EQUATIONS = [
    pytest.param(output_error, output_error_by_loops, [(True, "o"), (True, "o")], id="BP1"),
    pytest.param(input_gradient, input_gradient_by_loops, [(False, "oi"), (True, "o")], id="BP2_first_half"),
    pytest.param(hidden_error, hidden_error_by_loops, [(False, "no"), (True, "n"), (True, "o")], id="BP2"),
    pytest.param(bias_gradient, bias_gradient_by_loops, [(True, "o")], id="BP3"),
    pytest.param(weight_gradient, weight_gradient_by_loops, [(True, "o"), (True, "i")], id="BP4"),
]
SIZES = {"i": I, "o": O, "n": O_NEXT}


def arguments(signature: list, shape: tuple[int, ...], sizes: dict[str, int] = SIZES) -> list[Tensor]:
    return [
        torch.randn((shape if batched else ()) + tuple(sizes[letter] for letter in letters), dtype=FLOAT64)
        for batched, letters in signature
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("equation", "by_loops", "signature"), EQUATIONS)
def test_component_form(equation, by_loops, signature, shape):
    args = arguments(signature, shape)
    assert_close(equation(*args), by_loops(*args))


@pytest.mark.parametrize(("equation", "by_loops", "signature"), EQUATIONS)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(*[st.integers(0, 4)] * 3),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_component_form_of_any_shape(equation, by_loops, signature, shape, sizes, scale, seed):
    torch.manual_seed(seed)
    args = [scale * x for x in arguments(signature, tuple(shape), dict(zip("ion", sizes, strict=True)))]
    assert_close(equation(*args), by_loops(*args))


@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("keep", [0.0, 1.0, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("equation", "by_loops", "signature"), EQUATIONS[-2:])
def test_a_gradient_into_a_tensor(equation, by_loops, signature, shape, keep, scale):
    """keep · into + scale · gradient, in place; 0 for keep forgets a NaN."""
    args = [rows(x) for x in arguments(signature, shape)]
    gradient = by_loops(*args)
    into = torch.randn_like(gradient) if keep else torch.full_like(gradient, math.nan)
    expected = keep * into.nan_to_num() + scale * gradient
    assert equation(*args, into=into, keep=keep, scale=scale) is into
    assert_close(into, expected)


@pytest.mark.parametrize("samples", [10, 1000, 100_000])
def test_a_bias_is_rounded_a_few_times_and_not_once_a_sample(samples):
    delta, bias = torch.rand(samples, 30) - 0.5, 1 + torch.rand(30)
    exact = bias.double() - 1e-3 * delta.double().sum(0)
    bias_gradient(delta, into=bias, keep=1.0, scale=-1e-3)
    assert float((bias.double() - exact).abs().max()) < 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("equation", "by_loops", "signature"), EQUATIONS)
def test_dtype_is_kept(equation, by_loops, signature, dtype):
    # Small whole numbers: every product and every sum is exact, even in bfloat16.
    exact = [torch.randint_like(x, -3, 4) for x in arguments(signature, (2, 2))]
    result = equation(*(x.to(dtype) for x in exact))
    assert result.dtype == dtype
    assert torch.equal(result.double(), by_loops(*exact))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("equation", "by_loops", "signature"), EQUATIONS)
def test_differentiable(equation, by_loops, signature, shape):
    args = [x.requires_grad_() for x in arguments(signature, shape)]
    assert torch.autograd.gradcheck(equation, args, check_batched_grad=True)


@pytest.mark.parametrize(("equation", "by_loops", "signature"), EQUATIONS)
def test_arguments_are_left_alone(equation, by_loops, signature):
    args = arguments(signature, (5,))
    before = [x.clone() for x in args]
    result = equation(*args)
    assert all(torch.equal(x, old) and x._version == 0 for x, old in zip(args, before, strict=True))
    assert all(result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for x in args)


def test_hadamard_product_of_the_book():
    assert torch.equal(output_error(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])), torch.tensor([3.0, 8.0]))


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_neuron(shape):
    grad_a, weight, delta = torch.randn(*shape, O), torch.randn(O, I), torch.randn(*shape, O)
    result = output_error(grad_a, 1.0)
    assert torch.equal(result, grad_a)
    assert result is not grad_a
    assert not result.numel() or result.data_ptr() != grad_a.data_ptr()
    assert torch.equal(hidden_error(weight, delta, 1.0), delta @ weight)


def test_empty_batch_has_zero_gradients():
    assert torch.equal(bias_gradient(torch.empty(0, O)), torch.zeros(O))
    assert torch.equal(weight_gradient(torch.empty(2, 0, O), torch.empty(2, 0, I)), torch.zeros(O, I))


# The same four against Jacobians that torch computes. torch's are in numerator layout, J[k, j] = ∂f_k/∂x_j; the book's
# denominator layout is the transpose, so the chain rule reads δ = Jᵀ ∇C.


def test_bp1_is_the_jacobian_form():
    """δ^L = Σ′(z) ∇_a C, with Σ′(z) the Jacobian of σ: diagonal, so that the layouts agree."""
    z, grad_a = torch.randn(O, dtype=FLOAT64), torch.randn(O, dtype=FLOAT64)
    jacobian = jacrev(torch.sigmoid)(z)
    a = torch.sigmoid(z)
    sigma_prime = torch.diag(a * (1 - a))
    assert_close(sigma_prime, jacobian)
    assert_close(sigma_prime @ grad_a, output_error(grad_a, a * (1 - a)))
    assert_close(jacobian.mT @ grad_a, output_error(grad_a, a * (1 - a)))


def test_bp1_is_the_gradient_of_the_cost():
    z, y = torch.randn(O, dtype=FLOAT64), torch.randn(O, dtype=FLOAT64)
    delta = jacrev(lambda z: (torch.tanh(z) - y).square().sum() / 2)(z)
    a = torch.tanh(z)
    assert_close(output_error(a - y, 1 - a * a), delta)


def test_bp2_is_the_jacobian_form():
    """δ^l = Jᵀ δ^{l+1}, with J = ∂z^{l+1}/∂z^l = w^{l+1} Σ′(z^l)."""
    z, w, b = torch.randn(O, dtype=FLOAT64), torch.randn(O_NEXT, O, dtype=FLOAT64), torch.randn(O_NEXT, dtype=FLOAT64)
    delta_next = torch.randn(O_NEXT, dtype=FLOAT64)
    a = torch.tanh(z)
    sigma_prime = 1 - a * a
    jacobian = jacrev(lambda z: w @ torch.tanh(z) + b)(z)
    assert jacobian.shape == (O_NEXT, O)
    assert_close(hidden_error(w, delta_next, sigma_prime), jacobian.mT @ delta_next)
    assert_close(hidden_error(w, delta_next, sigma_prime), torch.diag(sigma_prime) @ w.mT @ delta_next)
    assert_close(input_gradient(w, delta_next), jacrev(lambda a: w @ a + b)(a).mT @ delta_next)


@pytest.mark.parametrize("shape", SHAPES)
def test_bp3_and_bp4_are_the_gradients_of_a_layer(shape):
    """With C = Σ δ·z, whose gradient for z is δ."""
    x, delta = torch.randn(*shape, I, dtype=FLOAT64), torch.randn(*shape, O, dtype=FLOAT64)
    w, b = torch.randn(O, I, dtype=FLOAT64), torch.randn(O, dtype=FLOAT64)
    grad_w, grad_b = jacrev(lambda w, b: (delta * (x @ w.mT + b)).sum(), argnums=(0, 1))(w, b)
    assert_close(bias_gradient(delta), grad_b)
    assert_close(weight_gradient(delta, x), grad_w)


@given(n=st.integers(0, 6), m=st.integers(0, 6), seed=st.integers(0, 2**31))
def test_the_gradient_of_a_batch_is_the_sum_over_its_parts(n, m, seed):
    torch.manual_seed(seed)
    delta, input = torch.randn(n + m, O, dtype=FLOAT64), torch.randn(n + m, I, dtype=FLOAT64)
    assert_close(bias_gradient(delta), bias_gradient(delta[:n]) + bias_gradient(delta[n:]))
    parts = weight_gradient(delta[:n], input[:n]) + weight_gradient(delta[n:], input[n:])
    assert_close(weight_gradient(delta, input), parts)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        pytest.param(output_error, [(5, 3), (5, 2)], id="BP1"),
        pytest.param(hidden_error, [(2, 3), (5, 3), (5, 3)], id="BP2"),
        pytest.param(weight_gradient, [(5, 3), (4, 2)], id="BP4"),
    ],
)
def test_shapes_that_do_not_fit(equation, shapes):
    with pytest.raises(RuntimeError, match=r"size|shape"):
        equation(*(torch.zeros(shape) for shape in shapes))
