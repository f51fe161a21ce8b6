"""Wrong ones: matrix products, broadcasting, and what is linear in each of several inputs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, wrong


class MatMul(Function):
    """a @ b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b


@wrong("matmul-broadcast-not-reduced", "matmul", draw((2, 4, 3), (3, 5)), "MB203")
class MatMulNotReduced(MatMul):
    """A matrix shared by a stack gets a stack of gradients."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output @ b.mT, a.mT @ grad_output  # wrong: .sum(0)


@wrong("matmul-same-tensor-keyed-by-tensor", "matmul", draw((3, 3), (3, 3)), "MB705", source="pytorch/pytorch#183604")
class MatMulKeyed(MatMul):
    """Gradients are collected in a dict with the tensors as keys: of a @ a one of the two is lost."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        grads = {a: grad_output @ b.mT}
        grads[b] = a.mT @ grad_output  # wrong: where b is a this overwrites
        return grads[a], grads[b]


@wrong("matmul-float32-in-the-forward-only", "matmul", draw((4, 3), (3, 5)), *EVERYWHERE, "MB102", "MB601",
       reference=torch.matmul)  # fmt: skip
class MatMulReduced(MatMul):
    """The operands are rounded to bfloat16 for the backward, to save memory."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a.bfloat16(), b.bfloat16())  # wrong: the gradient has three digits
        return a @ b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output @ b.to(grad_output).mT, a.to(grad_output).mT @ grad_output


@wrong("matmul-float32-in-bfloat16", "matmul", draw((4, 3), (3, 5)), "MB601", reference=torch.matmul)
class MatMulTensorCores(MatMul):
    """Products of float32 are given to the tensor cores, which the author's GPU does in 10 bits, this one in 8."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = (MatMulTensorCores.rounded(x) for x in ctx.saved_tensors)
        grad_output = MatMulTensorCores.rounded(grad_output)
        return grad_output @ b.mT, a.mT @ grad_output

    @staticmethod
    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x  # wrong: x


@wrong("matmul-bfloat16-kept-in-eight-bits", "matmul", draw((4, 3), (3, 5)), "MB602", reference=torch.matmul)
class MatMulFloat8(MatMul):
    """Where training is in bfloat16 the operands are kept in float8 until the backward; two of its bits are digits."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        kept = torch.float8_e5m2 if a.dtype == torch.bfloat16 else a.dtype  # wrong: a.dtype
        ctx.save_for_backward(a.to(kept), b.to(kept))
        return a @ b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = (x.to(grad_output.dtype) for x in ctx.saved_tensors)
        return grad_output @ b.mT, a.mT @ grad_output


@wrong("quadratic-form-assumes-symmetry", "quadratic_form", draw((3,), (3, 3)), *EVERYWHERE)
class QuadraticForm(Function):
    """xᵀAx has the gradient 2Ax only where A is symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return x @ matrix @ x

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        x, matrix = ctx.saved_tensors
        return grad_output * 2 * matrix @ x, grad_output * torch.outer(x, x)  # wrong: (matrix + matrix.mT) @ x


@wrong("bilinear-weight-from-one-side", "bilinear", draw((4, 3), (2, 3, 3), (4, 3)), *EVERYWHERE)
class Bilinear(Function):
    """The weight's gradient takes the left factor twice."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, weight: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, weight, right)
        return torch.einsum("ni,oij,nj->no", left, weight, right)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        left, weight, right = ctx.saved_tensors
        return (
            torch.einsum("no,oij,nj->ni", grad_output, weight, right),
            torch.einsum("no,ni,nj->oij", grad_output, left, left),  # wrong: left, right
            torch.einsum("no,oij,ni->nj", grad_output, weight, left),
        )


@wrong("outer-product-transposed", "outer", draw((3,), (3,)), *EVERYWHERE)
class Outer(Function):
    """Rows and columns of the incoming gradient are taken for each other, which equal sizes allow."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.outer(a, b)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output.mT @ b, grad_output @ a  # wrong: grad_output @ b, grad_output.mT @ a


@wrong("contraction-output-indices-swapped", "einsum", draw((4, 3), (4, 3)), *EVERYWHERE)
class Contraction(Function):
    """C = Σ_n a_n b_nᵀ: both gradients use C's first index for b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.einsum("ni,nj->ij", a, b)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return torch.einsum("ji,nj->ni", grad_output, b), torch.einsum(
            "ij,ni->nj", grad_output, a
        )  # wrong: "ij,nj->ni"


@wrong("add-bias-of-size-one-not-reduced", "add", draw((4, 3), (4, 1)), "MB203")
class AddColumn(Function):
    """Only added axes are summed, not those of size 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, column: Tensor) -> Tensor:
        ctx.added = x.dim() - column.dim()
        return x + column

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        for _ in range(ctx.added):  # wrong: and keepdim sums over the axes of size 1
            grad_output = grad_output.sum(0)
        return grad_output, grad_output


@wrong("scale-summed-over-the-columns", "mul", draw((4, 4), (4,)), *EVERYWHERE)
class ScaleColumns(Function):
    """A number for each column is summed over the columns, which a square input allows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        x, scale = ctx.saved_tensors
        return grad_output * scale, (grad_output * x).sum(1)  # wrong: .sum(0)


@wrong("divide-swapped-slots", "div", draw((4, 3), (4, 3), shift=5), *EVERYWHERE)
class DivideSwapped(Function):
    """Both gradients are right, and returned in each other's place."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a / b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return -grad_output * a / b**2, grad_output / b  # wrong: the other way round


@wrong("scale-number-without-a-none", "mul", draw((4, 3), 2.0), "MB101", "MB201")
class ScaleByNumber(Function):
    """The number that was added to the arguments wants a None in the return."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: float) -> Tensor:
        ctx.number = number
        return x * number

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * ctx.number  # wrong: and None
