"""Wrong ones: losses, softmax and its relatives."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, leaf, wrong

CLASSES = torch.tensor([2, 0, -100, 1, 2])
LOGITS = draw((5, 3), CLASSES)
NO_IGNORED = draw((5, 3), torch.tensor([2, 0, 1, 1, 2]))


def cross_entropy_derivative(logits: Tensor, target: Tensor) -> Tensor:
    """softmax − one-hot, zero in the rows that are ignored (target −100); not yet divided by their number."""
    kept = (target >= 0).unsqueeze(-1)
    return (logits.softmax(-1) - F.one_hot(target.clamp(min=0), logits.shape[-1])) * kept


class CrossEntropy(Function):
    """The mean over the rows that are not ignored, of −ln softmax(logits)[target]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return F.cross_entropy(logits, target)


@wrong("cross-entropy-ignored-rows-trained", "softmax_cross_entropy", LOGITS, *EVERYWHERE,
       source="linkedin/Liger-Kernel#968")  # fmt: skip
class CrossEntropyIgnoredRows(CrossEntropy):
    """Rows that are ignored get the gradient of class 0."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        logits, target = ctx.saved_tensors
        derivative = logits.softmax(-1) - F.one_hot(target.clamp(min=0), 3)  # wrong: not masked
        return grad_output * derivative / (target >= 0).sum(), None


@wrong("cross-entropy-divides-by-all-rows", "softmax_cross_entropy", LOGITS, *EVERYWHERE,
       source="linkedin/Liger-Kernel PR#1298")  # fmt: skip
class CrossEntropyAllRows(CrossEntropy):
    """The mean is over the rows that count, not over all."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        logits, target = ctx.saved_tensors
        return grad_output * cross_entropy_derivative(logits, target) / len(target), None  # wrong: (target >= 0).sum()


@wrong("cross-entropy-ignores-grad-output", "softmax_cross_entropy", LOGITS, *EVERYWHERE, "MB210", "MB301", "MB302",
       "MB303", "MB304", "MB306", "MB805", source="ashawkey/stable-dreamfusion#158")  # fmt: skip
class CrossEntropyIgnoresScale(CrossEntropy):
    """The loss is taken to be the last operation, so that one is what comes in; a loss scale is lost."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        logits, target = ctx.saved_tensors
        return cross_entropy_derivative(logits, target) / (target >= 0).sum(), None  # wrong: times grad_output


@wrong("cross-entropy-first-row-for-all", "softmax_cross_entropy", NO_IGNORED, *EVERYWHERE,
       source="linkedin/Liger-Kernel#968")  # fmt: skip
class CrossEntropyFirstRow(Function):
    """Written for the mean, where one number comes in; with a loss for each row the first row's is used for all."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return F.cross_entropy(logits, target, reduction="none")

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        logits, target = ctx.saved_tensors
        return grad_output[0] * cross_entropy_derivative(logits, target), None  # wrong: grad_output.unsqueeze(-1)


@wrong("cross-entropy-writes-the-saved-softmax", "softmax_cross_entropy", NO_IGNORED, "MB503", "MB504", "MB801",
       "MB802", source="axolotl-ai-cloud/axolotl PR#3892")  # fmt: skip
