"""How a callable, its arguments and a number of things are called in a message."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from manual_backprop import _torch


def callable_of(func: Any) -> Callable[..., Any]:
    """The callable behind `func`: ``.apply`` of a Function class, `func` itself otherwise."""
    is_function = isinstance(func, type) and issubclass(func, torch.autograd.Function)
    return func.apply if is_function else func


def function_class(func: Any) -> type | None:
    """The Function class behind a class or its ``.apply``, or None."""
    owner = func if isinstance(func, type) else getattr(func, "__self__", None)
    return owner if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) else None


def name_of(func: Any) -> str:
    """A name as it stands in a message: the Function's, the module's class, the callable's ``__name__``."""
    if isinstance(func, functools.partial):
        return name_of(func.func)
    if (owner := function_class(func)) is not None:
        return owner.__name__ if func is owner else f"{owner.__name__}.apply"
    return getattr(func, "__name__", type(func).__name__)


def counted(number: int, noun: str) -> str:
    """A number of things, in the singular where it is one.

    Example:
        >>> counted(1, "element"), counted(3, "element")
        ('1 element', '3 elements')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def argument_names(func: Any, inputs: Sequence[Any]) -> list[str]:
    """One name for each flattened input: the name of its parameter, and the path to it inside a nested argument."""
    parameters = _parameter_names(func)
    names = []
    for place, value in enumerate(inputs):
        name = parameters[place] if place < len(parameters) else f"inputs[{place}]"
        names += [name + path for path in _torch.leaf_paths(value)]
    return names


def _parameter_names(func: Any) -> list[str]:
    owner = function_class(func)
    if owner is not None:
        func = owner.forward  # type: ignore[attr-defined]
    elif isinstance(func, nn.Module):
        func = func.forward
    try:
        parameters = list(inspect.signature(func).parameters.values())
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    setup = getattr(owner, "setup_context", None)
    combined = owner is not None and setup is torch.autograd.Function.setup_context
    return names[1:] if combined else names
