"""All rules, a file a mechanism: the question, its meaning, a real bug, a wrong and a right backward, the answer."""

import importlib
import pkgutil

from manual_backprop.validation.rule import REGISTRY, Rule

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

RULES: tuple[Rule, ...] = tuple(REGISTRY[code] for code in sorted(REGISTRY))
