"""The folder of a run: made anew, with what describes the run, and its pictures."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from manual_backprop.programs.options import InputError


def make_folder(folder: Path) -> None:
    """Make the folder of a new run, and those above it.

    Raises:
        InputError: there is one of that name, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"--name: expected a new folder, found an existing run {folder}") from None
    except OSError as error:
        raise InputError(f"--runs: expected a folder to write to, found {folder.parent}: {error.strerror}") from None


def now() -> str:
    """The time, as it ends the name of a run's folder."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")


def describe(folder: Path, writer: SummaryWriter, contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Each of the contents as JSON in the folder, and on TensorBoard's "Text"."""
    for name, content in contents.items():
        text = json.dumps(content, indent=2, default=str)
        (folder / f"{name}.json").write_text(text + "\n")
        writer.add_text(name, f"```json\n{text}\n```")


def keep(figure: Figure, name: str, folder: Path, writer: SummaryWriter, step: int = 0) -> None:
    """A picture as a PNG in the folder, and on TensorBoard's "Images"."""
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=120)
    # The same pixels: add_figure would draw it again, and import pyplot.
    writer.add_image(name, imread(path)[..., :3], step, dataformats="HWC")
