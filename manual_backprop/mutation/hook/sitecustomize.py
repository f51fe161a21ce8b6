"""Breaks one backward pass in a process that knows nothing of it: Python imports this file when it starts.

`manual-backprop mutate` puts this folder first on PYTHONPATH and says in an environment variable what to break. The
class is caught when it is made, by whichever way its module is imported (pytest rewrites test modules with an importer
of its own), and neither torch nor the module is imported any earlier than the tests themselves do.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from typing import Any

VARIABLE, MODULE = "MANUAL_BACKPROP_MUTANT", "torch.autograd.function"


class Finder(importlib.abc.MetaPathFinder):
    """Finds torch.autograd.function as the others do, and changes it once it has run."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = spec.loader if spec is not None else None
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            watch(module.FunctionMeta)

        loader.exec_module = exec_module
        return spec


def watch(meta: Any) -> None:
    """Lets the metaclass of all Functions hand over the one that is meant."""
    plan = json.loads(os.environ[VARIABLE])
    make = meta.__init__

    def __init__(cls: Any, name: str, bases: tuple, attrs: dict) -> None:
        make(cls, name, bases, attrs)
        if f"{cls.__module__}:{cls.__qualname__}" == plan["target"]:
            importlib.import_module("manual_backprop.mutation.mutants").break_in_child(cls, plan)

    meta.__init__ = __init__


def run_hidden() -> None:
    """Runs the sitecustomize that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if VARIABLE in os.environ:
    sys.meta_path.insert(0, Finder())
run_hidden()
