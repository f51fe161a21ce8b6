"""Row: tensor parallel."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from manual_backprop import nn, per_neuron
from tests.cases import IN, OUT, softplus
from tests.dropin.models import assert_same, torch_twin
from tests.dropin.processes import SIZE, in_processes

pytestmark = pytest.mark.row("tensor parallel")
HIDDEN = 4

# Between the layers each process has half of the neurons, so a layer's activation is of what it has. Behind a row-wise
# layer the weighted inputs are sums that lie on both processes: σ must be taken of the whole, and not of the parts.
ACTIVATIONS = {
    "sigmoid_then_linear": ("sigmoid", "identity"),
    "relu_then_sigmoid": ("relu", "sigmoid"),
    "tanh_then_tanh": ("tanh", "tanh"),
    "own_then_own": (softplus, softplus),
    "per_neuron": (per_neuron(["sigmoid", "tanh", "relu", "sigmoid"]), "sigmoid"),
}
