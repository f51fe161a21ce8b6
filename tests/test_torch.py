"""Private torch stands in `_torch.py` alone; what runs where a part is gone gives the same answers, or the safe one."""

import ast
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

import manual_backprop as mb
from manual_backprop import _torch
from tests.cases import params

# --- each fallback beside the part of torch itself --------------------------------------------------------------------


class DoubleHere(Function):
    """Its name is no other Function's in the process, because a fallback finds Functions by their names."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output


def asked(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def seen_under(transform: Callable, ask: Callable[[], Any]) -> Any:
    """What is answered within a transform of torch.func."""
    answers = []

    def function(x: Tensor) -> Tensor:
        answers.append(ask())
        return x

    transform(function)(torch.ones(()) if transform is torch.func.grad else torch.ones(2))
    return answers[-1]


def under_transforms(ask: Callable) -> list[bool]:
    return [ask(), seen_under(torch.func.vmap, ask), ask(), seen_under(torch.func.grad, ask), ask()]


def in_forward_mode(ask: Callable) -> list[bool]:
    before = ask()
    with forward_ad.dual_level():
        return [before, ask(), ask()]


def in_a_trace(ask: Callable) -> list[bool]:
    answers = [ask()]

    def function(x: Tensor) -> Tensor:
        answers.append(bool(ask()))
        return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(function, torch.ones(2), check_trace=False)
    return answers


def under_autocast(ask: Callable) -> list[bool]:
    with torch.autocast("cpu"):
        within = ask()
    return [ask(), within]


def of_nodes(ask: Callable) -> list[Any]:
    x = asked(2)
    return [ask(node) for node in (DoubleHere.apply(x).grad_fn, x.sin().grad_fn, asked(2).clone().grad_fn)]


def after_writing(ask: Callable) -> list[bool]:
    untouched, written, plain = asked(2).clone(), asked(2).clone(), torch.ones(2).clone()
    written.mul_(2), plain.mul_(2)
    return [ask(untouched), ask(written), ask(plain)]


def while_held(ask: Callable) -> list[bool]:
    x = torch.ones(2)
    alive, alias = ask(x), x.detach()
    answers = [alive()]
    del x
    answers.append(alive())
    del alias
    return [*answers, alive()]


def of_zeros(ask: Callable) -> list[bool]:
    return [ask(x) for x in (torch._efficientzerotensor((2,)), torch.zeros(2), torch.zeros(0))]


def of_a_view(ask: Callable) -> list[Any]:
    view = ask(torch.arange(3.0))
    return [view.is_neg(), view.tolist()]


NESTED = ({"w": [1, (2,)], "b": None}, 3)

# Each part, and the question that it and the fallback answer alike, with the answer.
ALIKE = {
    "transform_is_active": (under_transforms, [False, True, False, True, False]),
    "forward_mode_is_on": (in_forward_mode, [False, True, True]),
    "is_tracing": (in_a_trace, [False, True]),
    "autocast_is_on_somewhere": (under_autocast, [False, True]),
    "functions_of_node": (of_nodes, [(DoubleHere,), (), ()]),
    "written_in_place": (after_writing, [False, True, False]),
    "watch_memory": (while_held, [True, True, False]),
    "has_no_memory": (of_zeros, [True, False, False]),
    "negative_view": (of_a_view, [True, [-0.0, -1.0, -2.0]]),
    "flatten": (lambda flatten: flatten(NESTED)[0], [1, 2, None, 3]),
    "leaf_paths": (lambda paths: paths(NESTED), ["[0]['w'][0]", "[0]['w'][1][0]", "[0]['b']", "[1]"]),
}

# Those whose fallback is the safe answer, and what that is.
SAFE = {
    "forward_mode_is_nested": (lambda ask: ask(), True),
    "modes_active": (lambda ask: ask(), 1),
    "without_modes": (lambda block: type(block()).__name__, "nullcontext"),
    "free_saved": (lambda free: free(None), None),
    "zeros_without_memory": (lambda zeros: zeros((2,)), None),
    "unflatten": (lambda unflatten: unflatten([1, 2, None, 3], NESTED), NESTED),
    "onednn_has_bfloat16": (lambda ask: ask(), False),
    "seed_queues": (lambda queues: queues(), []),
}


@pytest.mark.parametrize("way", ["torch", "fallback"])
@pytest.mark.parametrize("name", ALIKE)
def test_a_part_and_its_fallback_answer_alike(name: str, way: str) -> None:
    question, answer = ALIKE[name]
    assert _torch.PARTS[name].there, f"this torch has no {_torch.PARTS[name].names}: only the fallback is tested"
    function = getattr(_torch, name) if way == "torch" else _torch.PARTS[name].fallback
    assert question(function) == answer


@pytest.mark.parametrize("name", SAFE)
def test_where_torch_cannot_be_asked_the_answer_is_the_safe_one(name: str) -> None:
    question, answer = SAFE[name]
    assert question(_torch.PARTS[name].fallback) == answer


def test_each_part_is_tested_above() -> None:
    assert {*ALIKE, *SAFE} == {*_torch.PARTS}


def test_a_function_is_found_by_name_where_several_bear_it() -> None:
    class TwiceHere(DoubleHere):
        pass

    first = TwiceHere

    class TwiceHere(DoubleHere):
        pass

    found = _torch.PARTS["functions_of_node"].fallback(TwiceHere.apply(asked(2)).grad_fn)
    assert {*found} == {first, TwiceHere}


def test_a_custom_op_is_a_function_that_torch_makes() -> None:
    @torch.library.custom_op("manual_backprop_tests::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return 2 * x

    double.register_autograd(lambda ctx, grad: 2 * grad)
    (found,) = _torch.functions_of_node(double(asked(2)).grad_fn)
    assert found.__name__.startswith("GeneratedBackwardFor")


CPP = """
struct TwiceHere : torch::autograd::Function<TwiceHere> {
  static at::Tensor forward(torch::autograd::AutogradContext*, at::Tensor x) { return 2 * x; }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*, torch::autograd::tensor_list g) {
    return {2 * g[0]};
  }
};
at::Tensor twice(at::Tensor x) { return TwiceHere::apply(x); }
"""


@pytest.mark.slow
def test_a_function_in_cpp_is_hand_written(tmp_path: Path) -> None:
    pytest.importorskip("ninja")
    from torch.utils.cpp_extension import load_inline

    twice = load_inline("twice", CPP, functions=["twice"], build_directory=str(tmp_path)).twice
    assert _torch.is_hand_written(twice(asked(2)).grad_fn)
    assert not _torch.functions_of_node(twice(asked(2)).grad_fn)


@pytest.mark.parametrize("hooked", [False, True], ids=["no_hook", "a_hook"])
def test_hooks_of_a_module(hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(2, 2)
    if hooked:
        module.register_forward_hook(lambda *_: None)
    assert _torch.hooks(module) == ["_forward_hooks"] * hooked
    monkeypatch.setattr(_torch, "_HOOKS", [])
    assert _torch.hooks(module), "where hooks cannot be seen, a module may have any"


def test_the_module_within_a_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(2, 2)
    wrapped = torch.compile(module)
    assert _torch.compiled_module(wrapped) is module
    monkeypatch.setattr(_torch, "children", lambda _: {})
    assert _torch.compiled_module(wrapped) is module
    assert _torch.compiled_module(torch.nn.Sequential(module)) is None


def test_no_graph_where_torch_cannot_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.jit, "trace")
    with pytest.warns(UserWarning, match="TensorBoard shows no graph"):
        _torch.show_graph(None, torch.nn.Linear(2, 2), torch.ones(1, 2))


# --- with every fallback at once --------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without any of its private parts."""
    for name, part in _torch.PARTS.items():
        monkeypatch.setattr(_torch, name, part.fallback)


