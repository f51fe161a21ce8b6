"""A data root with the sizes and the format of MNIST and made-up images: the tests need no download."""

from pathlib import Path

import pytest
import torch

from manual_backprop.training.config import RECIPES, Config
from manual_backprop.training.data import TEST, TRAIN, Mnist, load
from manual_backprop.training.trainer import Trainer

CPU = torch.device("cpu")


def write_idx(path: Path, content: torch.Tensor) -> None:
    header = [0x0800 + content.dim(), *content.shape]
    path.write_bytes(b"".join(n.to_bytes(4, "big") for n in header) + content.numpy().tobytes())


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    # As in MNIST, a fifth of the pixels is not black, and no two images of a digit are the same.
    digits = 255 * (torch.rand(10, 28, 28, generator=generator) < 0.25)
    for images, labels in (TRAIN, TEST):
        answers = torch.randint(10, labels.shape, generator=generator)
        kept = torch.rand(images.shape, generator=generator) < 0.8
        write_idx(raw / labels.name, answers.to(torch.uint8))
        write_idx(raw / images.name, (digits[answers] * kept).to(torch.uint8))
    return root


@pytest.fixture(scope="session")
def make_config(data_root: Path):
    """A recipe with options of its own; batches of 1,000 unless they say otherwise."""

    def make(recipe: str = "chapter1", **options) -> Config:
        base = RECIPES[recipe].config
        return Config(**{**vars(base), "data_root": data_root, "epochs": 1, "batch_size": 1000, **options})

    return make


@pytest.fixture(scope="session")
def make_trainer():
    """A trainer on the data of its configuration, or on the first so many training images of it."""
    loaded: dict[tuple, Mnist] = {}

    def make(config: Config, images: int | None = None, **arguments) -> Trainer:
        key = (config.dtype, config.validation)
        if key not in loaded:
            loaded[key] = load(config, CPU)[0]
        mnist = loaded[key]
        train = type(mnist.train)(*(tensor[:images] for tensor in mnist.train))
        return Trainer(config, mnist._replace(train=train), CPU, **arguments)

    return make
