"""Wrong ones: functions of one number, applied to each element. A row is a function and its mistaken derivative."""

from collections.abc import Callable
from functools import partial
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, leaf, wrong

ANY = draw((4, 3), scale=2)
POSITIVE = draw(leaf([0.3, 1.2, 2.5], [0.9, 4.0, 0.1]))
WITH_ZERO = draw(leaf([0.0, -1.2, 2.5], [0.9, 0.0, -0.1]))


def pointwise(name: str, value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> type[Function]:
    """y = value(x), grad_input = grad_output * derivative(x)."""

    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return value(input)

    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * derivative(input)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward), "__module__": __name__}
    return type(name, (Function,), members)


def gelu_tanh_derivative(x: Tensor, root: float = sqrt(2 / pi)) -> Tensor:
    t = torch.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)


# name, operation, value, derivative, inputs, codes, mistake, source
TABLE: tuple[tuple[str, str, Callable, Callable, Callable, tuple[str, ...], str, str], ...] = (
    ("sigmoid-through-exp", "sigmoid", torch.sigmoid, lambda x: torch.exp(-x) / (1 + torch.exp(-x)) ** 2, ANY,
     ("MB604",), "exp(−x) overflows for x far below zero, and ∞/∞ is NaN.",
     "jeshraghian/snntorch PR#433"),
    ("softplus-through-exp", "softplus", F.softplus, lambda x: torch.exp(x) / (1 + torch.exp(x)), ANY,
     ("MB604",), "exp(x) overflows for large x, and ∞/∞ is NaN.", "tenstorrent/tt-metal PR#56397"),
    ("gelu-derivative-of-the-approximation", "gelu", F.gelu, gelu_tanh_derivative, ANY, EVERYWHERE,
     "The forward is the exact gelu, the backward differentiates its tanh approximation: wrong by a thousandth.", ""),
    ("silu-second-term-missing", "silu", F.silu, torch.sigmoid, ANY, EVERYWHERE,
     "The product rule has two terms; x σ′(x) is missing.", "Dao-AILab/quack PR#53"),
    ("hardswish-product-rule", "hardswish", F.hardswish,
     lambda x: torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, (x + 3) / 6)), ANY, ("MB101", "MB104"),
     "Between the kinks the derivative of x (x + 3)/6 is (2x + 3)/6.", ""),
    ("relu6-upper-bound-ignored", "relu6", F.relu6, lambda x: (x > 0).to(x.dtype), draw((4, 3), scale=5, shift=4),
     EVERYWHERE, "Nothing may pass above 6.", ""),
    ("elu-alpha-forgotten", "elu", lambda x: F.elu(x, 0.5), lambda x: torch.where(x > 0, 1.0, torch.exp(x)), ANY,
     EVERYWHERE, "Below zero the derivative is α exp(x).", ""),
    ("abs-x-over-abs-x", "abs", torch.abs, lambda x: x / x.abs(), WITH_ZERO, ("MB105", "MB210"),
     "x/|x| is 0/0 at zero, where sign(x) is 0.", "fastino-ai/GLiNER2 PR#155"),
    ("sinc-quotient-at-zero", "sinc", torch.sinc,
     lambda x: torch.cos(pi * x) / x - torch.sin(pi * x) / (pi * x**2), WITH_ZERO, ("MB206", "MB210", "MB605"),
     "The quotient rule gives ∞ − ∞ at zero, where the derivative is 0.", ""),
    ("sinc-quotient-beside-zero", "sinc", torch.sinc,
     lambda x: torch.cos(pi * x) / x - torch.sin(pi * x) / (pi * x**2), ANY, ("MB605",),
     "The same quotient where the sample of the author's test has no zero, and training will meet one.", ""),
    ("gelu-constant-of-four-digits", "gelu", partial(F.gelu, approximate="tanh"),
     partial(gelu_tanh_derivative, root=0.7978), ANY, ("MB101",),
     "√(2/π) is written out with four digits in the backward: wrong by a ten-thousandth.", ""),
    ("log1p-square-cancels", "log_cosh", lambda x: x.abs() + F.softplus(-2 * x.abs()) - 0.6931471805599453,
     lambda x: 1 - 2 / (torch.exp(2 * x) + 1), draw((4, 3), scale=1e-4), ("MB601", "MB602"),
     "1 − 2/(exp(2x) + 1) is tanh, and loses every digit for small x in float32.", ""),
    ("cube-power-not-lowered", "cube", lambda x: x**3, lambda x: 3 * x, ANY, EVERYWHERE,
     "The power rule without the power.", ""),
    ("square-factor-two-missing", "square", lambda x: x * x, lambda x: x, ANY, EVERYWHERE, "The factor 2.", ""),
    ("reciprocal-sign", "reciprocal", torch.reciprocal, lambda x: 1 / x**2, POSITIVE, EVERYWHERE, "The sign.", ""),
)  # fmt: skip

for name, operation, value, derivative, inputs, codes, mistake, source in TABLE:
    function = pointwise(name.title().replace("-", ""), value, derivative)
    function.__doc__ = mistake
    wrong(name, operation, inputs, *codes, source=source)(function)


