"""Right ones: indexing, sums, losses, and several outputs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, draw, leaf, right
from manual_backprop.zoo.losses import cross_entropy_derivative

ANY = draw((4, 3))


@right("right-gather-repeated-index", "gather", draw((2, 4), torch.tensor([[0, 0, 2], [1, 1, 1]])))
class Gather(Function):
    """An element that is gathered twice receives both gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = input.shape
        return input.gather(1, index)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return grad_output.new_zeros(ctx.shape).scatter_add(1, index, grad_output), None


@right("right-embedding", "embedding", draw(torch.tensor([0, 2, 2, 4]), (6, 3)))
class Embedding(Function):
    """The input that comes first is of integers and has no gradient."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = weight.shape
        return weight[index]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return None, grad_output.new_zeros(ctx.shape).index_add(0, index, grad_output)


@right("right-index-add", "index_add", draw((4, 3), torch.tensor([0, 2, 2]), (3, 3), 0.5))
class IndexAdd(Function):
    """Tensors that have a gradient stand between those that have none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, index: Tensor, source: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(index)
        ctx.alpha = alpha
        return input.index_add(0, index, source, alpha=alpha)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return grad_output, None, ctx.alpha * grad_output[index], None


@right("right-cumsum", "cumsum", ANY, batch_dim=0)
class Cumsum(Function):
    """Summed from the other end."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.cumsum(-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.flip(-1).cumsum(-1).flip(-1)


@right("right-sort-with-indices", "sort", draw((2, 5)), batch_dim=0)
class Sort(Function):
    """The second output is of integers and marked as not differentiable."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        output, index = input.sort(-1)
        ctx.save_for_backward(index)
        ctx.mark_non_differentiable(index)
        return output, index

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        return grad_output.gather(-1, index.argsort(-1))


@right("right-amax-ties-share", "amax", draw(leaf([1.0, 3.0, 3.0], [2.0, 0.0, -1.0])), batch_dim=0)
class Amax(Function):
    """Equal maxima share the gradient, as torch's amax has it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.amax(-1)
        ctx.save_for_backward(input, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        input, output = ctx.saved_tensors
        largest = (input == output.unsqueeze(-1)).to(input.dtype)
        return grad_output.unsqueeze(-1) * largest / largest.sum(-1, keepdim=True)


@right("right-float-rank-not-differentiable", "max", draw((4, 3)), batch_dim=0)
class MaxAndRank(Function):
    """The position of the maximum is a floating number, and marked as not differentiable."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        value, index = input.max(-1)
        position = index.to(input.dtype)
        ctx.save_for_backward(index)
        ctx.size = input.shape[-1]
        ctx.mark_non_differentiable(position)
        return value, position

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, _: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        return grad_value.unsqueeze(-1) * F.one_hot(index, ctx.size)


