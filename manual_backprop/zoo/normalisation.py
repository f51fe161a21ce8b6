"""Wrong ones: normalisations and dropout."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, leaf, wrong

EPS = 1e-5
ROWS = draw((5, 4), (4,), (4,))


def layer_norm(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(input, weight.shape, weight, bias, EPS)


class LayerNorm(Function):
    """y = x̂ · weight + bias, with x̂ = (input − mean)/√(variance + ε) over the last axis."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return layer_norm(input, weight, bias)

    @staticmethod
    def standardised(input: Tensor) -> tuple[Tensor, Tensor]:
        """x̂ and 1/√(variance + ε)."""
        rstd = (input.var(-1, correction=0, keepdim=True) + EPS).rsqrt()
        return (input - input.mean(-1, keepdim=True)) * rstd, rstd

    @staticmethod
    def grad_input(error: Tensor, normal: Tensor, rstd: Tensor) -> Tensor:
        """Of a row, with error = ∂C/∂x̂."""
        return rstd * (error - error.mean(-1, keepdim=True) - normal * (error * normal).mean(-1, keepdim=True))


@wrong("layer-norm-variance-constant", "layer_norm", ROWS, *EVERYWHERE, source="Dao-AILab/quack PR#53")
class LayerNormVarianceConstant(LayerNorm):
    """The mean's share of the gradient is there, the variance's is not."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        normal, rstd = LayerNorm.standardised(input)
        error = grad_output * weight
        grad_input = rstd * (error - error.mean(-1, keepdim=True))  # wrong: a third term
        return grad_input, (grad_output * normal).sum(0), grad_output.sum(0)


@wrong("layer-norm-weight-from-the-raw-input", "layer_norm", ROWS, *EVERYWHERE)
class LayerNormRawInput(LayerNorm):
    """The weight multiplies x̂; its gradient is taken with x."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        normal, rstd = LayerNorm.standardised(input)
        grad_input = LayerNorm.grad_input(grad_output * weight, normal, rstd)
        return grad_input, (grad_output * input).sum(0), grad_output.sum(0)  # wrong: normal


@wrong("layer-norm-weight-not-summed", "layer_norm", ROWS, "MB203", source="tenstorrent/tt-metal#40008")
class LayerNormNotSummed(LayerNorm):
    """Weight and bias get a gradient for every row."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        normal, rstd = LayerNorm.standardised(input)
        return (
            LayerNorm.grad_input(grad_output * weight, normal, rstd),
            grad_output * normal,
            grad_output,
        )  # wrong: sums


@wrong("layer-norm-epsilon-forgotten", "layer_norm", draw((5, 4), (4,), (4,), scale=0.01), *EVERYWHERE)
class LayerNormEpsilon(LayerNorm):
    """ε is in the forward only, which shows where the variance is small."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        rstd = input.var(-1, correction=0, keepdim=True).rsqrt()  # wrong: + EPS
        normal = (input - input.mean(-1, keepdim=True)) * rstd
        return (
            LayerNorm.grad_input(grad_output * weight, normal, rstd),
            (grad_output * normal).sum(0),
            grad_output.sum(0),
        )


@wrong("layer-norm-unbiased-variance", "layer_norm", ROWS, *EVERYWHERE)
class LayerNormUnbiased(LayerNorm):
    """`Tensor.var` divides by n − 1, layer norm by n."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        rstd = (input.var(-1, keepdim=True) + EPS).rsqrt()  # wrong: correction=0
        normal = (input - input.mean(-1, keepdim=True)) * rstd
        return (
            LayerNorm.grad_input(grad_output * weight, normal, rstd),
            (grad_output * normal).sum(0),
            grad_output.sum(0),
        )


class LayerNormCancels(LayerNorm):
    """E[x²] − E[x]² loses every digit where the mean is large beside the deviation."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        mean = input.mean(-1, keepdim=True)
        variance = (input**2).mean(-1, keepdim=True) - mean**2  # wrong: ((input - mean) ** 2).mean
        rstd = (variance.clamp(min=0) + EPS).rsqrt()
        normal = (input - mean) * rstd
        return (
            LayerNorm.grad_input(grad_output * weight, normal, rstd),
            (grad_output * normal).sum(0),
            grad_output.sum(0),
        )


CANCELS = (("float32", ("MB601", "MB603", "MB606", "MB607"), 2000), ("bfloat16", ("MB601", "MB602", "MB603"), 20))

for name, codes, mean in CANCELS:
    inputs = draw((5, 4), (4,), (4,), shift=mean)
    wrong(f"layer-norm-variance-cancels-in-{name}", "layer_norm", inputs, *codes, reference=layer_norm)(
        LayerNormCancels
    )