@wrong("exp2-logarithm-in-float32", "exp2", ANY, "MB102", reference=torch.exp2)
class Exp2(Function):
    """ln 2 is a tensor of the default dtype, right to nine digits, which no difference quotient tells from sixteen."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = torch.exp2(input)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output * output * torch.tensor(2.0).log()  # wrong: math.log(2)


@wrong("log-cosh-constant-forgotten", "log_cosh", ANY, "MB103", reference=lambda x: x.cosh().log())
class LogCosh(Function):
    """The gradient is right, and the value too large by ln 2."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.abs() + F.softplus(-2 * input.abs())  # wrong: - log(2)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * input.tanh()


def log_ratio(x: Tensor) -> Tensor:
    """ln x/(x − 1), which is 1 at 1."""
    return torch.where(x == 1, 1.0, torch.log1p(x - 1) / (x - 1))


@wrong("log-ratio-at-one", "log_ratio", draw(leaf([1.0, 0.3, 2.5], [0.9, 4.0, 1.7])), "MB206")
class LogRatio(Function):
    """The forward knows that ln x/(x − 1) is 1 at 1; the quotient rule gives 0/0, where the derivative is −1/2."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input)
        return log_ratio(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
        (input,) = ctx.saved_tensors
        if grad_output is None:
            return None
        return grad_output * (1 / input - log_ratio(input)) / (input - 1)  # wrong: at 1


class Pointwise(Function):
    """y = x³, of which those below differ in the backward alone."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**3


@wrong("cube-guided-backprop", "cube", ANY, *EVERYWHERE, "MB301", "MB303")
class CubeGuided(Pointwise):
    """Only positive gradients are let through, as for guided backpropagation; gradcheck sends no others."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output.clamp(min=0) * 3 * input**2  # wrong: not linear


@wrong("cube-absolute-gradient", "cube", ANY, *EVERYWHERE, "MB301", "MB303")
class CubeAbsolute(Pointwise):
    """A square root of a square loses the sign of what comes in."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return (9 * grad_output**2 * input**4).sqrt()  # wrong: grad_output * 3 * input**2


@wrong("cube-sparsified-gradient", "cube", ANY, *EVERYWHERE, "MB303", "MB306")
class CubeSparsified(Pointwise):
    """The smaller half of the gradients is dropped to save bandwidth: odd and homogeneous, but not additive."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        kept = grad_output.abs() >= grad_output.abs().flatten().median()  # wrong: depends on grad_output
        return grad_output * kept * 3 * input**2


@wrong("cube-small-gradients-dropped", "cube", draw((3,)), "MB303")
class CubeCompressed(Pointwise):
    """Gradients below a thirtieth of the largest are not worth sending; of three numbers few are so small."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        kept = grad_output.abs() > grad_output.abs().amax() / 30  # wrong: depends on grad_output
        return grad_output * kept * 3 * input**2


@wrong("sign-mean-gradient", "binarise", ANY, "MB302", "MB303", "MB306", "MB805", skip=("MB1",),
       source="jiecaoyu/XNOR-Net-PyTorch#43")  # fmt: skip
class BinariseMean(Function):
    """A straight-through gradient is rescaled by its own mean size."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.sign()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.sign() / grad_output.numel() + grad_output.abs().mean() * grad_output  # wrong: not linear


@wrong("cube-unit-norm-gradient", "cube", ANY, *EVERYWHERE, "MB210", "MB302", "MB303", "MB304", "MB306", "MB805")
class CubeUnitNorm(Pointwise):
    """The gradient is normalised, and where nothing comes in 0/0 goes out."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output / grad_output.norm() * 3 * input**2  # wrong: not linear


@wrong("cube-normalised-and-scaled-back", "cube", ANY, "MB304")
class CubeScaledBack(Pointwise):
    """For fear of an overflow the gradient is divided by its norm and multiplied by it in the end: 0/0 for zeros."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return Pointwise.forward(ctx, input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Tensor | None:
        (input,) = ctx.saved_tensors
        if grad_output is None:
            return None
        norm = grad_output.norm()
        return grad_output / norm * 3 * input**2 * norm  # wrong: where norm is 0


@wrong("pow-exponent-at-zero", "pow", draw(leaf(0.0, 1.5, 2.0), leaf(2.0, 3.0, 0.5)), "MB206", "MB210", "MB604",
       "MB605")  # fmt: skip
class PowAtZero(Function):
    """The gradient of the exponent is y ln x, which is 0 · −∞ where the base is zero."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, exponent: Tensor) -> Tensor:
        ctx.save_for_backward(base, exponent)
        return base**exponent

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        base, exponent = ctx.saved_tensors
        grad_base = grad_output * exponent * base ** (exponent - 1)
        return grad_base, grad_output * base**exponent * base.log()  # wrong: torch.xlogy, or 0 where base is 0


@wrong("gelu-approximation-in-both-directions", "gelu", ANY, "MB102", "MB103", "MB601", reference=F.gelu)
class GeluApproximation(Function):
    """Forward and backward agree with each other, on the tanh approximation and not on the gelu."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return F.gelu(input, approximate="tanh")  # wrong: the exact one

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * gelu_tanh_derivative(input)
