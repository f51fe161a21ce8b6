"""`mb.Monitor` writes the right numbers, for any model, changes nothing, and leaves nothing behind."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

import manual_backprop as mb
from manual_backprop import functions
from tests.monitor.models import Checkpointed, each_model, train


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        yield writer


@pytest.fixture
def events(writer, tmp_path):
    """What has been written so far."""

    def read():
        writer.flush()
        return EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()

    return read


@pytest.fixture
def scalars(events):
    """The values of a tag, or what there is by tag."""

    def read(tag=None):
        found = events()
        values = {name: [event.value for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
        return values if tag is None else values[tag]

    return read


# --- the numbers --------------------------------------------------------------------------------------------------


def test_the_error_is_that_of_the_algorithm(writer, events):
    model = mb.nn.MLP([4, 3, 2])
    x, y = torch.rand(6, 4), torch.rand(6, 2)
    net = mb.Network([4, 3, 2])
    net.weights, net.biases = [m.weight.detach().clone() for m in model], [m.bias.detach().clone() for m in model]
    expected = net.backprop(x, y)
    with mb.Monitor(model, writer):
        mb.nn.QuadraticCost()(model(x), y).backward()
    found = events()
    for layer, (delta, weight, bias) in enumerate(zip(expected.deltas, expected.weights, expected.biases, strict=True)):
        norms = {"error/{}/norm": delta, "gradient/{}.weight/norm": weight, "gradient/{}.bias/norm": bias}
        for tag, tensor in norms.items():
            assert found.Scalars(tag.format(layer))[0].value == pytest.approx(float(tensor.norm()), rel=1e-5)
        histogram = found.Histograms(f"error/{layer}/delta")[0].histogram_value
        assert (histogram.num, sum(histogram.bucket)) == (delta.numel(), delta.numel())
        assert (histogram.min, histogram.max) == pytest.approx((float(delta.min()), float(delta.max())), rel=1e-5)
        assert histogram.sum == pytest.approx(float(delta.sum()), rel=1e-4)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_a_torch_model_shows_what_ours_does(tmp_path, name):
    """A Linear and the activation module behind it are one layer, under the Linear's path."""
    torch_activation = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}[name]
    ours, plain = mb.nn.MLP([4, 3, 2], name), nn.Sequential(nn.Linear(4, 3), torch_activation(), nn.Linear(3, 2))
    plain.append(torch_activation())
    state = {key.replace("1.", "2."): value for key, value in ours.state_dict().items()}
    plain.load_state_dict(state)
    x, y, found = torch.randn(6, 4) * 5, torch.rand(6, 2), []
    for i, model in enumerate((ours, plain)):
        with SummaryWriter(str(tmp_path / str(i))) as writer, mb.Monitor(model, writer):
            train(model, x=x, y=y)
        log = EventAccumulator(str(tmp_path / str(i))).Reload()
        found.append({tag: log.Scalars(tag)[0].value for tag in log.Tags()["scalars"]})
    renamed = {tag.replace("/1", "/2"): value for tag, value in found[0].items()}
    assert renamed == pytest.approx(found[1], rel=1e-4, abs=1e-7)
    assert "saturation/2/share" in renamed
    assert ("saturation/0/dead" in renamed) == (name == "relu")


