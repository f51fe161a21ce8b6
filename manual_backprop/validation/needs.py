"""Conditions that a case must fulfil before a rule is asked, by name; a rule names its conditions in ``needs=``."""

from collections.abc import Callable

from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Inconclusive, Skipped


def _plain(case: Case) -> None:
    """Forward and backward run in the plain setting; the exception `Broken` ends the rule where they do not."""
    _ = case.plain


def _audit(case: Case) -> None:
    """The return value of a hand-written backward was seen, even where the engine then refused it."""
    if not case.audit.functions:
        raise Skipped("no autograd.Function in the graph")
    if not case.audit.calls:
        raise Skipped("no backward ran to its return")


def _function(case: Case) -> None:
    if not case.functions:
        raise Skipped("no autograd.Function in the graph")


def _hand_written(case: Case) -> None:
    """A backward that is not torch's own is in the graph, because precision is measured by that of torch's own."""
    if not case.hand_written:
        raise Skipped("no hand-written backward in the graph")


def _reference(case: Case) -> None:
    if case.reference is None:
        raise Skipped("no reference given")


def _truth(case: Case) -> None:
    if not case.trusted:
        raise Skipped('a surrogate gradient (skip="MB1") is not compared with the derivative')


def _differences(case: Case) -> None:
    if not case.oracle.measurable:
        raise Inconclusive("outputs are not finite, or the dtype has too few digits for differences")


def _batch_dim(case: Case) -> None:
    if case.batch_dim is None:
        raise Skipped("batch_dim= is not given")


def _two_inputs(case: Case) -> None:
    if sum(case.needs) < 2:
        raise Skipped("only one input requires grad")


def _two_outputs(case: Case) -> None:
    if len(case.targets) < 2:
        raise Skipped("there is only one differentiable output")


NEEDS: dict[str, Callable[[Case], None]] = {
    "plain": _plain,
    "audit": _audit,
    "function": _function,
    "hand-written": _hand_written,
    "reference": _reference,
    "truth": _truth,
    "differences": _differences,
    "batch-dim": _batch_dim,
    "two-inputs": _two_inputs,
    "two-outputs": _two_outputs,
}
