"""The oracle: right where it should be, unsure where it must be."""

import pytest
import torch

from manual_backprop.validation.differences import slopes

F64 = torch.float64


def slope_at(function, x, dtype=F64):
    values, direction = [torch.tensor([x], dtype=dtype)], [torch.ones(1, dtype=dtype)]
    return slopes(lambda v: [function(v[0])], values, direction, [[torch.ones(1, dtype=dtype)]], dtype)[0]


@pytest.mark.parametrize("name", ["sin", "exp", "sigmoid", "tanh", "square"])
def test_smooth_functions_to_nine_digits(name) -> None:
    x = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (expected,) = torch.autograd.grad(getattr(torch, name)(x), x)
    slope = slope_at(getattr(torch, name), 0.7)
    assert slope.judge(expected.item(), abs(expected.item()), F64) == "right"
    assert abs(slope.central - expected.item()) <= 10 * slope.error + 1e-9
    assert slope.judge(expected.item() * (1 + 1e-6), abs(expected.item()), F64) == "wrong"


def test_a_kink_is_a_kink() -> None:
    slope = slope_at(torch.relu, 0.0)
    assert slope.kinked
    assert (slope.left, slope.right) == (0.0, 1.0)
    assert slope.judge(2.0, 1.0, F64) == "kink"


@pytest.mark.parametrize("claimed", [0.0, 1.0, 100.0])
def test_at_a_jump_nothing_is_wrong(claimed) -> None:
    assert slope_at(torch.sign, 0.0).judge(claimed, claimed, F64) != "wrong"


def test_float32_inside_widens_the_error() -> None:
    rough, fine = slope_at(lambda x: x.float().sin().double(), 0.7), slope_at(torch.sin, 0.7)
    assert rough.error > 100 * fine.error
    assert rough.judge(0.7648421872844885, 1.0, F64) != "wrong"


def test_out_of_the_domain_is_not_an_error() -> None:
    slope = slope_at(torch.log, 1e-3)
    assert slope.judge(1e3, 1e3, F64) == "right"
