"""The zoo: backward passes that are wrong, each with the codes that catch it, and right ones that none may fail.

Every wrong one has a right forward pass (but for those of MB103) and the smallest mistake that its author may
plausibly have made, on the line marked ``# wrong``; every right one does something that makes careless checks raise a
false alarm.
"""

from manual_backprop.zoo import (  # noqa: F401  (each adds its entries)
    attention,
    convolution,
    indexing,
    layout,
    linear,
    losses,
    normalisation,
    outputs,
    pointwise,
    products,
    right_layers,
    right_networks,
    right_pointwise,
    right_reductions,
    runtime,
    state,
    transforms,
)
from manual_backprop.zoo.entry import Entry as Entry
from manual_backprop.zoo.entry import registry

WRONG = tuple(entry for entry in registry if entry.codes)
RIGHT = tuple(entry for entry in registry if not entry.codes)
ENTRIES = WRONG + RIGHT
