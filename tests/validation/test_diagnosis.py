"""The cause that is named, for mistakes whose cause is known."""

import pytest
import torch

from manual_backprop import validate
from tests.validation.cases import draw, layer, linear, made, pair, sigmoid


def activated(name, gradients):
    """A linear-sigmoid layer whose backward is `gradients` of (grad_output, σ′, input, weight)."""

    def forward(ctx, input, weight, bias):
        a = torch.sigmoid(input @ weight.mT + bias)
        ctx.save_for_backward(input, weight, a)
        return a

    def backward(ctx, grad):
        input, weight, a = ctx.saved_tensors
        return gradients(grad, a * (1 - a), input, weight)

    return made(name, forward, backward)


CASES = [
    ("sign", sigmoid("F", lambda g, a: -g * a * (1 - a)), lambda: draw((4, 3)), "sign is turned"),
    ("half", sigmoid("F", lambda g, a: g * a * (1 - a) / 2), lambda: draw((4, 3)), "a factor 2 is missing"),
    ("sizes", sigmoid("F", lambda g, a: g * a * (1 - a) * 7), lambda: draw((7, 3)), "the size 7 of `x` along axis 0"),
    ("sigma", sigmoid("F", lambda g, a: g * 1), lambda: draw((4, 3)), "σ′ = a(1 − a) of the sigmoid is missing"),
    ("shift", made("F", lambda ctx, x: 2 * x, lambda ctx, g: 2 * g.roll(1, 0)), lambda: draw((5,)), "shifted by +1"),
    ("flip", made("F", lambda ctx, x: x * 2, lambda ctx, g: 2 * g.flip(0)), lambda: draw((5,)), "reversed along axis"),
    ("row", made("F", lambda ctx, x: x * 2, lambda ctx, g: torch.cat([3 * g[:1], 2 * g[1:]])), lambda: draw((5, 2)),
     "wrong only at 0 along axis 0 (of 5)"),
    ("slot", made("F", lambda ctx, x, y: 2 * x + 3 * y, lambda ctx, g: (3 * g, 2 * g)), pair, "in the wrong place"),
    ("bias-mean", linear("F", lambda c, g, x, w: (g @ w, g.mT @ x, g.mean(0))), layer, "the size 5 of `input`"),
    ("BP1", activated("F", lambda g, s, x, w: (g @ w, (g * s).mT @ x, (g * s).sum(0))), layer, "BP1 without σ′(z)"),
    ("BP4", activated("F", lambda g, s, x, w: ((g * s) @ w, (g * s).mT @ x / 5, (g * s).sum(0))), layer, "BP4 divides"),
    ("BP3", activated("F", lambda g, s, x, w: ((g * s) @ w, (g * s).mT @ x, (g * s)[0])), layer, "BP3 takes the first"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "function", "inputs", "words"), CASES, ids=[case[0] for case in CASES])
def test_the_cause_is_named(name, function, inputs, words) -> None:
    finding = validate(function, inputs(), only="MB101").failures[0]
    assert words in finding.cause
    assert finding.index is not None
    assert finding.expected != finding.actual


def test_where_no_pattern_fits_it_says_so() -> None:
    noise = torch.tensor([0.3, 1.7, -0.4, 2.2, 0.9], dtype=torch.float64)
    wrong = made("F", lambda ctx, x: x.sin(), lambda ctx, g: g * noise)
    finding = validate(wrong, draw((5,)), only="MB101").failures[0]
    assert finding.cause.startswith("no pattern fits; the worst elements")
    assert finding.cause.count("→") == 5
