"""All probes in one table, by family; `validate`, the documentation and the tests are generated from it."""

from manual_backprop.validation.rules import (
    calculus,
    contract,
    edges,
    layout,
    linearity,
    numbers,
    runtime,
    state,
    transforms,
)
from manual_backprop.validation.rules.rule import Probe

FAMILIES = (calculus, contract, linearity, layout, state, numbers, edges, transforms, runtime)

PROBES: tuple[Probe, ...] = tuple(probe for family in FAMILIES for probe in family.PROBES)
