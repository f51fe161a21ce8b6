"""Right ones: linear layers and other products."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, draw, right

LINEAR = draw((4, 3), (5, 3), (5,))


@right("right-linear-combined-form", "linear", LINEAR, batch_dim=0, reference=F.linear)
class CombinedLinear(Function):
    """Saves only what the gradients asked for will read, computes only those; any number of leading dimensions."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        input_needs_grad, weight_needs_grad, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if weight_needs_grad else None, weight if input_needs_grad else None)
        return F.linear(input, weight, bias)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_input = grad_output @ weight
        if ctx.needs_input_grad[1]:
            grad_weight = rows.mT @ input.reshape(rows.shape[0], input.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_input, grad_weight, grad_bias


class LinearFunction(Function):
    """z = input @ weightᵀ + bias, in the form that torch.func takes; the bias may be None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _ = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        delta = grad_output.to(weight.dtype)  # the output is bfloat16 where autocast made it so
        rows = delta.reshape(-1, delta.shape[-1])
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_input = (delta @ weight).to(input.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.mT @ input.reshape(rows.shape[0], input.shape[-1])).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_input, grad_weight, grad_bias


right("right-linear-setup-context", "linear", LINEAR, batch_dim=0)(LinearFunction)


@right("right-linear-without-bias", "linear", draw((2, 4, 3), (5, 3), None))
def linear_without_bias(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """None stands where a tensor may."""
    return LinearFunction.apply(input, weight, bias)


class LinearModule(nn.Module):
    """A module: its parameters are inputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(value.detach()) for value in draw((5, 3), (5,))())

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(LinearFunction.apply(input, self.weight, self.bias))


right("right-module-with-parameters", "linear", draw((4, 3)), batch_dim=0)(LinearModule())


class LinearLeakyReluFunction(Function):
    """A kink, and a number among the arguments."""

    @staticmethod
    def forward(input: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(input, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, ctx.slope = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (input,) = ctx.saved_tensors
        return torch.where(input > 0, grad_output, ctx.slope * grad_output), None


def leaky_relu(input: Tensor, slope: float) -> Tensor:
    return LinearLeakyReluFunction.apply(input, slope)


right("right-partial", "leaky_relu", draw((4, 3)), batch_dim=0, mistake="An argument is bound.")(
    partial(leaky_relu, slope=0.2)
)


@right("right-composed-of-functions", "linear_leaky_relu", draw((4, 3), (5, 3), (5,), (2, 5), (2,)), batch_dim=0)
def two_layers(input: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """Three Functions, one behind the other."""
    hidden = LinearLeakyReluFunction.apply(LinearFunction.apply(input, weight1, bias1), 0.1)
    return LinearFunction.apply(hidden, weight2, bias2)


@right("right-linear-sigmoid", "linear_sigmoid", LINEAR, batch_dim=0)
class LinearSigmoid(Function):
    """Saves inputs and the output only, so that the derivative can be differentiated."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        a = torch.sigmoid(F.linear(input, weight, bias))
        ctx.save_for_backward(input, weight, a)
        return a

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        delta = grad_output * a * (1 - a)
        rows = delta.reshape(-1, delta.shape[-1])
        return delta @ weight, rows.mT @ input.reshape(rows.shape[0], input.shape[-1]), rows.sum(0)


@right("right-linear-relu-recomputed", "linear_relu", LINEAR, batch_dim=0)
class LinearReluRecomputed(Function):
    """Nothing but the inputs is kept; the backward computes z once more."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight, bias)
        return torch.relu(F.linear(input, weight, bias))

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, bias = ctx.saved_tensors
        delta = grad_output * (F.linear(input, weight, bias) > 0)
        rows = delta.reshape(-1, delta.shape[-1])
        return delta @ weight, rows.mT @ input.reshape(rows.shape[0], input.shape[-1]), rows.sum(0)


class MatMul(Function):
    """a @ b for stacks of matrices: each gradient is summed over the axes along which its input was broadcast."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return (grad_output @ b.mH).sum_to_size(a.shape), (a.mH @ grad_output).sum_to_size(b.shape)


right("right-matmul-broadcast", "matmul", draw((2, 1, 4, 3), (5, 3, 2)))(MatMul)
right("right-matmul-complex", "matmul", draw((4, 3), (3, 2), dtype=torch.complex128))(MatMul)


@right("right-outer-product", "outer", draw((4,), (3,)))
class Outer(Function):
    """Both gradients are products of a matrix and a vector."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a.unsqueeze(1) * b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return (grad_output * b).sum(1), (grad_output * a.unsqueeze(1)).sum(0)


@right("right-scale-broadcast", "mul", draw((4, 3), (3,), (4, 1)), batch_dim=None)
class ScaleRowsAndColumns(Function):
    """x · s · r, with a number for each column and one for each row, each summed back to its own shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(x, s, r)
        return x * s * r

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        x, s, r = ctx.saved_tensors
        grads = grad_output * s * r, grad_output * x * r, grad_output * x * s
        return tuple(grad.sum_to_size(input.shape) for grad, input in zip(grads, (x, s, r), strict=True))