def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(torch.nn.functional.linear(x, w, b))


def gradients(layer: Callable, *arguments: Tensor) -> Any:
    return torch.autograd.grad(layer(*arguments).square().sum(), arguments)


def without_recording(layer: Callable, *arguments: Tensor) -> Any:
    with torch.no_grad():
        return layer(*arguments)


def over_samples(layer: Callable, x: Tensor, w: Tensor, b: Tensor) -> Any:
    return torch.func.vmap(torch.func.grad(lambda x: layer(x, w, b).square().sum()))(x)


def forwards(layer: Callable, *arguments: Tensor) -> Any:
    return torch.func.jvp(layer, arguments, arguments)[1]


def forwards_twice(layer: Callable, *arguments: Tensor) -> Any:
    return forwards(lambda *inner: forwards(layer, *inner), *arguments)


def dual(layer: Callable, x: Tensor, w: Tensor, b: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x), w, b)).tangent


def under_cpu_autocast(layer: Callable, *arguments: Tensor) -> Any:
    with torch.autocast("cpu"):
        return layer(*(x.float() for x in arguments)).double()


WAYS = (gradients, without_recording, over_samples, forwards, forwards_twice, dual, under_cpu_autocast)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("way", params({way.__name__: way for way in WAYS}))
def test_layers_are_right_without_any_private_part(way: Callable) -> None:
    x, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (2, 3), (2,)))
    torch.testing.assert_close(way(mb.functional.linear_sigmoid, x, w, b), way(plain, x, w, b))


