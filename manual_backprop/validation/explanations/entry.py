"""What an explanation is, the skeletons that many snippets share, and how a wrong and a right line are put into one."""

from dataclasses import dataclass
from typing import Literal

PRELUDE = """\
from functools import partial

import torch
from torch.autograd import Function
from torch.nn import functional as F

from manual_backprop import validate

randn = partial(torch.randn, dtype=torch.float64, requires_grad=True)
"""


@dataclass(frozen=True)
class Explanation:
    """What a finding's code means to somebody who meets it.

    Args:
        code: ``"MB301"``.
        meaning: what is wrong, whom it hurts, and why nobody noticed, in a few sentences.
        bug: a real one of this class, with its citation.
        wrong: a snippet that, run after `PRELUDE`, validates a backward with this mistake.
        right: the same without it.
        status: how the finding about the wrong one ends; a loud refusal is a warning.
        unseen: why there are no snippets, where there are none.
    """

    code: str
    meaning: str
    bug: str
    wrong: str = ""
    right: str = ""
    status: Literal["fail", "warn"] = "fail"
    unseen: str = ""


def explained(
    code: str, meaning: str, bug: str, skeleton: str, wrong: str, right: str, status: Literal["fail", "warn"] = "fail"
) -> Explanation:
    """An explanation whose two snippets differ in what stands at the skeleton's ``___``."""
    return Explanation(code, meaning, bug, filled(skeleton, wrong), filled(skeleton, right), status)


def filled(skeleton: str, lines: str) -> str:
    """The skeleton with lines in the place of ``___``, indented as that is.

    Example:
        >>> print(filled("def f():\\n    ___", "x = 1\\nreturn x"))
        def f():
            x = 1
            return x
    """
    before, after = skeleton.strip("\n").split("___")
    indent = len(before) - len(before.rstrip(" "))
    return before + lines.strip("\n").replace("\n", "\n" + " " * indent) + after + "\n"


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
BOTH = """
grad = torch.zeros_like(x)
if grad_sin is not None:
    grad = grad + grad_sin * x.cos()
if grad_cos is not None:
    grad = grad - grad_cos * x.sin()
return grad
"""
