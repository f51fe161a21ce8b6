"""The bar: every wrong Function of the zoo is caught by one of its codes, and no right one fails."""

import pytest

from manual_backprop.validation import validate
from manual_backprop.zoo import RIGHT, WRONG


def report_on(entry, skip=()):
    return validate(
        entry.function,
        entry.inputs(),
        reference=entry.reference,
        batch_dim=entry.batch_dim,
        skip=(*entry.skip, *skip),
    )


@pytest.mark.slow
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry.name)
def test_wrong_is_caught_by_one_of_its_codes(entry):
    # Compilation is slow, and only the entries that it alone shows are asked for it.
    report = report_on(entry, skip=() if set(entry.codes) & {"MB806", "MB807"} else ("MB806", "MB807"))
    assert {finding.code for finding in report.failures} & set(entry.codes), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("entry", RIGHT, ids=lambda entry: entry.name)
def test_right_does_not_fail(entry):
    assert not report_on(entry, skip=("MB806", "MB807")).failures
