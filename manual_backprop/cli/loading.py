"""``PKG.MOD:NAME`` on a command line: the object of that name, or one line that says why there is none."""

import functools
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any


class CannotRun(Exception):
    """A command that cannot be carried out; the message is one line for the user."""


def load(path: str) -> Any:
    """The object that ``PKG.MOD:NAME`` names; NAME may have dots, and the current folder is importable.

    Args:
        path: for example ``"my_package.layers:MyFunction"``.

    Raises:
        CannotRun: the path has another form, its module cannot be imported, or the module has no such attribute.

    Example:
        >>> load("math:tau")
        6.283185307179586
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise CannotRun(f"{path}: expected PKG.MOD:NAME, for example my_package.layers:MyFunction")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise CannotRun(f"{path}: {error.msg} (looked in {Path.cwd()} and in what is installed)") from error
    except Exception as error:
        raise CannotRun(f"{path}: importing {module} raised {told(error)}") from error
    try:
        return functools.reduce(getattr, name.split("."), found)
    except AttributeError as error:
        raise CannotRun(f"{path}: {error}") from error


def made(path: str) -> Any:
    """The inputs that the function at `path` makes; a tuple or a list is taken as it is.

    Raises:
        CannotRun: as `load`; or the maker raises, or cannot be called.
    """
    maker = load(path)
    if isinstance(maker, tuple | list):
        return maker
    if not callable(maker):
        raise CannotRun(f"{path}: expected a function without arguments that makes the inputs, or a tuple")
    try:
        return maker()
    except Exception as error:
        raise CannotRun(f"{path}: making the inputs raised {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception in one line, with the place it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    message = " ".join(str(error).split())
    return type(error).__name__ + (f": {message}" if message else "") + place
