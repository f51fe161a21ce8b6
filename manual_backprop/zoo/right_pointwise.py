"""Right ones: functions of each element, kinks, surrogates, in-place, complex, and what goes through NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, Inputs, draw, leaf, right
from manual_backprop.zoo.pointwise import pointwise

ANY = draw((4, 3), scale=2)
POSITIVE = draw(leaf([0.3, 1.2, 2.5], [0.9, 4.0, 0.1]))
AT_KINKS = draw(leaf([0.0, -1.0, 1.0], [0.5, -2.0, 6.0]))


def sinc_derivative(x: Tensor) -> Tensor:
    series = -(torch.pi**2) * x / 3
    safe = torch.where(x.abs() < 1e-3, 1.0, x)
    quotient = (torch.cos(torch.pi * safe) - torch.sinc(safe)) / safe
    return torch.where(x.abs() < 1e-3, series, quotient)


# name, operation, value, derivative, inputs, what is delicate
TABLE: tuple[tuple[str, str, Callable, Callable, Inputs, str], ...] = (
    ("right-relu-at-the-kink", "relu", torch.relu, lambda x: (x > 0).to(x.dtype), AT_KINKS,
     "At zero the derivative is one of the subgradients, 0."),
    ("right-abs-at-the-kink", "abs", torch.abs, torch.sign, AT_KINKS, "At zero the derivative is 0."),
    ("right-relu6-at-both-kinks", "relu6", F.relu6, lambda x: ((x > 0) & (x < 6)).to(x.dtype), AT_KINKS,
     "Two kinks, both among the inputs."),
    ("right-hardtanh-closed-interval", "hardtanh", F.hardtanh, lambda x: (x.abs() <= 1).to(x.dtype), AT_KINKS,
     "At its kinks another subgradient than torch's, as rightly."),
    ("right-huber", "huber", lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none"),
     lambda x: x.clamp(-1, 1), AT_KINKS, "The second derivative has kinks, the first has none."),
    ("right-sigmoid", "sigmoid", torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), ANY,
     "σ(x) σ(−x) keeps its digits where 1 − σ(x) loses them."),
    ("right-softplus", "softplus", F.softplus, torch.sigmoid, ANY, "Without an exponential of its own."),
    ("right-tanh", "tanh", torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, ANY, "The function itself is computed again."),
    ("right-square", "square", torch.square, lambda x: 2 * x, ANY, "Overflows no sooner than the function."),
    ("right-sinc-series-at-zero", "sinc", torch.sinc, sinc_derivative, draw(leaf([0.0, -1.2, 2.5], [0.9, 0.0, -0.1])),
     "Near zero a series, elsewhere the quotient."),
    ("right-sqrt", "sqrt", torch.sqrt, lambda x: 0.5 / torch.sqrt(x), POSITIVE,
     "Its derivative at zero is infinite, as torch's own."),
    ("right-reciprocal", "reciprocal", torch.reciprocal, lambda x: -(torch.reciprocal(x) ** 2), POSITIVE,
     "Infinite at zero, as torch's own."),
    ("right-silu", "silu", F.silu, lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x)), ANY,
     "The derivative exceeds 1 somewhere, and is negative somewhere."),
    ("right-constant-zero-derivative", "floor", torch.floor, torch.zeros_like, ANY,
     "A step function: the derivative is zero wherever there is one."),
)  # fmt: skip

for name, operation, value, derivative, inputs, mistake in TABLE:
    right(name, operation, inputs, mistake=mistake, batch_dim=0)(
        pointwise(name.title().replace("-", ""), value, derivative)
    )


class ReluInPlace(Function):
    """Overwrites its input, says so, and saves the output, which is the same memory."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.mark_dirty(input)
        input.clamp_(min=0)
        ctx.save_for_backward(input)
        return input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output * (output > 0)


@right("right-relu-in-place", "relu", ANY, batch_dim=0)
def relu_in_place(input: Tensor) -> Tensor:
    """Overwrites its input, says so by `mark_dirty`, and saves the output, which is the same memory."""
    return ReluInPlace.apply(input.clone())


@right("right-straight-through-sign", "binarise", ANY, batch_dim=0, skip=("MB1",))
class StraightThroughSign(Function):
    """A surrogate gradient on purpose: that of the hard tanh for the sign."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.sign()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * (input.abs() <= 1)


@right("right-gradient-reversal", "identity", draw((4, 3), 0.5), batch_dim=0, skip=("MB1",))
class GradientReversal(Function):
    """Returns a view of its input, and −λ times the gradient on purpose."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return -ctx.strength * grad_output, None


