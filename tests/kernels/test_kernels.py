"""oneDNN and our own C++ where they can run, ATen everywhere else, and the same results."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manual_backprop import _torch, functional, functions, kernels, nn
from manual_backprop.activations import ACTIVATIONS as NAMED
from manual_backprop.activations import identity
from manual_backprop.kernels import choice, cpp, onednn
from tests.cases import assert_within_budget, params, softplus, steep_sigmoid
from tests.kernels.test_cpp import needs_compiler

needs_onednn = pytest.mark.skipif(not onednn.there(), reason="this torch has no oneDNN operation")
SHAPES = params({"odd": (7, 5, 3), "one_sample": (1, 64, 32), "wide": (33, 130, 70), "large": (128, 512, 256)})
DTYPES = params({"float32": torch.float32, "bfloat16": torch.bfloat16})
ACTIVATIONS = params(NAMED | {softplus.name: softplus})


@pytest.fixture(autouse=True)
def choice_of_the_process(monkeypatch):
    """Restored after every test: the others of this process may run under another one than the rule."""
    monkeypatch.setattr(choice, "_of_process", choice.Choice(choice.NEVER, compiled=False))


@pytest.fixture(
    params=["aten", pytest.param("onednn", marks=needs_onednn), pytest.param("compiled", marks=needs_compiler)]
)
def kernel(request):
    kernels.use(request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """The products that oneDNN takes."""
    taken, right = [], onednn.product
    monkeypatch.setattr(onednn, "product", lambda *arguments: taken.append(arguments) or right(*arguments))
    kernels.use("onednn")
    return taken


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_agree_with_float64(shape, dtype, activation, bias, kernel):
    """Values and gradients of a layer, within a budget of the rounding that torch's own layer has."""
    samples, inputs, outputs = shape
    x, w = torch.randn(samples, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5
    b = torch.randn(outputs, dtype=dtype) if bias else None
    grad_output = torch.randn(samples, outputs, dtype=dtype)

    def run(function, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, w, b) if t is not None]
        a = function(*leaves) if bias else function(*leaves, None)
        return [a, *torch.autograd.grad(a, leaves, grad_output.to(dtype))]

    def by_torch(x, w, b):
        return activation.function(torch.nn.functional.linear(x, w, b))

    ours = run(lambda x, w, b: functional.linear_activation(x, w, b, activation), dtype)
    for actual, eager, exact in zip(ours, run(by_torch, dtype), run(by_torch, torch.float64), strict=True):
        assert_within_budget(actual, eager, exact)


LAYOUTS = params(
    {
        "contiguous": lambda x: x,
        "transposed": lambda x: x.mT.contiguous().mT,
        "columns_of_a_wider_one": lambda x: torch.cat([x, x], -1)[:, : x.shape[1]],
        "every_other_row": lambda x: x.repeat_interleave(2, 0)[::2],
        "expanded": lambda x: x[:1].expand_as(x),
        "negative_bit": lambda x: torch._neg_view(-x),
    }
)


@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", LAYOUTS)
def test_layouts(of_a, of_b, kernel):
    a, b = of_a(torch.randn(9, 12)), of_b(torch.randn(12, 5))
    with torch.no_grad():
        torch.testing.assert_close(kernels.matmul(a, b), (a.double() @ b.double()).float())
        c = torch.randn(9, 5)
        expected = 0.5 * c.double() - 2 * a.double() @ b.double()
        torch.testing.assert_close(kernels.addmm_(c, a, b, beta=0.5, alpha=-2), expected.float())


BIASES = params(
    {
        "every_other": lambda b: b.repeat_interleave(2)[::2],
        "expanded": lambda b: b[:1].expand_as(b),
        "one_for_all": lambda b: b[:1],
        "row": lambda b: b[None],
    }
)


@pytest.mark.parametrize("of_bias", BIASES)
def test_biases(of_bias, kernel):
    """oneDNN's operation takes a bias for as many adjacent numbers as there are neurons, whatever its strides."""
    x, w, b = torch.randn(9, 12), torch.randn(5, 12), of_bias(torch.randn(5))
    with torch.no_grad():
        expected = x.double() @ w.double().mT + b.double()
        torch.testing.assert_close(kernels.linear(x, w, b, identity), expected.float())


DO_NOT_FIT = {
    "factors": ((9, 5), (9, 11), (12, 5), torch.float32),
    "to_broadcast": ((9, 5), (1, 12), (12, 5), torch.float32),
    "no_matrix": ((1, 9, 5), (1, 9, 12), (12, 5), torch.float32),
    "dtype": ((9, 5), (9, 12), (12, 5), torch.float64),
}


