"""A report as JUnit's XML, which CI servers read."""

import re
from xml.etree import ElementTree

from manual_backprop.validation.report.finding import Finding, Findings, Status

TAGS: dict[Status, str] = {"fail": "failure", "skip": "skipped", "error": "error"}
"""The element of a test case by status; a finding of any other status but "pass" is output of a test that passed."""

FORBIDDEN = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold even as escapes; and the carriage return, which a parser turns into a newline."""


def report_as_junit(report: Findings) -> str:
    """A test case for each finding, named by its code.

    Where the verdict is "unchecked", each gradient that nothing checked becomes a test case with an error, because a CI
    server would otherwise call the suite passed.
    """
    unchecked = report.unchecked if report.verdict == "unchecked" else ()
    counts = {
        "tests": len(report.findings) + len(unchecked),
        "failures": report.count("fail"),
        "errors": report.count("error") + len(unchecked),
        "skipped": report.count("skip"),
    }
    attributes = {"name": _xml(report.name), "time": f"{report.seconds:.3f}"}
    suite = ElementTree.Element("testsuite", attributes | {key: str(value) for key, value in counts.items()})
    for finding in report.findings:
        _add(suite, report, finding, TAGS.get(finding.status, "system-out"))
    for finding in unchecked:
        _add(suite, report, finding, "error")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n'


def _add(suite: ElementTree.Element, report: Findings, finding: Finding, tag: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        name=_xml(f"{finding.code} {finding.check}"),
        classname=_xml(f"{report.name}.{finding.family}"),
        time=f"{finding.seconds:.3f}",
    )
    if finding.status == "pass":
        return
    element = ElementTree.SubElement(case, tag)
    element.text = _xml(str(finding))
    if tag != "system-out":
        element.set("message", _xml(finding.message))


def _xml(text: str) -> str:
    r"""The text with each character that XML cannot hold as Python writes it: ``\x00``."""
    return FORBIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
