"""A report as one HTML page that needs nothing else: no network, no script, no other file."""

from collections.abc import Iterator
from html import escape

from manual_backprop.validation.report.finding import STATUSES, Finding, Findings
from manual_backprop.validation.report.heat_map import Colour, Excerpt

CELL = 14  # pixels an element

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, h3 { line-height: 1.25; } h3 { margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .15rem .6rem; }
th, tr { border-bottom: 1px solid #ddd; } td.number { text-align: right; } code, pre { font-size: 13px; }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
dt { float: left; clear: left; width: 4rem; font-weight: 600; } dd { margin-left: 4.5rem; }
figure { display: inline-block; margin: .5rem 1.5rem .5rem 0; vertical-align: top; }
svg { outline: 1px solid #ccc; background: #eee; } figcaption { font-size: 13px; color: #555; }
.pass { color: #1a7f37; } .fail { color: #b2182b; font-weight: 600; } .warn { color: #9a6700; }
.error { color: #8250df; font-weight: 600; } .skip { color: #767676; } .inconclusive { color: #0a6c8a; }
"""

LEGEND = (
    "Red is positive, blue negative, on one scale for expected and actual. In the ratio white is 1, red above, blue "
    "below, violet negative. Yellow is NaN, or 0/0. The worst element is framed; point at an element for its number."
)


def page(report: Findings) -> str:
    """The whole page."""
    verdict, colour = report.verdict, {"passed": "pass", "unchecked": "warn"}.get(report.verdict, "fail")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">',
        f"<title>{escape(report.name)} {verdict}</title><style>{STYLE}</style></head><body>",
        f'<h1>{escape(report.name)} <span class="{colour}">{verdict}</span></h1>',
        f"<p>{_counts(report)}; {report.effort}, {escape(versions)}</p>",
        *_sections(report),
        "<h2>All rules</h2><table><tr><th>code</th><th>check</th><th>family</th><th>status</th><th>found</th>",
        "<th>seconds</th></tr>",
        *_rows(report),
        "</table></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _counts(report: Findings) -> str:
    counts = ((report.count(status), status) for status in STATUSES)
    return ", ".join(f'<span class="{status}">{count} {status}</span>' for count, status in counts if count)


def _rows(report: Findings) -> Iterator[str]:
    """A row for each rule: the worst status, and the first finding of that status."""
    worst_first = ("error", "fail", "warn", "inconclusive", "skip", "pass")
    assert set(worst_first) == set(STATUSES)
    for code in dict.fromkeys(finding.code for finding in report.findings):
        found = [finding for finding in report.findings if finding.code == code]
        first = min(found, key=lambda finding: worst_first.index(finding.status))
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        name = f'<a href="#{code}">{code}</a>' if first in report.shown else code
        cells = (name, escape(first.check), first.family, f'<span class="{first.status}">{first.status}</span>')
        seconds = sum(finding.seconds for finding in found)
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}<td>{escape(first.message)}{more}</td>"
        yield f'<td class="number">{seconds:.2f}</td></tr>'


def _sections(report: Findings) -> Iterator[str]:
    """The findings to read, failures first; the first finding of each code gets the anchor of that code."""
    anchored: set[str] = set()
    if any(finding.excerpt for finding in report.shown):
        yield f"<p>{LEGEND}</p>"
    for finding in report.shown:
        anchor = "" if finding.code in anchored else f' id="{finding.code}"'
        anchored.add(finding.code)
        status = f'<span class="{finding.status}">{finding.status.upper()} {finding.code}</span>'
        yield f"<section><h3{anchor}>{status} {escape(finding.family)}: {escape(finding.message)}</h3>"
        yield from _finding(finding)
        yield "</section>"


def _finding(finding: Finding) -> Iterator[str]:
    if finding.details:
        yield f"<pre>{escape(chr(10).join(finding.details))}</pre>"
    if finding.excerpt:
        yield "<div>"
        for name, (numbers, colours) in finding.excerpt.panels.items():
            yield f"<figure>{_heat_map(finding.excerpt, name, numbers, colours)}"
            yield f"<figcaption>{name}</figcaption></figure>"
        yield f"</div><p>{escape(_whereabouts(finding.excerpt))}</p>"
    labels = (f"<dt>{label}</dt><dd>{_label(label, text)}</dd>" for label, text in finding.labels.items())
    yield f"<dl>{''.join(labels)}</dl>"


def _label(label: str, text: str) -> str:
    return f"<code>{escape(text)}</code>" if label == "repro" else escape(text)


def _whereabouts(drawn: Excerpt) -> str:
    first, last = drawn.places[0][0], drawn.places[-1][-1]
    row, column = drawn.worst
    return f"{first} to {last} of shape {list(drawn.shape)}; the worst is {drawn.places[row][column]}"


def _heat_map(drawn: Excerpt, name: str, numbers: list[list[float]], colours: list[list[Colour]]) -> str:
    """An SVG of squares; each square shows its index and number when the mouse points at it."""
    height, width = len(numbers) * CELL, max(map(len, numbers)) * CELL
    squares = [
        f'<rect x="{j * CELL}" y="{i * CELL}" width="{CELL}" height="{CELL}" fill="#{r:02x}{g:02x}{b:02x}">'
        f"<title>{drawn.places[i][j]} {number:.6g}</title></rect>"
        for i, row in enumerate(colours)
        for j, ((r, g, b), number) in enumerate(zip(row, numbers[i], strict=True))
    ]
    row, column = drawn.worst
    frame = (
        f'<rect class="worst" x="{column * CELL + 1}" y="{row * CELL + 1}" width="{CELL - 2}" height="{CELL - 2}" '
        'fill="none" stroke="black" stroke-width="2"/>'
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg role="img" aria-label="{name}" {size}>{"".join(squares)}{frame}</svg>'