@pytest.mark.usefixtures("bare")
def test_networks_are_right_without_any_private_part() -> None:
    x, w, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (2, 3), (2,)))
    cost = mb.functional.network_cost(x, torch.zeros(4, 2, dtype=torch.float64), [w], [b], ["sigmoid"])
    expected = 0.5 * plain(x, w, b).square().sum() / 4
    torch.testing.assert_close(torch.autograd.grad(cost, (x, w, b)), torch.autograd.grad(expected, (x, w, b)))


# --- import -----------------------------------------------------------------------------------------------------------

ASKED_LATER = (_torch.ONEDNN, "torch._C._jit_get_schemas_for_operator", "torch.ops.aten.sigmoid_backward.grad_input")
NAMES = sorted({name for part in _torch.PARTS.values() for name in part.names}.union(ASKED_LATER))


@pytest.fixture(scope="module")
def children() -> dict[str, str]:
    """Without each part, and without all: ok, or the error of a process that imports the package and trains."""
    program = Path(__file__).with_name("without_private_torch.py")
    command = [sys.executable, "-W", "error", program, *NAMES, "+".join(NAMES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    lines = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {name: words for name, words in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", params({name: name for name in NAMES} | {"all": "+".join(NAMES)}))
def test_imports_and_trains_without(name: str, children: dict[str, str]) -> None:
    assert children[name] == "ok"


# --- the one door -----------------------------------------------------------------------------------------------------

PACKAGE = Path(mb.__file__).parent

# Parts of torch that do not stand behind "torch." where they are used, or carry no underscore.
BARE_NAMES = {
    *(name.split(".")[-1] for name in NAMES if name.split(".")[-1].startswith("_")),
    *(
        "_backward_cls",
        "_orig_mod",
        "_modules",
        "_compiled_call_impl",
        "_ff_block",
        "_subclasses",
        "_dynamo",
        "_pytree",
    ),
    *("StorageWeakRef", "maybe_clear_saved_tensors", "get_interpreter_stack", "torch.__trace", "CppNode"),
}


def private_names(tree: ast.AST) -> Iterator[str]:
    """Private names of torch in the code of a file, and in its strings where they are a name and nothing else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            steps = dotted.split(".")
            ours = steps[0] == "torch" and any(step[:1] == "_" and step[:2] != "__" for step in steps)
            if ours or node.attr in BARE_NAMES:
                yield dotted
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            for alias in node.names:
                if "._" in f"{node.module}.{alias.name}" or alias.name in BARE_NAMES:
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in BARE_NAMES:
            yield repr(node.value)


def test_private_torch_stands_behind_one_door() -> None:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if name != "_torch.py" and not name.startswith("zoo/"):  # the zoo holds what other people write
            names = sorted(set(private_names(ast.parse(file.read_text(encoding="utf-8")))))
            found.update({name: names} if names else {})
    assert found == {}
