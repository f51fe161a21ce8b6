"""``manual-backprop validate | explain | zoo | mutate | new-rule``: the validator on the command line.

Exit status: 0 passed, 1 failed, 2 could not run, with one line on stderr that says why.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from manual_backprop.cli import terminal
from manual_backprop.cli.loading import CannotRun, load, made, told

PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(COULD_NOT_RUN, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        argv: the arguments; those of the process for None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[words.index("--") + 1 :] if "--" in words else []
    arguments = parser().parse_args(words[: words.index("--")] if "--" in words else words)
    if command and arguments.run is not mutate:
        return _refused(f"{arguments.command} takes no command after --")
    arguments.tests = command
    try:
        return arguments.run(arguments)
    except CannotRun as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        return _refused("interrupted")


def _refused(message: str) -> int:
    print(f"manual-backprop: {message}", file=sys.stderr)
    return COULD_NOT_RUN


# --- the arguments ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="manual-backprop", description="Is a hand-written backward pass right?")
    commands = top.add_subparsers(dest="command", required=True, metavar="validate | explain | zoo | mutate | new-rule")
    for name, run, words, add in COMMANDS:
        command = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        command.set_defaults(run=run)
        add(command)
    return top


def _validate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("func", metavar="PKG.MOD:FUNC", help="an autograd.Function, a module, or any callable")
    _subject_arguments(command, required=True)
    command.add_argument("--only", action="append", metavar="CODES", help="codes or families, with commas: MB1,layout")
    command.add_argument("--skip", action="append", metavar="CODES", help="the same, to leave out; MB1 for a surrogate")
    command.add_argument("--json", type=Path, metavar="F", help="write the report as JSON")
    command.add_argument("--junit", type=Path, metavar="F", help="write the report as JUnit, for a CI server")
    command.add_argument("--html", type=Path, metavar="F", help="write the report as a page with heat maps")
    command.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the report to TensorBoard")


def _subject_arguments(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument("--inputs", required=required, metavar="PKG.MOD:MAKE", help="makes the tuple of inputs")
    command.add_argument("--reference", metavar="PKG.MOD:REF", help="the same in plain torch")
    command.add_argument("--batch-dim", type=int, metavar="N", help="the dimension that counts samples")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers (%(default)s)")


def _explain_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("code", metavar="CODE", nargs="?", help="for example MB301; without one, all are listed")


def _zoo_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--match", default="", metavar="TEXT", help="entries with TEXT in their name or operation")
    command.add_argument("--skip", action="append", metavar="CODES", help="what validate leaves out: MB806 saves time")
    command.add_argument("--json", type=Path, metavar="F", help="write the matrix as JSON")


def _mutate_arguments(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s PKG.MOD:FUNCTION [--inputs PKG.MOD:MAKE] [options] [-- pytest …]"
    command.add_argument("func", metavar="PKG.MOD:FUNCTION", help="an autograd.Function; with --inputs, any callable")
    _subject_arguments(command, required=False)
    command.add_argument("--only", action="append", metavar="NAMES", help="mutations, with commas: drop,sign,stale")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs of your tests at once (%(default)s)")
    command.add_argument("--timeout", type=float, metavar="S", help="seconds a mutant (ten times the true backward's)")
    command.add_argument("--json", type=Path, metavar="F", help="write the outcomes as JSON")


def _new_rule_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("code", metavar="CODE", help="MB512, or MB5xx for the next free one of its family")
    command.add_argument("name", metavar="NAME", help="words with hyphens, such as torn-buffer")


def _listed(values: list[str] | None) -> list[str]:
    return [name.strip() for value in values or [] for name in value.split(",") if name.strip()]


def _writable(path: Path | None) -> None:
    """Refuses a path that cannot be written before a long run, not after it."""
    if path is None:
        return
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise CannotRun(f"{path}: {error.strerror}") from error
    if not there:
        path.unlink()


# --- the commands -------------------------------------------------------------------------------------------------


def validate(arguments: argparse.Namespace) -> int:
    """Validates one callable, and shows a table by family, then the failures."""
    from manual_backprop.validation import validate as ask

    func, inputs, options = _subject(arguments)
    for path in (arguments.json, arguments.junit, arguments.html):
        _writable(path)
    writer = _summary_writer(arguments.tensorboard)
    options |= {"only": _listed(arguments.only) or None, "skip": _listed(arguments.skip)}
    with terminal.progress() as bar:
        try:
            report = ask(func, inputs, progress=bar.rule, **options)
        except (TypeError, ValueError) as error:
            raise CannotRun(" ".join(str(error).split())) from error
    if arguments.json is not None:
        report.to_json(arguments.json)
    if arguments.junit is not None:
        report.to_junit(arguments.junit)
    if arguments.html is not None:
        report.to_html(arguments.html)
    if writer is not None:
        report.to_tensorboard(writer)
        writer.close()
    terminal.show_report(report)
    return PASSED if report else FAILED


def _subject(arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    func, inputs = load(arguments.func), made(arguments.inputs)
    if isinstance(func, type) and issubclass(func, nn.Module):
        raise CannotRun(f"{arguments.func}: this is the class of a module; name a module that is made, or a function")
    reference = None if arguments.reference is None else load(arguments.reference)
    return func, inputs, {"reference": reference, "batch_dim": arguments.batch_dim, "seed": arguments.seed}


def _summary_writer(folder: Path | None) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder))
    except ImportError as error:
        raise CannotRun("--tensorboard: tensorboard is not installed; pip install tensorboard") from error
    except OSError as error:
        raise CannotRun(f"--tensorboard: {folder}: {error.strerror}") from error


def explain(arguments: argparse.Namespace) -> int:
    """Says what a code means, with a real bug, a wrong snippet and a right one; lists the codes where none is given."""
    from manual_backprop.validation import RULES
    from manual_backprop.validation.rules.skeletons import PRELUDE

    if arguments.code is None:
        terminal.show_codes(RULES)
        return PASSED
    rule = next((rule for rule in RULES if rule.code == arguments.code.upper()), None)
    if rule is None:
        raise CannotRun(f"no code {arguments.code!r}; `manual-backprop explain` lists them")
    terminal.show_explanation(rule, PRELUDE)
    return PASSED


def zoo(arguments: argparse.Namespace) -> int:
    """Shows which of the zoo's wrong backward passes each checker finds, and which right ones it blames."""
    from manual_backprop.zoo import ENTRIES
    from manual_backprop.zoo.matrix import rows

    entries = [entry for entry in ENTRIES if arguments.match in f"{entry.name} {entry.operation}"]
    if not entries:
        raise CannotRun(f"--match: no entry of the zoo has {arguments.match!r} in its name or operation")
    _writable(arguments.json)
    with terminal.progress() as bar:
        try:
            matrix = list(rows(entries, _listed(arguments.skip), bar.entry))
        except ValueError as error:
            raise CannotRun(str(error)) from error
    if arguments.json is not None:
        found = [_as_data(row) for row in matrix]
        _write_json(arguments.json, found)
    terminal.show_matrix(matrix)
    return PASSED if all(row.as_expected for row in matrix) else FAILED


