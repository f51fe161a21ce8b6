"""The zoo × the checkers: which wrong backward passes does each checker find, and which right ones does it blame?"""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import gradcheck, gradgradcheck

from manual_backprop.validation.naming import callable_of
from manual_backprop.validation.validate import validate
from manual_backprop.zoo import Entry


@dataclass(frozen=True)
class Verdict:
    """The answer of one checker about one entry: whether it refused the entry, by which codes or words, how fast."""

    refused: bool
    words: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """One entry of the zoo, and the verdicts of the checkers by their names."""

    entry: Entry
    verdicts: dict[str, Verdict]

    @property
    def wrong(self) -> bool:
        return bool(self.entry.codes)

    @property
    def caught(self) -> bool:
        """Whether `validate` refuses the entry with one of the codes that the zoo demands."""
        return bool(set(self.entry.codes) & set(self.verdicts["validate"].words.split()))

    @property
    def as_expected(self) -> bool:
        return self.caught if self.wrong else not self.verdicts["validate"].refused


Checker = Callable[[Entry, Sequence[str]], tuple[bool, str]]


def _of_torch(check: Callable[..., bool], **options: Any) -> Checker:
    def ask(entry: Entry, skip: Sequence[str]) -> tuple[bool, str]:
        try:
            check(callable_of(entry.function), entry.inputs(), **options)
        except (
            Exception
        ) as error:  # a refusal, because gradcheck refuses by raising; a backward that crashes counts too
            return True, (str(error).strip() or type(error).__name__).splitlines()[0]
        return False, ""

    return ask


def _validate(entry: Entry, skip: Sequence[str]) -> tuple[bool, str]:
    skip = [*entry.skip, *skip]
    report = validate(entry.function, entry.inputs(), entry.reference, skip=skip, batch_dim=entry.batch_dim)
    return bool(report.failures), " ".join(dict.fromkeys(finding.code for finding in report.failures))


CHECKERS: dict[str, Checker] = {
    "gradcheck": _of_torch(gradcheck),
    "gradcheck fast": _of_torch(gradcheck, fast_mode=True),
    "gradgradcheck": _of_torch(gradgradcheck),
    "validate": _validate,
}


def rows(
    entries: Sequence[Entry],
    skip: Sequence[str] = (),
    progress: Callable[[Entry, int, int], None] | None = None,
) -> Iterable[Row]:
    """The verdict of every checker on every entry.

    Args:
        entries: the entries of the zoo to ask about.
        skip: codes that `validate` leaves out, besides those in ``skip`` of the entry.
        progress: called before each entry with the entry, the number of the entry and how many there are.
    """
    for number, entry in enumerate(entries):
        if progress is not None:
            progress(entry, number, len(entries))
        yield Row(entry, {name: _verdict(ask, entry, skip) for name, ask in CHECKERS.items()})


def _verdict(ask: Checker, entry: Entry, skip: Sequence[str]) -> Verdict:
    torch.manual_seed(0)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused, words = ask(entry, skip)
    return Verdict(refused, words, time.perf_counter() - started)
