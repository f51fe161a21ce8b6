"""Would the tests notice? Breaks a backward in one way after the other, and runs the tests against each.

The tests are any command (`Command`), whose processes find the mutant through the `hook` folder, or `validate` itself
(`Validation`). A first run with the true backward tells which mutants would change anything.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from manual_backprop.mutation.ways import BY_NAME, MUTATIONS, Mutation, install, installed, replacement
from manual_backprop.validation.rules import RULES
from manual_backprop.validation.validate import validate

HOOK = Path(__file__).parent / "hook"
VARIABLE = "MANUAL_BACKPROP_MUTANT"
Status = Literal["noticed", "survived", "not reached", "not applicable"]


class CannotMutate(Exception):
    """The true backward does not pass the tests, or they never run it; the message is one line."""


@dataclass(frozen=True)
class Mutant:
    """One mutation of one Function, at one input where it breaks a single gradient."""

    function: type
    mutation: Mutation
    slot: int = 0
    input: str = ""

    @property
    def words(self) -> str:
        return self.mutation.words.format(input=f"`{self.input}`" if self.input else "an input")


@dataclass(frozen=True)
class Run:
    """One run of the tests: whether they passed, what they said, and the events that the mutant told."""

    passed: bool
    said: str
    events: list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Outcome:
    """The fate of a mutant; `how` names the test or rule that noticed it."""

    mutant: Mutant
    status: Status
    how: str
    seconds: float


class Tests(Protocol):
    """Runs the tests against a mutant of `function`, or against the true backward where `mutant` is None."""

    def __call__(self, function: type, mutant: Mutant | None) -> Run: ...


# --- the experiment -----------------------------------------------------------------------------------------------

Progress = Callable[[Mutant | None, int, int], None]


def outcomes(
    functions: Sequence[type],
    tests: Tests,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
    jobs: int = 1,
) -> list[Outcome]:
    """The fate of every mutant of these Functions.

    Args:
        functions: the Function classes to break, one at a time.
        tests: what should notice.
        only: names of mutations; all for None.
        progress: called with each mutant in turn (None: the true backward), its number and how many there are.
        jobs: how many runs go on at once; more than one only for a `Command`.

    Raises:
        CannotMutate: the tests fail without a mutant, or never run the backward.
        ValueError: a name in `only` that no mutation has.
    """
    wanted = _chosen(only)
    found: list[Outcome] = []
    for function in functions:
        if progress is not None:
            progress(None, 0, 1)
        mutants = [m for m in _mutants(function, tests(function, None)) if m.mutation in wanted]
        with ThreadPoolExecutor(jobs) as pool:
            ahead = [pool.submit(_outcome, mutant, tests) for mutant in mutants] if jobs > 1 else []
            for number, mutant in enumerate(mutants):
                if progress is not None:
                    progress(mutant, number, len(mutants))
                found.append(ahead[number].result() if ahead else _outcome(mutant, tests))
        idle = [m for m in wanted if all(mutant.mutation is not m for mutant in mutants)]
        found += [Outcome(Mutant(function, m), "not applicable", "changes nothing here", 0.0) for m in idle]
    return found


def _chosen(only: Iterable[str] | None) -> list[Mutation]:
    if only is None:
        return list(MUTATIONS)
    for name in (names := list(only)):
        if name not in BY_NAME:
            raise ValueError(f"only: no mutation is called {name!r}; there are {', '.join(BY_NAME)}")
    return [BY_NAME[name] for name in names]


def _mutants(function: type, run: Run) -> list[Mutant]:
    """The mutants that would change something in the run with the true backward."""
    if not run.passed:
        raise CannotMutate(f"the tests fail already with the true backward of {function.__name__}: {run.said}")
    seen = [tuple(item) for event, data in run.events if event == "seen" for item in data["mutants"]]
    if not seen:
        raise CannotMutate(f"the tests pass, but never run the backward of {function.__name__}")
    order = {mutation.name: number for number, mutation in enumerate(MUTATIONS)}
    distinct = sorted(set(seen), key=lambda item: (order[item[0]], item[1]))
    return [Mutant(function, BY_NAME[name], slot, word if BY_NAME[name].one else "") for name, slot, word in distinct]


def _outcome(mutant: Mutant, tests: Tests) -> Outcome:
    started = time.perf_counter()
    run = tests(mutant.function, mutant)
    seconds = time.perf_counter() - started
    events = {event for event, _ in run.events}
    if not events:
        return Outcome(mutant, "not reached", "the tests never ran the broken backward", seconds)
    if not run.passed:
        return Outcome(mutant, "noticed", run.said, seconds)
    if "applied" not in events:
        return Outcome(mutant, "not applicable", "changed nothing in this run", seconds)
    return Outcome(mutant, "survived", "", seconds)


# --- any command as the tests -------------------------------------------------------------------------------------


@dataclass
class Command:
    """A command, such as ``pytest tests``, as the tests; it has passed when its exit status is 0.

    Args:
        command: with its arguments.
        timeout: seconds for a run with a mutant, because a training loop may wait for ever for a cost that no longer
            falls; None: ten times the run with the true backward, and ten seconds.
    """

    command: Sequence[str]
    timeout: float | None = None

    def __call__(self, function: type, mutant: Mutant | None) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "events"
            log.touch()
            started = time.perf_counter()
            passed, said = self._run(_environment(function, mutant, log), None if mutant is None else self.timeout)
            if mutant is None and self.timeout is None:
                self.timeout = 10 * (time.perf_counter() - started) + 10
            events = [tuple(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
        return Run(passed, said, events)

    def _run(self, environment: dict[str, str], timeout: float | None) -> tuple[bool, str]:
        try:
            done = subprocess.run(
                self.command, env=environment, timeout=timeout, capture_output=True, text=True, errors="replace"
            )
        except subprocess.TimeoutExpired:
            return False, f"stopped after {timeout:.3g} s"
        except OSError as error:
            raise CannotMutate(f"{self.command[0]}: {error.strerror or error}") from error
        return done.returncode == 0, _last_words(done.stdout, done.stderr) or f"exit status {done.returncode}"


def _environment(function: type, mutant: Mutant | None, log: Path) -> dict[str, str]:
    plan = {"target": f"{function.__module__}:{function.__qualname__}", "log": str(log), "mutation": None, "slot": 0}
    if mutant is not None:
        plan |= {"mutation": mutant.mutation.name, "slot": mutant.slot}
    paths = [str(HOOK), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, VARIABLE: json.dumps(plan), "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _last_words(stdout: str, stderr: str) -> str:
    """The test that pytest says has failed; else the last line with letters in it."""
    lines = [line.strip(" =\t") for line in (stderr + "\n" + stdout).splitlines()]
    blamed = [line.removeprefix("FAILED ").split(" - ")[0] for line in lines if line.startswith("FAILED ")]
    spoken = [line for line in lines if any(char.isalpha() for char in line)]
    return ([*blamed[:1], *spoken[-1:]] or [""])[0][:200]


def break_in_child(function: type, plan: dict[str, Any]) -> None:
    """In a process of the tests: puts the mutant in the place of the backward of a Function that was just made."""
    told: set[str] = set()

    def hear(event: str, data: dict[str, Any]) -> None:
        line = json.dumps([event, data])
        if line not in told:
            told.add(line)
            with open(plan["log"], "a", encoding="utf-8") as log:
                log.write(line + "\n")

    install(function, replacement(function, BY_NAME.get(plan["mutation"]), plan["slot"], hear))


# --- validate as the tests ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Validation:
    """`validate` as the tests: family after family, until one notices.

    Args:
        func, inputs: as `validate` takes them.
        options: its further arguments.
    """

    func: Any
    inputs: Any
    options: dict[str, Any]

    def __call__(self, function: type, mutant: Mutant | None) -> Run:
        events: list[tuple[str, dict[str, Any]]] = []

        def hear(event: str, data: dict[str, Any]) -> None:
            events.append((event, data))

        mutation, slot = (None, 0) if mutant is None else (mutant.mutation, mutant.slot)
        with installed(function, replacement(function, mutation, slot, hear)):
            return Run(*self._asked(), events)

    def _asked(self) -> tuple[bool, str]:
        for family in dict.fromkeys(rule.family for rule in RULES):
            report = validate(self.func, self.inputs, only=family, **self.options)
            if report.failures:
                return False, f"{report.failures[0].code} {report.failures[0].check}"
        return True, "passed"
