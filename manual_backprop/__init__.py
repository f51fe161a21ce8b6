"""Write a backward pass by hand, and know that it is right."""

from manual_backprop import equations as equations
from manual_backprop import functional as functional
from manual_backprop import nn as nn
from manual_backprop.activations import Activation as Activation
from manual_backprop.activations import per_neuron as per_neuron
from manual_backprop.costs import Cost as Cost
from manual_backprop.network import Gradients as Gradients
from manual_backprop.network import Network as Network

__version__ = "0.1.0"