@pytest.mark.parametrize(("of_c", "of_a", "of_b", "dtype"), DO_NOT_FIT.values(), ids=DO_NOT_FIT)
def test_what_does_not_fit_is_refused(of_c, of_a, of_b, dtype, kernel):
    c = torch.ones(of_c, dtype=dtype)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"matrix|size|dtype|shapes"):
        kernels.addmm_(c, torch.randn(of_a), torch.randn(of_b), beta=0.5, alpha=-2)
    assert torch.equal(c, torch.ones_like(c))


def test_beta_0_forgets_a_nan(kernel):
    c, a, b = torch.full((5, 3), torch.nan), torch.randn(5, 4), torch.randn(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(kernels.addmm_(c, a, b, beta=0, alpha=2), 2 * (a @ b))


@needs_onednn
def test_plain_tensors_take_onednn(calls):
    functional.linear_sigmoid(*(torch.randn(s, requires_grad=True) for s in ((8, 4), (3, 4), (3,)))).sum().backward()
    assert len(calls) == 3  # z and a in one, ∂C/∂input, ∂C/∂weight


def bfloat16_layer():
    """Forward and backward under "onednn"."""
    kernels.use("onednn")
    x, w = (torch.randn(s, dtype=torch.bfloat16, requires_grad=True) for s in ((8, 4), (3, 4)))
    functional.linear_sigmoid(x, w).sum().backward()
    return x.grad


@needs_onednn
@pytest.mark.skipif(not _torch.onednn_has_bfloat16(), reason="oneDNN has no bfloat16 on this processor")
def test_bfloat16_takes_onednn(calls):
    bfloat16_layer()
    assert len(calls) == 3


@needs_onednn
def test_bfloat16_is_atens_where_the_processor_has_no_avx512():
    """oneDNN is told what it may use when it is loaded: so in a process of its own."""
    code = "from tests.kernels.test_kernels import bfloat16_layer; assert bfloat16_layer().isfinite().all()"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "mkldnn" not in str(func)
        return func(*args, **(kwargs or {}))


def under_a_dispatch_mode():
    with Watching(), torch.no_grad():
        functional.linear_sigmoid(torch.randn(8, 4), torch.randn(3, 4))


@pytest.fixture
def no_equations(monkeypatch):
    """Compiled, and a layer's backward pass may not come to the equations in Python."""
    kernels.use("compiled")
    monkeypatch.setattr(functions, "output_error", None)


@needs_compiler
@pytest.mark.parametrize("frozen", ["input", "weight", "bias", "weight and input", "none"])
@pytest.mark.parametrize("dtype", params({"float32": torch.float32, "float64": torch.float64}))
@pytest.mark.parametrize("shape", params({"no_batch": (), "odd": (7,), "3d": (2, 5)}))
@pytest.mark.parametrize("inputs", [3, 16, 21, 70])
def test_small_layers_are_compiled(frozen, dtype, shape, inputs, no_equations):
    """Whole vectors of numbers, a last one that laps over, and less than one; what is frozen has no gradient."""
    sizes = {"input": (*shape, inputs), "weight": (13, inputs), "bias": (13,)}
    leaves = [torch.randn(size, dtype=dtype, requires_grad=name not in frozen) for name, size in sizes.items()]
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    ours = functional.linear_tanh(*leaves)
    theirs = torch.nn.functional.linear(*leaves).tanh()
    grad_output = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(a, asked, grad_output) for a in (ours, theirs))
    torch.testing.assert_close(found, expected)


@needs_compiler
def test_a_linear_layer_that_keeps_no_output_is_compiled(no_equations):
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    found, expected = (torch.autograd.grad(a, (x, w), torch.ones(4, 3)) for a in (functional.linear(x, w), x @ w.mT))
    torch.testing.assert_close(found, expected)


@needs_compiler
@pytest.mark.parametrize("cost", ["quadratic", "cross_entropy"])
def test_the_gradients_of_a_network_come_with_its_cost(cost):
    """Twice as much of the cost is twice the gradients, and a second backward of one graph finds them again."""
    kernels.use("compiled")
    network = nn.MLP([20, 7, 3], "tanh", "sigmoid")
    x, y = torch.randn(5, 20, requires_grad=True), torch.rand(5, 3)
    leaves = [x, *network.parameters()]
    ours = nn.NetworkCost(network, cost)(x, y)
    assert ours.grad_fn.at_once
    plain = {"quadratic": nn.QuadraticCost(), "cross_entropy": nn.CrossEntropyCost()}[cost]
    expected = torch.autograd.grad(plain(network(x), y), leaves)
    twice = torch.autograd.grad(2 * ours, leaves, retain_graph=True)
    torch.testing.assert_close(twice, tuple(2 * gradient for gradient in expected))
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), expected)


