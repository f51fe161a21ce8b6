"""The house: imports run down its floors and never in a circle, files and functions stay short, a rule has one place.

All of it is read from the source, so that an import counts wherever it stands: in a function, for type checkers only,
as a name for `importlib`.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from manual_backprop.validation import RULES

ROOT = Path(__file__).parent.parent
PACKAGE = "manual_backprop"
FRONT_DOOR = "its __init__"
FLOORS = [
    ["_nested"],
    ["_torch"],
    ["activations", "validation"],
    ["costs", "watching", "mutation", "zoo"],
    ["kernels"],
    ["equations", "feedforward"],
    ["functions", "network"],
    ["functional"],
    ["nn"],
    ["conversion", "monitor"],
    [FRONT_DOOR],
    ["programs", "cli"],
    ["training", "__main__"],
    ["chapter"],
]
"""The rooms of the package from the ground up: a room knows those of the floors below it, and none of its own floor."""
VALIDATOR = {"validation", "watching", "mutation", "zoo"}
LAYERS = (
    {room for floor in FLOORS for room in floor}
    - VALIDATOR
    - {"_nested", "_torch", FRONT_DOOR, "cli", "__main__", "chapter"}
)
"""These two know nothing of each other; the chapter and the command line may use both."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
CODE = re.compile(r"MB\d{3}")
RULES_ROOM = ROOT / PACKAGE / "validation" / "rules"


def files_of(folder: str) -> dict[str, ast.Module]:
    """The files of a folder as syntax trees, by the dotted name of the module."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


TREES = files_of(PACKAGE)


def names_in(node: ast.AST) -> list[str]:
    """Whatever this may import: of ``from a import b``, b may be a file or a name in a; a text may name a file."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import hides whose room it is"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in TREES else str(node.module) for name in inner]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def imports_of(module: str) -> set[str]:
    """The files of the package that a file imports; `pkgutil.iter_modules` is every file beside it."""
    nodes = list(ast.walk(TREES[module]))
    found = {name for node in nodes for name in names_in(node)}
    if any(isinstance(node, ast.Attribute) and node.attr == "iter_modules" for node in nodes):
        found |= {name for name in TREES if name.rpartition(".")[0] == module}
    return found & TREES.keys() - {module}


IMPORTS = {module: imports_of(module) for module in TREES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else FRONT_DOOR


def arrows() -> Iterator[tuple[str, str]]:
    """Each import from one room into another."""
    for module, imported in IMPORTS.items():
        yield from ((module, name) for name in sorted(imported) if room_of(name) != room_of(module))


def test_the_imports_are_seen() -> None:
    """One that is known of each kind, and the rooms of the table, all of them: no arrows at all would prove nothing."""
    assert f"{PACKAGE}.activations" in IMPORTS[f"{PACKAGE}.costs"]
    assert f"{PACKAGE}.kernels" in IMPORTS[PACKAGE], "a room from the package"
    assert f"{PACKAGE}.validation" in IMPORTS[PACKAGE], "for type checkers, and by its name"
    assert f"{PACKAGE}.mutation.mutants" in IMPORTS[f"{PACKAGE}.mutation.hook.sitecustomize"], "by its name"
    assert f"{PACKAGE}.validation.rules.mb3_linear" in IMPORTS[f"{PACKAGE}.validation.rules"], "by pkgutil"
    assert {room_of(module) for module in TREES} == {room for floor in FLOORS for room in floor}


def test_no_circle_among_the_files() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as circle:
        pytest.fail(" → ".join(reversed(circle.args[1])), pytrace=False)


def test_no_arrow_up_the_floors() -> None:
    height = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    up = [f"{a} → {b}" for a, b in arrows() if height[room_of(b)] >= height[room_of(a)]]
    assert up == []


def test_the_validator_and_the_layers_know_nothing_of_each_other() -> None:
    sides = [(room_of(a), room_of(b), f"{a} → {b}") for a, b in arrows()]
    assert [words for a, b, words in sides if {a, b} & VALIDATOR and {a, b} & LAYERS] == []


@pytest.mark.parametrize("outside", ["benchmark", "scripts", "tests"])
def test_the_package_does_not_know(outside: str) -> None:
    assert (ROOT / outside).is_dir()
    statements = [
        (m, n) for m, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    named = [(module, name) for module, statement in statements for name in names_in(statement)]
    assert [arrow for arrow in named if arrow[1].split(".")[0] == outside] == []


def test_no_long_file() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in (ROOT / PACKAGE).rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


@pytest.mark.parametrize("folder", [PACKAGE, "benchmark", "scripts"])
def test_no_long_function(folder: str) -> None:
    long = {}
    for module, tree in files_of(folder).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long[f"{module}.{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
    assert {name: length for name, length in long.items() if length > LONGEST_FUNCTION} == {}


def registered() -> Iterator[tuple[str, str]]:
    """(code, file) of each ``@rule("MB…", …)`` under `validation/rules`."""
    for path in sorted(RULES_ROOM.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "rule":
                    yield ast.literal_eval(call.args[0]), path.stem


def test_a_rule_is_registered_once_in_the_file_of_its_family() -> None:
    rules = list(registered())
    assert {code: n for code, n in Counter(code for code, _ in rules).items() if n != 1} == {}
    assert [(code, file) for code, file in rules if not file.startswith(f"mb{code[2]}_")] == []
    assert {code for code, _ in rules} == {rule.code for rule in RULES}


def test_no_other_place_tells_of_rules_one_by_one() -> None:
    """No table of the package has codes for its keys: the decorator and the docstring of a rule tell it all."""
    tables = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            keys = [k.value for k in node.keys if isinstance(k, ast.Constant)] if isinstance(node, ast.Dict) else []
            if any(isinstance(key, str) and CODE.fullmatch(key) for key in keys):
                tables.append(module)
    assert tables == []
