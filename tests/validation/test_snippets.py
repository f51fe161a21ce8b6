"""Each rule has its page, and the snippets keep their word: the wrong one fails with its code, the right one passes."""

import pytest
import torch

from manual_backprop.validation import RULES, validate
from manual_backprop.validation.rule import REGISTRY, filled, rule
from manual_backprop.validation.rules.skeletons import PRELUDE

SHOWN = [rule for rule in RULES if rule.wrong]


def arguments_of(snippet):
    """What a snippet calls `validate` with, once it is run as it stands after the prelude."""
    calls = []
    torch.manual_seed(0)
    names = {"__name__": __name__}  # of a module that can be imported: the compiler of older torch imports it
    exec(PRELUDE, names)
    names["validate"] = lambda *args, **options: calls.append((args, options))
    exec(snippet, names)
    assert len(calls) == 1
    return calls[0]


def statuses(snippet, code):
    args, options = arguments_of(snippet)
    return {finding.status for finding in validate(*args, only=code, **options).findings}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_has_its_page(rule):
    assert rule.holds.endswith(".")
    assert len(rule.meaning) > 60
    assert "#" in rule.seen_in, "a real bug wants its citation"
    assert bool(rule.wrong) == bool(rule.right) == (not rule.unseen)


@pytest.mark.parametrize("rule", SHOWN, ids=lambda rule: rule.code)
def test_wrong_snippet_fails_with_its_code(rule):
    assert statuses(rule.wrong, rule.code) & {"fail", rule.status}


@pytest.mark.parametrize("rule", SHOWN, ids=lambda rule: rule.code)
def test_right_snippet_passes_its_code(rule):
    assert statuses(rule.right, rule.code) == {"pass"}


def test_filling_keeps_the_indentation():
    assert filled("a:\n    ___\nb", "c\nd") == "a:\n    c\n    d\nb\n"


PAGE = "It holds.\n\nMeaning.\n\nSeen in: a/b#1\n"
BAD = {
    "a code that is taken": ("MB101", PAGE + "\nWrong:\n    x\n\nRight:\n    y\n", "is the rule derivative already"),
    "no snippets and no reason": ("MB199", PAGE, "needs the sections"),
    "no real bug": ("MB199", "It holds.\n\nWrong:\n    x\n\nRight:\n    y\n", "needs the sections"),
}


@pytest.mark.parametrize(("code", "page", "words"), BAD.values(), ids=BAD)
def test_a_rule_without_its_page_is_refused(code, page, words):
    def function(case):
        yield

    function.__doc__ = page
    with pytest.raises(ValueError, match=words):
        rule(code, "Is it?", "1 pass")(function)
    assert "MB199" not in REGISTRY