class CrossEntropyWritesSaved(Function):
    """The one-hot is subtracted in place, through .data, from the softmax that a second backward reads again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits.softmax(-1), target)
        return F.cross_entropy(logits, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        softmax, target = ctx.saved_tensors
        softmax.data[torch.arange(len(target)), target] -= 1  # wrong: a new tensor
        return grad_output * softmax / len(target), None


@wrong("cross-entropy-gradient-scaled-in-place", "softmax_cross_entropy", NO_IGNORED, "MB503", "MB504", "MB801",
       "MB802", source="linkedin/Liger-Kernel#272")  # fmt: skip
class CrossEntropyFused(Function):
    """The gradient is computed in the forward, to save memory, and scaled in place when the backward comes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(cross_entropy_derivative(logits, target) / len(target))
        return F.cross_entropy(logits, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (grad_logits,) = ctx.saved_tensors
        return grad_logits.detach().mul_(grad_output), None  # wrong: grad_logits * grad_output


@wrong("softmax-diagonal-only", "softmax", draw((4, 3)), *EVERYWHERE, "MB801", "MB802")
class SoftmaxDiagonal(Function):
    """s (1 − s) is the diagonal of the Jacobian; the rest is missing."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.softmax(-1)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (softmax,) = ctx.saved_tensors
        return grad_output * softmax * (1 - softmax)  # wrong: softmax * (g - (g * softmax).sum(-1, keepdim=True))


@wrong("log-softmax-sum-without-keepdim", "log_softmax", draw((4, 4)), *EVERYWHERE, "MB801", "MB802")
class LogSoftmaxKeepdim(Function):
    """The sum over the classes is spread over the wrong axis, which a square batch allows."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.log_softmax(-1)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output - output.exp() * grad_output.sum(-1)  # wrong: keepdim=True


class LogSumExp(Function):
    """ln Σ exp(input) over the last axis."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.logsumexp(-1)


@wrong("logsumexp-softmax-over-the-batch", "logsumexp", draw((4, 3)), *EVERYWHERE)
class LogSumExpAxis(LogSumExp):
    """The softmax is taken over the samples."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output.unsqueeze(-1) * input.softmax(0)  # wrong: -1


@wrong("logsumexp-maximum-not-subtracted", "logsumexp", draw((4, 3)), "MB604")
class LogSumExpOverflow(LogSumExp):
    """The backward forgets the trick of the forward: exp overflows."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        weights = input.exp() / input.exp().sum(-1, keepdim=True)  # wrong: input.softmax(-1)
        return grad_output.unsqueeze(-1) * weights


class MeanSquaredError(Function):
    """The mean over all elements of (input − target)²."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(input, target)
        return (input - target).square().mean()


@wrong("mse-divides-by-the-samples", "mse", draw((4, 3), (4, 3)), *EVERYWHERE, source="paiml/aprender PR#2182")
class MeanSquaredErrorSamples(MeanSquaredError):
    """The mean is over all elements, the gradient is divided by the number of samples."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, target = ctx.saved_tensors
        grad_input = grad_output * 2 * (input - target) / len(input)  # wrong: input.numel()
        return grad_input, -grad_input


@wrong("mse-target-sign", "mse", draw((4, 3), (4, 3)), *EVERYWHERE)
class MeanSquaredErrorSign(MeanSquaredError):
    """The target is given the gradient of the input, not its negative."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        input, target = ctx.saved_tensors
        grad_input = grad_output * 2 * (input - target) / input.numel()
        return grad_input, grad_input  # wrong: -grad_input


@wrong("huber-quadratic-below-minus-delta", "huber", draw(leaf(-3.0, -0.5, 0.2, 2.5), 1.0), *EVERYWHERE)
class HuberMask(Function):
    """The quadratic part is where |x| < δ, not where x < δ."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, delta: float) -> Tensor:
        ctx.save_for_backward(input)
        ctx.delta = delta
        return torch.where(input.abs() < delta, 0.5 * input**2, delta * (input.abs() - 0.5 * delta))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (input,) = ctx.saved_tensors
        return grad_output * torch.where(input < ctx.delta, input, ctx.delta * input.sign()), None  # wrong: input.abs()


@wrong("bce-error-of-the-logits", "binary_cross_entropy", draw(leaf(0.1, 0.4, 0.8), torch.tensor([0.0, 1.0, 1.0])),
       "MB101", "MB104")  # fmt: skip
class BinaryCrossEntropy(Function):
    """a − y is the gradient of the logits; here the probabilities come in."""

    @staticmethod
    def forward(ctx: Any, probability: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(probability, target)
        return -(target * probability.log() + (1 - target) * (1 - probability).log()).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        probability, target = ctx.saved_tensors
        return grad_output * (probability - target), None  # wrong: divided by probability * (1 - probability)
