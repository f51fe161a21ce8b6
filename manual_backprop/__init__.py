"""Write a backward pass by hand, and know that it is right."""

import importlib
from typing import TYPE_CHECKING, Any

from manual_backprop import equations as equations
from manual_backprop import functional as functional
from manual_backprop import kernels as kernels
from manual_backprop import nn as nn
from manual_backprop.activations import Activation as Activation
from manual_backprop.activations import per_neuron as per_neuron
from manual_backprop.conversion import conversions as conversions
from manual_backprop.conversion import convert as convert
from manual_backprop.conversion import revert as revert
from manual_backprop.costs import Cost as Cost
from manual_backprop.network import Gradients as Gradients
from manual_backprop.network import Network as Network

if TYPE_CHECKING:
    from manual_backprop.monitor.monitor import Monitor as Monitor
    from manual_backprop.validation import Finding as Finding
    from manual_backprop.validation import Report as Report
    from manual_backprop.validation.validate import validate as validate

__version__ = "0.1.0"


# Imported when they are first used: the layers do not need them.
_LATER = {
    **dict.fromkeys(("Finding", "Report", "validate"), "manual_backprop.validation"),
    "Monitor": "manual_backprop.monitor.monitor",
}


def __getattr__(name: str) -> Any:
    """The names of the validator and of the training run."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
