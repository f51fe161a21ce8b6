"""``manual-backprop new-rule MB5xx torn-buffer``: the skeleton of a rule, for those who work on the validator."""

import re
from pathlib import Path

from manual_backprop.cli.loading import CannotRun

TEMPLATE = '''"""{code}: …"""

from collections.abc import Iterator

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import SQUARE


@rule("{code}", "Is it …?", "1 pass", since="{since}", skeleton=SQUARE)
def {function}(case: Case) -> Iterator[Finding]:
    """One sentence that holds for a right backward.

    Some sentences: the mistake, whom it hurts, and why nobody noticed.

    Seen in: owner/repository#0: a real bug of this class.

    Wrong:
        return x * grad_output

    Right:
        return 2 * x * grad_output
    """
    actual = case.gradients(cotangents=case.plain.cotangents)
    yield from differing(case, actual, case.plain.gradients, "is another when …")
'''


def write(code: str, name: str) -> Path:
    """Writes the file of a new rule and returns its path; nothing that exists is touched.

    Args:
        code: ``"MB512"``, or ``"MB5xx"`` for the next one that is free in its family.
        name: of the rule, in words with hyphens: ``"torn-buffer"``.

    Raises:
        CannotRun: a code or a name that is taken or malformed.
    """
    from manual_backprop import __version__
    from manual_backprop.validation import RULES, rules

    code = _free(code.upper(), {rule.code for rule in RULES})
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise CannotRun(f"name: expected words with hyphens, such as torn-buffer, found {name!r}")
    if name in {rule.name for rule in RULES}:
        raise CannotRun(f"name: a rule is called {name} already")
    function = name.replace("-", "_")
    path = Path(rules.__path__[0]) / f"mb{code[2]}_{function}.py"
    since = ".".join(__version__.split(".")[:2])
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(code=code, function=function, since=since))
    except OSError as error:
        raise CannotRun(f"{path}: {error.strerror}") from error
    return path


def _free(code: str, taken: set[str]) -> str:
    if not re.fullmatch(r"MB[1-9](XX|\d\d)", code):
        raise CannotRun(f"code: expected MB and three digits, or MB5xx for the next free one, found {code!r}")
    if not code.endswith("XX"):
        if code in taken:
            raise CannotRun(f"code: {code} is taken; codes are stable for ever, and none is used twice")
        return code
    number = max((int(other[3:]) for other in taken if other[:3] == code[:3]), default=0) + 1
    if number > 99:
        raise CannotRun(f"code: the family {code[:3]} is full")
    return f"{code[:3]}{number:02}"
