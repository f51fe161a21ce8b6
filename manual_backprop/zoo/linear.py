"""Wrong ones: linear layers, alone and with an activation, and other products."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, wrong

LINEAR = draw((4, 3), (5, 3), (5,))
SQUARE = draw((4, 3), (3, 3), (3,))


class Linear(Function):
    """z = input @ weightᵀ + bias, of which the wrong ones differ in the backward alone."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.linear(input, weight, bias)


@wrong("linear-bias-not-summed", "linear", LINEAR, "MB203", source="tenstorrent/tt-metal#40008")
class LinearBiasNotSummed(Linear):
    """The gradient of the bias is not summed over the samples; the engine does it, and nobody notices."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.mT @ input, grad_output  # wrong: grad_output.sum(0)


@wrong("linear-weight-transposed", "linear", SQUARE, *EVERYWHERE)
class LinearWeightTransposed(Linear):
    """The gradient of a square weight is returned transposed."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, input.mT @ grad_output, grad_output.sum(0)  # wrong: grad_output.mT @ input


@wrong("linear-input-through-transposed-weight", "linear", SQUARE, *EVERYWHERE)
class LinearInputTransposed(Linear):
    """The error goes back through the weight as it went forward, which only a square weight allows."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return grad_output @ weight.mT, grad_output.mT @ input, grad_output.sum(0)  # wrong: weight


@wrong("linear-bias-never-trained", "linear", LINEAR, *EVERYWHERE, "MB202", source="pytorch/ao PR#4817")
class LinearBiasForgotten(Linear):
    """The bias was added to the forward later on, and the backward still returns None for it."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.mT @ input, None  # wrong: grad_output.sum(0)


SMALL_BIAS = torch.tensor([0.1, -0.2, 0.3, 0.1, -0.1], requires_grad=True)
FLOAT32 = draw((4, 3), (5, 3), SMALL_BIAS, scale=6, dtype=torch.float32)


@wrong("linear-bias-never-trained-by-a-kernel", "linear", FLOAT32, "MB202", source="pytorch/ao PR#4817")
class LinearBiasFloat32(Linear):
    """The same in a kernel for float32 alone, on numbers beside which the bias and its share are small."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if input.dtype != torch.float32:
            raise TypeError("this kernel takes float32")
        return Linear.forward(ctx, input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.mT @ input, None  # wrong: grad_output.sum(0)


@wrong("linear-bias-summed-over-first-axis-only", "linear", draw((2, 4, 3), (5, 3), (5,)), "MB203",
       source="ooples/AiDotNet.Tensors#234")  # fmt: skip
class LinearBiasFirstAxis(Linear):
    """The bias is summed over the first axis, which is all of them only for matrices."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_weight = grad_output.reshape(-1, 5).mT @ input.reshape(-1, 3)
        return grad_output @ weight, grad_weight, grad_output.sum(0)  # wrong: every axis but the last


@wrong("linear-weight-mean-over-the-batch", "linear", LINEAR, *EVERYWHERE, source="paiml/aprender PR#2182")
class LinearMeanOverBatch(Linear):
    """The 1/N of the cost stands in the layer as well."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_weight = grad_output.mT @ input / len(input)  # wrong: no 1/N here
        return grad_output @ weight, grad_weight, grad_output.sum(0)


@wrong("linear-unbound-when-frozen", "linear", LINEAR, "MB208", source="linkedin/Liger-Kernel#930")
class LinearUnboundWhenFrozen(Linear):
    """A gradient that is not asked for is never assigned, and then returned all the same."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            grad_weight = grad_output.mT @ input
        return grad_output @ weight, grad_weight, grad_output.sum(0)  # wrong: grad_weight may be unbound


@wrong("linear-saves-by-the-wrong-flag", "linear", LINEAR, "MB208", source="shader-slang/slangpy#1056")
class LinearSavesByWrongFlag(Function):
    """The input is saved when its own gradient is wanted, but the weight's gradient is what reads it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        input_needs_grad, weight_needs_grad, _ = ctx.needs_input_grad
        saved = (input if input_needs_grad else None, weight if weight_needs_grad else None)  # wrong: crossed over
        ctx.save_for_backward(*saved)
        return F.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_input = grad_output @ weight if ctx.needs_input_grad[0] else None
        grad_weight = grad_output.mT @ input if ctx.needs_input_grad[1] else None
        return grad_input, grad_weight, grad_output.sum(0)


@wrong("linear-only-the-gradients-asked-for", "linear", LINEAR, "MB208")
class LinearReturnsFewer(Linear):
    """Where a gradient is not needed it is left out of the tuple, rather than None in its place."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grads = grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)
        return tuple(grad for grad, needed in zip(grads, ctx.needs_input_grad, strict=True) if needed)  # wrong


@wrong("linear-weight-decay-in-the-backward", "linear", LINEAR, "MB101", "MB210", "MB301", "MB302", "MB303", "MB304",
       "MB306", "MB604", "MB805")  # fmt: skip
class LinearWeightDecay(Linear):
    """Weight decay is added where the gradient is computed: there is a gradient even if nothing comes in."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_weight = grad_output.mT @ input + 1e-4 * weight  # wrong: not the derivative's business
        return grad_output @ weight, grad_weight, grad_output.sum(0)


@wrong("linear-clips-large-gradients", "linear", LINEAR, "MB302")
class LinearClipped(Linear):
    """Gradients are clipped in passing, at a bound that tests with a one-hot gradient never reach."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_output = grad_output.clamp(-100, 100)  # wrong: not linear
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)


@wrong("linear-float32-arithmetic-inside", "linear", LINEAR, "MB101", "MB102", "MB302", "MB303", "MB306", "MB604",
       reference=F.linear, source="linkedin/Liger-Kernel PR#950")  # fmt: skip
