"""Small Functions that tests are made of, and right ones that are delicate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Inputs = Callable[[], tuple]


class Case(NamedTuple):
    name: str
    function: Any
    inputs: Inputs
    options: dict[str, Any] = {}  # noqa: RUF012


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    )


def matrix() -> tuple[Tensor, ...]:
    return draw((4, 3))


def pair() -> tuple[Tensor, ...]:
    return draw((4, 3), (4, 3))


def layer() -> tuple[Tensor, ...]:
    return draw((5, 4), (3, 4), (3,))


def made(name: str, forward: Callable[..., Any], backward: Callable[..., Any], **members: Any) -> Any:
    """A Function class of these two."""
    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (Function,), body | {key: staticmethod(value) for key, value in members.items()})


def sigmoid_forward(ctx: Any, x: Tensor) -> Tensor:
    a = torch.sigmoid(x)
    ctx.save_for_backward(a)
    return a


def sigmoid(name: str, gradient: Callable[[Tensor, Tensor], Any]) -> Any:
    """A sigmoid whose backward is `gradient` of grad_output and the output."""

    def backward(ctx: Any, grad: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return gradient(grad, a)

    return made(name, sigmoid_forward, backward)


def linear_forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    ctx.save_for_backward(input, weight)
    return input @ weight.mT + bias


def linear(name: str, gradients: Callable[..., Any]) -> Any:
    def backward(ctx: Any, grad: Tensor) -> Any:
        return gradients(ctx, grad, *ctx.saved_tensors)

    return made(name, linear_forward, backward)


def cube_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x**2 * grad


def two_forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    ctx.save_for_backward(x)
    return x.sin(), x.cos()


def two(name: str, gradient: Callable[[Tensor, Tensor, Tensor], Any], forward: Any = two_forward) -> Any:
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradient(first, second, x)

    return made(name, forward, backward)


def product_forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
    ctx.save_for_backward(x, y)
    ctx.same = x.data_ptr() == y.data_ptr()
    return x * y


def conjugated(ctx: Any, grad: Tensor) -> Any:
    x, y = ctx.saved_tensors
    return grad * y.conj(), grad * x.conj()


class ExpInPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.exp_()
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def relu_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x.clamp(min=0)


def relu_backward(ctx: Any, grad: Tensor) -> Tensor:
    return grad * (ctx.saved_tensors[0] > 0)


@once_differentiable
def once(ctx: Any, grad: Tensor) -> Tensor:
    return cube_backward(ctx, grad)


def right_linear(_: Any, grad: Tensor, input: Tensor, weight: Tensor) -> Any:
    return grad @ weight, grad.mT @ input, grad.sum(0)


BATCH = {"batch_dim": 0}

RIGHT = [
    Case("sigmoid-float64", sigmoid("Sigmoid", lambda g, a: g * a * (1 - a)), matrix, options=BATCH),
    *(
        Case(f"sigmoid-{str(dtype)[6:]}", sigmoid("Sigmoid", lambda g, a: g * a * (1 - a)),
             lambda dtype=dtype: draw((4, 3), dtype=dtype), options=BATCH)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
    Case("linear", linear("Linear", right_linear), layer, options=BATCH),
    Case("relu-at-kinks", made("Relu", relu_forward, relu_backward),
         lambda: (torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64, requires_grad=True),)),
    Case("in-place", ExpInPlace, matrix),
    Case("in-place-on-a-clone", lambda x: ExpInPlace.apply(x.clone()), matrix),
    Case("complex", made("Product", product_forward, conjugated), lambda: draw((4,), (4,), dtype=torch.complex128)),
    Case("straight-through", made("Round", lambda ctx, x: x.round(), lambda ctx, g: g.clone()), matrix,
         options={"skip": ("MB1", "MB806", "MB807")}),
    Case("once-linear", made("Twice", lambda ctx, x: 2 * x, once_differentiable(lambda ctx, g: 2 * g)), matrix),
    Case("several-outputs", two("Both", lambda a, b, x: a * x.cos() - b * x.sin()), matrix),
    Case("batch-norm-module", torch.nn.BatchNorm1d(3, dtype=torch.float64), matrix, options=BATCH),
    Case("sparse-embedding", lambda index, weight: torch.nn.functional.embedding(index, weight, sparse=True),
         lambda: (torch.tensor([1, 2, 2, 0]), *draw((5, 3)))),
    Case("views", lambda x: (x.view(-1), x.mT), matrix),
    Case("no-elements", lambda x: x[:0] * 2, matrix),
    Case("nested-and-flags", lambda x, flag, both: x * 2.0 if flag else both[0] * both[1][0],
         lambda: (*matrix(), True, (*matrix(), [*matrix(), 7, None]))),
]  # fmt: skip
