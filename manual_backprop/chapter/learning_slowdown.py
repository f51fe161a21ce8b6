"""The learning slowdown: from a badly wrong start the quadratic cost learns slowly, and the cross-entropy fast.

The reason is one factor. With sigmoid outputs BP1 makes δ^L = (a − y) σ′(z) of the quadratic cost and δ^L = a − y of
the cross-entropy; where the neuron saturates on the wrong side, σ′(z) ≈ 0.

Source: chapter 3, "The cross-entropy cost function" (one neuron with input 1 and desired output 0, started at
w = b = 2, η = 0.15) and its equations (55), (56) and (61) to (68).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from manual_backprop.network import Network
from manual_backprop.training.data import Images

COSTS = ("quadratic", "cross_entropy")


@dataclass
class Neuron:
    """One neuron while it learns: each list has a number before every step and one after the last.

    Args:
        outputs: a; the desired output is 0.
        costs: C.
        speeds: |∂C/∂w|, which is |∂C/∂b| too, since the input is 1.
        deltas: δ as the cost has it: a − y times σ′(z), or not.
    """

    cost: str
    outputs: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    deltas: list[float] = field(default_factory=list)

    @property
    def fastest(self) -> int:
        """The step at which it learns fastest."""
        return max(range(len(self.speeds)), key=self.speeds.__getitem__)

    @property
    def slowest(self) -> int:
        """The step at which it learns slowest."""
        return min(range(len(self.speeds)), key=self.speeds.__getitem__)


def neuron(cost: str, weight: float = 2.0, bias: float = 2.0, learning_rate: float = 0.15, epochs: int = 300) -> Neuron:
    """One sigmoid neuron with input 1 learns to put out 0.

    Args:
        cost: "quadratic" or "cross_entropy".
        weight, bias: the start.
        learning_rate: η.
        epochs: steps of gradient descent.

    Example:
        >>> badly_wrong = neuron("quadratic")
        >>> print(f"{badly_wrong.outputs[0]:.2f} to {badly_wrong.outputs[-1]:.2f}")  # the book's figures
        0.98 to 0.20
    """
    network = Network([1, 1], cost=cost, dtype=torch.float64)
    network.weights[0].fill_(weight)
    network.biases[0].fill_(bias)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    found = Neuron(cost)
    for epoch in range(epochs + 1):
        gradients = network.backprop(x, y)
        found.outputs.append(float(network.feedforward(x)))
        found.costs.append(float(network.mean_cost(x, y)))
        found.speeds.append(float(gradients.weights[0].abs()))
        found.deltas.append(float(gradients.deltas[0]))
        if epoch < epochs:
            network.update(x, y, learning_rate)
    return found


@dataclass
class Training:
    """A network on MNIST, looked at before the first step and then every so many steps.

    Args:
        steps: at which it was looked at.
        accuracies: on the test images, in percent.
        with_sigma_prime: the mean over images of ‖(a − y) ⊙ σ′(z)‖, the δ^L of the quadratic cost.
        without: the mean over the same images of ‖a − y‖, the δ^L of the cross-entropy.
    """

    cost: str
    steps: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    with_sigma_prime: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)


def mnist(
    cost: str,
    train: Images,
    test: Images,
    learning_rate: float = 0.5,
    epochs: int = 2,
    bias: float = 5.0,
    looks: int = 20,
    seed: int = 0,
) -> Training:
    """A 784-30-10 sigmoid network, in mini-batches of ten, from a badly wrong start.

    Args:
        cost: "quadratic" or "cross_entropy".
        learning_rate: η.
        epochs: passes through the training images.
        bias: of every output at the start: all ten are near 1 on every image, and nine of them should be 0.
        looks: how often it is looked at after the start.
        seed: of the weights, N(0, 1/inputs), and of the order of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    network = Network([784, 30, 10], cost=cost)
    for w, b in zip(network.weights, network.biases, strict=True):
        w.copy_(torch.randn(w.shape, generator=generator) / w.shape[1] ** 0.5)
        b.zero_()
    network.biases[-1].fill_(bias)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(train), generator=generator).split(10)]
    every = max(1, len(batches) // looks)
    found = Training(cost)
    for step, batch in enumerate(batches):
        if step % every == 0:
            _look(found, step, network, train, test)
        network.update(train.x[batch], train.y[batch], learning_rate)
    _look(found, len(batches), network, train, test)
    return found


def _look(found: Training, step: int, network: Network, train: Images, test: Images) -> None:
    found.steps.append(step)
    found.accuracies.append(100 * network.evaluate(test.x, test.labels) / len(test))
    x, y = train.x[:1000], train.y[:1000]
    for cost, norms in zip(COSTS, (found.with_sigma_prime, found.without), strict=True):
        norms.append(_error_norm(network, cost, x, y))


def _error_norm(network: Network, cost: str, x: Tensor, y: Tensor) -> float:
    """The mean over images of ‖δ^L‖, were the cost this one."""
    other = Network([1, 1], cost=cost)
    other.weights, other.biases, other.activations = network.weights, network.biases, network.activations
    # δ belongs to the mean cost: times n it is the error of one image.
    return float((other.backprop(x, y).deltas[-1] * len(x)).norm(dim=-1).mean())
