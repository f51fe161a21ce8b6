"""Every test of a row runs twice: with our backward as it is, and with its canary, when it has to fail.

``@pytest.mark.row(NAME, ignored=True)`` is for the paths on which torch ignores a custom backward or goes wrong with
it, so that its own derivative of our forward is used: there the canary has to pass, and the README says so.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.dropin.canary import wrong_backward
from tests.dropin.rows import ROWS

COMPARING = [Path(__file__).parents[1], Path(torch.testing.__file__).parent]


def raised_by_a_comparison(error: AssertionError) -> bool:
    """Whether a test has raised it, or `torch.testing` for one; an assertion within torch tells of no gradient."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return any(Path(frame.f_code.co_filename).is_relative_to(folder) for folder in COMPARING)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("row"):
        metafunc.fixturenames.append("backward")
        metafunc.parametrize("backward", ["right", "canary"])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    row = pyfuncitem.get_closest_marker("row")
    if row is None:
        return (yield)
    (name,) = row.args
    assert name in ROWS
    backward = pyfuncitem.callspec.params["backward"]
    # What scripts/dropin_table.py prints. `torch`: its words where it does not allow this to its own layers.
    pyfuncitem.user_properties += [("row", name), ("backward", backward), *row.kwargs.items()]
    if backward == "right":
        return (yield)
    with wrong_backward():
        caught = False
        try:
            yield
        except AssertionError as error:
            if not raised_by_a_comparison(error):
                raise
            caught = True
    if row.kwargs.get("ignored") and caught:
        return pytest.fail("our backward is used here: the README says that it is not", pytrace=False)
    if caught or row.kwargs.get("ignored"):
        return True
    return pytest.fail("the backward is wrong on purpose, and this test does not notice it", pytrace=False)
