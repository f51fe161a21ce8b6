"""One mistake makes many rules fail: which failure most likely follows from which?

A backward that writes into grad_output gives other numbers under checkpointing, for a second graph and for batched
gradients too; a backward that takes the absolute value of grad_output is not the derivative either. The cause that a
rule reads off its own numbers is then a symptom, and is replaced by the code of the root. Nothing is dropped: a
consequence stays a failure.

Each rule says whose failures it explains (`Rule.explains`). Where several rules explain one failure, the root is that
of the higher family: bits that differ from call to call come before memory, memory before linearity, linearity before
calculus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import Rule


def with_roots(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """The findings, with `follows` set in each failure that most likely follows from another of the same sample.

    Args:
        rules: by code.
    """
    failed: dict[int | None, set[str]] = {}
    for finding in findings:
        if finding.status == "fail":
            failed.setdefault(finding.sample, set()).add(finding.code)
    return [replace(f, follows=_root(f.code, failed[f.sample], rules)) if f.status == "fail" else f for f in findings]


def _root(code: str, failed: set[str], rules: Mapping[str, Rule]) -> str:
    roots = [root for root in failed if root in rules and code.startswith(rules[root].explains)]
    return min(roots, key=lambda root: (-int(root[2]), root), default="")
