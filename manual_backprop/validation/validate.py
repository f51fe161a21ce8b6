"""`validate`: asks every rule about every sample, and makes one report of the answers."""

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from manual_backprop.validation import arguments, memory
from manual_backprop.validation.arguments import Names
from manual_backprop.validation.case import Case
from manual_backprop.validation.consequences import with_roots
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped, is_ours, one_line, where
from manual_backprop.validation.needs import NEEDS
from manual_backprop.validation.report.finding import STATUSES, Finding
from manual_backprop.validation.report.report import Report
from manual_backprop.validation.rule import REGISTRY, Rule
from manual_backprop.validation.rules import RULES
from manual_backprop.validation.self_test import broken_mechanisms
from manual_backprop.validation.subject import Passes
from manual_backprop.validation.untouched import seed_all, untouched
from manual_backprop.validation.verdict import unchecked

Progress = Callable[[Rule, int, int], None]


def validate(
    func: Any,
    inputs: Sequence[Any],
    reference: Any = None,
    only: Names | None = None,
    skip: Names = (),
    batch_dim: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Asks every question in the table `RULES` about a hand-written backward pass.

    Args:
        func: an `autograd.Function` class, its ``.apply``, an `nn.Module` (its parameters count as inputs), a
            partial, or any callable on tensors.
        inputs: the arguments, a tuple as for `torch.autograd.gradcheck`, or a list of such tuples. Tensors with
            ``requires_grad`` are differentiated. No input is ever written to.
        reference: the same function in plain torch, or a module with the same ``state_dict``.
        only, skip: codes (``"MB301"``), prefixes (``"MB3"``), names or families of rules. A surrogate gradient
            (straight-through, spikes) is meant to differ from the derivative; say so by ``skip="MB1"``.
        batch_dim: the dimension of the inputs that counts samples; where it is given, rules try other batch sizes.
        seed: the seed of all random numbers; two calls with one seed give the same report.
        progress: called before each rule with the rule, the number of the rule and how many there are.

    Returns:
        A `Report`, which is true where the verdict is "passed": see `Report.verdict`.

    Raises:
        TypeError, ValueError: an argument that cannot be validated, or a choice that leaves no rule to ask; the message
            says why, and the cure.

    Example:
        >>> x = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
        >>> validate(torch.sigmoid, (x,), only=("MB1", "MB3")).verdict
        'passed'
    """
    started = time.perf_counter()
    skip = arguments.listed(skip)  # an iterator can be read once
    rules = arguments.chosen(RULES, only, skip)
    with untouched():
        cases = arguments.cases(func, inputs, reference, batch_dim, seed)
        waived = any(map(REGISTRY["MB101"].answers_to, skip))
        for case in cases:
            case.trusted = not waived
        findings = [*_self_test(), *_answers(rules, cases, progress)]
        bad = any(finding.status in ("fail", "error") for finding in findings)
        left_open = () if waived or bad else unchecked(rules, only is None, cases)
    return Report(
        cases[0].name,
        tuple(with_roots(findings, REGISTRY)),
        seed,
        time.perf_counter() - started,
        {"torch": torch.__version__, "python": platform.python_version()},
        left_open,
        Passes(sum(case.passes.forward for case in cases), sum(case.passes.backward for case in cases)),
    )


def _self_test() -> list[Finding]:
    """An error for each mechanism that finds nothing any more on this torch, because a pass would mean nothing then."""
    return [
        Finding(
            "error",
            f"the validator cannot do its work: {sentence}",
            cause="a private part of torch that manual_backprop uses (_torch.py) is missing or changed in this version",
            fix="please report it, with this text; use a version of torch that the README names until it is mended",
            code="MB000",
            check="self-test",
            family="validator",
        )
        for sentence in broken_mechanisms()
    ]


def _answers(rules: Sequence[Rule], cases: Sequence[Case], progress: Progress | None) -> list[Finding]:
    values = [value for case in cases for value in case.values]
    findings: list[Finding] = []
    with memory.freed_at_once(values):
        for case in cases:
            case.prepare()
        for number, rule in enumerate(rules):
            if progress is not None:
                progress(rule, number, len(rules))
            memory.tidy(values)
            findings += _merged([finding for case in cases for finding in answers(rule, case)])
    return findings


def _merged(found: list[Finding]) -> list[Finding]:
    """One rule's findings over all samples: all that are bad; where none is, a single one that says how it went."""
    bad = [finding for finding in found if finding.status in ("fail", "warn", "error")]
    passed = [finding for finding in found if finding.status == "pass"]
    return bad or passed[:1] or [max(found, key=lambda finding: STATUSES.index(finding.status))]


def answers(rule: Rule, case: Case) -> list[Finding]:
    """The findings of one rule about one case, at least one."""
    seed_all(case.seed)
    case.ask(rule)
    try:
        for need in rule.needs:
            NEEDS[need](case)
        found = list(rule.function(case))
    except Skipped as reason:
        return [case.finding("skip", str(reason))]
    except Inconclusive as reason:
        return [case.finding("inconclusive", str(reason))]
    except Broken as broken:
        return [_broken(case, broken)]
    except Exception as error:
        return [_validators_own(case, error) if is_ours(error) else _crash(case, "the rule stopped at", error)]
    if found:
        return found
    return [case.finding("pass", "ok") if case.compared else case.finding("skip", "nothing could be compared")]


def _broken(case: Case, broken: Broken) -> Finding:
    """The finding about a pass that raised: a failure the first time, a skip for the next rules that it stops too."""
    if case.plain_runs and broken.stage == "forward":
        return case.finding("inconclusive", f"forward does not take the values tried: {one_line(broken)}")
    if case.reported == str(broken):
        return case.finding("skip", f"not asked: {one_line(broken)}")
    case.reported = str(broken)
    return _crash(case, f"{broken.stage} raised", broken.error)


def _crash(case: Case, words: str, error: BaseException) -> Finding:
    place = where(error)
    return case.fail(
        f"{words} {type(error).__name__}: {one_line(error)}" + (f" ({place})" if place else ""),
        cause=f"an exception was raised{' at ' + place if place else ''}",
        fix="let forward and backward run in this setting, which torch allows",
    )


def _validators_own(case: Case, error: BaseException) -> Finding:
    """The finding where the validator itself broke, which is neither the user's failure nor a pass."""
    return case.finding(
        "error",
        f"the validator itself failed while it asked {case.rule.code} ({case.rule.name}): "
        f"{type(error).__name__}: {one_line(error)}; your backward is not judged by this rule",
        cause=f"a mistake in manual_backprop, at {_line_of(error)}",
        fix="please report it, with this text and the versions of torch and Python; skip the rule until it is mended",
    )


def _line_of(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