@right("right-view-of-the-input", "flatten", draw((4, 3, 2)))
class Flatten(Function):
    """The output is a view of the input, and the gradient one of what comes in where it can be."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.shape = input.shape
        return input.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.reshape(ctx.shape)


@right("right-sum-expands-the-gradient", "sum", draw((4, 3)), batch_dim=0)
class Sum(Function):
    """What goes back is a view with strides 0."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.shape = input.shape
        return input.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.expand(ctx.shape)


@right("right-add-returns-what-came-in-twice", "add", draw((4, 3), (4, 3)), batch_dim=0)
class Add(Function):
    """Both gradients are the very tensor that came in, as torch's own addition returns it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        return grad_output, grad_output


@right("right-float32-only", "cube", draw((4, 3), dtype=torch.float32))
class CubeFloat32(Function):
    """A kernel for float32 alone, that refuses other dtypes aloud."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        if input.dtype != torch.float32:
            raise TypeError(f"expected float32, got {input.dtype}")
        ctx.save_for_backward(input)
        return input**3

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 3 * input**2 * grad_output


class NumpySine(Function):
    """sin, or cos a quarter turn on, by NumPy; its backward is itself again, so that it has every derivative."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, quarter: int) -> Tensor:
        ctx.save_for_backward(input)
        ctx.quarter = quarter
        turned = np.cos if quarter % 2 else np.sin
        sign = -1 if quarter % 4 >= 2 else 1
        array = input.detach().double().numpy(force=True)
        return torch.from_numpy(np.asarray(sign * turned(array))).to(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        (input,) = ctx.saved_tensors
        return grad_output * NumpySine.apply(input, ctx.quarter + 1), None


right("right-numpy-sine", "sin", draw((4, 3), 0), batch_dim=0)(NumpySine)


@right("right-numpy-that-refuses-the-second-derivative", "exp", draw((4, 3)), batch_dim=0)
class NumpyExp(Function):
    """What comes from NumPy has no graph, so a backward that is to have one is refused."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = torch.from_numpy(np.exp(input.detach().double().numpy(force=True))).to(input)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("NumpyExp is not twice differentiable: call backward without create_graph")
        (output,) = ctx.saved_tensors
        grad = grad_output.double().numpy(force=True) * output.double().numpy(force=True)
        return torch.from_numpy(np.asarray(grad)).to(output)


@right("right-double-reads-strides-and-offset", "double", draw((4, 3)), batch_dim=0)
class DoubleStrides(Function):
    """Raw memory is read where sizes, strides, offset and the flag of a lazy negation say that the numbers are."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input * 2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        plain = grad_output.resolve_neg()
        return plain.as_strided(plain.shape, plain.stride(), plain.storage_offset()) * 2


@right("right-sigmoid-scales-a-copy-in-place", "sigmoid", ANY, batch_dim=0)
class SigmoidScalesCopy(Function):
    """An in-place product, on memory of its own."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        output = input.sigmoid()
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output.clone().mul_(output * (1 - output))


@right("right-cube-normalised-and-scaled-back", "cube", draw((4, 3)), batch_dim=0)
class CubeScaledBack(Function):
    """Divided by its norm and multiplied by it in the end, the gradient of zeros is zero: the norm has a floor."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**3

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        norm = grad_output.norm().clamp(min=torch.finfo(grad_output.dtype).tiny)
        return grad_output / norm * 3 * input**2 * norm


COMPLEX = torch.complex128


@right("right-complex-multiply", "complex_mul", draw((4, 3), (4, 3), dtype=COMPLEX), batch_dim=0)
class ComplexMultiply(Function):
    """torch's gradient is that of the conjugate: the other factor is conjugated."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        a, b = ctx.saved_tensors
        return grad_output * b.conj(), grad_output * a.conj()


@right("right-complex-abs", "complex_abs", draw((4, 3), dtype=COMPLEX), batch_dim=0)
class ComplexAbs(Function):
    """From complex to real; the direction is 0 at zero."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.abs()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad_output * z.sgn()


@right("right-phase", "complex_exp", draw((4, 3)), batch_dim=0)
class Phase(Function):
    """From real to complex: what goes back is real."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor) -> Tensor:
        ctx.save_for_backward(phi)
        return torch.complex(phi.cos(), phi.sin())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (phi,) = ctx.saved_tensors
        return grad_output.imag * phi.cos() - grad_output.real * phi.sin()
