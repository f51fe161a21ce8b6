"""A rule in one place: a code, a question, the function that answers the question, and the page that explains it."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from manual_backprop.validation.report.finding import Finding

FAMILIES = {
    "1": "calculus",
    "2": "contract",
    "3": "linearity",
    "4": "layout",
    "5": "state",
    "6": "numbers",
    "7": "edges",
    "8": "transforms",
    "9": "runtime",
}
"""The family of a code by its third character."""

REGISTRY: dict[str, "Rule"] = {}
"""Every rule by its code; the files of this folder fill it as they are imported."""


@dataclass(frozen=True)
class Rule:
    """One question about a backward pass.

    Args:
        code: ``"MB301"``, stable for ever.
        name: the name of the function, with hyphens: ``"sign-of-grad-output"``.
        asks: the question, in one sentence.
        function: takes a case and yields findings; it yields none where all is well.
        needs: the conditions that a case must fulfil for the rule to be asked, names of `needs.NEEDS`.
        passes: about how many forward and backward passes the rule takes, in words.
        since: the version of the package that brought the rule.
        explains: prefixes of codes; where this rule fails, failures of such codes most likely follow from it
            (`consequences`).
        holds: a sentence that is true of a right backward.
        meaning: in a few sentences, what is the matter with a wrong one, whom it hurts, and why nobody noticed.
        seen_in: a real bug of this class, with its citation.
        wrong: a snippet that, run after `rules.skeletons.PRELUDE`, validates a backward with this mistake.
        right: the same snippet without the mistake.
        unseen: the reason why there are no snippets, where there are none.
        status: the status of the finding about the wrong snippet; "warn" where torch raises an error anyway.
    """

    code: str
    name: str
    asks: str
    function: Callable[[Any], Iterator[Finding]] = field(repr=False)
    needs: tuple[str, ...]
    passes: str
    since: str
    explains: tuple[str, ...]
    holds: str
    meaning: str
    seen_in: str
    wrong: str
    right: str
    unseen: str
    status: Literal["fail", "warn"]

    @property
    def family(self) -> str:
        return FAMILIES[self.code[2]]

    def answers_to(self, name: str) -> bool:
        """Whether `name` is this rule's code, a prefix of it, its name, or its family."""
        return self.code.startswith(name.upper()) or name.lower().replace("_", "-") in (self.name, self.family)


def rule(
    code: str,
    asks: str,
    passes: str,
    needs: str = "plain",
    since: str = "0.1",
    explains: str = "",
    skeleton: str = "___",
    status: Literal["fail", "warn"] = "fail",
) -> Callable[[Callable[[Any], Iterator[Finding]]], Callable[[Any], Iterator[Finding]]]:
    """Decorator: puts a function into the table of rules. The docstring of the function is the page of the rule.

    The name of the rule is that of the function, so that a traceback, a report and ``only=`` call it the same.

    Args:
        code, asks, passes, since, status: as in `Rule`.
        needs, explains: as in `Rule`, with spaces between the names.
        skeleton: the text that the wrong and the right snippet share; the lines of each stand in it at ``___``.

    Raises:
        ValueError: a code that is taken, or a docstring without its sections.
    """

    def add(function: Callable[[Any], Iterator[Finding]]) -> Callable[[Any], Iterator[Finding]]:
        if code in REGISTRY:
            raise ValueError(f"code: {code} is the rule {REGISTRY[code].name} already")
        page = sections(function.__doc__ or "")
        if not page["Seen in"] or bool(page["Unseen"]) == bool(page["Wrong"] and page["Right"]):
            raise ValueError(f"{code}: its docstring needs the sections Seen in, and Wrong and Right (or Unseen)")
        holds, _, meaning = page[""].partition("\n\n")
        wrong, right = (filled(skeleton, page[name]) if page[name] else "" for name in ("Wrong", "Right"))
        REGISTRY[code] = Rule(
            code, function.__name__.replace("_", "-"), asks, function, tuple(needs.split()), passes, since,
            tuple(explains.split()), _paragraph(holds), _paragraph(meaning), _paragraph(page["Seen in"]), wrong, right,
            _paragraph(page["Unseen"]), status,
        )  # fmt: skip
        return function

    return add


HEADINGS = ("Seen in", "Wrong", "Right", "Unseen")


def sections(docstring: str) -> dict[str, str]:
    """The text of a docstring by its headings; the part before the first is under the empty name.

    Example:
        >>> sections('''It is wrong.
        ...
        ... Seen in: a repository#1
        ... Wrong:
        ...     return 2
        ... ''')
        {'': 'It is wrong.', 'Seen in': 'a repository#1', 'Wrong': 'return 2', 'Right': '', 'Unseen': ''}
    """
    parts = re.split(rf"^({'|'.join(HEADINGS)}):", inspect.cleandoc(docstring), flags=re.MULTILINE)
    found = dict.fromkeys(("", *HEADINGS), "")
    for name, text in zip(["", *parts[1::2]], parts[::2], strict=True):
        found[name] = inspect.cleandoc("\n" + text).strip("\n").rstrip() if "\n" in text.strip(" ") else text.strip()
    return found


def filled(skeleton: str, lines: str) -> str:
    """The skeleton with lines in the place of ``___``, indented as that is.

    Example:
        >>> print(filled("def f():\\n    ___", "x = 1\\nreturn x"))
        def f():
            x = 1
            return x
    """
    before, after = skeleton.strip("\n").split("___")
    indent = len(before) - len(before.rstrip(" "))
    return before + lines.strip("\n").replace("\n", "\n" + " " * indent) + after + "\n"


def _paragraph(text: str) -> str:
    return " ".join(text.split())
