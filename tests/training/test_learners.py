"""Three ways to the gradient, one result."""

import pytest
import torch

from manual_backprop.training.config import RECIPES
from manual_backprop.training.parallel import Workers

BACKPROPS = ("network", "layers", "autograd")


def parameters(trainer):
    return trainer.network.weights + trainer.network.biases


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options"), [("chapter1", {"init": "scaled"}), ("chapter3", {})], ids=["chapter1-scaled", "chapter3"]
)
def test_a_whole_epoch_ends_with_the_same_weights(make_config, make_trainer, recipe, options):
    """Of 50,000 images, 10 a step: the network step by step and compiled, the layers, plain torch.

    Each rounds in another order. The N(0, 1) weights of chapter 1 saturate most neurons, and with η = 3 a difference of
    1e-16 grows to between 1e-8 and 5e-2 in an epoch of MNIST; so that recipe starts from scaled weights.
    """
    config = {"batch_size": 10, "dtype": "float64", "check_every": 0, **options}
    trainers = [make_trainer(make_config(recipe, backprop=b, **config)) for b in BACKPROPS]
    trainers.append(make_trainer(make_config(recipe, backprop="network", compile=True, **config)))
    start = [p.clone() for p in parameters(trainers[0])]
    for trainer in trainers:
        trainer.fit()
    for first, network, *others in zip(start, *map(parameters, trainers), strict=True):
        assert float((network - first).abs().max()) > 1e-3  # it did learn
        for other in others:
            torch.testing.assert_close(network, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backprop", BACKPROPS[1:])
def test_recipes_agree_with_the_network(make_config, make_trainer, recipe, backprop):
    # Momentum and L2 in all of them, since no recipe has both.
    options = {"dtype": "float64", "batch_size": 64, "momentum": 0.5, "l2": 3.0, "sizes": (784, 12, 11, 10)}
    ours, theirs = (make_trainer(make_config(recipe, backprop=b, **options), 1000) for b in ("network", backprop))
    for trainer in (ours, theirs):
        trainer.fit()
    for a, b in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("init", ["normal", "scaled", "torch"])
def test_initial_weights_have_the_stated_spread(make_config, make_trainer, init):
    trainer = make_trainer(make_config(init=init, sizes=(784, 300, 10)), 10)
    w, b = trainer.network.weights[0], trainer.network.biases[0]
    weights, biases = {"normal": (1, 1), "scaled": (1 / 28, 1), "torch": (1 / 28 / 3**0.5,) * 2}[init]
    assert float(w.std()) == pytest.approx(weights, rel=0.02)
    assert float(b.std()) == pytest.approx(biases, rel=0.2)


def test_one_process_asks_no_other():
    """Without a process group torch refuses every question to the others."""
    alone, x = Workers(), torch.tensor(3.0)
    assert alone.first
    assert (float(alone.sum(x)), alone.maximum(3.0, x.device), alone.from_first("mine")) == (3.0, 3.0, "mine")
    with pytest.raises(ValueError, match="process group"):
        Workers(size=2).sum(x)
