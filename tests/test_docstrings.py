"""The examples in the docstrings show what they print, also those under variables, which doctest does not look at."""

import ast
import doctest
import importlib
import inspect
import itertools
import pkgutil

import pytest
import torch

import manual_backprop


def modules():
    found = pkgutil.walk_packages(manual_backprop.__path__, "manual_backprop.")
    return [manual_backprop, *(importlib.import_module(m.name) for m in found if not m.name.endswith("__main__"))]


def docstrings_of_variables(module):
    """(name, text) of the strings that stand alone after an assignment, at the top of a module."""
    body = ast.parse(inspect.getsource(module)).body
    for assignment, string in itertools.pairwise(body):
        is_text = isinstance(string, ast.Expr) and isinstance(string.value, ast.Constant)
        if is_text and isinstance(assignment, ast.Assign) and isinstance(string.value.value, str):
            yield ast.unparse(assignment.targets[0]), inspect.cleandoc(string.value.value)


def examples():
    finder, parser = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestParser()
    for module in modules():
        names = {**vars(module), "torch": torch}
        yield from (test for test in finder.find(module, extraglobs={"torch": torch}) if test.examples)
        for name, text in docstrings_of_variables(module):
            test = parser.get_doctest(text, names, f"{module.__name__}.{name}", module.__file__, 0)
            if test.examples:
                yield test


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    report = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(EXAMPLES[name], out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize(
    "name",
    [
        "manual_backprop.equations.output_error",
        "manual_backprop.activations.tanh",  # Under a variable.
        "manual_backprop.functional.quadratic_cost",
        "manual_backprop.nn.MLP",
        "manual_backprop.network.Network",
    ],
)
def test_examples_are_found(name):
    assert name in EXAMPLES