def rms_norm(input: Tensor) -> Tensor:
    return F.rms_norm(input, input.shape[-1:], eps=EPS)


class RMSNorm(Function):
    """input / √(mean of squares + ε) over the last axis."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return rms_norm(input)


@wrong("rms-norm-second-term-missing", "rms_norm", draw((5, 4)), *EVERYWHERE, source="Dao-AILab/quack PR#53")
class RMSNormConstant(RMSNorm):
    """The norm is taken for a constant."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * (input.square().mean(-1, keepdim=True) + EPS).rsqrt()  # wrong: a second term


@wrong("rms-norm-squares-in-half", "rms_norm", draw((5, 4), scale=400), "MB603", reference=rms_norm,
       source="fastino-ai/GLiNER2 PR#155")  # fmt: skip
class RMSNormHalf(RMSNorm):
    """Squares of a few hundred overflow in float16; the forward computes them in float32."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        rstd = (input.square().mean(-1, keepdim=True) + EPS).rsqrt()  # wrong: input.float()
        normal = input * rstd
        return rstd * (grad_output - normal * (grad_output * normal).mean(-1, keepdim=True))


def normalize(input: Tensor) -> Tensor:
    return F.normalize(input, dim=-1, eps=0.1)


class Normalize(Function):
    """input / ‖input‖ over the last axis."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return normalize(input)


@wrong("normalize-projection-missing", "normalize", draw((5, 4)), *EVERYWHERE)
class NormalizeProjection(Normalize):
    """The gradient has no share along the vector; here nothing takes it away."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output / input.norm(dim=-1, keepdim=True)  # wrong: less the projection on input


@wrong("normalize-zero-row", "normalize", draw(leaf([3.0, 4.0], [0.0, 0.0])), "MB206", "MB210", "MB605")
class NormalizeZero(Normalize):
    """A row of zeros is divided by its norm, which the forward keeps away from zero."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        norm = input.norm(dim=-1, keepdim=True)  # wrong: clamp_min(0.1)
        unit = input / norm
        return (grad_output - unit * (unit * grad_output).sum(-1, keepdim=True)) / norm


@wrong("batch-norm-statistics-constant", "batch_norm", draw((6, 3)), *EVERYWHERE)
class BatchNorm(Function):
    """In training the mean and the variance depend on the batch; this is the gradient of evaluation."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return F.batch_norm(input, None, None, training=True, eps=EPS)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * (input.var(0, correction=0) + EPS).rsqrt()  # wrong: the two terms of training


MASK = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.float64)


@wrong("dropout-scale-forgotten", "dropout", draw((2, 3), MASK, 0.25), *EVERYWHERE)
class Dropout(Function):
    """What is kept is scaled by 1/(1 − p), in the backward as well."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(mask)
        return input * mask / (1 - p)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (mask,) = ctx.saved_tensors
        return grad_output * mask, None, None  # wrong: / (1 - p)


@wrong("dropout-mask-of-float64", "dropout", draw((2, 3), MASK, 0.25, dtype=torch.float32), "MB204",
       source="linkedin/Liger-Kernel#305")  # fmt: skip
class DropoutDouble(Function):
    """The mask comes from NumPy, in float64, and lifts the gradient to it; the engine casts it back in silence."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(mask / (1 - p))
        return input * (mask / (1 - p)).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (scaled,) = ctx.saved_tensors
        return grad_output * scaled, None, None  # wrong: scaled.to(grad_output.dtype)


@wrong("dropout-mask-drawn-in-another-order", "dropout", draw((4, 3), 7), *EVERYWHERE)
class DropoutRedrawn(Function):
    """The mask is drawn again to save memory, from the same seed, and for a gradient that is laid out by columns."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, seed: int) -> Tensor:
        ctx.seed = seed
        return input * (torch.rand(input.shape, generator=torch.Generator().manual_seed(seed)) < 0.5) * 2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        numbers = torch.rand(grad_output.mT.shape, generator=torch.Generator().manual_seed(ctx.seed))
        return grad_output * (numbers.mT < 0.5) * 2, None  # wrong: drawn in the shape of grad_output


@wrong("dropout-seeds-the-global-generator", "dropout", draw((4, 3), 7), "MB511")
class DropoutGlobalSeed(Function):
    """The mask is right, and from then on every random number of the program is the same in every step."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, seed: int) -> Tensor:
        ctx.seed = seed
        return input * DropoutGlobalSeed.mask(input, seed)

    @staticmethod
    def mask(like: Tensor, seed: int) -> Tensor:
        return 2 * (torch.rand(like.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        torch.manual_seed(ctx.seed)  # wrong: the generator of the mask is seeded already
        return grad_output * DropoutGlobalSeed.mask(grad_output, ctx.seed), None
