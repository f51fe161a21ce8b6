"""The terminal of a run: progress while it goes on, and a summary at its end."""

from pathlib import Path
from types import TracebackType

from rich import progress
from rich.console import Console
from rich.table import Table

from manual_backprop.training.config import RECIPES, Config


class Progress:
    """A bar for the epoch at hand with cost, accuracy and speed, and a line for each epoch behind it."""

    def __init__(self, config: Config, shown: bool = True, console: Console | None = None) -> None:
        self.config, self.accuracy = config, "–"
        self.console = console or Console(quiet=not shown)
        columns = ("[progress.description]{task.description}", "cost {task.fields[cost]}", "{task.fields[accuracy]}")
        self.bar = progress.Progress(
            progress.TextColumn(columns[0]),
            progress.BarColumn(),
            *(progress.TextColumn(column) for column in columns[1:]),
            progress.TextColumn("{task.fields[rate]} images/s"),
            progress.TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("starting", total=None, cost="–", accuracy="", rate="–")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def look(self, epoch: int, images: int, of: int, cost: float, rate: float) -> None:
        """So many images of the epoch are done."""
        self.bar.update(
            self.task,
            description=f"epoch {epoch + 1}/{self.config.epochs}",
            completed=images,
            total=of,
            cost=f"{cost:.4f}",
            accuracy=f"test {self.accuracy}",
            rate=f"{rate:,.0f}",
        )

    def epoch(self, row: dict[str, float]) -> None:
        """An epoch is complete."""
        self.accuracy = f"{row['accuracy_test']:.2f} %"
        self.console.print(
            f"{row['epoch']:>3}/{self.config.epochs}  cost {row['cost_train']:.4f}  train {row['accuracy_train']:.2f} %"
            f"  test {row['accuracy_test']:.2f} %  {row['seconds']:.2f} s  {row['images_per_second']:,.0f} images/s",
            highlight=False,
        )


def show_summary(
    console: Console,
    config: Config,
    history: list[dict[str, float]],
    worst_disagreement: float,
    allowed: float,
    folder: Path,
) -> None:
    """The end of a run of at least one epoch."""
    last = history[-1]
    table = Table("", "train", "validation", "test", title=f"{config.recipe}, {config.backprop}", title_justify="left")
    for what, form in (("cost", "{:.4f}"), ("accuracy", "{:.2f} %")):
        values = (last.get(f"{what}_{part}") for part in ("train", "validation", "test"))
        table.add_row(what, *("–" if value is None else form.format(value) for value in values))
    console.print(table)
    best = max(history, key=lambda row: row["accuracy_test"])
    recipe = RECIPES[config.recipe]
    lines = {
        "best on test": f"{best['accuracy_test']:.2f} % after epoch {best['epoch']}",
        "source reports": f"{recipe.reported} % on {recipe.measured_on}" if recipe.reported else "nothing, it is ours",
        "an epoch": f"{sum(row['seconds'] for row in history) / len(history):.2f} s of training",
        "disagreement": f"against autograd and torch.optim.SGD, worst {worst_disagreement:.1e}, allowed {allowed:.1e}"
        if config.check_every
        else "not checked",
        "run": str(folder),
    }
    for name, value in lines.items():
        console.print(f"{name:<15}{value}", highlight=False, soft_wrap=True)
