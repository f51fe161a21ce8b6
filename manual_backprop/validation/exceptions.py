"""The three exceptions that end a rule early; and of any exception: where was it raised, by whom, and deliberately?"""

import linecache
import sysconfig
import traceback
from pathlib import Path

import torch

from manual_backprop.validation.report.files import encodable

OURS = str(Path(__file__).parent)
TORCH = str(Path(torch.__file__).parent)
STANDARD = sysconfig.get_path("stdlib")
INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))  # these folders lie inside STANDARD


class Broken(Exception):
    """The user's forward or backward pass raised; `error` is the exception."""

    def __init__(self, stage: str, error: BaseException):
        super().__init__(f"{stage} raised {type(error).__name__}: {error}")
        self.stage, self.error = stage, error


class Skipped(Exception):
    """The rule has nothing to ask of this case, or torch refuses with an error; the message says why."""


class Inconclusive(Exception):
    """The measurement cannot tell right from wrong; the message says why."""


def where(error: BaseException) -> str:
    """The innermost line of the user's own code in a traceback, ``file.py:12 in backward``; empty where there is none.

    Lines of torch, of the standard library and of the validator are left out wherever they stand in the traceback.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _owner(frame.filename) == "user"]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def is_ours(error: BaseException) -> bool:
    """Whether the validator itself raised an exception: the innermost line outside of libraries is ours."""
    owners = [_owner(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    known = [owner for owner in owners if owner != "library"]
    return not known or known[-1] == "validator"


def _owner(filename: str) -> str:
    if filename.startswith(OURS):
        return "validator"
    standard = filename.startswith(STANDARD) and not filename.startswith(INSTALLED)
    return "library" if standard or filename.startswith((TORCH, "<frozen")) else "user"


def raised_on_purpose(error: BaseException) -> bool:
    """Whether the traceback ends in a ``raise`` or ``assert`` statement, and not in a C++ kernel."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    line = (frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno or 0)).strip()
    return line.startswith(("raise ", "raise", "assert"))


def one_line(error: BaseException) -> str:
    """The message of an exception in one line, cut where it is long; half of a surrogate pair becomes its escape."""
    text = encodable(" ".join(str(error).split()))
    return text if len(text) <= 300 else text[:297] + "..."
