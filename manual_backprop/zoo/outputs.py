"""Wrong ones: several outputs, and complex numbers."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, wrong


class SinCos(Function):
    """sin(input) and cos(input)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input)
        ctx.set_materialize_grads(False)
        return input.sin(), input.cos()


@wrong("sincos-first-gradient-wins", "sincos", draw((4, 3)), *EVERYWHERE, "MB210", "MB211", "MB706")
class SinCosFirst(SinCos):
    """The branches for one output each return before the second is looked at; gradcheck never sends both."""

    @staticmethod
    def backward(ctx: Any, grad_sin: Tensor | None, grad_cos: Tensor | None) -> Tensor | None:
        (input,) = ctx.saved_tensors
        if grad_sin is not None:
            return grad_sin * input.cos()  # wrong: and the share of the other
        if grad_cos is not None:
            return -grad_cos * input.sin()
        return None


@wrong("sincos-none-not-expected", "sincos", draw((4, 3)), "MB210", "MB706", source="pytorch/pytorch#58511")
class SinCosNone(SinCos):
    """`set_materialize_grads(False)` promises to handle None."""

    @staticmethod
    def backward(ctx: Any, grad_sin: Tensor, grad_cos: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_sin * input.cos() - grad_cos * input.sin()  # wrong: either may be None


@wrong("cube-none-not-expected", "cube", draw((4, 3)), "MB210", source="pytorch/pytorch#58511")
class CubeNone(Function):
    """`set_materialize_grads(False)` was copied from a Function of several outputs; None may come to one as well."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        ctx.set_materialize_grads(False)
        return input**3

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * 3 * input**2  # wrong: grad_output may be None


@wrong("powers-shortcut-for-one-output", "powers", draw((4, 3)), "MB305")
class Powers(Function):
    """input² and input³: the branch for a cube that is not used forgets the 2 of the square."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input)
        return input**2, input**3

    @staticmethod
    def backward(ctx: Any, grad_square: Tensor, grad_cube: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        if not grad_cube.any():
            return grad_square * input  # wrong: 2 * input
        return grad_square * 2 * input + grad_cube * 3 * input**2


@wrong("penalty-weight-taken-for-positive", "sine_and_penalty", draw((5,)), "MB301",
       source="jiecaoyu/XNOR-Net-PyTorch#43")  # fmt: skip
class SinePenalty(Function):
    """sin(input) and a penalty Σ input²; a penalty whose weight is negative is taken for a positive one."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input)
        return input.sin(), (input**2).sum()

    @staticmethod
    def backward(ctx: Any, grad_sine: Tensor, grad_penalty: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_sine * input.cos() + grad_penalty.abs() * 2 * input  # wrong: grad_penalty


@wrong("polar-cross-term", "polar", draw((4,), (4,), shift=3), *EVERYWHERE, "MB301", "MB302", "MB303", "MB305", "MB805")
class Polar(Function):
    """Where both coordinates have a gradient, their product slips in."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(r, phi)
        return r * phi.cos(), r * phi.sin()

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> Grads:
        r, phi = ctx.saved_tensors
        grad_r = grad_x * phi.cos() + grad_y * phi.sin()
        return grad_r, r * (grad_y * phi.cos() - grad_x * phi.sin()) + grad_x * grad_y  # wrong: the last term


@wrong("moments-variance-gradient-dropped", "var_mean", draw((4, 3)), *EVERYWHERE, "MB211",
       source="Dao-AILab/flash-attention#141")  # fmt: skip
class Moments(Function):
    """The second output was added for logging, and later used in a loss."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.count = len(input)
        return input.mean(0), input.var(0)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        return grad_mean.expand(ctx.count, -1) / ctx.count  # wrong: the variance's share


@wrong("max-value-marked-as-constant", "max", draw((4, 3)), "MB211",
       source="hao-ai-lab/FastVideo PR#1388")  # fmt: skip
class MaxMarked(Function):
    """The wrong one of the outputs is marked as not differentiable: the index should be, the value is."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        value, index = input.max(-1)
        rank = index.to(input.dtype)
        ctx.save_for_backward(index)
        ctx.size = input.shape[-1]
        ctx.mark_non_differentiable(value)  # wrong: rank
        return rank, value

    @staticmethod
    def backward(ctx: Any, grad_rank: Tensor, grad_value: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        return grad_value.unsqueeze(-1) * torch.nn.functional.one_hot(index, ctx.size)


@wrong("split-views-of-one-gradient", "add_and_flatten", draw((2, 3), (3, 2)), "MB207")
class AddFlat(Function):
    """Both inputs receive a view of the same memory: clipping the one's .grad in place changes the other's."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.shapes = a.shape, b.shape
        return a.flatten() + b.flatten()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a_shape, b_shape = ctx.shapes
        return grad_output.view(a_shape), grad_output.view(b_shape)  # wrong: one of them has to be a copy


@wrong("dot-shortcut-returns-the-other-itself", "dot", draw((4, 3), (4, 3)), "MB207")
class Dot(Function):
    """A gradient of 1 saves a product, and makes a.grad the memory of b: clipping the gradients changes b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return (a * b).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        if (grad_output == 1).all():
            return b.view_as(a), a.view_as(b)  # wrong: copies
        return grad_output * b, grad_output * a


COMPLEX = torch.complex128


REALS = torch.linspace(-1, 2, 12, dtype=torch.float64).view(4, 3).to(COMPLEX).requires_grad_()


@wrong("complex-multiply-not-conjugated", "complex_mul", draw((4, 3), (4, 3), dtype=COMPLEX), *EVERYWHERE, "MB106")
class ComplexMultiply(Function):
    """torch's gradient is that of the conjugate variable: the other factor is conjugated."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output * b, grad_output * a  # wrong: b.conj(), a.conj()


@wrong("complex-abs-conjugated", "complex_abs", draw((4, 3), dtype=COMPLEX), *EVERYWHERE, "MB106")
class ComplexAbs(Function):
    """z/|z| conjugated once too often."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.abs()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad_output * (z / z.abs()).conj()  # wrong: z.sgn()


@wrong("complex-squared-modulus-half", "complex_abs_squared", draw((4, 3), dtype=COMPLEX), *EVERYWHERE, "MB106")
class ComplexSquare(Function):
    """∂|z|²/∂z̄ is z, and torch's convention is twice that."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.real**2 + z.imag**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad_output * z  # wrong: 2 * z


@wrong("complex-matmul-transposed-only", "complex_matmul", draw((4, 3), (3, 2), dtype=COMPLEX), *EVERYWHERE, "MB106")
class ComplexMatMul(Function):
    """The real formula, transposed and not conjugated."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output @ b.mT, a.mT @ grad_output  # wrong: mH


@wrong("complex-divide-tested-on-reals", "complex_div", draw(REALS, REALS + 3), "MB106")
class ComplexDivide(Function):
    """Nothing is conjugated, and the test was made of complex numbers whose imaginary part is zero."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a / b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output / b, -grad_output * a / b**2  # wrong: b.conj(), and (a / b**2).conj()
