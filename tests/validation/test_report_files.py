"""Reports in files: JSON and JUnit that strict parsers read, whatever the names and numbers; whole files or none."""

import html
import json
import math
import os
import stat
import threading
from xml.etree import ElementTree

import pytest
import torch

from manual_backprop import Finding, Report, validate
from manual_backprop.validation.report import files
from manual_backprop.validation.report.json import as_json
from tests.validation.cases import made, matrix, sigmoid


def read_json(text: str):
    """As a parser that goes by the letter: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


WRITERS = {"json": Report.to_json, "junit": Report.to_junit, "html": Report.to_html}


@pytest.fixture
def report() -> Report:
    return validate(sigmoid("Half", lambda g, a: g * a * (1 - a) / 2), matrix(), only=("MB1", "MB3"), seed=7)


def test_json_holds_every_finding(report: Report, tmp_path) -> None:
    text = report.to_json(tmp_path / "report.json")
    found = read_json(text)
    assert found == read_json((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [finding["code"] for finding in found["findings"]] == [finding.code for finding in report.findings]
    assert (found["verdict"], found["passed"]) == ("failed", False)


def test_junit_counts_what_the_report_counts(report: Report, tmp_path) -> None:
    report.to_junit(tmp_path / "report.xml")
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert int(suite.get("failures")) == len(report.failures) == len(suite.findall(".//failure"))
    assert len(suite.findall("testcase")) == len(report.findings)


PASS = Finding("pass", "ok", code="MB301")
ERROR = Finding("error", "the validator itself failed", code="MB902")
OPEN = Finding("inconclusive", "the gradient of `x` was compared with nothing", code="MB101", input="x")
REPORTS = {
    "passed": (Report("f", (PASS,)), []),
    "error": (Report("f", (PASS, ERROR)), [ERROR.message]),
    "unchecked": (Report("f", (PASS,), unchecked=(OPEN,)), [OPEN.message]),
}


@pytest.mark.parametrize(("report", "errors"), REPORTS.values(), ids=REPORTS)
def test_a_ci_server_is_green_where_the_report_is_true_and_only_there(report, errors, tmp_path) -> None:
    report.to_junit(tmp_path / "report.xml")
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert [error.get("message") for error in suite.findall(".//error")] == errors
    assert int(suite.get("errors")) == len(errors)
    assert int(suite.get("tests")) == len(suite.findall("testcase"))
    assert bool(report) == (not errors)


NUMBERS = {
    "nan": (math.nan, "NaN"),
    "infinity": (math.inf, "Infinity"),
    "minus infinity": (-math.inf, "-Infinity"),
    "finite": (-0.5, -0.5),
    "complex": (1 - 2j, {"real": 1.0, "imag": -2.0}),
    "complex nan": (complex(math.nan, -math.inf), {"real": "NaN", "imag": "-Infinity"}),
    "none": (None, None),
}


@pytest.mark.parametrize(("number", "written"), NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("part", ["findings", "unchecked"])
def test_any_number_has_its_json(number, written, part) -> None:
    findings = {"findings": (), part: (Finding("fail", "m", expected=number, actual=number, index=(0,)),)}
    (found,) = read_json(Report("f", **findings).to_json())[part]
    assert (found["expected"], found["actual"], found["index"]) == (written, written, [0])


def test_a_gradient_of_nan_is_reported_in_json() -> None:
    nan = made("NotANumber", lambda ctx, x: x * 2, lambda ctx, g: g * math.nan)
    found = read_json(validate(nan, matrix(), only="MB206").to_json())
    assert "NaN" in [finding["actual"] for finding in found["findings"]]


CHARACTERS = {
    "control": "\x00\x01\x1b\x7f\x85",
    "not a character": "\ufffe\uffff",
    "half a surrogate pair": "\ud800 \udfff",
    "markup": "<b>&\"']]>",
    "lines": "one\ntwo\tthree\rfour",
    "beyond the basic plane": "δ 𝛿 \U0010ffff",
}


@pytest.mark.parametrize("text", CHARACTERS.values(), ids=CHARACTERS)
@pytest.mark.parametrize("place", ["name", "message", "check", "family"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_any_character_can_be_written_anywhere(text, place, writer, tmp_path) -> None:
    words = {"name": "f", "message": "m", "check": "c", "family": "f"} | {place: text}
    name = words.pop("name")
    report = Report(name, (Finding("fail", code="MB101", **words), Finding("pass", code="MB102", **words)))
    writer(report, tmp_path / "report")
    written = (tmp_path / "report").read_text(encoding="utf-8")
    shown = "".join(f"\\u{ord(char):04x}" if "\ud800" <= char <= "\udfff" else char for char in text)
    if writer is Report.to_json:
        found = read_json(written)
        assert shown == (found["name"] if place == "name" else found["findings"][0][place])
    elif writer is Report.to_junit:
        ElementTree.fromstring(written.encode("utf-8"))
    else:
        assert html.escape(shown) in (tmp_path / "report").read_bytes().decode("utf-8")


def test_what_xml_cannot_hold_is_shown(tmp_path) -> None:
    Report("f\x00", (Finding("fail", "\x1b \ufffe \ud800 \r é", code="MB101"),)).to_junit(tmp_path / "report.xml")
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert suite.get("name") == r"f\x00"
    assert suite.find(".//failure").get("message") == r"\x1b \ufffe \ud800 \r é"


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_half_a_surrogate_pair_in_an_exception_is_no_trouble(writer, tmp_path) -> None:
    def backward(ctx, grad):
        raise ValueError("half of a pair: \ud83d")

    report = validate(made("Raises", lambda ctx, x: x * 2, backward), matrix(), only="MB1")
    assert r"\ud83d" in str(report)
    str(report).encode("utf-8")
    writer(report, tmp_path / "report")
    assert "ud83d" in (tmp_path / "report").read_text(encoding="utf-8")


# --- whole or not at all --------------------------------------------------------------------------------------------


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("before", [None, "as it was"], ids=["new", "old"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_cannot_be_written_leaves_the_old_file(writer, before, tmp_path) -> None:
    path = tmp_path / "report"
    if before:
        path.write_text(before)
    with pytest.raises((RuntimeError, TypeError, AttributeError)):
        writer(Report("f", (Finding("fail", Unwritable()),)), path)
    assert [file.name for file in tmp_path.iterdir()] == (["report"] if before else [])
    assert not before or path.read_text() == before


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("as it was")

    def full(self, content) -> None:
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, "a" * 1000)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "as it was"


def test_a_file_keeps_its_mode_and_a_link_its_place(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    files.write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_pipe_is_written_to(tmp_path) -> None:
    """As are /dev/stdout and /dev/stderr, which a file beside them cannot replace."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    files.write(pipe, "δ")
    reader.join(10)
    assert read == ["δ"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_json_of_anything_else_is_its_text() -> None:
    assert read_json(as_json({"shape": torch.Size([2]), 3: torch.float32})) == {"shape": [2], "3": "torch.float32"}
