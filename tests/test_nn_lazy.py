"""Lazy layers: torch.nn.LazyLinear makes the parameters at the first input, and the layer becomes ours."""

import copy
import pickle

import pytest
import torch

from manual_backprop import nn
from tests.cases import BIAS, DTYPES, IN, OUT

LAZY = [
    pytest.param(nn.LazyLinear, nn.Linear, id="LazyLinear"),
    pytest.param(nn.LazyLinearSigmoid, nn.LinearSigmoid, id="LazyLinearSigmoid"),
    pytest.param(nn.LazyLinearTanh, nn.LinearTanh, id="LazyLinearTanh"),
    pytest.param(nn.LazyLinearReLU, nn.LinearReLU, id="LazyLinearReLU"),
]


@pytest.mark.parametrize("bias", BIAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lazy", "layer"), LAZY)
def test_a_lazy_layer_becomes_the_layer(lazy, layer, dtype, bias):
    """At its first input, initialised as torch.nn.LazyLinear from the same random stream."""
    ours, theirs = lazy(OUT, bias, dtype=dtype), torch.nn.LazyLinear(OUT, bias, dtype=dtype)
    assert repr(ours) == repr(theirs).replace("LazyLinear", lazy.__name__)
    input = torch.randn(5, IN, dtype=dtype)
    torch.manual_seed(3)
    output = ours(input)
    torch.manual_seed(3)
    theirs(input)
    assert type(ours) is layer
    assert repr(ours) == f"{layer.__name__}(in_features={IN}, out_features={OUT}, bias={bias})"
    for actual, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert actual.dtype == dtype
        assert torch.equal(actual, expected)
    torch.testing.assert_close(output, ours.activation.function(theirs(input)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize(("lazy", "layer"), LAZY)
def test_a_lazy_layer_is_copied_before_its_first_input(lazy, layer, copied):
    twin = copied(lazy(OUT))
    assert type(twin) is lazy
    assert twin(torch.randn(5, IN)).shape == (5, OUT)
    assert type(twin) is layer


@pytest.mark.parametrize(("lazy", "layer"), LAZY)
def test_a_lazy_layer_after_its_first_input(lazy, layer):
    module = lazy(OUT)
    module(torch.zeros(5, IN))
    with pytest.raises(
        RuntimeError, match=rf"^{layer.__name__}\(.*\): expected input of {IN} features, found \(5, 9\)"
    ):
        module(torch.zeros(5, 9))
