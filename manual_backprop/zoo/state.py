"""Wrong ones: what is written that belongs to others, kept for too long, or found again changed."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop.zoo.entry import Grads, draw, wrong

ANY = draw((4, 3))


@wrong("relu-writes-its-input", "relu", ANY, "MB501", source="pytorch/pytorch#5871")
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


@wrong("sigmoid-writes-grad-output", "sigmoid", ANY, "MB502", source="linkedin/Liger-Kernel PR#376")
class SigmoidWritesGrad(Sigmoid):
    """The incoming gradient is scaled in place; whoever else receives it finds it changed."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output.mul_(output * (1 - output))  # wrong: mul


@wrong("sigmoid-writes-grad-output-through-numpy", "sigmoid", ANY, "MB502", source="linkedin/Liger-Kernel PR#1305")
class SigmoidWritesGradNumpy(Sigmoid):
    """The same through NumPy, which no version counter notices."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        grad = grad_output.detach().numpy()
        grad *= (output * (1 - output)).detach().numpy()  # wrong: grad = grad * …
        return torch.from_numpy(grad)


@wrong("sigmoid-writes-its-saved-output", "sigmoid", ANY, "MB503", "MB504", source="linkedin/Liger-Kernel#272")
class SigmoidWritesSaved(Sigmoid):
    """The derivative is built in the memory of the output, which the caller still holds."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output * output.data.mul_(1 - output.data)  # wrong: output * (1 - output)


@wrong("square-buffer-freed", "square", ANY, "MB504")
class SquareFreed(Function):
    """The context gives up its tensors at the first backward, also where retain_graph=True promised a second."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.saved = [input.detach()]
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * ctx.saved.pop() * grad_output  # wrong: save_for_backward


@wrong("index-select-buffer-never-zeroed", "index_select", draw((4, 3), torch.tensor([0, 2, 2])), "MB504")
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


@wrong("square-last-input-of-the-module", "square", ANY, "MB505", "MB511")
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


@wrong("square-queue-of-activations", "square", ANY, "MB504", "MB505", "MB507", "MB510", "MB511")
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


@wrong("square-keeps-every-gradient", "square", ANY, "MB507", "MB511")
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


@wrong("exp-output-on-ctx", "exp", ANY, "MB506", "MB507", source="pytorch/pytorch#25340")
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


_norms: dict[int, Tensor] = {}


@wrong(
    "square-looks-up-the-address", "square", ANY, "MB509", "MB510", "MB511", "MB507", source="pytorch/pytorch#153334"
)
class SquareByAddress(Function):
    """What was computed for the input is found again by its address, which offloading does not keep."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        _norms[input.data_ptr()] = 2 * input.detach()  # wrong: save it too
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return _norms[input.data_ptr()] * grad_output


@wrong("multiply-unpacks-twice", "mul", draw((4, 3), (4, 3)), "MB510", "MB509", source="pytorch/pytorch#82482")
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


@wrong("relu-mask-of-the-first-call", "relu", ANY, "MB511", "MB505", "MB101")
class ReluMaskCached(Function):
    """The mask is kept for inputs of the same shape, as one may keep a causal mask; this one depends on the values."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.mask = _masks.setdefault(input.shape, input.detach() > 0)  # wrong: input > 0
        return input.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output * ctx.mask


_steps = [0]


@wrong("square-warms-up", "square", ANY, "MB101", "MB511", "MB901", "MB504")
class SquareWarmUp(Function):
    """A warm-up of the first ten backwards is counted in the module."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        _steps[0] = (_steps[0] + 1) % 100
        return 2 * input * grad_output * min(1, _steps[0] / 10)  # wrong: the schedule is the optimiser's