NOT_COMPILED = {
    "large": lambda: functional.linear(torch.ones(100, 200), torch.ones(100, 200)),
    "half": lambda: functional.linear(torch.ones(2, 3).half(), torch.ones(4, 3).half()),
    "strided": lambda: functional.linear(torch.ones(3, 2).mT, torch.ones(4, 3)),
    "negative_bit": lambda: functional.linear(torch._neg_view(torch.ones(2, 3)), torch.ones(4, 3)),
    "zeros_without_memory": lambda: functional.linear(torch._efficientzerotensor((2, 3)), torch.ones(4, 3)),
    "own_activation": lambda: functional.linear_activation(torch.ones(2, 3), torch.ones(4, 3), None, steep_sigmoid),
    "empty": lambda: functional.linear(torch.ones(0, 3), torch.ones(4, 3)),
    "vmap": lambda: torch.func.vmap(lambda x: functional.linear(x, torch.ones(4, 3)))(torch.ones(2, 3)),
    "compile": lambda: torch.compile(functional.linear, backend="aot_eager")(torch.ones(2, 3), torch.ones(4, 3)),
}


@needs_compiler
@pytest.mark.parametrize("function", NOT_COMPILED.values(), ids=NOT_COMPILED)
def test_everything_else_is_not_compiled(function, monkeypatch):
    kernels.use("compiled")
    monkeypatch.setattr(cpp, "library", lambda: pytest.fail("compiled"))
    assert isinstance(function(), torch.Tensor)


@needs_compiler
@pytest.mark.parametrize("changed", [0, 1], ids=["input", "weight"])
@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_what_has_become_smaller_since_the_forward_pass_is_refused(changed, activation):
    """C++ would read what lies behind it."""
    kernels.use("compiled")
    leaves = [torch.randn(size, requires_grad=True) for size in ((40, 30), (20, 30))]
    a = functional.linear_activation(*leaves, None, activation)
    leaves[changed].data = torch.randn(2, 30)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        a.backward(torch.ones(40, 20))


@needs_compiler
def test_gradients_without_memory_are_not_compiled():
    kernels.use("compiled")
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    found = torch.autograd.grad(functional.linear_sigmoid(x, w), (x, w), torch._efficientzerotensor((4, 3)))
    torch.testing.assert_close(found, (torch.zeros(4, 6), torch.zeros(3, 6)))


MISFITS = {
    "too_few_activations": ([(3, 6), (2, 3)], ["sigmoid"], ValueError, "shorter"),
    "too_many_activations": ([(2, 6)], ["sigmoid", "tanh"], ValueError, "longer"),
    "vector": ([(2,)], ["sigmoid"], RuntimeError, "mismatch"),
    "no_matrix": ([(2, 6, 6)], ["sigmoid"], RuntimeError, "2 dimensions"),
}


@pytest.mark.parametrize(("weights", "activations", "error", "match"), MISFITS.values(), ids=MISFITS)
def test_networks_that_do_not_fit_are_refused(weights, activations, error, match, kernel):
    weights = [torch.randn(size, requires_grad=True) for size in weights]
    with pytest.raises(error, match=match):
        functional.network_cost(torch.randn(4, 6), torch.randn(4, 2), weights, [None for _ in weights], activations)


@pytest.mark.parametrize("grad", [1.0, torch.inf, torch.nan])
def test_relu_of_infinities_and_nans(grad, kernel):
    """Its derivative chooses, and is no factor: what a dead neuron is given is forgotten, whatever it is."""
    x = torch.tensor([[1.0], [-1.0], [0.0], [torch.inf], [-torch.inf], [torch.nan]], requires_grad=True)
    w, grad_output = torch.ones(1, 1), torch.full((6, 1), grad)
    (found,) = torch.autograd.grad(functional.linear_relu(x, w), x, grad_output)
    (expected,) = torch.autograd.grad(torch.relu(x), x, grad_output)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_sums_over_many_samples(kernel):
    """Equal numbers, whose rounding errors all point one way."""
    x, w, b = torch.zeros(60_000, 16), torch.zeros(1, 16), torch.zeros(1, requires_grad=True)
    cost = functional.network_cost(x, torch.full((60_000, 1), 0.1), [w], [b], ["identity"])
    torch.testing.assert_close(cost, torch.tensor(0.005))
    (grad_bias,) = torch.autograd.grad(cost, b)
    torch.testing.assert_close(grad_bias, torch.tensor([-0.1]))


