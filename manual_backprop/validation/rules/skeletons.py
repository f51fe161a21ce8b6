"""The text that the wrong and the right snippets of several rules share; the lines of a snippet stand at ``___``."""

PRELUDE = """\
from functools import partial

import torch
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop import validate

randn = partial(torch.randn, dtype=torch.float64, requires_grad=True)
"""

SQUARE = """
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ___


validate(Square, (randn(4, 3),))
"""

LINEAR = """
class Linear(Function):
    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(input, weight)
        return F.linear(input, weight, bias)

    @staticmethod
    def backward(ctx, grad_output):
        input, weight = ctx.saved_tensors
        ___


validate(Linear, (randn(4, 3), randn(5, 3), randn(5)))
"""

DOUBLE = """
class Double(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad_output):
        ___


validate(Double, (randn(4, 3),))
"""

SINCOS = """
class SinCos(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        (x,) = ctx.saved_tensors
        ___


validate(SinCos, (randn(4, 3),))
"""
NOT_MATERIALIZED = SINCOS.replace(
    "forward(ctx, x):\n",
    "forward(ctx, x):\n        ctx.set_materialize_grads(False)  # the gradient of an unused output arrives as None\n",
)
