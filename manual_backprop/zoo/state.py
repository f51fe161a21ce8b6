"""Wrong ones: what is written that belongs to others, kept for too long, or found again changed."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, afresh, draw, wrong

ANY = draw((4, 3))


@wrong("relu-writes-its-input", "relu", ANY, "MB404", "MB501", source="pytorch/pytorch#5871")
class ReluWritesInput(Function):
    """The input is overwritten through .data, without `mark_dirty`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.data.clamp_(min=0).clone()  # wrong: clamp
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output * (output > 0)


@wrong("relu-writes-its-input-through-numpy", "relu", ANY, "MB501", source="linkedin/Liger-Kernel#254")
class ReluWritesNumpy(Function):
    """NumPy shares the memory, and torch's version counter sees nothing of it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        array = input.detach().numpy()  # wrong: a copy
        array[array < 0] = 0
        ctx.save_for_backward(input)
        return torch.from_numpy(array.copy())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * (input > 0)


class Sigmoid(Function):
    """σ(input), with the output saved."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.sigmoid()
        ctx.save_for_backward(output)
        return output


class SigmoidWritesGrad(Sigmoid):
    """σ(input), of which only the backward is wrong."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output.contiguous().mul_(output * (1 - output))  # wrong: mul


@wrong("sigmoid-writes-grad-output", "sigmoid", ANY, "MB502", source="linkedin/Liger-Kernel PR#376")
def halved_sigmoid(input: Tensor) -> Tensor:
    """`contiguous` is taken for a copy, which it is only where numbers have to be moved; grad_output is overwritten."""
    return SigmoidWritesGrad.apply(input) * 0.5


class SigmoidWritesGradNumpy(Sigmoid):
    """σ(input), of which only the backward is wrong."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        grad = grad_output.detach().numpy()
        grad *= (output * (1 - output)).detach().numpy()  # wrong: grad = grad * …
        return torch.from_numpy(grad)


@wrong("sigmoid-writes-grad-output-through-numpy", "sigmoid", ANY, "MB502", "MB801", "MB802",
       source="linkedin/Liger-Kernel PR#1305")  # fmt: skip
def halved_sigmoid_numpy(input: Tensor) -> Tensor:
    """The incoming gradient is scaled in place through NumPy, which no version counter notices."""
    return SigmoidWritesGradNumpy.apply(input) * 0.5


@wrong("sigmoid-writes-its-saved-output", "sigmoid", ANY, "MB503", "MB504", "MB801", "MB802",
       source="linkedin/Liger-Kernel#272")  # fmt: skip