@right("right-sincos-none-for-unused", "sincos", ANY, batch_dim=0)
class SinCos(Function):
    """Outputs that nobody used have no gradient, rather than one of zeros."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input)
        ctx.set_materialize_grads(False)
        return input.sin(), input.cos()

    @staticmethod
    def backward(ctx: Any, grad_sin: Tensor | None, grad_cos: Tensor | None) -> Tensor | None:
        (input,) = ctx.saved_tensors
        from_sin = None if grad_sin is None else grad_sin * input.cos()
        from_cos = None if grad_cos is None else -grad_cos * input.sin()
        if from_sin is None or from_cos is None:
            return from_cos if from_sin is None else from_sin
        return from_sin + from_cos


@right("right-powers-shortcut-for-one-output", "powers", draw((4, 3)), batch_dim=0)
class Powers(Function):
    """A branch for the square alone, which gives what the other one would."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input)
        return input**2, input**3

    @staticmethod
    def backward(ctx: Any, grad_square: Tensor, grad_cube: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        if not grad_cube.any():
            return grad_square * 2 * input
        return grad_square * 2 * input + grad_cube * 3 * input**2


@right("right-centre-over-all-axes-but-the-last", "centre", draw((4, 3)), batch_dim=0)
class Centre(Function):
    """A mean over any number of leading axes, and over none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input - input.mean(tuple(range(input.dim() - 1)))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output - grad_output.mean(tuple(range(grad_output.dim() - 1)))


@right("right-moments-materialised", "var_mean", draw((4, 3)))
class Moments(Function):
    """Two outputs, of which an unused one has a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(input)
        return input.mean(0), input.var(0)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        n = len(input)
        return grad_mean / n + grad_variance * 2 * (input - input.mean(0)) / (n - 1)


@right("right-stack-of-a-nested-tuple", "stack", lambda: (draw((4,), (4,), (4,))(),))
def stack(parts: tuple[Tensor, ...]) -> Tensor:
    """`apply` looks into no tuples: the callable takes the nested one apart."""
    return Stack.apply(*parts)


class Stack(Function):
    """Any number of tensors, one upon the other."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return grad_output.unbind(0)


@right("right-clamp-with-an-optional-bound", "clamp", draw((4, 3), None, 0.5), batch_dim=0)
class Clamp(Function):
    """Either bound may be None."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, low: float | None, high: float | None) -> Tensor:
        ctx.save_for_backward(input)
        ctx.bounds = low, high
        return input.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (input,) = ctx.saved_tensors
        low, high = ctx.bounds
        inside = torch.ones_like(input, dtype=torch.bool)
        inside = inside if low is None else inside & (input >= low)
        inside = inside if high is None else inside & (input <= high)
        return grad_output * inside, None, None


@right("right-mean-with-a-flag", "mean", draw((4, 3), True))
class Mean(Function):
    """A flag decides about the shape of the output."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, keepdim: bool) -> Tensor:
        ctx.shape, ctx.keepdim = input.shape, keepdim
        return input.mean(-1, keepdim=keepdim)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        grad = grad_output if ctx.keepdim else grad_output.unsqueeze(-1)
        return grad.expand(ctx.shape) / ctx.shape[-1], None


@right("right-cross-entropy-ignore-index", "softmax_cross_entropy", draw((5, 3), torch.tensor([2, 0, -100, 1, 2])))
class CrossEntropy(Function):
    """Rows whose target is −100 have no gradient and do not count."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return F.cross_entropy(logits, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        logits, target = ctx.saved_tensors
        return grad_output * cross_entropy_derivative(logits, target) / (target >= 0).sum(), None


@right("right-cross-entropy-of-each-row", "softmax_cross_entropy", draw((5, 3), torch.tensor([2, 0, 1, 1, 2])))
class CrossEntropyRows(Function):
    """A loss for each row, each with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return F.cross_entropy(logits, target, reduction="none")

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        logits, target = ctx.saved_tensors
        return grad_output.unsqueeze(-1) * cross_entropy_derivative(logits, target), None


@right("right-softmax-saves-its-output", "softmax", ANY, batch_dim=0)
class Softmax(Function):
    """The output is saved, through which a second derivative finds its way."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.softmax(-1)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (softmax,) = ctx.saved_tensors
        return softmax * (grad_output - (grad_output * softmax).sum(-1, keepdim=True))


@right("right-logsumexp", "logsumexp", ANY, batch_dim=0)
class LogSumExp(Function):
    """softmax subtracts the maximum by itself."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output.unsqueeze(-1) * input.softmax(-1)


@right("right-mse", "mse", draw((4, 3), (4, 3)))
class MeanSquaredError(Function):
    """The mean over all elements, of whichever input asks for it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        return (input - target).square().mean()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, target = ctx.saved_tensors
        grad_input = grad_output * 2 * (input - target) / max(input.numel(), 1)
        needed = ctx.needs_input_grad
        return grad_input if needed[0] else None, -grad_input if needed[1] else None
