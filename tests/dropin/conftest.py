"""Every test of a row runs twice: with our backward as it is, and with its canary, when it has to fail."""

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
    # For the table of scripts/dropin_table.py. `torch`: what torch says where it does not allow this to its own layers.
    pyfuncitem.user_properties += [("row", name), ("backward", backward), ("torch", row.kwargs.get("torch", ""))]
    if backward == "right":
        return (yield)
    with wrong_backward():
        try:
            yield
        except AssertionError:
            return True
    return pytest.fail("the backward is wrong on purpose, and this test does not notice it", pytrace=False)
