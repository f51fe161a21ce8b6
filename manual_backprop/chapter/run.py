"""The frame of the scripts: options, one-line complaints, and a run that prints, draws and logs to TensorBoard."""

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from manual_backprop.programs import options as command_line
from manual_backprop.programs.environment import environment
from manual_backprop.programs.folder import describe, keep, make_folder, now
from manual_backprop.programs.options import InputError, Rule

EXIT_STATUS = "exit status: 0 done; 1 a check failed; 2 bad input; 130 where Ctrl-C ended it"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The options of every script."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str = ""
    """Folder of this run; script and time where it is empty. Never an existing one."""


Options = TypeVar("Options", bound=RunOptions)

RULES: list[Rule] = [("name", "the name of one folder", lambda o: command_line.is_folder_name(o.name))]


class Run:
    """A folder with the PNGs, TensorBoard's events, `config.json` and `env.json`; and the terminal."""

    def __init__(self, folder: Path, options: RunOptions) -> None:
        self.folder, self.console = folder, Console(highlight=False)
        self.writer = SummaryWriter(str(folder))
        env = environment(torch.device("cpu"))
        describe(folder, self.writer, {"config": dataclasses.asdict(options), "env": env})

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def say(self, *lines: str) -> None:
        """Lines of text, as they are (no markup)."""
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
        """The first columns, ``left`` of them, are words; the others are numbers, and stand right."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(Text(column), justify="left" if number < left else "right")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(Text(title, style="bold"))
        self.console.print(table)

    def picture(self, name: str, figure: Figure) -> None:
        """Saved as a PNG, and on TensorBoard's "Images"."""
        keep(figure, name, self.folder, self.writer)

    def scalars(self, tag: str, values: Mapping[int, float] | Sequence[float]) -> None:
        """A curve on TensorBoard's "Scalars"; the steps are the keys, or count from 0."""
        for step, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            self.writer.add_scalar(tag, value, step)


def off_by(difference: float) -> str:
    """A difference that should be none.

    >>> off_by(2.34e-17), off_by(0.0)
    ('2e-17', '0')
    """
    return f"{difference:.0e}" if difference else "0"


def main(options: Options, rules: Sequence[Rule], show: Callable[[Options, Run], bool]) -> int:
    """Run a script, as the process's arguments say.

    Args:
        options: the defaults; the docstring of their class is what ``--help`` says.
        rules: what the options must be.
        show: does all there is to do; False where something that must hold did not.

    Returns:
        The exit status (see `EXIT_STATUS`).
    """
    torch.set_num_threads(1)  # the tensors are too small to share
    try:
        chosen = command_line.parse(type(options), options, sys.argv[1:], EXIT_STATUS)
        command_line.check(chosen, [*rules, *RULES])
        folder = chosen.runs / (chosen.name or f"{Path(sys.argv[0]).stem}-{now()}")
        make_folder(folder)
        with Run(folder, chosen) as run:
            right = show(chosen, run)
            run.say(f"run: {folder}")
        return 0 if right else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
