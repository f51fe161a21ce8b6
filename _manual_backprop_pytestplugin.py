"""The pytest plugin of manual_backprop: the fixture `validate_backward` and the option ``--backward-report DIR``.

This module lies outside of the package for the reason for which hypothesis does the same with its own: pytest imports
every installed plugin in every project, and importing a module of the package would run the package's ``__init__``,
which imports torch. Here nothing but pytest is imported until a test asks for the fixture.
"""

from collections.abc import Callable
from typing import Any

import pytest

PROPERTY = "backward_report"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("manual_backprop", "hand-written backward passes")
    group.addoption(
        "--backward-report",
        metavar="DIR",
        help="write every report of the fixture validate_backward to DIR, as JSON and as JUnit",
    )


@pytest.fixture
def validate_backward(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`manual_backprop.validate`, whose failing report fails the test and prints its findings.

    Example::

        def test_backward(validate_backward):
            validate_backward(MyFunction, (x, weight), batch_dim=0)
    """
    from manual_backprop.watching.pytest_plugin import checker

    return checker(request)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line: how many reports were written, and where. Properties also arrive here from the workers of xdist."""
    folder = config.getoption("--backward-report")
    if folder is None:
        return
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    written = {path for report in reports for name, path in report.user_properties if name == PROPERTY}
    terminalreporter.write_sep("-", f"{len(written)} backward reports in {folder}")