def _write_json(path: Path, data: Any) -> None:
    from manual_backprop.validation.report import files
    from manual_backprop.validation.report.json import as_json

    files.write(path, as_json(data) + "\n")


def _as_data(row: Any) -> dict[str, Any]:
    verdicts = {name: vars(verdict) for name, verdict in row.verdicts.items()}
    return {"name": row.entry.name, "operation": row.entry.operation, "codes": row.entry.codes, **verdicts}


def mutate(arguments: argparse.Namespace) -> int:
    """Breaks a backward in one way after the other, and lists what the tests do not notice."""
    from manual_backprop.mutation.mutants import CannotMutate, outcomes

    functions, tests = _experiment(arguments)
    _writable(arguments.json)
    with terminal.progress() as bar:
        try:
            jobs = max(1, arguments.jobs) if arguments.tests else 1
            found = outcomes(functions, tests, _listed(arguments.only) or None, bar.mutant, jobs)
        except (CannotMutate, TypeError, ValueError) as error:
            raise CannotRun(" ".join(str(error).split())) from error
    if arguments.json is not None:
        data = [
            {"mutation": o.mutant.mutation.name, "words": o.mutant.words, "status": o.status, "how": o.how}
            for o in found
        ]
        _write_json(arguments.json, data)
    terminal.show_outcomes(found, "your tests" if arguments.tests else "validate")
    return FAILED if any(o.status in ("survived", "not reached") for o in found) else PASSED


def _experiment(arguments: argparse.Namespace) -> tuple[list[type], Any]:
    """The Functions to break, and what should notice."""
    from manual_backprop.mutation.mutants import Command, Validation
    from manual_backprop.validation.audit import functions_of
    from manual_backprop.validation.naming import function_class
    from manual_backprop.validation.subject import Subject

    if arguments.inputs is None:
        if not arguments.tests:
            raise CannotRun("mutate: give the tests after --, for example -- pytest; or --inputs for validate")
        if (function := function_class(load(arguments.func))) is None:
            raise CannotRun(f"{arguments.func}: not an autograd.Function; --inputs lets those inside it be found")
        return [function], Command(arguments.tests, arguments.timeout)
    func, inputs, options = _subject(arguments)
    sample = inputs[0] if isinstance(inputs, list) else inputs
    try:
        functions = functions_of(Subject(func, sample).run().outputs)
    except Exception as error:
        raise CannotRun(f"{arguments.func}: {told(error)}") from error
    if not functions:
        raise CannotRun(f"{arguments.func}: no autograd.Function runs in it, so there is no backward to break")
    tests = Command(arguments.tests, arguments.timeout) if arguments.tests else Validation(func, inputs, options)
    return functions, tests


def new_rule(arguments: argparse.Namespace) -> int:
    """Writes the skeleton of a rule of the validator, and says what is to be done next."""
    from manual_backprop.cli.new_rule import write

    path = write(arguments.code, arguments.name)
    print(f"{path}\nREADME.md beside it says what to fill in, and which entry of the zoo it wants.")
    return PASSED


COMMANDS = (
    ("validate", validate, "finds every way in which a hand-written backward pass is wrong", _validate_arguments),
    ("explain", explain, "says what a code means, with a real bug, a wrong and a right snippet", _explain_arguments),
    ("zoo", zoo, "shows what gradcheck and validate find among wrong and right backward passes", _zoo_arguments),
    ("mutate", mutate, "breaks a backward on purpose, and lists what your tests do not notice", _mutate_arguments),
    ("new-rule", new_rule, "writes the skeleton of a new rule of the validator", _new_rule_arguments),
)