class SigmoidWritesSaved(Sigmoid):
    """The derivative is built in the memory of the output, which the caller still holds."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output * output.data.mul_(1 - output.data)  # wrong: output * (1 - output)


@wrong("leaky-relu-fills-the-saved-mask", "leaky_relu", ANY, "MB503", source="axolotl-ai-cloud/axolotl PR#3892")
class LeakyReluFillsMask(Function):
    """The slopes are written into the mask that was saved: a second backward finds there what it would write itself."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward((input > 0).to(input.dtype))
        return F.leaky_relu(input, 0.1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (mask,) = ctx.saved_tensors
        return grad_output * mask.data.masked_fill_(mask == 0, 0.1)  # wrong: masked_fill


@wrong("mean-divides-once", "mean", ANY, "MB504")
class MeanDividesOnce(Function):
    """The division by the number of samples is noted as done, and missing when the same graph is asked again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.count, ctx.divided = len(input), False
        return input.mean(0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        grad_input = grad_output.expand(ctx.count, -1)
        if not ctx.divided:
            ctx.divided = True  # wrong: the next backward divides as well
            grad_input = grad_input / ctx.count
        return grad_input


@wrong("square-buffer-freed", "square", ANY, "MB504", "MB508", "MB801", "MB802")
class SquareFreed(Function):
    """The context gives up its tensors at the first backward, also where retain_graph=True promised a second."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.saved = [input.detach()]
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * ctx.saved.pop() * grad_output  # wrong: save_for_backward


@wrong("index-select-buffer-never-zeroed", "index_select", draw((4, 3), torch.tensor([0, 2, 2])), "MB504", "MB506")
class IndexSelectBuffer(Function):
    """The buffer of the gradient is allocated once, in the forward, and added to at each backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.grad_input = torch.zeros_like(input)  # wrong: zero it in the backward
        return input[index]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (index,) = ctx.saved_tensors
        return ctx.grad_input.index_add_(0, index, grad_output).clone(), None


_last: dict[str, Tensor] = {}


@wrong("square-last-input-of-the-module", "square", afresh(ANY, _last), "MB505", "MB507", "MB508", "MB511", "MB801",
       "MB802", "MB902")  # fmt: skip
class SquareGlobal(Function):
    """The input is kept in a variable of the module: of two calls the first finds the second's."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        _last["input"] = input.detach()  # wrong: ctx.save_for_backward
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * _last["input"] * grad_output


_queue: list[Tensor] = []


@wrong("square-queue-of-activations", "square", afresh(ANY, _queue), "MB505", "MB508", "MB511", "MB801", "MB802",
       "MB902")  # fmt: skip
class SquareQueue(Function):
    """Activations wait in a queue that assumes one backward for each forward, in the reverse order."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        _queue.append(input.detach())  # wrong: ctx.save_for_backward
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * _queue.pop() * grad_output if _queue else grad_output * torch.nan


_history: list[Tensor] = []


@wrong("square-keeps-every-gradient", "square", afresh(ANY, _history), "MB507")
class SquareHistory(Function):
    """Left over from debugging: each incoming gradient is kept for ever."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        _history.append(input)  # wrong: not at all
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2 * input * grad_output


@wrong("exp-output-on-ctx", "exp", ANY, "MB506", "MB508", "MB801", "MB802", source="pytorch/pytorch#25340")
class ExpOutputOnCtx(Function):
    """An output on ctx is a circle of references, output → graph → ctx → output, that no counter can free."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.output = input.exp()  # wrong: ctx.save_for_backward
        return ctx.output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * ctx.output.detach()


@wrong("square-input-on-ctx", "square", ANY, "MB506", "MB508", source="asappresearch/sru PR#171")
class SquareOnCtx(Function):
    """An input on ctx may be changed in place before the backward, and nobody notices."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.input = input  # wrong: ctx.save_for_backward
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * ctx.input * grad_output


@wrong("square-saves-data", "square", ANY, "MB508", "MB801", "MB802")
class SquareSavesData(Function):
    """`.data` has a version counter of its own, and no graph."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input.data)  # wrong: input
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 2 * input * grad_output


@wrong("dropout-mask-on-ctx", "dropout", draw((4, 3), 7), "MB506", source="RobinBruegger/RevTorch#1")
class DropoutMaskOnCtx(Function):
    """The scaled mask is an attribute, which no offloading moves and no checkpoint frees."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, seed: int) -> Tensor:
        kept = torch.rand(input.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        ctx.mask = 2 * kept.to(input.dtype)  # wrong: ctx.save_for_backward
        return input * ctx.mask

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return grad_output * ctx.mask, None


@wrong("relu-saves-data", "relu", ANY, "MB508")
class ReluSavesData(Function):
    """Of a rectified input only the signs matter, and .data hides from the version counter that they have changed."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input.data)  # wrong: input
        return input.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * (input > 0)


@wrong("relu-looks-up-the-address", "relu", ANY, "MB509", source="pytorch/pytorch#153334")
class ReluByAddress(Function):
    """What was computed for the input is found again by its address, which offloading does not keep."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        ctx.masks = {input.data_ptr(): input > 0}
        return input.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * ctx.masks[input.data_ptr()]  # wrong: input > 0


@wrong("multiply-unpacks-twice", "mul", draw((4, 3), (4, 3)), "MB510", source="pytorch/pytorch#82482")
class MultiplyUnpacksTwice(Function):
    """Each look at ctx.saved_tensors unpacks all of them; a checkpoint that recomputes gives them out only once."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return grad_output * ctx.saved_tensors[1], grad_output * ctx.saved_tensors[0]  # wrong: a, b = ctx.saved_tensors


_masks: dict[torch.Size, Tensor] = {}


@wrong("relu-mask-of-the-first-call", "relu", afresh(ANY, _masks), "MB511", "MB604")
class ReluMaskCached(Function):
    """The mask is kept for inputs of the same shape, as one may keep a causal mask; this one depends on the values."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.mask = _masks.setdefault(input.shape, input.detach() > 0)  # wrong: input > 0
        return input.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * ctx.mask
