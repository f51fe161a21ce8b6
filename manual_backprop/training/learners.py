"""The three ways to the same gradient: the algorithm itself, the drop-in layers under autograd, plain torch.nn.

A learner steps; everything else (evaluation, inspection, checkpoints) reads `Learner.network`, whose weights and biases
are the very tensors that the learner trains, or, where those are divided among processes, copies of the whole.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from manual_backprop import nn
from manual_backprop.activations import Activation
from manual_backprop.network import Network
from manual_backprop.training.config import Config
from manual_backprop.training.parallel import Workers, divided, like, linear_layers, whole

State = dict[str, list[Tensor]]


class Learner(Protocol):
    network: Network

    def steps(
        self, x: Tensor, y: Tensor, batches: Sequence[Tensor], samples: Sequence[int], rates: Sequence[float]
    ) -> None:
        """Gradient descent on mini-batches, a learning rate each: indices into x and y. ``samples``: how many there are
        in the mini-batch over all processes, of which ``batches`` has this one's part."""

    def velocities(self) -> list[Tensor]:
        """Of the weights, then of the biases; empty where there is no momentum yet."""

    def set_velocities(self, velocities: list[Tensor]) -> None:
        """The inverse of `velocities`."""

    def gather(self) -> None:
        """Bring `network` up to date with what is trained: all processes do, or none."""

    def scatter(self) -> None:
        """The inverse of `gather`."""


def initial_network(config: Config, device: torch.device) -> Network:
    """The weights and biases that all learners start from; drawn on the CPU in float64, so that they depend on the seed
    alone."""
    network = Network(
        config.sizes, config.activation, config.cost, config.output, device, config.torch_dtype, config.compile
    )
    generator = torch.Generator().manual_seed(config.seed)
    for w, b in zip(network.weights, network.biases, strict=True):
        for parameter in (w, b):
            drawn = INITS[config.init](torch.empty(parameter.shape, dtype=torch.float64), w.shape[1], generator)
            parameter.copy_(drawn)
    return network


def _normal(x: Tensor, inputs: int, generator: torch.Generator) -> Tensor:
    return x.normal_(generator=generator)  # chapter 1


def _scaled(x: Tensor, inputs: int, generator: torch.Generator) -> Tensor:
    return x.normal_(generator=generator) / (inputs**0.5 if x.dim() == 2 else 1)  # chapter 3, "Weight initialization"


def _torch(x: Tensor, inputs: int, generator: torch.Generator) -> Tensor:
    return x.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)  # the distribution of torch.nn.Linear


INITS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "normal": _normal,
    "scaled": _scaled,
    "torch": _torch,
}


class NetworkLearner:
    """`Network.sgd`: the algorithm with no autograd."""

    def __init__(self, network: Network, config: Config, weight_decay: float, workers: Workers) -> None:
        self.network, self.momentum, self.weight_decay = network, config.momentum, weight_decay
        self.batch_size = config.batch_size

    def steps(
        self, x: Tensor, y: Tensor, batches: Sequence[Tensor], samples: Sequence[int], rates: Sequence[float]
    ) -> None:
        order = torch.cat(list(batches))
        self.network.sgd(x, y, self.batch_size, rates, order, self.momentum, self.weight_decay)

    def velocities(self) -> list[Tensor]:
        return self.network.velocities

    def set_velocities(self, velocities: list[Tensor]) -> None:
        self.network.velocities = velocities

    def gather(self) -> None:
        pass  # nothing to bring together: it is the network itself that is trained

    def scatter(self) -> None:
        pass


