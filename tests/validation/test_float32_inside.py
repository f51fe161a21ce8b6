"""A forward that casts to float32 inside is right in the digits that float32 has, whatever dtype the sample is of."""

import math

import pytest
import torch

from manual_backprop.validation import validate


class Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        x = x.float()
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return (grad_output.float() * ((1 + torch.erf(x / math.sqrt(2))) / 2 + x * density)).to(grad_output.dtype)


class GeluWithoutDensity(Gelu):
    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (1 + torch.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_false_alarm_and_no_miss(dtype):
    x = torch.linspace(-2, 2, 12).to(dtype).reshape(4, 3).requires_grad_()
    skip = ("MB806", "MB807")
    assert not validate(Gelu, (x,), skip=skip).failures
    assert "MB101" in {finding.code for finding in validate(GeluWithoutDensity, (x,), skip=skip).failures}