def test_saturated_dead_and_near_zero_are_counted(writer, scalars):
    model = mb.nn.LinearReLU(2, 4, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    x = torch.tensor([[0.005, 3.0], [2.0, -3.0]])  # z = [.005, -.005, 3, -3], [2, -2, -3, 3]: only the second is dead
    with mb.Monitor(model, writer):
        model(x).sum().backward()
    assert scalars("saturation/LinearReLU/dead") == [0.25]
    assert scalars("saturation/LinearReLU/share") == [0.5]
    assert scalars("input/LinearReLU") == [0.25]


def test_what_is_nan_or_of_no_sample_is_not_dead(writer, scalars):
    model = mb.nn.LinearReLU(2, 4)
    with mb.Monitor(model, writer, every=1):
        model(torch.full((3, 2), torch.nan)).sum().backward()
        model(torch.empty(0, 2)).sum().backward()
    assert scalars("saturation/LinearReLU/dead") == [0]


def test_the_learning_speed_is_that_of_the_step(writer, scalars):
    model = mb.nn.MLP([4, 3, 2])
    before = copy.deepcopy(model)
    with mb.Monitor(model, writer, every=2):
        train(model)
        after = copy.deepcopy(model)
        train(model)
    for name, w in before.named_parameters():
        expected = float(((after.get_parameter(name) - w).norm() / w.norm()).detach())
        assert scalars(f"learning_speed/{name}") == [pytest.approx(expected, rel=1e-4)]


def test_the_learning_speed_waits_for_an_accumulating_optimizer(writer, events):
    model = mb.nn.MLP([4, 2])
    before = model[0].weight.detach().clone()
    with mb.Monitor(model, writer, every=8):
        for _ in range(4):
            model(torch.rand(3, 4)).sum().backward()
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        model(torch.rand(3, 4))
    (speed,) = events().Scalars("learning_speed/0.weight")
    assert (speed.step, speed.value) == (0, pytest.approx(0.5, rel=1e-5))
    assert not torch.equal(before, model[0].weight)


def test_two_forward_passes_before_one_backward_pass(writer, scalars):
    """A siamese network: ‖δ‖ is that of the first of its two passes, ‖∂C/∂w‖ that of both."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2))
    expected = {"error/2/norm": [], "gradient/0.weight/norm": []}
    with mb.Monitor(model, writer, every=4):
        for _ in range(3):
            model.zero_grad()
            first, second = model(torch.rand(6, 4)), model(torch.rand(6, 4))
            first.retain_grad()
            (first - second).square().sum().backward()
            expected["error/2/norm"].append(float(first.grad.norm()))
            expected["gradient/0.weight/norm"].append(float(model[0].weight.grad.norm()))
    for tag, (one, _, three) in expected.items():  # six passes, of which 0 and 4 are recorded
        assert scalars(tag) == pytest.approx([one, three], rel=1e-5)


def without_numbers(model, x):
    """Forward passes whose tensors have no numbers: under `vmap` and `grad`, and in a trace."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    one = torch.func.grad(lambda p, x: torch.func.functional_call(model, p, x).sum())
    torch.func.vmap(one, in_dims=(None, 0))(parameters, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit.trace", DeprecationWarning)
        torch.jit.trace(model, x)


def test_what_has_no_numbers_is_no_step(writer, scalars):
    model = mb.nn.MLP([4, 3, 2])
    with mb.Monitor(model, writer, every=1) as monitor:
        without_numbers(model, torch.rand(6, 4))
        assert monitor.step == 0
        train(model)
    assert len(scalars("error/0/norm")) == 1


@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_right_gradients_agree(writer, scalars, activation, dtype):
    if activation == "softplus":
        activation = mb.Activation("softplus", nn.functional.softplus, torch.sigmoid, needs="z")
    model = mb.nn.MLP([4, 3, 2], activation, dtype=dtype)
    with mb.Monitor(model, writer, reference=True):
        model(torch.rand(6, 4, dtype=dtype)).float().sum().backward()
    found = {tag: value for tag, (value,) in scalars().items() if tag.startswith("agreement/")}
    parts = {f"agreement/{layer}/{part}" for layer in "01" for part in ("weight", "bias", "input")}
    assert parts - {"agreement/0/input"} == set(found)
    assert max(found.values()) < 20 * torch.finfo(dtype).eps


EQUATIONS = {
    "BP1": ("output_error", {"weight", "bias", "input"}),
    "BP2": ("input_gradient", {"input"}),
    "BP3": ("bias_gradient", {"bias"}),
    "BP4": ("weight_gradient", {"weight"}),
}


@pytest.mark.parametrize(("name", "parts"), EQUATIONS.values(), ids=EQUATIONS)
def test_a_wrong_equation_does_not_agree(writer, scalars, monkeypatch, name, parts):
    right = getattr(functions, name)
    monkeypatch.setattr(functions, name, lambda *arguments: 1.01 * right(*arguments))
    model = mb.nn.MLP([4, 3, 2])
    with mb.Monitor(model, writer, reference=True):
        train(model)
    found = {part: scalars(f"agreement/1/{part}")[0] for part in ("weight", "bias", "input")}
    assert {part for part, value in found.items() if value > 5e-3} == parts


# --- any model, which it does not touch -------------------------------------------------------------------------------


@each_model
def test_any_model_trains_as_without(writer, scalars, make, inputs):
    models = [make(), None]
    x, y = inputs(), torch.rand(6, 2)
    models[0](x)
    models[1] = copy.deepcopy(models[0])
    torch.manual_seed(1)
    train(models[0], 5, x=x, y=y)
    torch.manual_seed(1)
    with mb.Monitor(models[1], writer, every=2, reference=True):
        train(models[1], 5, x=x, y=y)
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    found = scalars()
    if make is Checkpointed and torch.__version__ < "2.13":
        pytest.skip(
            "torch 2.9 runs no hook of a leaf that a Function saves under a checkpoint, so its gradient is unseen"
        )
    for name, parameter in models[1].named_parameters():
        if parameter.grad is not None:
            assert len(found[f"gradient/{name}/norm"]) == len(found[f"learning_speed/{name}"]) == 3
    followed = [path or type(m).__name__ for path, m in models[1].named_modules() if list(m.parameters(recurse=False))]
    for path in set(followed) - {"attend.out_proj"}:  # its weights are read, and it never runs
        assert len(found[f"error/{path}/norm"]) == 3


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        (path, name): list(getattr(module, name).values()) for path, module in model.named_modules() for name in names
    }


@each_model
def test_it_leaves_the_model_as_it_was(writer, make, inputs):
    model = make()
    x = inputs()
    model(x)
    mine = model.register_forward_hook(lambda *_: None)
    before = hooks(model), [p._backward_hooks for p in model.parameters()], sorted(vars(model))
    with mb.Monitor(model, writer, every=2) as monitor:
        assert hooks(model) != before[0]
        train(model, 2, x=x)
        inside = [module for (path, _), found in hooks(model).items() if path and found for module in found]
        assert inside == []  # between recorded steps, and after a forward pass, no layer has a hook
        model(x)
        assert monitor.step == 3
    monitor.close()
    assert (hooks(model), [p._backward_hooks for p in model.parameters()], sorted(vars(model))) == before
    mine.remove()


def test_a_forward_that_raises_leaves_no_hooks(writer):
    model = mb.nn.MLP([4, 3, 2])
    before = hooks(model)
    with mb.Monitor(model, writer):
        with pytest.raises(RuntimeError):
            model(torch.rand(6, 5))
        assert hooks(model[0]) == hooks(mb.nn.Linear(4, 3))
    assert hooks(model) == before


def test_copies_of_the_model_are_not_monitored(writer, scalars):
    model = mb.nn.MLP([4, 2])
    with mb.Monitor(model, writer, every=1) as monitor:
        train(model)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            train(other)
        assert monitor.step == 1
        train(model)
    assert len(scalars("error/0/norm")) == 2


def test_only_training_steps_count(writer, events):
    model = mb.nn.MLP([4, 2])
    x = torch.rand(3, 4)
    with mb.Monitor(model, writer, every=2) as monitor:
        monitor.step = 10
        train(model, 3)
        with torch.no_grad():
            model(x)
        model.eval()
        model(x)
        model.train()
        with monitor.paused():
            model(x)
        assert monitor.step == 13
    assert [event.step for event in events().Scalars("error/0/norm")] == [10, 12]


def test_two_backward_passes_and_a_frozen_layer(writer, scalars):
    model = mb.nn.MLP([4, 3, 2])
    model[0].requires_grad_(False)
    with mb.Monitor(model, writer, every=1, reference=True):
        y = model(torch.rand(6, 4)).sum()
        y.backward(retain_graph=True)
        y.backward()
    found = scalars()
    assert "error/0/norm" not in found
    assert "gradient/0.weight/norm" not in found
    assert len(found["error/1/norm"]) == 1


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("whole", [True, False], ids=["all", "one"])
@each_model
def test_what_is_not_finite_is_marked_with_its_layer(writer, events, make, inputs, bad, whole):
    model, x = make(), inputs()
    model(x)
    *_, (name, parameter) = model.named_parameters()
    with torch.no_grad():
        parameter[... if whole else 0] = bad
    with mb.Monitor(model, writer, reference=True):
        train(model, 2, x=x)
    text = events().Tensors("not_finite/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("- step 0: ")
    assert f"values of `{name}` are NaN or infinite" in text


def test_numbers_whose_squares_overflow_are_written(writer, scalars):
    model = mb.nn.MLP([4, 2], "identity")
    with mb.Monitor(model, writer):
        (model(torch.full((3, 4), 1e30)) * 1e7).sum().backward()
    assert scalars("error/0/norm") == [pytest.approx(6**0.5 * 1e7)]
    assert scalars("gradient/0.weight/norm")[0] == pytest.approx(8**0.5 * 3e37, rel=1e-3)


# --- around the model -------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_has_the_paths_of_the_model(process_group, writer, scalars):
    model = DistributedDataParallel(mb.nn.MLP([4, 3, 2]))
    with mb.Monitor(model, writer, every=1):
        train(model, 2)
    assert len(scalars("error/1/norm")) == len(scalars("gradient/0.weight/norm")) == 2


def test_other_ranks_write_nothing(process_group, writer, scalars, monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    model = mb.nn.MLP([4, 3, 2])
    before = hooks(model)
    with mb.Monitor(model, writer, every=1) as monitor:
        assert hooks(model) == before
        with monitor.paused():
            train(model)
        train(model)
    assert scalars() == {}


def test_a_compiled_model_shows_what_belongs_to_parameters(writer, scalars):
    torch._dynamo.reset()
    model = torch.compile(mb.nn.MLP([4, 3, 2]), backend="aot_eager")
    with mb.Monitor(model, writer, every=1):
        train(model, 3)
    found = scalars()
    assert len(found["gradient/0.weight/norm"]) == len(found["learning_speed/0.weight"]) == 3
    assert not any(tag.startswith("error/") for tag in found)


def test_autocast(writer, scalars):
    model = mb.nn.MLP([4, 3, 2])
    with mb.Monitor(model, writer, reference=True):
        with torch.autocast("cpu", torch.bfloat16):
            cost = model(torch.rand(6, 4)).float().sum()
        cost.backward()
    assert 0 < scalars("error/0/norm")[0] < 100
    assert scalars("agreement/1/weight")[0] < 20 * torch.finfo(torch.bfloat16).eps


BAD = {
    "model": (lambda writer: mb.Monitor("net", writer), TypeError, "model: expected a torch.nn.Module, found str"),
    "writer": (lambda _: mb.Monitor(nn.Linear(2, 2), "runs"), TypeError, "writer: expected a SummaryWriter, found str"),
    "every 0": (lambda w: mb.Monitor(nn.Linear(2, 2), w, every=0), ValueError, "every: expected a positive number"),
    "every 1.5": (lambda w: mb.Monitor(nn.Linear(2, 2), w, every=1.5), ValueError, "every: .* found 1.5"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(writer, make, error, message):
    with pytest.raises(error, match=message):
        make(writer)


def test_the_first_layer_is_shown_as_pictures(writer, events):
    for name, model, shape in (
        ("grey", mb.nn.MLP([25, 7, 2]), (1, 25)),
        ("colour", mb.nn.MLP([75, 7, 2]), (1, 75)),
        ("none", mb.nn.MLP([26, 7, 2]), (1, 26)),
        ("conv", nn.Conv2d(3, 7, 5), (1, 3, 9, 9)),
    ):
        with mb.Monitor(nn.ModuleDict({name: model})[name], writer) as monitor:
            monitor.step = 0
            model(torch.rand(shape)).sum().backward()
    images = events().Images("weights/0.weight/image") + events().Images("weights/weight/image")
    assert [(image.width, image.height) for image in images] == [(18, 18)] * 3
