"""Every test of a row runs twice: with our backward as it is, and with its canary, when it has to fail.

``@pytest.mark.row(NAME, ignored=True)`` is for the paths on which torch ignores a custom backward or goes wrong with
it, so that its own derivative of our forward is used: there the canary has to pass, and the README says so.
"""

from collections.abc import Iterator

import pytest

from tests.dropin.canary import wrong_backward
from tests.dropin.rows import ROWS


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
        try:
            yield
        except AssertionError:
            caught = True
        else:
            caught = False
    if row.kwargs.get("ignored") and caught:
        return pytest.fail("our backward is used here: the README says that it is not", pytrace=False)
    if caught or row.kwargs.get("ignored"):
        return True
    return pytest.fail("the backward is wrong on purpose, and this test does not notice it", pytrace=False)