@needs_compiler
def test_a_trace_is_not_compiled(monkeypatch):
    """It would take the sizes for constants."""
    kernels.use("compiled")
    monkeypatch.setattr(cpp, "linear", lambda *_: pytest.fail("compiled"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        torch.jit.trace(lambda x: functional.linear(x, torch.ones(4, 3)), torch.ones(2, 3), check_trace=False)


@needs_compiler
def test_a_cost_that_is_not_recorded_computes_no_gradients(monkeypatch):
    kernels.use("compiled")
    monkeypatch.setattr(cpp, "network_cost", lambda *_: pytest.fail("with gradients"))
    with torch.no_grad():
        assert nn.NetworkCost(nn.MLP([3, 2]))(torch.ones(1, 3), torch.ones(1, 2)) > 0


@needs_compiler
def test_batched_gradients_are_not_compiled():
    """torch hands a backward a tensor that stands for many, and has no memory of its own."""
    kernels.use("compiled")
    x, w = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)
    grad_outputs = torch.randn(5, 4, 3)
    (found,) = torch.autograd.grad(functional.linear(x, w), w, grad_outputs, is_grads_batched=True)
    torch.testing.assert_close(found, grad_outputs.mT @ x)


OTHERS = {
    "float64": lambda: functional.linear(torch.randn(8, 4).double(), torch.randn(3, 4).double()),
    "empty": lambda: functional.linear(torch.randn(0, 4), torch.randn(3, 4)),
    "layout": lambda: functional.linear(torch.randn(8, 4).to_mkldnn(), torch.randn(3, 4)),
    "vmap": lambda: torch.func.vmap(lambda x: functional.linear(x, torch.ones(3, 4)))(torch.randn(8, 4)),
    "meta": lambda: functional.linear(torch.randn(8, 4, device="meta"), torch.randn(3, 4, device="meta")),
    "dispatch_mode": under_a_dispatch_mode,
    "compile": lambda: torch.compile(functional.linear, backend="aot_eager")(torch.randn(8, 4), torch.randn(3, 4)),
}


@needs_onednn
@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_everything_else_is_atens(function, calls):
    function()
    assert not calls


@needs_onednn
def test_a_backward_that_is_recorded_is_atens(calls):
    """oneDNN's operation has no derivative, and a second derivative needs one."""
    x, w = torch.randn(8, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)

    def second(layer):
        (slope,) = torch.autograd.grad(layer(x, w).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, w))

    ours = second(functional.linear_sigmoid)
    assert calls
    torch.testing.assert_close(ours, second(lambda x, w: torch.nn.functional.linear(x, w).sigmoid()))


@needs_onednn
def test_the_rule_goes_by_size(monkeypatch):
    monkeypatch.setattr(choice, "_amd_with_avx512", lambda: True)
    taken = []
    monkeypatch.setattr(onednn, "product", lambda x, w: taken.append("onednn") or x @ w.mT)
    kernels.use("auto")
    side = int(onednn.SMALLEST ** (1 / 3))
    with torch.no_grad():
        for size, expected in ((side - 1, []), (side + 1, ["onednn"])):
            kernels.matmul(torch.randn(size, size), torch.randn(size, size))
            assert taken == expected


def test_other_processors_keep_aten(monkeypatch):
    monkeypatch.setattr(choice, "_amd_with_avx512", lambda: False)
    kernels.use("auto")
    assert kernels.chosen() == "aten"


@needs_compiler
@needs_onednn
def test_it_says_what_is_chosen(monkeypatch):
    monkeypatch.setattr(choice, "_amd_with_avx512", lambda: True)
    kernels.use("compiled")
    assert kernels.chosen() == (
        "compiled up to 1,000,000 multiplications, else onednn from 16,000,000 multiplications on, else aten"
    )


def test_without_the_operation_it_falls_back_with_one_warning(monkeypatch):
    monkeypatch.setattr(onednn, "there", lambda: False)
    with pytest.warns(UserWarning, match="ATen multiplies instead") as warned:
        kernels.use("onednn")
    assert len(warned) == 1
    assert kernels.chosen() == "aten"
    monkeypatch.setattr(choice, "_amd_with_avx512", lambda: True)
    kernels.use("auto")  # nobody has asked for oneDNN: a warning would be an error
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        kernels.matmul(torch.randn(3, 3), torch.randn(3, 3))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel: expected one of auto, aten, onednn, compiled, found 'mkl'"):
        kernels.use("mkl")
