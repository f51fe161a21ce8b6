"""The bar: the codes that fail are exactly those of the entry, in one validation and each alone; no right one fails."""

import random

import pytest

from manual_backprop.validation import RULES, validate
from manual_backprop.zoo import RIGHT, WRONG

CODES = [rule.code for rule in RULES]
COMPILED = ("MB806", "MB807")  # slow, and asked only of the entries that are about them
OTHERS = 16  # codes that are not the entry's and are asked alone; all of them would take minutes

NOT_ALONE = {
    "MB104": "it asks what MB101 asks with a coarser measure, and is there for a second opinion",
    "MB201": "torch refuses another number of gradients: the pass raises, and whichever code is asked first tells it",
    "MB205": "another device takes two of them, and another layout is a warning",
    "MB209": "it is a warning: work done in vain is not wrong",
    "MB505": "of two threads each has a graph at once, so that MB902 sees the same mistake",
    "MB706": "it asks through a loss what MB210 asks with None",
    "MB901": "a chance shows wherever two passes are compared by bits: in MB504, MB505, MB511 and MB902 as well",
    "MB903": "it takes a second device",
}

# Asked alone, MB504 first measures the dtype by other forward passes, which such a Function remembers; a whole
# validation has measured it by then.
REMEMBERED_ALONE = {"square-last-input-of-the-module": "MB504", "square-queue-of-activations": "MB504"}


def report_on(entry, only=None, skip=()):
    return validate(
        entry.function,
        entry.inputs(),
        reference=entry.reference,
        batch_dim=entry.batch_dim,
        only=only,
        skip=(*entry.skip, *skip),
    )


def codes_of(report):
    return {finding.code for finding in report.failures}


def not_asked(entry):
    return () if set(entry.codes) & set(COMPILED) else COMPILED


def others_of(entry):
    """The same few codes at each run, and over all entries many of each."""
    if "MB201" in entry.codes:
        return []  # its pass raises, so that every code asked alone tells so
    asked = (code for code in CODES if not code.startswith((*entry.codes, *entry.skip, *COMPILED, "MB903")))
    unlike = [code for code in asked if code != REMEMBERED_ALONE.get(entry.name)]
    return random.Random(entry.name).sample(unlike, OTHERS)


@pytest.mark.slow
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_wrong_fails_with_exactly_its_codes(entry):
    report = report_on(entry, skip=not_asked(entry))
    assert codes_of(report) == set(entry.codes), str(report)
    assert all(finding.cause and finding.fix for finding in report.failures)


@pytest.mark.slow
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_each_of_its_codes_fails_alone_and_no_other(entry):
    alone = {code for code in (*entry.codes, *others_of(entry)) if codes_of(report_on(entry, only=code))}
    assert alone == set(entry.codes)


@pytest.mark.slow
@pytest.mark.parametrize("entry", RIGHT, ids=lambda entry: entry.name)
def test_right_does_not_fail(entry):
    report = report_on(entry, skip=COMPILED)
    assert not report.failures, str(report)


def test_every_code_has_an_entry_that_it_alone_catches_or_a_reason():
    caught = {entry.codes[0] for entry in WRONG if len(entry.codes) == 1}
    assert caught.isdisjoint(NOT_ALONE)
    assert caught | NOT_ALONE.keys() == set(CODES)


def test_codes_are_sorted_and_known():
    assert all(list(entry.codes) == sorted(set(entry.codes)) and set(entry.codes) <= set(CODES) for entry in WRONG)
