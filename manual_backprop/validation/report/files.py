"""Text in a file: written whole or not at all, in UTF-8."""

import os
import shutil
import uuid
from pathlib import Path


def write(path: str | Path, text: str) -> None:
    r"""Writes `text` beside its place and renames it there, so that a reader finds the old file or the new one, whole.

    Half of a surrogate pair, which no encoding has, is written as its escape, ``\ud800``. A place that is no plain file
    (``/dev/stdout``, a pipe) is written to directly, because it cannot be replaced.
    """
    content = encodable(text).encode("utf-8")
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        place.write_bytes(content)
        return
    unfinished = place.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.write_bytes(content)
        if place.exists():
            shutil.copymode(place, unfinished)
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)


def encodable(text: str) -> str:
    r"""The text with each half of a surrogate pair as its escape: ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
