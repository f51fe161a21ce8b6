"""Reports as text, HTML and TensorBoard."""

import html
import math
from html.parser import HTMLParser

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from manual_backprop import Finding, Report, validate
from manual_backprop.validation.report.heat_map import SIDE, excerpt, image
from manual_backprop.validation.tolerances import Mismatch
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


def test_tensorboard_gets_counts_text_and_heat_maps(report: Report, tmp_path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        report.to_tensorboard(writer)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Scalars("validate/fail")[0].value == len(report.failures)
    assert b"MB101" in found.Tensors("validate/Half/text_summary")[0].tensor_proto.string_val[0]
    (picture,) = found.Images("validate/0 MB101 x")
    assert (picture.height, picture.width) == (6 * 12, 3 * 5 * 12)  # three panels of 4 × 3 squares, and their margins


# --- the page -----------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Every tag with its attributes; raises where one is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_page_says_what_the_report_says(report: Report, tmp_path) -> None:
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for finding in report.shown:
        assert all(
            html.escape(words) in text for words in (finding.message, *finding.labels.values(), *finding.details)
        )
    assert "<title>Half failed</title>" in text
    codes = {finding.code for finding in report.findings}
    tags = Tags(text)
    assert len(tags.of("tr")) == 1 + len(codes)
    assert [svg["aria-label"] for svg in tags.of("svg")] == ["expected", "actual", "ratio"]
    squares = [rect for rect in tags.of("rect") if "class" not in rect]
    assert len(squares) == 3 * 12
    assert len({rect["fill"] for rect in squares[24:]}) == 1  # the ratio is one half everywhere


def test_the_page_needs_nothing_else(report: Report, tmp_path) -> None:
    report.to_html(tmp_path / "report.html")
    tags = Tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in tags.tags}
    addresses = [value for _, found in tags.tags for key, value in found.items() if key in ("src", "href")]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    anchors = {found["id"] for _, found in tags.tags if "id" in found}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors


def test_names_of_the_user_are_escaped(tmp_path) -> None:
    Report("<b>&", (Finding("fail", "<script>", code="MB101"),)).to_html(tmp_path / "report.html")
    tags = Tags((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not tags.of("script")
    assert not tags.of("b")


def test_a_passed_report_has_a_page(tmp_path) -> None:
    Report("right", (Finding("pass", "ok", code="MB101", check="derivative", family="calculus"),)).to_html(
        tmp_path / "report.html"
    )
    assert '<span class="pass">passed</span>' in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- what is drawn ------------------------------------------------------------------------------------------------


def differing_at(shape: tuple[int, ...], index: tuple[int, ...], by: float = 3.0) -> Mismatch:
    expected = torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    actual = expected.clone()
    actual[index] *= by
    return Mismatch(expected, actual, expected != actual, index)


SHAPES = {
    "scalar": ((), ()),
    "vector": ((5,), (4,)),
    "long vector": ((1000,), (999,)),
    "matrix": ((3, 4), (1, 2)),
    "large": ((100, 90), (99, 0)),
    "four": ((2, 3, 40, 5), (1, 2, 20, 4)),
}


@pytest.mark.parametrize(("shape", "index"), SHAPES.values(), ids=SHAPES)
def test_an_excerpt_is_small_and_holds_the_worst(shape, index) -> None:
    drawn = excerpt(differing_at(shape, index))
    row, column = drawn.worst
    assert drawn.places[row][column] == str(list(index))
    assert drawn.ratio[row][column] == 3.0
    others = [x for i, line in enumerate(drawn.ratio) for j, x in enumerate(line) if (i, j) != drawn.worst]
    assert all(x == 1.0 for x in others)
    assert len(drawn.expected) <= SIDE
    assert max(map(len, drawn.expected)) <= SIDE
    assert [len(line) for line in drawn.expected] == [len(line) for line in drawn.places]
    assert image(drawn).dtype == torch.uint8


@pytest.mark.parametrize("by", [math.nan, math.inf, -1.0, 0.0])
def test_any_number_has_a_colour(by) -> None:
    drawn = excerpt(differing_at((2, 2), (0, 0), by))
    colours = {colour for _, rows in drawn.panels.values() for row in rows for colour in row}
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert drawn.panels["ratio"][1][0][0] != (255, 255, 255)
    assert drawn.panels["ratio"][1][0][1] == (255, 255, 255)


def test_a_choice_of_elements_keeps_its_places() -> None:
    class Tripled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * 3

    x = torch.randn(40, 50, dtype=torch.float64, requires_grad=True)
    (failure,) = validate(Tripled, (x,), only="MB101").failures
    row, column = failure.excerpt.worst
    assert failure.excerpt.places[row][column] == str(list(failure.index))
    assert failure.excerpt.shape == (40, 50)
    assert failure.excerpt.ratio[row][column] == pytest.approx(1.5)
