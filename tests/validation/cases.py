"""Small Functions, each wrong in one way, with the code that must catch it; and right ones that are delicate."""

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
    code: str = ""  # empty for a right one
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


def cube_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x**3


def cube_backward(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x**2 * grad


def on_ctx(ctx: Any, x: Tensor) -> Tensor:
    ctx.x = x
    return x**3


kept: list[Tensor] = []


def keeps(ctx: Any, x: Tensor) -> Tensor:
    kept.append(x)
    return cube_forward(ctx, x)


last: dict[str, Tensor] = {}


def remembers(ctx: Any, x: Tensor) -> Tensor:
    last["x"] = x.detach().clone()
    return x**3


def writes_input(ctx: Any, x: Tensor) -> Tensor:
    y = cube_forward(ctx, x.clone())
    x.detach().numpy()[:] *= 2
    return y


def stale(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    if not hasattr(ctx, "before"):
        ctx.before = (3 * x**2 * grad).tolist()
    return torch.tensor(ctx.before, dtype=x.dtype)


def two_forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    ctx.save_for_backward(x)
    return x.sin(), x.cos()


def two(name: str, gradient: Callable[[Tensor, Tensor, Tensor], Any], forward: Any = two_forward) -> Any:
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradient(first, second, x)

    return made(name, forward, backward)


def two_unmaterialised(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    ctx.set_materialize_grads(False)
    return two_forward(ctx, x)


def product_forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
    ctx.save_for_backward(x, y)
    ctx.same = x.data_ptr() == y.data_ptr()
    return x * y


def forgets_the_second(ctx: Any, grad: Tensor) -> Any:
    x, y = ctx.saved_tensors
    return grad * y, None if ctx.same else grad * x


def unconjugated(ctx: Any, grad: Tensor) -> Any:
    x, y = ctx.saved_tensors
    return grad * y, grad * x


def conjugated(ctx: Any, grad: Tensor) -> Any:
    x, y = ctx.saved_tensors
    return grad * y.conj(), grad * x.conj()


class WrongJvp(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return -tangent * ctx.saved_tensors[0].cos()


class WrongVmap(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.cumsum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.flip(0).cumsum(0).flip(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor) -> tuple:
        return WrongVmap.apply(x), in_dims[0]


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


def naive_sigmoid(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * torch.exp(-x) / (1 + torch.exp(-x)) ** 2


def squeezed(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x**2 * grad if len(x) > 1 else grad


def needs_a_sample(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x**2 * grad + 0 * grad.max()


def relu_forward(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    return x.clamp(min=0)


def relu_two_at_zero(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * torch.where(x == 0, 2.0, (x > 0).to(x.dtype))


def relu_backward(ctx: Any, grad: Tensor) -> Tensor:
    return grad * (ctx.saved_tensors[0] > 0)


@once_differentiable
def once(ctx: Any, grad: Tensor) -> Tensor:
    return cube_backward(ctx, grad)


def right_linear(_: Any, grad: Tensor, input: Tensor, weight: Tensor) -> Any:
    return grad @ weight, grad.mT @ input, grad.sum(0)


def frozen(ctx: Any, grad: Tensor, input: Tensor, weight: Tensor) -> Any:
    twice = 1 if ctx.needs_input_grad[1] else 2
    return twice * grad @ weight, grad.mT @ input, grad.sum(0)


WRONG = [
    Case("no-sigma-prime", sigmoid("NoPrime", lambda g, a: g * 1), matrix, "MB101"),
    Case("remainder-of-order-one", sigmoid("Half", lambda g, a: g * a * (1 - a) / 2), matrix, "MB104"),
    Case("relu-two-at-zero", made("Relu", relu_forward, relu_two_at_zero), matrix, "MB105"),
    Case("no-conjugate", made("Product", product_forward, unconjugated),
         lambda: draw((4,), (4,), dtype=torch.complex128), "MB106"),
    Case("two-gradients-for-one", sigmoid("Two", lambda g, a: (g * a * (1 - a), g)), matrix, "MB201"),
    Case("bias-none", linear("NoBias", lambda c, g, x, w: (g @ w, g.mT @ x, None)), layer, "MB202"),
    Case("bias-not-summed", linear("Unreduced", lambda c, g, x, w: (g @ w, g.mT @ x, g)), layer, "MB203"),
    Case("float32-returned", sigmoid("Single", lambda g, a: (g * a * (1 - a)).float()), matrix, "MB204"),
    Case("saved-tensor-returned", made("Half", lambda ctx, x: (ctx.save_for_backward(x), (x * x).sum() / 2)[1],
                                       lambda ctx, g: ctx.saved_tensors[0]), matrix, "MB207"),
    Case("wrong-when-frozen", linear("Frozen", frozen), layer, "MB208"),
    Case("none-not-expected", two("Two", lambda a, b, x: a * x.cos() - b * x.sin(), two_unmaterialised), matrix,
         "MB210"),
    Case("second-output-dropped", two("Dropped", lambda a, b, x: a * x.cos()), matrix, "MB211"),
    Case("absolute-value", sigmoid("Abs", lambda g, a: g.abs() * a * (1 - a)), matrix, "MB301"),
    Case("clamp", sigmoid("Clamp", lambda g, a: g.clamp(-100, 100) * a * (1 - a)), matrix, "MB302"),
    Case("square", sigmoid("Square", lambda g, a: g * g * a * (1 - a)), matrix, "MB303"),
    Case("penalty-added", sigmoid("Added", lambda g, a: g * a * (1 - a) + 0.01 * a), matrix, "MB304"),
    Case("cross-term", two("Cross", lambda a, b, x: a * x.cos() - b * x.sin() + 0.01 * a * b), matrix, "MB305"),
    Case("normalised", sigmoid("Norm", lambda g, a: g / g.abs().max() * a * (1 - a)), matrix, "MB306"),
    Case("strides-assumed", sigmoid("Raw", lambda g, a: g.as_strided(a.shape, a.stride(), 0) * a * (1 - a)), matrix,
         "MB401"),
    Case("offset-assumed", sigmoid("Zero", lambda g, a: g.as_strided(g.shape, g.stride(), 0) * a * (1 - a)), matrix,
         "MB403"),
    Case("view-of-expanded", sigmoid("View", lambda g, a: g.view(-1).view(a.shape) * a * (1 - a)), matrix, "MB404"),
    Case("input-written", made("Writes", writes_input, cube_backward), matrix, "MB501"),
    Case("grad-written", sigmoid("InPlace", lambda g, a: g.mul_(a * (1 - a))), matrix, "MB502"),
    Case("saved-written", sigmoid("Saved", lambda g, a: a.data.mul_(1 - a).mul(g)), matrix, "MB503"),
    Case("stale", made("Stale", cube_forward, stale), matrix, "MB504"),
    Case("module-global", made("Global", remembers, lambda ctx, g: 3 * last["x"] ** 2 * g), matrix, "MB505"),
    Case("tensor-on-ctx", made("OnCtx", on_ctx, lambda ctx, g: 3 * ctx.x**2 * g), matrix, "MB506"),
    Case("leak", made("Leak", keeps, cube_backward), matrix, "MB507"),
    Case("change-unnoticed", made("Unguarded", on_ctx, lambda ctx, g: 3 * ctx.x**2 * g), matrix, "MB508"),
    Case("global-state", made("State", remembers, lambda ctx, g: 3 * last["x"] ** 2 * g), matrix, "MB511"),
    Case("nan-when-saturated", made("Naive", lambda ctx, x: (ctx.save_for_backward(x), torch.sigmoid(x))[1],
                                    naive_sigmoid), lambda: draw((4, 3), dtype=torch.float32), "MB604"),
    Case("half-inside", made("HalfInside", cube_forward,
                             lambda ctx, g: (3 * ctx.saved_tensors[0].half() ** 2 * g.half()).to(g.dtype)),
         lambda: draw((4, 3), dtype=torch.float32), "MB303"),
    Case("empty-batch", made("Empty", cube_forward, needs_a_sample), matrix, "MB701", {"batch_dim": 0}),
    Case("one-sample", made("One", cube_forward, squeezed), matrix, "MB702", {"batch_dim": 0}),
    Case("same-tensor", made("Same", product_forward, forgets_the_second), pair, "MB705"),
    Case("detached", sigmoid("Detached", lambda g, a: g * (a * (1 - a)).detach()), matrix, "MB801"),
    Case("once-differentiable", made("Once", cube_forward, once), matrix, "MB802"),
    Case("wrong-jvp", WrongJvp, matrix, "MB803"),
    Case("wrong-vmap", WrongVmap, matrix, "MB804"),
    Case("noise", sigmoid("Noise", lambda g, a: g * a * (1 - a) * (1 + 1e-6 * torch.randn_like(a))), matrix, "MB901"),
    Case("threads", made("Shared", remembers, lambda ctx, g: 3 * last["x"] ** 2 * g), matrix, "MB902"),
]  # fmt: skip

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
