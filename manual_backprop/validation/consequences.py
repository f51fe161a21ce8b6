"""One mistake makes many probes fail: which failure most likely follows from which.

A backward that writes into grad_output gives other numbers under checkpointing, for a second graph and for batched
gradients too; one that takes an absolute value of it is no derivative either. The cause that a probe reads off its own
numbers is then a symptom, so it is replaced by the root's. Nothing is dropped: a consequence stays a failure.
"""

from collections.abc import Sequence
from dataclasses import replace

from manual_backprop.validation.report.report import Finding

# Roots, first come first served, and the codes (or prefixes) of what follows from them.
CONSEQUENCES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    # What is not repeatable differs from itself in every comparison.
    (("MB901",), ("MB1", "MB208", "MB3", "MB4", "MB504", "MB505", "MB509", "MB51", "MB6", "MB7", "MB8", "MB902")),
    (("MB502", "MB503", "MB501"), ("MB208", "MB404", "MB504", "MB505", "MB509", "MB51", "MB70", "MB80", "MB902")),
    # What is not linear in grad_output is not a derivative, of the first order or the second.
    (("MB301", "MB302", "MB303", "MB304", "MB305"), ("MB1", "MB306", "MB6", "MB7", "MB80")),
    (("MB102", "MB101", "MB106"), ("MB104", "MB105", "MB6", "MB7", "MB80")),
)


def with_roots(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, each failure that most likely follows from another one marked with that one's code."""
    failed = {finding.code for finding in findings if finding.status == "fail"}
    return [replace(f, follows=_root(f.code, failed)) if f.status == "fail" else f for f in findings]


def _root(code: str, failed: set[str]) -> str:
    for roots, followers in CONSEQUENCES:
        present = [root for root in roots if root in failed]
        if present and code not in roots and code.startswith(followers):
            return present[0]
    return ""
