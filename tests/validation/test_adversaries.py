"""Right backward passes that careless probes blame, and wrong ones that gentle probes miss."""

import threading

import pytest
import torch
from torch.autograd import Function

from manual_backprop.validation import validate


class RMSNormInFloat32(Function):
    """A part of forward in float32, the last product in the dtype of the inputs."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return (x.float() * x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()).type_as(x) * weight

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        g, r = grad_output.float(), x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
        normal, delta = x.float() * r, g * weight.float()
        grad_x = r * (delta - normal * (delta * normal).mean(-1, keepdim=True))
        return grad_x.type_as(x), (g * normal).sum(tuple(range(g.dim() - 1))).type_as(weight)


class SoftmaxAndItsMaximum(Function):
    """The sum of the outputs that are differentiable is constant; they are not."""

    @staticmethod
    def forward(ctx, x):
        a = torch.softmax(x, -1)
        maximum = x.detach().amax(-1)
        ctx.mark_non_differentiable(maximum)
        ctx.save_for_backward(a)
        return a, maximum

    @staticmethod
    def backward(ctx, grad_output, _):
        (a,) = ctx.saved_tensors
        return a * (grad_output - (grad_output * a).sum(-1, keepdim=True))


class Fourier(Function):
    """torch's own transform refuses an empty batch."""

    @staticmethod
    def forward(ctx, x):
        return torch.fft.fft(x).real

    @staticmethod
    def backward(ctx, grad_output):
        return torch.fft.fft(grad_output).real


class DropsTheTiny(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        return torch.where(grad_output.abs() < 1e-6, torch.zeros_like(grad_output), 2 * grad_output)


class ForgetsInAnotherThread(Function):
    local = threading.local()

    @staticmethod
    def forward(ctx, x):
        ForgetsInAnotherThread.local.scale = 3.0
        return x * 3

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * getattr(ForgetsInAnotherThread.local, "scale", 1.0)


class RowsNeverWritten(Function):
    """The rows of words that do not occur are whatever was in memory, which may by chance be what it should."""

    @staticmethod
    def forward(ctx, index, weight):
        ctx.save_for_backward(index)
        ctx.shape = weight.shape
        return weight[index]

    @staticmethod
    def backward(ctx, grad_output):
        (index,) = ctx.saved_tensors
        grad_weight = grad_output.new_empty(ctx.shape)
        grad_weight[index] = 0
        return None, grad_weight.index_add_(0, index, grad_output)


class OneGradientTooMany(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * 2, grad_output


class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3


class CubeInHalf(Cube):
    """In float32 no difference quotient sees it."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return (3 * x.half() ** 2 * grad_output.half()).to(grad_output.dtype)


class CubeOfOneSample(Cube):
    """A wrong value, and no crash, where there is one sample."""

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad_output if len(x) > 1 else grad_output


class ReluOfTwoSlopes(Function):
    """Finite at the kink, and outside of both slopes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * torch.where(x == 0, 2.0, (x > 0).to(x.dtype))


def drawn(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)


RIGHT = {
    **{f"RMSNorm {dtype}": (RMSNormInFloat32, drawn((4, 6), (6,), dtype=dtype))
       for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)},
    "softmax and its maximum": (SoftmaxAndItsMaximum, drawn((4, 5))),
    "Fourier": (Fourier, drawn((3, 8))),
}  # fmt: skip
WRONG = {
    "drops the tiny": (DropsTheTiny, drawn((4, 5)), "MB302"),
    "forgets in another thread": (ForgetsInAnotherThread, drawn((4, 3)), "MB902"),
    "one gradient too many": (OneGradientTooMany, drawn((4, 3)), "MB201"),
    "half inside float32": (CubeInHalf, drawn((4, 3), dtype=torch.float32), "MB303"),
    "one sample": (CubeOfOneSample, drawn((4, 3)), "MB702"),
    "two at the kink": (ReluOfTwoSlopes, drawn((4, 3)), "MB105"),
}


@pytest.mark.parametrize(("function", "inputs"), RIGHT.values(), ids=RIGHT)
def test_right_is_not_blamed(function, inputs):
    report = validate(function, inputs, batch_dim=0, skip=("MB806", "MB807"))
    assert not report.failures, str(report)


@pytest.mark.parametrize(("function", "inputs", "code"), WRONG.values(), ids=WRONG)
def test_wrong_is_found(function, inputs, code):
    assert code in {finding.code for finding in validate(function, inputs, only=code, batch_dim=0).failures}


def test_memory_never_written_is_found_where_torch_fills_it():
    torch.use_deterministic_algorithms(True)
    try:
        report = validate(RowsNeverWritten, (torch.tensor([0, 2, 4]), *drawn((40, 3))), only="MB206")
    finally:
        torch.use_deterministic_algorithms(False)
    assert [finding.code for finding in report.failures] == ["MB206"]