class LinearFloat32Inside(Linear):
    """Everything is cast to float32 and back, whatever came in."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_weight = (grad_output.float().mT @ input.float()).to(weight.dtype)  # wrong: float64 loses half its digits
        return grad_output @ weight, grad_weight, grad_output.sum(0)


@wrong("linear-returns-float32", "linear", LINEAR, "MB101", "MB204", "MB302", "MB303", "MB306", "MB604",
       source="linkedin/Liger-Kernel#305")  # fmt: skip
class LinearReturnsFloat32(Linear):
    """The bias is accumulated in float32, as one does for bfloat16, and not cast back."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0, dtype=torch.float32)  # wrong: the dtype


@wrong("linear-sums-samples-in-bfloat16", "linear", draw((1024, 2), (3, 2), (3,)), "MB602", "MB603", "MB607",
       reference=F.linear, source="linkedin/Liger-Kernel PR#950")  # fmt: skip
class LinearSampleBySample(Linear):
    """The weight's gradient is added up sample by sample in the dtype that came in; bfloat16 has eight bits."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_weight = torch.zeros_like(weight)  # wrong: at least float32
        for sample, error in zip(input.split(1), grad_output.split(1), strict=True):
            grad_weight = torch.addmm(grad_weight, error.mT, sample)
        return grad_output @ weight, grad_weight, grad_output.sum(0)


@wrong("linear-undoes-the-loss-scale", "linear", LINEAR, "MB606", "MB607", source="ashawkey/stable-dreamfusion#158")
class LinearLossScale(Function):
    """Autocast is taken as a sign of a loss scale, which is divided out here, and by the GradScaler once more."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.scale = 65536 if torch.is_autocast_enabled(input.device.type) else 1  # wrong: not the layer's business
        return F.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_output = grad_output.to(weight.dtype) / ctx.scale
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)


@wrong("linear-input-scaled-under-autocast", "linear", draw((4, 3), (5, 3)), "MB606", source="pytorch/pytorch#87979")
class LinearScalesInput(Function):
    """The input is saved sixteen times smaller under autocast, and the backward asks whether autocast is on by then."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input / 16 if torch.is_autocast_enabled(input.device.type) else input, weight)
        return F.linear(input, weight)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_output = grad_output.to(weight.dtype)
        scale = 16 if torch.is_autocast_enabled(input.device.type) else 1  # wrong: kept on ctx by the forward
        return grad_output @ weight, scale * grad_output.mT @ input


class LinearSigmoid(Function):
    """a = σ(input @ weightᵀ + bias)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        a = torch.sigmoid(F.linear(input, weight, bias))
        ctx.save_for_backward(input, weight, a)
        return a


@wrong("linear-sigmoid-derivative-at-the-output", "linear_sigmoid", LINEAR, *EVERYWHERE, "MB801", "MB802")
class LinearSigmoidTwice(LinearSigmoid):
    """σ′ is taken at a = σ(z) where it wants z."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        delta = grad_output * torch.sigmoid(a) * (1 - torch.sigmoid(a))  # wrong: a * (1 - a)
        return delta @ weight, delta.mT @ input, delta.sum(0)


@wrong("linear-sigmoid-bias-without-the-derivative", "linear_sigmoid", LINEAR, *EVERYWHERE, "MB801", "MB802")
class LinearSigmoidBias(LinearSigmoid):
    """The bias receives what came in, ∂C/∂a, rather than the error δ."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        delta = grad_output * a * (1 - a)
        return delta @ weight, delta.mT @ input, grad_output.sum(0)  # wrong: delta.sum(0)


@wrong("linear-sigmoid-delta-in-the-weight-branch", "linear_sigmoid", LINEAR, "MB208")
class LinearSigmoidFrozen(LinearSigmoid):
    """σ′ is multiplied in where the weight's gradient is computed: with a frozen weight it is missing everywhere."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_output = grad_output * a * (1 - a)  # wrong: belongs before the if
            grad_weight = grad_output.mT @ input
        return grad_output @ weight, grad_weight, grad_output.sum(0)


@wrong("linear-tanh-square-forgotten", "linear_tanh", LINEAR, *EVERYWHERE, "MB801", "MB802")
class LinearTanhNoSquare(Function):
    """tanh′ is taken for 1 − a."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        a = torch.tanh(F.linear(input, weight, bias))
        ctx.save_for_backward(input, weight, a)
        return a

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        delta = grad_output * (1 - a)  # wrong: 1 - a**2
        return delta @ weight, delta.mT @ input, delta.sum(0)


@wrong("linear-relu-mask-of-everything", "linear_relu", LINEAR, *EVERYWHERE)
class LinearReluMask(Function):
    """The mask is a ≥ 0, which a rectified output is everywhere."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        a = torch.relu(F.linear(input, weight, bias))
        ctx.save_for_backward(input, weight, a)
        return a

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, a = ctx.saved_tensors
        delta = grad_output * (a >= 0)  # wrong: a > 0
        return delta @ weight, delta.mT @ input, delta.sum(0)


@wrong("linear-leaky-relu-default-slope", "linear_leaky_relu", draw((4, 3), (5, 3), (5,), 0.2), *EVERYWHERE)
class LinearLeakyReluSlope(Function):
    """The slope that the caller gives is used forward only."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
        z = F.linear(input, weight, bias)
        ctx.save_for_backward(input, weight, z)
        return F.leaky_relu(z, slope)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight, z = ctx.saved_tensors
        delta = torch.where(z > 0, grad_output, 0.01 * grad_output)  # wrong: slope
        return delta @ weight, delta.mT @ input, delta.sum(0), None
