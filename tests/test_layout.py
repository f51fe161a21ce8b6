"""The house keeps its order: imports run down only, files and functions stay short, a rule stands in one place."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "manual_backprop"

FLOORS = (
    ("_nested",),
    ("_torch",),
    ("activations",),
    ("costs",),
    ("kernels",),
    ("equations",),
    ("feedforward",),
    ("functions", "network"),
    ("functional",),
    ("nn",),
    ("conversion", "monitor"),
    ("programs",),
    ("training",),
    ("validation",),
    ("watching", "mutation", "zoo"),
    ("chapter",),
    ("cli",),
    ("__main__",),
)
"""The rooms from the bottom to the top: a room imports from itself and from floors below, never from a neighbour."""

CHECKERS = {"validation", "watching", "mutation", "zoo"}
"""The validator and what stands on it: they know nothing of the layers, and the layers nothing of them."""

LAYERS = {name for floor in FLOORS[2:13] for name in floor}
BOTH = {"chapter", "cli", "__main__"}
"""The programs that use layers and validator alike."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if "hook" not in path.parts}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def imported(module: str) -> set[str]:
    """The files that a file imports, for types alone and within functions too."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # A package stands for its own file only where a name is taken from it that is no file.
    return {name for name in found if name in FILES and name != module and not any(name == p for p in parents(found))}


def parents(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names if name in FILES}


ARROWS = {module: imported(module) for module in FILES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "manual_backprop"


def test_the_arrows_are_seen():
    assert "manual_backprop.validation.case" in ARROWS["manual_backprop.validation.needs"]
    assert "manual_backprop.kernels" in ARROWS["manual_backprop.equations"]


def test_every_room_has_its_floor():
    assert {room_of(module) for module in FILES} - {"manual_backprop"} == {name for floor in FLOORS for name in floor}


@pytest.mark.parametrize("module", [module for module in FILES if module != "manual_backprop"])
def test_imports_run_down(module):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    mine = room_of(module)
    for target in ARROWS[module] - {"manual_backprop"}:
        other = room_of(target)
        assert other == mine or floor[other] < floor[mine], f"{module} imports {target}, which is no floor below"


@pytest.mark.parametrize("module", [module for module in FILES if room_of(module) not in BOTH | {"manual_backprop"}])
def test_layers_and_validator_know_nothing_of_each_other(module):
    forbidden = LAYERS if room_of(module) in CHECKERS else CHECKERS if room_of(module) in LAYERS else set()
    assert not {target for target in ARROWS[module] if room_of(target) in forbidden}


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for target in ARROWS[module]:
                visit(target, (*way, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_short(module):
    assert FILES[module].read_text(encoding="utf-8").count("\n") <= 400
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef)]
    assert not {f.name: lines(f) for f in functions if lines(f) > 60}


def lines(function: ast.FunctionDef) -> int:
    """Those of the code: the docstring of a rule is its page, with two snippets in it."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    page = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return function.end_lineno - function.lineno + 1 - page


def test_a_rule_stands_in_one_place():
    homes: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "rule":
                code = node.args[0].value
                homes.setdefault(code, []).append(module)
    assert len(homes) > 60
    for code, modules in homes.items():
        (module,) = modules
        assert re.fullmatch(rf"manual_backprop\.validation\.rules\.mb{code[2]}_\w+", module), f"{code} in {module}"


def test_the_benchmark_is_not_in_the_wheel():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'only-include = \["manual_backprop", "_manual_backprop_pytestplugin.py"\]', text)
    assert not (PACKAGE / "benchmark").exists()
