"""Wrong ones: convolutions and pooling."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_input, conv2d_weight

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, leaf, wrong


@wrong("conv1d-kernel-not-flipped", "conv1d", draw((2, 3, 6), (3, 3, 3)), *EVERYWHERE)
class Conv1d(Function):
    """The gradient of the input is a convolution with the kernel flipped, and in and out exchanged."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.conv1d(input, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_input = F.conv1d(grad_output, weight, padding=1)  # wrong: weight.flip(-1).transpose(0, 1)
        return grad_input, conv1d_weight(input, weight.shape, grad_output, padding=1)


@wrong("conv1d-stride-leaves-a-rest", "conv1d", draw((2, 3, 8), (4, 3, 3)), *EVERYWHERE)
class Conv1dStride(Function):
    """With stride 2 the last column is not reached, and the zero that stands for it is put in front."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.conv1d(input, weight, stride=2)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        grad_input = F.conv_transpose1d(grad_output, weight, stride=2)
        grad_input = F.pad(grad_input, (input.shape[-1] - grad_input.shape[-1], 0))  # wrong: (0, …)
        return grad_input, conv1d_weight(input, weight.shape, grad_output, stride=2)


@wrong("conv1d-causal-last-columns-lost", "conv1d", draw((2, 3, 6), (3, 4)), *EVERYWHERE,
       source="fla-org/flash-linear-attention#1140")  # fmt: skip
class CausalConv1d(Function):
    """The padding is cut off at the end, where it was put in at the beginning."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        width = weight.shape[-1] - 1
        return F.conv1d(F.pad(input, (width, 0)), weight.unsqueeze(1), groups=len(weight))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        width, length = weight.shape[-1] - 1, input.shape[-1]
        padded = F.pad(input, (width, 0))
        grad_padded = F.conv_transpose1d(grad_output, weight.unsqueeze(1), groups=len(weight))
        taps = [(grad_output * padded[..., tap : tap + length]).sum((0, 2)) for tap in range(width + 1)]
        return grad_padded[..., :length], torch.stack(taps, -1)  # wrong: [..., width:]


class Conv2d(Function):
    """The convolution of ``(N, C, H, W)`` with a bias for each channel."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.conv2d(input, weight, bias, padding=1)

    @staticmethod
    def grads(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        return (
            conv2d_input(input.shape, weight, grad_output, padding=1),
            conv2d_weight(input, weight.shape, grad_output, padding=1),
        )


IMAGES = draw((2, 2, 3, 3), (3, 2, 3, 3), (3,))


@wrong("conv2d-bias-keeps-the-columns", "conv2d", IMAGES, *EVERYWHERE)
class Conv2dBias(Conv2d):
    """The bias is summed over samples and rows but not over columns, as many as there are channels."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return *Conv2d.grads(ctx, grad_output), grad_output.sum((0, 1, 2))  # wrong: (0, 2, 3)


@wrong("conv2d-bias-reads-as-nchw", "conv2d", IMAGES, "MB401", "MB402", "MB404", "MB405",
       source="Dao-AILab/flash-attention#355")  # fmt: skip
class Conv2dChannelsLast(Conv2d):
    """The sum over the channels walks through memory as if it were always laid out N, C, H, W."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        n, c, h, w = grad_output.shape
        planes = grad_output.as_strided((n, c, h * w), (c * h * w, h * w, 1))  # wrong: grad_output.contiguous()
        return *Conv2d.grads(ctx, grad_output), planes.sum((0, 2))


@wrong("avg-pool-not-divided", "avg_pool1d", draw((2, 3, 6)), *EVERYWHERE)
class AvgPool1d(Function):
    """Each of a window's inputs has the share 1/size of its mean."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, 2)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.repeat_interleave(2, -1)  # wrong: / 2


@wrong("max-pool-overlap-overwritten", "max_pool1d", draw((2, 3, 7)), *EVERYWHERE, "MB801")
class MaxPool1d(Function):
    """Where windows overlap one input may be the maximum of two, and the second overwrites the first."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output, index = F.max_pool1d(input, 3, stride=1, return_indices=True)
        ctx.save_for_backward(index)
        ctx.length = input.shape[-1]
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (index,) = ctx.saved_tensors
        zeros = grad_output.new_zeros(*grad_output.shape[:-1], ctx.length)
        return zeros.scatter(-1, index, grad_output)  # wrong: scatter_add


@wrong("amax-ties-count-twice", "amax", draw(leaf([1.0, 3.0, 3.0], [2.0, 0.0, -1.0])), "MB105")
class Amax(Function):
    """Of two equal maxima each gets the whole gradient, so that raising both together counts double."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.amax(-1)
        ctx.save_for_backward(input, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        input, output = ctx.saved_tensors
        return grad_output.unsqueeze(-1) * (input == output.unsqueeze(-1))  # wrong: divided by their number
