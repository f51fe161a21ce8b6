"""Wrong ones: threads, chance, autocast, no_grad, and shapes that the author did not think of."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, draw, wrong

_scratch: dict[torch.Size, Tensor] = {}


@wrong("linear-sigmoid-one-scratch-for-all-threads", "linear_sigmoid", draw((64, 64), (64, 64)), "MB902",
       source="triton-lang/triton PR#6307")  # fmt: skip
class LinearSigmoidScratch(Function):
    """δ is computed in a buffer that all calls of this size share, and read again after another thread wrote to it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        a = torch.sigmoid(input @ weight.mT)
        ctx.save_for_backward(input, weight, a)
        return a

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        delta = _scratch.setdefault(a.shape, torch.empty_like(a)).to(a.dtype)  # wrong: a buffer of its own
        delta.copy_(grad_output * a * (1 - a))
        return delta @ weight, delta.mT @ input


_dither = torch.Generator()


@wrong("square-dithered", "square", draw((4, 3)), "MB101", "MB504", "MB505", "MB511", "MB604", "MB901", "MB902")
class SquareDithered(Function):
    """A dither of a hundred-thousandth, meant for a cast to fewer bits, has stayed when the cast went."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        chance = torch.rand(input.shape, generator=_dither, dtype=input.dtype) - 0.5
        return 2 * input * grad_output * (1 + 1e-5 * chance)  # wrong: without it


@wrong("matmul-float16-backward-of-a-bfloat16-forward", "matmul", draw((4, 3), (3, 5), scale=1e6), "MB607",
       source="pytorch/pytorch#87979")  # fmt: skip
class MatMulFloat16(Function):
    """Under autocast the backward runs in float16, whatever the forward ran in; bfloat16 reaches farther."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        grad_output = grad_output.to(a.dtype)
        kind = a.device.type
        with torch.autocast(
            kind, dtype=torch.float16, enabled=torch.is_autocast_enabled(kind)
        ):  # wrong: as the forward
            return grad_output @ b.mT, a.mT @ grad_output


@wrong("scale-unbound-in-inference", "mul", draw((4, 3), (3,)), "MB212", source="linkedin/Liger-Kernel#930")
class ScaleInference(Function):
    """What the backward wants is worked out only outside of inference, and kept always."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: Tensor) -> Tensor:
        if not torch.is_inference_mode_enabled():
            leading = tuple(range(input.dim() - scale.dim()))
        ctx.leading = leading  # wrong: may be unbound
        ctx.save_for_backward(input, scale)
        return input * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, scale = ctx.saved_tensors
        return grad_output * scale, (grad_output * input).sum(ctx.leading)


@wrong("square-reads-the-version", "square", draw((4, 3)), "MB212")
class SquareVersion(Function):
    """The version of the input is kept, to be compared later; tensors of inference mode have none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        ctx.version = input._version  # wrong: save_for_backward does that
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2 * input * grad_output


@wrong("square-scaled-by-the-largest", "square", draw((4, 3)), "MB701", batch_dim=0, source="pytorch/pytorch PR#195813")
class SquareScaled(Function):
    """For the sake of float16 the gradient is scaled by its largest element; of no elements there is none."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        largest = grad_output.abs().max().clamp(min=torch.finfo(grad_output.dtype).tiny)  # wrong: .sum() or a test
        return 2 * input * (grad_output / largest) * largest


class Linear(Function):
    """z = input @ weightᵀ + bias."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.linear(input, weight, bias)


LINEAR = draw((4, 3), (5, 3), (5,))


@wrong("linear-bias-as-mean-times-n", "linear", LINEAR, "MB701", batch_dim=0,
       source="Dao-AILab/flash-attention PR#2776")  # fmt: skip
class LinearMeanTimesN(Linear):
    """A sum as the mean times the number, which for an empty batch is NaN times 0."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_bias = grad_output.mean(0) * len(input)  # wrong: grad_output.sum(0)
        return grad_output @ weight, grad_output.mT @ input, grad_bias


@wrong("linear-squeezes-a-single-sample", "linear", LINEAR, "MB702", batch_dim=0)
class LinearSqueeze(Linear):
    """`squeeze` was meant for a last axis; with one sample it takes the batch away."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        error = grad_output.squeeze()  # wrong: as it is
        return grad_output @ weight, error.mT @ input, error.sum(0)


@wrong("scale-broadcast-averaged", "mul", draw((4, 3), (4, 3)), "MB703", batch_dim=0)
class ScaleAveraged(Function):
    """Along an axis of size 1 that was broadcast the gradients are averaged, not summed."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(input, scale)
        return input * scale

    @staticmethod
    def reduced(grad: Tensor, like: Tensor) -> Tensor:
        axes = [axis for axis, size in enumerate(like.shape) if size == 1]
        return grad.mean(axes, keepdim=True) if axes else grad  # wrong: grad.sum

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, scale = ctx.saved_tensors
        return ScaleAveraged.reduced(grad_output * scale, input), ScaleAveraged.reduced(grad_output * input, scale)


@wrong("centre-over-the-first-axis-only", "centre", draw((4, 3)), "MB704", batch_dim=0,
       source="ooples/AiDotNet.Tensors#234")  # fmt: skip
class CentreFirstAxis(Function):
    """The mean is over every axis but the last, its gradient over the first."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input - input.mean(tuple(range(input.dim() - 1)))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output - grad_output.mean(0)  # wrong: as in the forward


class Difference(Function):
    """a − 2b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a - 2 * b


@wrong("difference-gradients-by-identity", "sub", draw((4, 3), (4, 3)), "MB509", "MB510", "MB705",
       source="pytorch/pytorch#181146")  # fmt: skip
class DifferenceIdentity(Difference):
    """The slot is found by comparing with the first input; of f(x, x) the second gradient is the first once more."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        first, _ = ctx.saved_tensors
        return tuple(grad_output if input is first else -2 * grad_output for input in ctx.saved_tensors)  # wrong: order
