"""The fixture `validate_backward` at work: it validates, writes the report, and fails the test with it.

The plugin that pytest loads is the module ``_manual_backprop_pytestplugin``, which says why it lies elsewhere.
"""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manual_backprop.validation.report.files import encodable
from manual_backprop.validation.report.report import Report
from manual_backprop.validation.validate import validate


def checker(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """`validate` for one test: same arguments, same return value, but a failing report fails the test."""
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
    """Writes a test's report as JSON and as JUnit; the files bear the name of the test.

    Args:
        report: what `validate` returned.
        folder: the folder to write to; made if it is missing.
        test: pytest's id of the test, which is unique among the workers of xdist too.
        number: of this report among those of the test, from 1.

    Returns:
        The path of the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (file_name(test) + (f".{number}" if number > 1 else "") + ".json")
    report.to_json(path)
    report.to_junit(path.with_suffix(".xml"))
    return path


def file_name(test: str) -> str:
    """A name without a suffix, which no other test has.

    The last 180 bytes of the test's id, in characters that every file system takes; with a digest of the id where
    anything was cut or replaced, since two ids may look the same then.
    """
    name = test.replace("::", ".")
    plain = re.sub(r"[^\w.=-]+", "-", name).strip("-").encode()[-180:].decode(errors="ignore")
    return plain if plain == name else f"{plain}.{hashlib.blake2b(encodable(test).encode(), digest_size=4).hexdigest()}"