class ModuleLearner:
    """A torch model under autograd and `torch.optim.SGD`; under torch's own engine where there are many processes."""

    def __init__(
        self,
        network: Network,
        config: Config,
        weight_decay: float,
        workers: Workers,
        model: torch.nn.Module,
        cost: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.network, self.model, self.cost, self.workers = network, model, cost, workers
        weights, biases = _weights_and_biases(model)
        self.parameters = weights + biases
        with torch.no_grad():
            for parameter, initial in zip(self.parameters, network.weights + network.biases, strict=True):
                parameter.copy_(initial)
        network.weights, network.biases = [w.detach() for w in weights], [b.detach() for b in biases]
        self.parallel = divided(model, config.parallel, workers, weights[0].device)
        weights, biases = _weights_and_biases(self.parallel)
        self.trained = weights + biases
        self.groups: list[dict] = [{"params": weights, "weight_decay": weight_decay}, {"params": biases}]
        self.momentum = config.momentum
        # ddp and fsdp take the mean of the processes' gradients where their sum is wanted, so each counts `size` times;
        # "tensor" divides no samples, and sums nothing.
        self.shares = 1 if config.parallel == "tensor" else workers.size

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        # Made at its first use, because that imports the compiler, and a model that is only looked into needs none.
        return torch.optim.SGD(self.groups, momentum=self.momentum)

    def steps(
        self, x: Tensor, y: Tensor, batches: Sequence[Tensor], samples: Sequence[int], rates: Sequence[float]
    ) -> None:
        for batch, n, rate in zip(batches, samples, rates, strict=True):
            self._step(x.index_select(0, batch), y.index_select(0, batch), n, rate)

    def _step(self, x: Tensor, y: Tensor, samples: int, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        (self.cost(self.parallel(x), y) * (self.shares / samples)).backward()
        self.optimizer.step()

    def velocities(self) -> list[Tensor]:
        buffers = (self.optimizer.state[p].get("momentum_buffer") for p in self.trained)
        return [whole(buffer) for buffer in buffers if buffer is not None]

    def set_velocities(self, velocities: list[Tensor]) -> None:
        self.optimizer.state.clear()
        for parameter, velocity in zip(self.trained, velocities, strict=False):
            self.optimizer.state[parameter] = {"momentum_buffer": like(velocity, parameter)}

    @torch.no_grad()
    def gather(self) -> None:
        for parameter, part in self._divided():
            parameter.copy_(whole(part))

    @torch.no_grad()
    def scatter(self) -> None:
        for parameter, part in self._divided():
            part.copy_(like(parameter, part))

    def _divided(self) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self.parameters, self.trained, strict=True)
        return [(parameter, part) for parameter, part in pairs if parameter is not part]


def _weights_and_biases(model: torch.nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    layers = linear_layers(model).values()
    return [layer.weight for layer in layers], [layer.bias for layer in layers]


def _layers(network: Network, config: Config, weight_decay: float, workers: Workers) -> ModuleLearner:
    """The drop-in layers. The cost of a sigmoid output is taken from z, so there the last layer is linear."""
    cost, activations = network.cost.shortened(network.activations)
    *hidden, output = activations
    place: dict = {"device": network.weights[0].device, "dtype": config.torch_dtype}
    model = nn.MLP(config.sizes, hidden[0] if hidden else output, output, **place)
    return ModuleLearner(network, config, weight_decay, workers, model, MODULES[cost.name]("sum"))


def _autograd(network: Network, config: Config, weight_decay: float, workers: Workers) -> ModuleLearner:
    """The control: the same network and cost in nothing but torch.nn."""
    cost, activations = network.cost.shortened(network.activations)
    place: dict = {"device": network.weights[0].device, "dtype": config.torch_dtype}
    modules: list[torch.nn.Module] = []
    for (i, o), f in zip(pairwise(config.sizes), activations, strict=True):
        modules += [torch.nn.Linear(i, o, **place), in_torch(f)()]
    return ModuleLearner(network, config, weight_decay, workers, torch.nn.Sequential(*modules), TORCH_COSTS[cost.name])


def in_torch(activation: Activation) -> type[torch.nn.Module]:
    """torch's own of one of the ready activations."""
    assert activation.module is not None
    return activation.module


MODULES: dict[str, Callable[[str], torch.nn.Module]] = {
    "quadratic": nn.QuadraticCost,
    "sigmoid_cross_entropy": nn.SigmoidCrossEntropyCost,
}

TORCH_COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quadratic": lambda a, y: torch.nn.functional.mse_loss(a, y, reduction="sum") / 2,
    "sigmoid_cross_entropy": lambda z, y: torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum"),
}
"""The costs that a network is differentiated with (`Cost.shortened`), summed over the samples, as torch has them."""

LEARNERS: dict[str, Callable[[Network, Config, float, Workers], Learner]] = {
    "network": NetworkLearner,
    "layers": _layers,
    "autograd": _autograd,
}


def clone_state(learner: Learner) -> State:
    """A copy of all that training changes."""
    network = learner.network
    parts = {"weights": network.weights, "biases": network.biases, "velocities": learner.velocities()}
    return {name: [tensor.clone() for tensor in tensors] for name, tensors in parts.items()}


def load_state(learner: Learner, state: State) -> None:
    """The inverse of `clone_state`, in place."""
    network = learner.network
    for mine, theirs in zip(network.weights + network.biases, state["weights"] + state["biases"], strict=True):
        mine.copy_(theirs)
    learner.scatter()
    learner.set_velocities([v.to(mine.device, copy=True) for v in state["velocities"]])
