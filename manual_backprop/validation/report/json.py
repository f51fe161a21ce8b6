"""A report as JSON by the letter of RFC 8259, so that every parser reads it."""

import json
import math
from dataclasses import asdict
from typing import Any

from manual_backprop.validation.report.files import encodable
from manual_backprop.validation.report.finding import Findings


def report_as_json(report: Findings) -> str:
    """The whole report without the excerpts, because these numbers serve to draw heat maps only."""
    content = asdict(report) | {"verdict": report.verdict, "passed": report.passed}
    for finding in (*content["findings"], *content["unchecked"]):
        del finding["excerpt"]
    return as_json(content)


def as_json(value: Any) -> str:
    """JSON text of nested dicts, lists and tuples.

    JSON has no NaN and no infinity, so the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` stand for them. A
    complex number becomes ``{"real": …, "imag": …}``, half of a surrogate pair its escape, other objects their ``str``.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _not_finite(value)
    if isinstance(value, complex):
        return {"real": _plain(value.real), "imag": _plain(value.imag)}
    if isinstance(value, dict):
        return {encodable(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return encodable(str(value))


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
