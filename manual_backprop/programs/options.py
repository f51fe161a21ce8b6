"""The options of the programs in `scripts/`, from a dataclass, and a complaint in one line."""

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

Rule = tuple[str, str, Callable[[Any], bool]]
"""An option, what it must be, and the test that the options as a whole pass where it is."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line and names it."""


def parse(kind: type, default: Any, arguments: Sequence[str], epilogue: str = "", partly: bool = False) -> Any:
    """`tyro.cli`, with its boxed complaint as one line.

    Args:
        kind: a dataclass, whose docstring is the description.
        default: an instance of it.
        arguments: those of the command line.
        epilogue: what the help says after the description.
        partly: leave out what it does not know, ``--help`` too.

    Raises:
        InputError: an unknown option, or a value of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if partly:
                return tyro.cli(kind, default=default, args=arguments, return_unknown_args=True, add_help=False)[0]
            return tyro.cli(kind, default=default, args=arguments, description=f"{kind.__doc__}\n\n{epilogue}")
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # Below the title, between two rules (of the box, or of dashes in ASCII), each of which is empty without them.
        lines = [re.sub(r"[^\x20-\x7e]|^ *-+ *$", "", line).strip() for line in complaint.getvalue().splitlines()[1:]]
        words = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))
        raise InputError(" ".join(words)) from None


def check(options: Any, rules: Sequence[Rule]) -> None:
    """Refuse options that cannot be used.

    Raises:
        InputError: the first option that breaks its rule, what was expected and what was found.
    """
    for option, expected, holds in rules:
        if not holds(options):
            raise InputError(f"--{option.replace('_', '-')}: expected {expected}, found {getattr(options, option)}")


def is_folder_name(name: str) -> bool:
    """Whether it is the name of one folder, or empty."""
    return not name or Path(name).name == name
