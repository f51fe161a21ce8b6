"""Reports as text, JSON, JUnit and TensorBoard."""

import json
from xml.etree import ElementTree

import pytest

from manual_backprop import Report, validate
from tests.validation.cases import matrix, sigmoid


@pytest.fixture
def report() -> Report:
    return validate(sigmoid("Half", lambda g, a: g * a * (1 - a) / 2), matrix(), only=("MB1", "MB3"), seed=7)


def test_text_has_a_table_and_the_failure_as_designed(report: Report) -> None:
    text = str(report)
    assert text.startswith("Half: FAILED")
    assert "FAIL MB101 calculus: the gradient of `x` is not the derivative" in text
    assert "all 12 elements differ" in text
    assert "     cause  a factor 2 is missing" in text
    assert '     repro  validate(Half, inputs, only="MB101", seed=7)' in text
    assert "passed: MB301–MB304, MB306" in text


def test_json_holds_every_finding(report: Report, tmp_path) -> None:
    path = tmp_path / "report.json"
    assert path.exists() is False
    text = report.to_json(path)
    assert json.loads(text) == json.loads(path.read_text())
    assert len(json.loads(text)["findings"]) == len(report.findings)
    assert json.loads(text)["passed"] is False


def test_junit_counts_what_the_report_counts(report: Report, tmp_path) -> None:
    report.to_junit(tmp_path / "report.xml")
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert int(suite.get("failures")) == len(report.failures) == len(suite.findall(".//failure"))
    assert len(suite.findall("testcase")) == len(report.findings)


def test_tensorboard_gets_counts_and_text(report: Report) -> None:
    class Writer:
        def __init__(self) -> None:
            self.scalars, self.texts = {}, {}

        def add_scalar(self, tag, value, step):
            self.scalars[tag] = value

        def add_text(self, tag, text, step):
            self.texts[tag] = text

    writer = Writer()
    report.to_tensorboard(writer)
    assert writer.scalars["validate/fail"] == len(report.failures)
    assert "MB101" in writer.texts["validate/Half"]
