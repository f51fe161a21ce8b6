"""The recipe of `studies.ONE_RECIPE` by JAX and scikit-learn: seconds and accuracy of each epoch."""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch

from manual_backprop.training import data as mnist
from manual_backprop.training.config import Config

SIZES, BATCH, RATE, EPOCHS = (784, 200, 10), 10, 0.5, 15

History = Iterator[tuple[float, float]]


def jax_epochs(images: mnist.Mnist) -> History:
    """Each epoch one jitted `jax.lax.scan`."""
    import jax
    from jax import numpy as jnp

    x, y, x_test, labels = map(jnp.asarray, (*_arrays(images.train)[:2], *_arrays(images.test)[::2]))

    def outputs(parameters, x):  # type: ignore[no-untyped-def]
        for w, b in parameters[:-1]:
            x = jax.nn.sigmoid(x @ w.T + b)
        return x @ parameters[-1][0].T + parameters[-1][1]

    def cost(parameters, x, y):  # type: ignore[no-untyped-def]
        z = outputs(parameters, x)
        return (jax.nn.softplus(z) - y * z).sum() / len(y)  # the cross-entropy of σ(z)

    def step(parameters, batch):  # type: ignore[no-untyped-def]
        samples, rate = batch
        slopes = jax.grad(cost)(parameters, x[samples], y[samples])
        return jax.tree.map(lambda p, slope: p - rate * slope, parameters, slopes), None

    epoch = jax.jit(lambda parameters, batches: jax.lax.scan(step, parameters, batches)[0])
    parameters = [(torch.randn(o, i) / i**0.5, torch.randn(o)) for i, o in pairwise(SIZES)]
    state = jax.tree.map(lambda p: jnp.asarray(p.numpy()), parameters)
    batches = len(x) // BATCH
    rates = RATE * (1 - jnp.arange(EPOCHS * batches) / (EPOCHS * batches)).reshape(EPOCHS, batches)
    for number in range(EPOCHS):
        order = jnp.asarray(torch.randperm(len(x))[: batches * BATCH].reshape(batches, BATCH).numpy())
        started = time.perf_counter()
        state = jax.block_until_ready(epoch(state, (order, rates[number])))
        seconds = time.perf_counter() - started
        yield seconds, 100 * float((outputs(state, x_test).argmax(1) == labels).mean())


def scikit_learn_epochs(images: mnist.Mnist) -> History:
    """Its outputs are a softmax, and its η stays the same."""
    from sklearn.neural_network import MLPClassifier

    (x, _, labels), (x_test, _, labels_test) = _arrays(images.train), _arrays(images.test)
    model = MLPClassifier(
        SIZES[1:-1], activation="logistic", solver="sgd", batch_size=BATCH, momentum=0, learning_rate_init=RATE, alpha=0
    )
    for _ in range(EPOCHS):
        started = time.perf_counter()
        model.partial_fit(x, labels, classes=range(SIZES[-1]))
        seconds = time.perf_counter() - started
        yield seconds, 100 * model.score(x_test, labels_test)


PEERS: dict[str, tuple[str, Callable[[mnist.Mnist], History]]] = {
    "JAX epoch (scan)": ("jax", jax_epochs),
    "scikit-learn": ("sklearn", scikit_learn_epochs),
}
"""By name: the library, and what runs it."""


def histories(data_root: Path) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Of those that are installed."""
    images, _ = mnist.load(Config(data_root=data_root), torch.device("cpu"), download=False)
    for name, (library, epochs) in PEERS.items():
        if find_spec(library):
            torch.manual_seed(0)
            yield name, list(epochs(images))


def _arrays(images: mnist.Images) -> tuple:
    return images.x.numpy(), images.y.numpy(), images.labels.numpy()
