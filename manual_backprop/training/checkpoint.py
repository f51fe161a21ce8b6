"""A run's state in one file: written whole or not at all, read without running code from it."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from manual_backprop.training.config import Config, InputError, as_plain, from_plain
from manual_backprop.training.learners import State

FILE_NAME = "checkpoint.pt"


class Checkpoint(NamedTuple):
    """``epoch`` and ``step`` say where to go on: so many epochs are complete, and so many steps of the next one.

    The order of the images and their shifts follow from the seed and the epoch, so no random state is kept.
    """

    config: Config
    epoch: int
    step: int
    state: State
    history: list[dict[str, float]]
    worst_disagreement: float


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write it beside its place and rename it there, so that a reader finds the old one or the new one, whole."""
    content = {**checkpoint._asdict(), "config": as_plain(checkpoint.config)}
    unfinished = folder / f"{FILE_NAME}.unfinished"
    with open(unfinished, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / FILE_NAME)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, from its file or from the folder of its run.

    Raises:
        InputError: no such file, or one that is no checkpoint of this program.
    """
    path = path / FILE_NAME if path.is_dir() else path
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(**{**content, "config": from_plain(content["config"])})
    except FileNotFoundError:
        raise InputError(f"--resume: expected a checkpoint, found no file {path}") from None
    except Exception as error:  # whatever a damaged file makes of torch.load
        kind = type(error).__name__
        raise InputError(f"--resume: expected a checkpoint of this program, found {path} ({kind})") from None


def require_same_architecture(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse options that the weights of the checkpoint do not fit, or that would change what is being trained.

    Raises:
        InputError: the first such option.
    """
    for option in ("recipe", "sizes", "activation", "output", "cost", "dtype", "seed", "validation"):
        expected, found = getattr(checkpoint.config, option), getattr(config, option)
        if expected != found:
            raise InputError(f"--{option}: the checkpoint has {expected}, found {found}")
