"""What each finding's code means: a few sentences, a real bug of its class, and snippets that run."""

from manual_backprop.validation.explanations import (
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
from manual_backprop.validation.explanations.entry import PRELUDE as PRELUDE
from manual_backprop.validation.explanations.entry import Explanation as Explanation

_FAMILIES = (calculus, contract, linearity, layout, state, numbers, edges, transforms, runtime)
EXPLANATIONS = {entry.code: entry for family in _FAMILIES for entry in family.ENTRIES}
