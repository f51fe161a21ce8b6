"""Wrong ones: gathering, scattering, sorting, and sums along an axis."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, leaf, wrong

REPEATED = torch.tensor([[0, 0, 2], [1, 1, 1]])


@wrong("gather-repeated-index-overwritten", "gather", draw((2, 4), REPEATED), *EVERYWHERE, "MB801")
class Gather(Function):
    """An element that is gathered twice keeps only one of its gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = input.shape
        return input.gather(1, index)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return grad_output.new_zeros(ctx.shape).scatter(1, index, grad_output), None  # wrong: scatter_add


@wrong("scatter-overwritten-keeps-its-gradient", "scatter", draw((2, 4), torch.tensor([[0, 2], [3, 1]]), (2, 2)),
       *EVERYWHERE)  # fmt: skip
class Scatter(Function):
    """What is overwritten in the forward has no gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, index: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return input.scatter(1, index, source)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return grad_output, None, grad_output.gather(1, index)  # wrong: grad_output.scatter(1, index, 0)


class Embedding(Function):
    """weight[index]."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = weight.shape
        return weight[index]


INDEX = torch.tensor([0, 2, 2, 4])


@wrong("embedding-repeated-word-counts-once", "embedding", draw(INDEX, (6, 3)), *EVERYWHERE, "MB801")
class EmbeddingOnce(Embedding):
    """``grad[index] += …`` adds only one of the gradients of a word that occurs twice."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        grad_weight = grad_output.new_zeros(ctx.shape)
        grad_weight[index] += grad_output  # wrong: index_add_
        return None, grad_weight


@wrong("index-add-alpha-forgotten", "index_add", draw((4, 3), torch.tensor([0, 2, 2]), (3, 3), 0.5), *EVERYWHERE)
class IndexAdd(Function):
    """The source enters with the factor alpha."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, index: Tensor, source: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(index)
        return input.index_add(0, index, source, alpha=alpha)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return grad_output, None, grad_output[index], None  # wrong: alpha * grad_output[index]


@wrong("cumsum-not-reversed", "cumsum", draw((2, 4)), *EVERYWHERE)
class Cumsum(Function):
    """The gradient of a sum from the left is a sum from the right."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.cumsum(-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.cumsum(-1)  # wrong: flipped before and after


@wrong("cumsum-stops-where-nothing-comes-in", "cumsum", draw((2, 4)), "MB306")
class CumsumStops(Function):
    """No gradient at the last step is taken for no gradient at all, as when only the last state is used."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.cumsum(-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if not grad_output[..., -1].any():  # wrong: earlier steps have one
            return torch.zeros_like(grad_output)
        return grad_output.flip(-1).cumsum(-1).flip(-1)


@wrong("prod-divides-by-zero", "prod", draw(leaf([1.5, 0.0, -2.0], [0.5, 3.0, 1.0])), "MB206", "MB210", "MB605")
class Prod(Function):
    """The product of the others is the product of all divided by one, unless that is zero."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.prod(-1)
        ctx.save_for_backward(input, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        input, output = ctx.saved_tensors
        return (grad_output * output).unsqueeze(-1) / input  # wrong: where input is 0


@wrong("sort-same-permutation-back", "sort", draw((2, 5)), *EVERYWHERE)
class Sort(Function):
    """The gradient is permuted as the values were, not back."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output, index = input.sort(-1)
        ctx.save_for_backward(index)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        return grad_output.gather(-1, index)  # wrong: gather(-1, index.argsort(-1))


@wrong("diff-shifted-by-one", "diff", draw((2, 5)), *EVERYWHERE)
class Diff(Function):
    """Of y_i = x_{i+1} − x_i the padding stands on the wrong sides."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.diff(dim=-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        zero = torch.zeros_like(grad_output[..., :1])
        return torch.cat((grad_output, zero), -1) - torch.cat((zero, grad_output), -1)  # wrong: the other way round


@wrong("roll-same-direction", "roll", draw((2, 5), 2), *EVERYWHERE)
class Roll(Function):
    """What was rolled right is rolled right again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, shift: int) -> Tensor:
        ctx.shift = shift
        return input.roll(shift, -1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return grad_output.roll(ctx.shift, -1), None  # wrong: -ctx.shift


@wrong("pad-circular-border-lost", "pad", draw((2, 5)), *EVERYWHERE)
class PadCircular(Function):
    """What comes in at the border belongs to the elements that were copied there."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return torch.cat((input[..., -1:], input, input[..., :1]), -1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output[..., 1:-1]  # wrong: plus the two at the border


@wrong("where-branches-exchanged", "where", draw(torch.tensor([True, False, True]), (3,), (3,)), *EVERYWHERE)
class Where(Function):
    """The condition is negated for the wrong branch."""

    @staticmethod
    def forward(ctx: Any, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(condition)
        return torch.where(condition, a, b)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (condition,) = ctx.saved_tensors
        return None, grad_output * ~condition, grad_output * condition  # wrong: the other way round
