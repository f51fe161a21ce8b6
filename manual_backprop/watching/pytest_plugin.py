"""The work of the fixture `validate_backward`: validate, write the report, fail the test with the report.

The plugin that pytest loads is the module ``_manual_backprop_pytestplugin``; it says why it is a module of its own.
"""

import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manual_backprop.validation.report.report import Report
from manual_backprop.validation.validate import validate


def checker(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """`validate` for one test: it takes the same arguments and returns the same, but a bad report fails the test."""
    numbers = itertools.count(1)

    @functools.wraps(validate)
    def validate_backward(*args: Any, **options: Any) -> Report:
        __tracebackhide__ = True
        report = validate(*args, **options)
        folder = request.config.getoption("--backward-report")
        if folder is not None:
            base = request.config.invocation_params.dir / folder
            path = written(report, base, request.node.nodeid, next(numbers))
            request.node.user_properties.append(("backward_report", str(path)))
        if not report:
            pytest.fail(str(report), pytrace=False)
        return report

    return validate_backward


def written(report: Report, folder: Path, test: str, number: int) -> Path:
    """Writes a test's report as JSON and as JUnit; the names of the files are those of the test.

    Args:
        report: what `validate` returned.
        folder: the folder to write to; made if it is missing.
        test: pytest's id of the test, which is unique among the workers of xdist too.
        number: the number of this report among those of the test, counted from 1.

    Returns:
        The path of the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.=-]+", "-", test.replace("::", ".")).strip("-")[-180:]
    path = folder / (name + (f".{number}" if number > 1 else "") + ".json")
    report.to_json(path)
    report.to_junit(path.with_suffix(".xml"))
    return path
