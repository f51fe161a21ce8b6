"""Wrong ones: second derivatives, forward mode, vmap, torch.func, torch.compile."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from manual_backprop.zoo.entry import Grads, draw, wrong

ANY = draw((4, 3))


class Cube(Function):
    """input³."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**3


@wrong("cube-once-differentiable", "cube", ANY, "MB802", source="lab-cosmo/sphericart#139")
class CubeOnce(Cube):
    """The decorator looks at grad_output only: behind .sum() the second derivative is dropped and nothing said."""

    @staticmethod
    @once_differentiable  # wrong: not needed
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 3 * input**2 * grad_output


@wrong("cube-backward-without-grad", "cube", ANY, "MB801", "MB802", source="pytorch/pytorch#18619")
class CubeNoGrad(Cube):
    """`no_grad` in the backward saves nothing, and cuts the second derivative off."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        with torch.no_grad():  # wrong: not here
            derivative = 3 * input**2
        return derivative * grad_output


@wrong("cube-gradient-detached", "cube", ANY, "MB801")
class CubeDetached(Cube):
    """The incoming gradient is taken by its .data."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return 3 * input**2 * grad_output.data  # wrong: grad_output


@wrong("silu-intermediate-saved", "silu", ANY, "MB801", "MB802", source="pytorch/pytorch#104040")
class SiluIntermediate(Function):
    """σ(x) is neither input nor output: saved, it is a constant to the second derivative."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        sigmoid = input.sigmoid()
        ctx.save_for_backward(input, sigmoid)  # wrong: input alone
        return input * sigmoid

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        input, sigmoid = ctx.saved_tensors
        return grad_output * (sigmoid + input * sigmoid * (1 - sigmoid))


@wrong("sine-through-numpy", "sin", ANY, "MB802", "MB801", source="lab-cosmo/sphericart#139")
class SineNumpy(Function):
    """What comes from NumPy has no graph; in a loss with a gradient penalty the penalty has no effect."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input.sin()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return grad_output * torch.from_numpy(input.numpy(force=True)).cos().to(input)  # wrong: input.cos()


class SquareBackward(Function):
    """The backward of the square, as a Function of its own with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, input: Tensor) -> Tensor:
        ctx.save_for_backward(grad_output, input)
        return 2 * input * grad_output

    @staticmethod
    def backward(ctx: Any, grad_grad: Tensor) -> Grads:
        _grad_output, input = ctx.saved_tensors
        return 2 * input * grad_grad, 2 * input * grad_grad  # wrong: 2 * grad_output * grad_grad


@wrong("square-second-backward-by-hand", "square", ANY, "MB801", "MB802")
class SquareByHand(Function):
    """The second derivative is hand-written too, and is wrong."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return input**2

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return SquareBackward.apply(grad_output, input)


class Functional(Function):
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


@wrong("product-tangent-of-the-second-missing", "a_b_squared", TWO, "MB803")
class ProductTangent(Functional):
    """The tangent has a share of each input."""

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor, tangent_b: Tensor) -> Tensor:
        _, b = ctx.saved_tensors
        return tangent_a * b**2  # wrong: + 2 * a * b * tangent_b


@wrong("product-tangent-factor", "a_b_squared", TWO, "MB803")
class ProductTangentFactor(Functional):
    """The backward was corrected, the jvp was not."""

    @staticmethod
    def jvp(ctx: Any, tangent_a: Tensor, tangent_b: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return tangent_a * b**2 + a * b * tangent_b  # wrong: the factor 2


@wrong("product-vmap-first-axis-only", "a_b_squared", TWO, "MB804")
class ProductVmap(Functional):
    """Each input has its own batch axis; here both are taken to be mapped over the same."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        return Functional.apply(a, b), in_dims[0] or 0  # wrong: move each batch axis to the front first


@wrong("standardise-vmap-mixes-the-batch", "standardise", draw((4, 3)), "MB804")
class StandardiseVmap(Function):
    """The mean is over all that one sample has; the vmap rule gives it the whole batch."""

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input - input.mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output - grad_output.mean()

    @staticmethod
    def vmap(info: Any, in_dims: tuple, input: Tensor) -> tuple[Tensor, int]:
        return StandardiseVmap.apply(input), in_dims[0]  # wrong: the mean over the batch as well


class DerivativeInForward(Function):
    """The derivative is an output of the forward, computed only where it is wanted; torch.func hides that it is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> tuple[Tensor, Tensor]:
        derivative = input.cos() if input.requires_grad else torch.zeros_like(input)  # wrong: always
        return input.sin(), derivative

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, derivative = output
        ctx.mark_non_differentiable(derivative)
        ctx.save_for_backward(derivative)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return grad_output * derivative


@wrong("sine-derivative-only-if-requires-grad", "sin", ANY, "MB801", "MB802", "MB804", "MB805")
def sine_with_derivative(input: Tensor) -> Tensor:
    """The derivative is computed in the forward if the input requires grad; under torch.func none says that it does."""
    return DerivativeInForward.apply(input)[0]


class MaskInForward(Function):
    """relu(input), and the mask as a second output."""

    @staticmethod
    def forward(input: Tensor) -> tuple[Tensor, Tensor]:
        positive = input > 0 if input.requires_grad else torch.zeros_like(input, dtype=torch.bool)  # wrong: always
        return input.clamp(min=0), positive

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        _, positive = output
        ctx.mark_non_differentiable(positive)
        ctx.save_for_backward(positive)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return grad_output * positive


@wrong("relu-mask-only-if-requires-grad", "relu", ANY, "MB805", source="pytorch/functorch#207")
def relu_with_mask(input: Tensor) -> Tensor:
    """The mask is computed in the forward if the input requires grad; under torch.func none says that it does."""
    return MaskInForward.apply(input)[0]


@wrong("cube-other-formula-when-compiled", "cube", ANY, "MB806", source="pytorch/pytorch#193279")
class CubeCompiled(Cube):
    """The branch for the compiler was copied from the square."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            return 2 * input * grad_output  # wrong: as below
        return 3 * input**2 * grad_output


@wrong("gelu-approximation-when-exported", "gelu", ANY, "MB807", "MB806")
class GeluExported(Function):
    """The exporter is given the tanh approximation, and the gradient of the exact one."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return F.gelu(input, approximate="tanh" if torch.compiler.is_compiling() else "none")  # wrong: "none"

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        normal = torch.exp(-(input**2) / 2) / (2 * torch.pi) ** 0.5
        return grad_output * (0.5 * (1 + torch.erf(input / 2**0.5)) + input * normal)


@wrong("gelu-approximation-when-exporting", "gelu", ANY, "MB807")
class GeluExporting(GeluExported):
    """Only the exporter is given the tanh approximation; the compiler runs what eager runs."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.save_for_backward(input)
        return F.gelu(input, approximate="tanh" if torch.compiler.is_exporting() else "none")  # wrong: "none"
