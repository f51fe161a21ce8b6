"""Exceptions in words: in which line of the user's file, and whether it was raised on purpose."""

import linecache
import traceback
from pathlib import Path

import torch

HERE, TORCH = str(Path(__file__).parent), str(Path(torch.__file__).parent)


def where(error: BaseException) -> str:
    """The innermost line of the user's own code in a traceback, ``file.py:12 in backward``."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((HERE, TORCH, "<"))
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def raised_on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` or ``assert`` statement, and not a C++ kernel, is what the traceback ends in."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    line = (frames[-1].line or linecache.getline(frames[-1].filename, frames[-1].lineno or 0)).strip()
    return line.startswith(("raise ", "raise", "assert"))


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
