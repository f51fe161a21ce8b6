"""The command line of `scripts/train_mnist.py`."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from manual_backprop.programs import options as command_line
from manual_backprop.programs.folder import make_folder, now
from manual_backprop.training import agreement, checkpoint, data, parallel
from manual_backprop.training.agreement import TrainingStopped
from manual_backprop.training.checkpoint import Checkpoint
from manual_backprop.training.config import AUTO, RECIPES, Config, InputError, check
from manual_backprop.training.progress import Progress, show_summary
from manual_backprop.training.run_log import RunLog
from manual_backprop.training.trainer import Trainer

EXIT_STATUS = """exit status: 0 done; 1 training stopped or --target-accuracy missed; 2 bad input; 128 + signal number
where Ctrl-C or SIGTERM ended it after a saved step"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; the exit status (see `EXIT_STATUS`)."""
    workers = parallel.from_environment()
    console = Console(quiet=not workers.first)
    try:
        config, saved = parse(sys.argv[1:] if arguments is None else arguments)
        return run(config, saved, workers, console)
    except InputError as error:
        status, message = 2, f"error: {error}"
    except TrainingStopped as stopped:
        status, message = 1, f"stopped: {stopped}"
    except KeyboardInterrupt:
        status, message = 128 + signal.SIGINT, "stopped: before the training began"
    if workers.first:
        print(message, file=sys.stderr)
    return status


def parse(arguments: Sequence[str]) -> tuple[Config, Checkpoint | None]:
    """The configuration that the arguments make of their recipe, or of the checkpoint that they resume.

    Raises:
        InputError: an option, a value or a combination that cannot be used.
    """
    first: _First = command_line.parse(_First, _First(), arguments, partly=True)
    if first.recipe not in RECIPES:
        raise InputError(f"--recipe: expected one of {', '.join(RECIPES)}, found {first.recipe}")
    saved = checkpoint.load(first.resume) if first.resume not in (None, AUTO) else None
    default = dataclasses.replace(saved.config, name="") if saved else RECIPES[first.recipe].config
    config: Config = command_line.parse(Config, default, arguments, EXIT_STATUS)
    check(config)
    if saved:
        checkpoint.require_same_architecture(saved, config)
    return config, saved


@dataclasses.dataclass(frozen=True)
class _First:
    """The options that say where the others' defaults come from."""

    recipe: str = "chapter1"
    resume: Path | None = None


def run(config: Config, saved: Checkpoint | None, workers: parallel.Workers, console: Console) -> int:
    """Train; the exit status."""
    if workers.size > 1 and config.backprop == "network":
        raise InputError(f"--backprop: expected layers or autograd for {workers.size} processes, found network")
    if workers.restarts and not config.resume:
        raise InputError(f"--resume: expected auto with --max-restarts {workers.restarts}, found nothing to go on from")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = config.torch_device
    if workers.size > 1 and device.type == "cuda":
        device = torch.device("cuda", workers.local_rank)
        torch.cuda.set_device(device)
    with parallel.process_group(workers, device):
        mnist, source = data.load(config, device)
        if config.batch_size > len(mnist.train):
            raise InputError(f"--batch-size: expected at most {len(mnist.train)} images, found {config.batch_size}")
        console.print(source, highlight=False, soft_wrap=True)
        folder = run_folder(config, make=workers.first)
        if config.resume == AUTO:
            saved = workers.from_first(last_checkpoint(folder, config) if workers.first else None)
        return _train(config, saved, mnist, device, workers, folder, console)


def _train(
    config: Config,
    saved: Checkpoint | None,
    mnist: data.Mnist,
    device: torch.device,
    workers: parallel.Workers,
    folder: Path,
    console: Console,
) -> int:
    progress = Progress(config, console=console)
    trainer = Trainer(config, mnist, device, workers, folder, progress=progress)
    if saved:
        trainer.resume(saved)
    with contextlib.ExitStack() as stack:
        if workers.first:
            purge_step = trainer.total_steps + 1 if saved else None
            trainer.log = stack.enter_context(RunLog(folder, config, device, trainer.learner, purge_step))
        final = trainer.fit()
        if trainer.history and trainer.log:
            trainer.log.results(mnist.test, final, trainer.history, trainer.total_steps)
    if trainer.history and workers.first:
        allowed = agreement.bound(config.torch_dtype)
        show_summary(console, config, trainer.history, trainer.worst_disagreement, allowed, folder)
    if trainer.interrupted:
        where = f"saved after step {trainer.total_steps}; go on with --resume {folder}"
        console.print(f"{trainer.interrupted.name}: {where}", soft_wrap=True)
        return 128 + trainer.interrupted
    if final.accuracy < config.target_accuracy:
        console.print(f"missed: test accuracy {final.accuracy:.2f} %, --target-accuracy {config.target_accuracy} %")
        return 1
    return 0


def run_folder(config: Config, make: bool) -> Path:
    """The folder of the run: made anew, unless the run goes on in its own.

    Raises:
        InputError: there is one of that name, or it cannot be made.
    """
    auto = config.resume == AUTO
    if config.resume and not config.name:
        return config.resume if config.resume.is_dir() else config.resume.parent
    folder = config.runs / (config.name or f"{config.recipe}-{config.backprop}-seed{config.seed}-{now()}")
    if make and not (auto and folder.is_dir()):
        make_folder(folder)
    return folder


def last_checkpoint(folder: Path, config: Config) -> Checkpoint | None:
    """The one that a run left in its folder before it was restarted, if it came that far.

    Raises:
        InputError: it is none, or of another architecture.
    """
    if not (folder / checkpoint.FILE_NAME).exists():
        return None
    saved = checkpoint.load(folder)
    checkpoint.require_same_architecture(saved, config)
    return saved
