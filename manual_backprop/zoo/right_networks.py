"""Right ones: normalisation, dropout, attention, convolution, and Functions with rules for torch.func."""

from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from manual_backprop.zoo.attention import softmax_backward
from manual_backprop.zoo.entry import Grads, draw, leaf, right
from manual_backprop.zoo.normalisation import EPS, MASK, LayerNorm, layer_norm, normalize, rms_norm

QKV = draw((4, 3), (5, 3), (5, 2))


@right("right-layer-norm", "layer_norm", draw((5, 4), (4,), (4,)), batch_dim=0, reference=layer_norm)
class RightLayerNorm(Function):
    """Any number of leading dimensions; the statistics are in float32 at least."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return layer_norm(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        dtype = torch.promote_types(input.dtype, torch.float32)
        normal, rstd = LayerNorm.standardised(input.to(dtype))
        grad = grad_output.to(dtype)
        grad_input = LayerNorm.grad_input(grad * weight, normal, rstd).to(input.dtype)
        columns = weight.shape[0]
        grad_weight = (grad * normal).reshape(-1, columns).sum(0).to(weight.dtype)
        return grad_input, grad_weight, grad.reshape(-1, columns).sum(0).to(weight.dtype)


@right("right-rms-norm", "rms_norm", draw((5, 4)), batch_dim=0, reference=rms_norm)
class RMSNorm(Function):
    """The squares are summed in float32 at least."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return rms_norm(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        dtype = torch.promote_types(input.dtype, torch.float32)
        grad, x = grad_output.to(dtype), input.to(dtype)
        rstd = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        normal = x * rstd
        return (rstd * (grad - normal * (grad * normal).mean(-1, keepdim=True))).to(input.dtype)


@right("right-normalize-zero-row", "normalize", draw(leaf([3.0, 4.0], [0.0, 0.0])), reference=normalize)
class Normalize(Function):
    """A row of zeros is divided by what the forward divides it by."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return normalize(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        norm = input.norm(dim=-1, keepdim=True)
        divisor = norm.clamp_min(0.1)
        unit = input / divisor
        along = unit * (unit * grad_output).sum(-1, keepdim=True)
        return (grad_output - torch.where(norm >= 0.1, along, 0)) / divisor


@right("right-dropout-of-a-given-mask", "dropout", draw((2, 3), MASK, 0.25))
class Dropout(Function):
    """The mask is an argument of floating numbers that needs no gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mask: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return input * mask.to(input.dtype) * ctx.scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (mask,) = ctx.saved_tensors
        return grad_output * mask.to(grad_output.dtype) * ctx.scale, None, None


@right("right-dropout-of-a-seed", "dropout", draw((4, 3), 7), batch_dim=0)
class DropoutSeed(Function):
    """The mask is drawn again from a generator of its own."""

    @staticmethod
    def mask(like: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(like.shape, generator=generator) < 0.5).to(like) * 2

    @staticmethod
    def forward(ctx: Any, input: Tensor, seed: int) -> Tensor:
        ctx.seed = seed
        return input * DropoutSeed.mask(input, seed)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return grad_output * DropoutSeed.mask(grad_output, ctx.seed), None


@right("right-attention", "attention", QKV)
class Attention(Function):
    """The probabilities are not kept but computed once more, with more keys than queries."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        p = (q @ k.mT * scale).softmax(-1)
        grad_scores = softmax_backward(p, grad_output @ v.mT) * scale
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad_output


@right("right-attention-with-log-sum-exp", "attention", QKV)
class AttentionLogSumExp(Function):
    """Two outputs that share what they depend on; the scores are masked."""

    @staticmethod
    def scores(q: Tensor, k: Tensor) -> Tensor:
        future = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(1)
        return (q @ k.mT).masked_fill(future, -torch.inf)

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v)
        scores = AttentionLogSumExp.scores(q, k)
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        p = AttentionLogSumExp.scores(q, k).softmax(-1)
        grad_scores = softmax_backward(p, grad_output @ v.mT) + p * grad_lse.unsqueeze(-1)
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad_output


@right("right-conv2d", "conv2d", draw((2, 2, 4, 3), (3, 2, 3, 3), (3,)))
class Conv2d(Function):
    """Built of torch's own products for the two gradients, any memory format."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.conv2d(input, weight, bias, padding=1)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        return (
            conv2d_input(input.shape, weight, grad_output, padding=1),
            conv2d_weight(input, weight.shape, grad_output, padding=1),
            grad_output.sum((0, 2, 3)),
        )


@right("right-conv1d-by-hand", "conv1d", draw((2, 2, 5), (3, 2, 3)))
class Conv1d(Function):
    """The kernel is flipped, in and out are exchanged, and the weight is a sum over the taps."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.conv1d(input, weight)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, weight = ctx.saved_tensors
        width, length = weight.shape[-1], grad_output.shape[-1]
        grad_input = F.conv1d(F.pad(grad_output, (width - 1, width - 1)), weight.flip(-1).transpose(0, 1))
        taps = [(grad_output @ input[..., tap : tap + length].mT).sum(0) for tap in range(width)]
        return grad_input, torch.stack(taps, -1)


@right("right-max-pool-overlap", "max_pool1d", draw((2, 2, 5)))
class MaxPool1d(Function):
    """An input that is the maximum of two windows receives both gradients."""

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
        return zeros.scatter_add(-1, index, grad_output)


class Product(Function):
    """a · b², in the form that torch.func takes."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a * b**2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output * b**2, grad_output * 2 * a * b


TWO = draw((4, 3), (4, 3))


@right("right-product-with-a-generated-vmap-rule", "a_b_squared", TWO, batch_dim=0)
class ProductGenerated(Product):
    """vmap maps forward and backward by itself."""

    generate_vmap_rule = True


@right("right-product-with-its-own-jvp", "a_b_squared", TWO, batch_dim=0)
class ProductJvp(Product):
    """The tangent has a share of each input."""

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor, tangent_b: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return tangent_a * b**2 + 2 * a * b * tangent_b


@right("right-product-with-its-own-vmap", "a_b_squared", TWO, batch_dim=0)
class ProductVmap(Product):
    """Each batch axis is moved to the front; an input that is not mapped broadcasts."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        sides = zip((a, b), in_dims, strict=True)
        a, b = (
            side.expand(info.batch_size, *side.shape) if dim is None else side.movedim(dim, 0) for side, dim in sides
        )
        return ProductVmap.apply(a, b), 0
