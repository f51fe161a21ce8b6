"""Each code is explained, and the snippets keep their word: the wrong one fails with its code, the right one passes."""

import pytest
import torch

from manual_backprop.validation import PROBES, validate
from manual_backprop.validation.explanations import EXPLANATIONS, PRELUDE
from manual_backprop.validation.explanations.entry import filled

CODES = [probe.code for probe in PROBES]
SHOWN = [code for code in CODES if code in EXPLANATIONS and EXPLANATIONS[code].wrong]


def arguments_of(snippet):
    """What a snippet calls `validate` with, once it is run as it stands after the prelude."""
    calls = []
    torch.manual_seed(0)
    names = {"__name__": __name__}  # a module that can be imported: the compiler of older torch wants one
    exec(PRELUDE, names)
    names["validate"] = lambda *args, **options: calls.append((args, options))
    exec(snippet, names)
    assert len(calls) == 1
    return calls[0]


def statuses(snippet, code):
    args, options = arguments_of(snippet)
    return {finding.status for finding in validate(*args, only=code, **options).findings}


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code):
    entry = EXPLANATIONS[code]
    assert entry.code == code
    assert len(entry.meaning) > 60
    assert "#" in entry.bug, "a real bug wants its citation"
    assert bool(entry.wrong) == bool(entry.right) == (not entry.unseen)


def test_nothing_else_is_explained():
    assert set(EXPLANATIONS) == set(CODES)


@pytest.mark.parametrize("code", SHOWN)
def test_wrong_snippet_fails_with_its_code(code):
    entry = EXPLANATIONS[code]
    assert statuses(entry.wrong, code) & {"fail", entry.status}


@pytest.mark.parametrize("code", SHOWN)
def test_right_snippet_passes_its_code(code):
    assert statuses(EXPLANATIONS[code].right, code) == {"pass"}


def test_filling_keeps_the_indentation():
    assert filled("a:\n    ___\nb", "c\nd") == "a:\n    c\n    d\nb\n"
