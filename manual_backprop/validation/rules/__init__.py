"""All rules, one file for each mechanism: question, meaning, a real bug, a wrong and a right backward, answer."""

import importlib
import pkgutil

from manual_backprop.validation.rule import REGISTRY, Rule

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

RULES: tuple[Rule, ...] = tuple(REGISTRY[code] for code in sorted(REGISTRY))
