"""What a probe is, how one is chosen by code or name, and the two ways in which it may end without a verdict."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manual_backprop.validation.report.report import Finding

if TYPE_CHECKING:
    from manual_backprop.validation.subject import Subject


@dataclass(frozen=True)
class Probe:
    """One question about a backward pass.

    Args:
        code: ``"MB301"``, stable for ever.
        check: the name that a message shows, ``"negative"``.
        family: ``"linearity"``.
        question: what it asks, in a sentence.
        cost: about how many forward and backward passes it takes, in words.
        needs: what it needs beyond the sample, in words; empty where it needs nothing.
        function: from a subject to findings; none where all is well.
    """

    code: str
    check: str
    family: str
    question: str
    cost: str
    needs: str
    function: Callable[["Subject"], Iterable[Finding]]

    def answers_to(self, name: str) -> bool:
        """Whether `name` is this probe's code, a prefix of it, its check, or its family."""
        return self.code.startswith(name.upper()) or name.lower() in (self.check, self.family)


class Skipped(Exception):
    """The probe has nothing to ask of this subject, or torch refuses loudly; the message says why."""


class Inconclusive(Exception):
    """The measurement cannot tell right from wrong; the message says why."""


def select(probes: Sequence[Probe], only: str | Iterable[str] | None, skip: str | Iterable[str]) -> list[Probe]:
    """The probes that `only` names (all for None) less those that `skip` names.

    Raises:
        ValueError: a name that fits no probe.
    """
    wanted = None if only is None else _names("only", only, probes)
    unwanted = _names("skip", skip, probes)
    return [
        probe
        for probe in probes
        if (wanted is None or any(map(probe.answers_to, wanted))) and not any(map(probe.answers_to, unwanted))
    ]


def _names(argument: str, names: str | Iterable[str], probes: Sequence[Probe]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if not isinstance(name, str) or not name or not any(probe.answers_to(name) for probe in probes):
            raise ValueError(
                f"{argument}: no probe answers to {name!r}; give a code (MB301), a prefix (MB3), a check (negative) "
                "or a family (linearity)"
            )
    return names
