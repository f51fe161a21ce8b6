"""Row: optimizers. Every class of `torch.optim` ends with the original's parameters; reparametrisation and clipping."""

import inspect
import warnings

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations, parametrize, stateless

from manual_backprop import nn
from tests.cases import IN, OUT
from tests.dropin.models import assert_same, pair, run, torch_twin

STEPS = 5
ROW = "optimizers"
OPTIMIZERS = {
    name: found
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
}
REFUSED = {  # What torch says of parameters or gradients such as those of a Linear with a bias.
    "SparseAdam": "SparseAdam does not support dense gradients, please consider Adam instead",
    "Muon": "Muon only supports 2D parameters whereas we found a parameter with size: torch.Size([4])",
}
ONLY_MATRICES = {"Muon"}


def implementations(optimizer):
    """Each way in which the class can carry out its step."""
    known = inspect.signature(optimizer).parameters
    if "line_search_fn" in known:
        # Few iterations: close to the minimum LBFGS divides by differences of gradients that are rounding alone.
        return [{"max_iter": 3}, {"max_iter": 3, "line_search_fn": "strong_wolfe"}]
    return [{}, *({name: on} for name in ("foreach", "fused") for on in (False, True) if name in known)]


CASES = [
    pytest.param(optimizer, options, id="-".join([name, *(f"{key}={value}" for key, value in options.items())]))
    for name, optimizer in OPTIMIZERS.items()
    if name != "SparseAdam"
    for options in implementations(optimizer)
]


def data():
    return torch.linspace(-1, 1, 6 * IN, dtype=torch.float64).reshape(6, IN), torch.full((6, OUT), 0.9).double()


def train(model, optimizer, after_backward=lambda model: None):
    x, y = data()

    def closure():
        optimizer.zero_grad()
        cost = torch.nn.functional.mse_loss(model(x), y)
        cost.backward()
        after_backward(model)
        return cost

    return [optimizer.step(closure).detach() for _ in range(STEPS)]


def test_every_optimizer_is_found():
    assert {"SGD", "Adam", "AdamW", "LBFGS", "Muon", "Adafactor", "SparseAdam"} <= set(OPTIMIZERS)
    assert {param.values[0] for param in CASES} == set(OPTIMIZERS.values()) - {torch.optim.SparseAdam}


@pytest.mark.row(ROW)
@pytest.mark.parametrize(("optimizer", "options"), CASES)
def test_steps(optimizer, options):
    """The costs on the way and the parameters at the end, from a closure, as LBFGS wants it."""
    found = []
    ours = nn.MLP([IN, 4, OUT], "tanh", bias=optimizer.__name__ not in ONLY_MATRICES, dtype=torch.float64)
    for model in (ours, torch_twin(ours)):
        before = [p.detach().clone() for p in model.parameters()]
        costs = train(model, optimizer(model.parameters(), lr=0.1, **options))
        assert not any(torch.equal(p, start) for p, start in zip(model.parameters(), before, strict=True))
        found.append([*costs, *model.parameters()])
    assert_same(*found)


@pytest.mark.row(ROW, torch=REFUSED["SparseAdam"])
def test_sparse_adam_is_refused():
    """Of both alike: the gradients of a Linear are dense."""
    found = []
    for model in pair():
        optimizer = torch.optim.SparseAdam(model.parameters())
        with pytest.raises(RuntimeError) as error:
            train(model, optimizer)
        assert str(error.value) == REFUSED["SparseAdam"]
        found.append([p.grad for p in model.parameters()])
    assert_same(*found)


@pytest.mark.row(ROW, torch=REFUSED["Muon"])
def test_muon_of_a_bias_is_refused():
    found = []
    for model in pair():
        with pytest.raises(ValueError, match="Muon only supports 2D parameters") as error:
            torch.optim.Muon(model.parameters())
        assert str(error.value) == REFUSED["Muon"]
        # As torch's documentation has it: Muon for the matrices, another optimizer for the rest.
        matrices = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=0.1)
        train(model, matrices)
        found.append(list(model.parameters()))
    assert_same(*found)


@pytest.mark.row(ROW)
@pytest.mark.parametrize(
    "clip",
    [
        pytest.param(lambda p, foreach: clip_grad_norm_(p, 1e-3, foreach=foreach), id="norm"),
        pytest.param(lambda p, foreach: clip_grad_norm_(p, 1e-3, torch.inf, foreach=foreach), id="largest"),
        pytest.param(lambda p, foreach: clip_grad_value_(p, 1e-3, foreach=foreach), id="value"),
    ],
)
@pytest.mark.parametrize("foreach", [False, True], ids=["one_by_one", "foreach"])
def test_gradient_clipping(clip, foreach):
    """The norm that is reported, the clipped gradients, and the steps taken with them."""
    found = []
    for model in pair():
        norms = []
        train(
            model,
            torch.optim.SGD(model.parameters(), lr=10.0),
            lambda model, norms=norms: norms.append(clip(list(model.parameters()), foreach)),
        )
        found.append([*(n for n in norms if n is not None), *model.parameters(), *(p.grad for p in model.parameters())])
    assert max(float(p.grad.abs().max()) for p in model.parameters()) <= 1e-3
    assert_same(*found)


@pytest.mark.row(ROW)
@pytest.mark.parametrize(
    "parametrization",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("removed", [False, True], ids=["", "removed"])
def test_parametrize(parametrization, removed):
    """A weight computed from other parameters: their gradients, their steps, and the weight that is left behind."""
    found = []
    for model in pair():
        linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        for linear in linears:
            torch.manual_seed(1)  # spectral_norm draws a vector to start from
            parametrization(linear)
        costs = train(model, torch.optim.SGD(model.parameters(), lr=1.0))
        if removed:
            for linear in linears:
                parametrize.remove_parametrizations(linear, "weight")
        result = run(model.eval(), data()[0].requires_grad_())
        found.append([*costs, *result, *(linear.weight for linear in linears)])
    assert_same(*found)


@pytest.mark.row(ROW)
@pytest.mark.parametrize(
    "functional_call", [stateless.functional_call, torch.func.functional_call], ids=["stateless", "func"]
)
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_functional_call(functional_call, tied):
    """With other weights than its own, tied ones too, and gradients with respect to those."""
    found = []
    weights = [torch.randn(IN, IN, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    biases = [torch.randn(IN, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    x, _ = data()
    for model in pair((IN, IN, IN)):
        names = [name for name, _ in model.named_parameters()]
        first, second = weights[0], weights[0 if tied else 1]
        parameters = dict(zip(names, [first, biases[0], second, biases[1]], strict=True))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.nn.utils.stateless.functional_call` is deprecated")
            output = functional_call(model, parameters, (x,))
        leaves = list({id(p): p for p in parameters.values()}.values())
        found.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
        assert all(p.grad is None for p in model.parameters())
    assert_same(*found)
