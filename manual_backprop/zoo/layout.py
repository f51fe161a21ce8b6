"""Wrong ones: memory read as if it were laid out as the author's own tests lay it out.

`as_strided` and the raw storage stand for what a kernel in CUDA, Triton or C does with a pointer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, draw, wrong

ANY = draw((4, 3))


class RowScale(Function):
    """Each row of the input times a number."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(input, scale)
        return input * scale.unsqueeze(1)


@wrong("row-scale-rows-follow-each-other", "row_scale", draw((4, 3), (4,)), "MB401", "MB402", "MB404",
       source="fla-org/flash-linear-attention PR#871")  # fmt: skip
class RowScaleStrides(RowScale):
    """The rows of the incoming gradient are taken to follow each other in memory without a gap."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, scale = ctx.saved_tensors
        rows, columns = grad_output.shape
        packed = grad_output.as_strided((rows, columns), (columns, 1))  # wrong: grad_output.contiguous()
        return packed * scale.unsqueeze(1), (packed * input).sum(1)


@wrong("row-scale-saved-input-packed", "row_scale", draw((4, 3), (4,)), "MB401", "MB402", "MB404",
       source="pytorch/pytorch#197888")  # fmt: skip
class RowScaleSavedStrides(RowScale):
    """The incoming gradient is made contiguous, the saved input is not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, scale = ctx.saved_tensors
        packed = input.as_strided(input.shape, (input.shape[1], 1))  # wrong: input.contiguous()
        return grad_output * scale.unsqueeze(1), (grad_output.contiguous() * packed).sum(1)


@wrong("row-scale-only-the-last-stride-checked", "row_scale", draw((4, 3), (4,)), "MB404",
       source="ROCm/TransformerEngine PR#623")  # fmt: skip
class RowScaleLastStride(RowScale):
    """A last stride of 1 is taken for contiguous; a slice of a larger tensor has one too."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, scale = ctx.saved_tensors
        if grad_output.stride(-1) != 1:  # wrong: not grad_output.is_contiguous()
            grad_output = grad_output.contiguous()
        packed = grad_output.as_strided(grad_output.shape, (grad_output.shape[1], 1))
        return packed * scale.unsqueeze(1), (packed * input).sum(1)


class Double(Function):
    """2 · input."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input * 2


@wrong("double-storage-from-the-start", "double", ANY, "MB402", "MB403", "MB404")
class DoubleOffset(Double):
    """The strides are heeded, the offset into the storage is not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        start = grad_output.as_strided(grad_output.shape, grad_output.stride(), 0)  # wrong: storage_offset()
        return start * 2


@wrong("double-contiguous-from-the-start", "double", ANY, "MB403")
class DoubleFromStart(Double):
    """A contiguous tensor is taken to begin where its storage does; one that was cut out of a flat buffer does not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if not grad_output.is_contiguous():
            return grad_output * 2
        return grad_output.as_strided(grad_output.shape, grad_output.stride(), 0) * 2  # wrong: storage_offset()


@wrong("double-dense-is-contiguous", "double", ANY, "MB401", source="Dao-AILab/flash-attention#355")
class DoubleDense(Double):
    """Memory without gaps and overlaps is read in its order, which is another one for a transposed tensor."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if not torch.ops.aten.is_non_overlapping_and_dense(grad_output):  # wrong: grad_output.is_contiguous()
            grad_output = grad_output.contiguous()
        return grad_output.as_strided(grad_output.shape, (grad_output.shape[1], 1)) * 2


@wrong("double-leading-dimension", "double", ANY, "MB402", source="open-mmlab/mmcv PR#737")
class DoubleLeadingDimension(Double):
    """As for BLAS the rows may lie apart; of transposes and of .sum() the author thought, not of every other column."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if grad_output.mT.is_contiguous() or 0 in grad_output.stride():  # wrong: grad_output.stride(1) != 1
            grad_output = grad_output.contiguous()
        return grad_output.as_strided(grad_output.shape, (grad_output.stride(0), 1)) * 2


@wrong("double-channels-last-let-through", "double", draw((2, 3, 4, 5)), "MB405", source="NVIDIA/apex PR#1601")
class DoubleChannelsLast(Double):
    """Both memory formats of images are let through, and one is read."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if not grad_output.is_contiguous(memory_format=torch.channels_last):  # wrong: without a memory_format
            grad_output = grad_output.contiguous()
        _, c, h, w = grad_output.shape
        return grad_output.as_strided(grad_output.shape, (c * h * w, h * w, w, 1)) * 2


@wrong("double-storage-bits", "double", ANY, "MB406", "MB801", source="pytorch/pytorch#194719")
class DoubleBits(Double):
    """Sizes, strides and offset are heeded; that a view may be negative by a mere flag is not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        storage = grad_output.detach().untyped_storage()  # wrong: of grad_output.resolve_neg()
        raw = torch.empty(0, dtype=grad_output.dtype, device=grad_output.device)
        return raw.set_(storage, grad_output.storage_offset(), grad_output.shape, grad_output.stride()) * 2


@wrong("double-stride-zero-is-a-constant", "double", ANY, "MB404")
class DoubleExpanded(Double):
    """A stride of 0 means that it came from .sum(), and that one number stands for all; or from .sum(0), and not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if 0 in grad_output.stride():
            return torch.full_like(grad_output, 2 * grad_output.flatten()[0].item())  # wrong: only if all are 0
        return grad_output * 2


@wrong("double-view-of-what-is-not-contiguous", "double", ANY, "MB401", "MB402", "MB404",
       source="open-mmlab/mmcv PR#737")  # fmt: skip
class DoubleView(Double):
    """`view` raises where the incoming gradient is transposed."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return (grad_output.view(-1) * 2).view(grad_output.shape)  # wrong: reshape


@wrong("complex-scale-real-view-of-a-conjugate", "complex_mul", draw((4, 3), 2.0, dtype=torch.complex128), "MB406")
class ComplexScale(Function):
    """`view_as_real` raises for a tensor that is conjugate by a flag, as behind every .conj()."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, number: float) -> Tensor:
        ctx.number = number
        return z * number

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        parts = torch.view_as_real(grad_output) * ctx.number  # wrong: grad_output.resolve_conj()
        return torch.view_as_complex(parts), None


@wrong("mask-read-in-the-order-of-memory", "masked_fill", draw((4, 4)), "MB401", "MB402", "MB404")
class CausalFill(Function):
    """The mask is built for a flat buffer, and the input flattened in the order in which it lies in memory."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.strides = input.stride()
        return input.tril()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        mask = torch.ones_like(grad_output).tril().contiguous()
        return grad_output * mask.as_strided(grad_output.shape, ctx.strides)  # wrong: mask


@wrong("global-pool-images-packed", "global_avg_pool", draw((2, 3, 4, 5)), "MB401", "MB402", "MB404", "MB405",
       source="NVIDIA/apex PR#1601")  # fmt: skip
class GlobalPoolGain(Function):
    """The mean of each channel's squares; the saved images are read as N, C, H, W whatever their memory format."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return F.adaptive_avg_pool2d(input**2, 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        n, c, h, w = input.shape
        packed = input.as_strided((n, c, h, w), (c * h * w, h * w, w, 1))  # wrong: input.contiguous()
        return grad_output * 2 * packed / (h * w)
