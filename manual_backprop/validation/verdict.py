"""Which gradients were compared with nothing that knows their values? Where there are some, the verdict is no pass."""

from collections.abc import Sequence

from manual_backprop.validation.case import Case
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import REGISTRY, Rule

ORACLES = ("MB101", "MB102")
"""The rules that know the values of a gradient: by differences, and by the reference."""


def unchecked(rules: Sequence[Rule], all_of_them: bool, cases: Sequence[Case]) -> tuple[Finding, ...]:
    """Where nothing failed: a finding for each input whose gradient was asked for and no oracle of values has judged.

    Args:
        rules: the rules that were asked.
        all_of_them: whether the caller left the choice to us. A caller who chose rules that are no oracle of values
            (``only="MB3"``) asked no question about values, so none is open.
    """
    if not all_of_them and not any(rule.code in ORACLES for rule in rules):
        return ()
    return tuple(
        _open(case, slot.name)
        for case in cases
        for place, slot in enumerate(case.slots)
        if slot.asked and case.values[place].numel() and place not in case.judged
    )


def _open(case: Case, name: str) -> Finding:
    case.ask(REGISTRY["MB101"])
    fix = "give inputs in float64 and away from kinks, or reference= (the same function in plain torch)"
    return case.finding(
        "inconclusive",
        f"the values of the gradient of `{name}` were compared with nothing",
        fix=fix if case.reference is None else 'give inputs in float64, or skip="MB1" for a surrogate gradient',
        input=name,
    )
