"""MB9xx: the same call again, from several threads, on another device."""

import contextlib
import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.audit import functions_of
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.report.report import Finding, fail
from manual_backprop.validation.rules.rule import Probe, Skipped
from manual_backprop.validation.subject import Broken, Gradients, Subject

THREADS, ROUNDS = 4, 4
MOST_LINES = 40  # of a backward that are stopped at


def repeat(subject: Subject) -> Iterator[Finding]:
    """MB901: the same call gives the same bits (or nearly, where a parallel sum may be ordered otherwise)."""
    _ = subject.plain
    for _ in range(4):
        message = "the gradient of {name} is another when the same call is repeated"
        words: dict[str, Any] = {
            "cause": "noise, uninitialised memory, or state between calls",
            "fix": "make backward deterministic",
        }
        still = [0.0] * len(subject.slots)
        found = list(differing(subject, subject.gradients(), subject.plain.gradients, message, noise=still, **words))
        yield from found
        if found:
            return


def threads(subject: Subject) -> Iterator[Finding]:
    """MB902: passes in several threads at once, each with its own inputs, do not disturb each other."""
    _ = subject.plain
    count, rounds = (2, 1) if subject.large else (THREADS, ROUNDS)
    values = [subject.values if k == 0 else subject.elsewhere(("thread", k)) for k in range(count)]
    # Large ones are disturbed by a pass that asks for one gradient only: each more is held.
    first = subject.needs.index(True)
    one = tuple(i == first for i in range(len(subject.needs)))
    needs = [one if subject.large and k else subject.needs for k in range(count)]
    replicas = [_replica(subject) for _ in range(count)]
    found: list[list[Gradients]] = [[] for _ in range(count)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def work(k: int) -> None:
        try:
            for _ in range(rounds):
                graph = replicas[k].run(values[k], needs[k], own=subject.large and k > 0)
                given = replicas[k].cotangents(graph.outputs)
                barrier.wait(10)  # all forwards are done before any backward starts
                found[k].append(replicas[k].differentiate(graph, given, own=True))
                barrier.wait(10)
            del graph
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    words: dict[str, Any] = {
        "cause": "state shared between threads: a module global, a class attribute, a buffer",
        "fix": "keep it on ctx",
    }
    apart = _in_another_thread(replicas[0], values[0])
    message = "the gradient of {name} is another when backward runs in another thread than forward"
    yield from differing(subject, apart, subject.plain.gradients, message, **words)
    apart.clear()
    _run_all(work, count)
    real_errors = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if real_errors:
        yield fail(
            f"it raises in threads: {real_errors[0]}", cause="state shared between threads", fix="keep it on ctx"
        )
        return
    if not subject.large:
        found[0] += interleaved(replicas[0], replicas[1], values[1])
    for k in range(count):
        expected = subject.gradients(values[k], needs=needs[k], own=subject.large) if k else subject.plain.gradients
        for actual in found[k]:
            message = "the gradient of {name} is another when several threads run at once"
            wrong = list(differing(subject, actual, expected, message, noise=[0.0] * len(actual), **words))
            yield from wrong
            if wrong:
                return
        found[k].clear()
        actual = []


def _in_another_thread(subject: Subject, values: Sequence[Tensor]) -> Gradients:
    """A backward in another thread than its forward, as it always is on an accelerator."""
    graph = subject.run(values)
    found: list[Gradients] = []
    worker = threading.Thread(
        target=lambda: found.append(subject.differentiate(graph, subject.cotangents(graph.outputs)))
    )
    worker.start()
    worker.join(60)
    return found[0]


def interleaved(subject: Subject, other: Subject, values: Sequence[Tensor]) -> Iterator[Gradients]:
    """Gradients of passes that were stopped before a line of a hand-written backward, each before another one, while a
    whole backward of `other` ran in another thread: what a race does by chance, done on purpose."""
    codes = {_code(function) for function in functions_of(subject.run().outputs)}
    for line in range(1, MOST_LINES):
        graph = subject.run()
        cotangents = subject.cotangents(graph.outputs)
        theirs = other.run(values)
        disturb = threading.Thread(
            target=lambda theirs=theirs: other.differentiate(theirs, other.cotangents(theirs.outputs))
        )
        with _before_line(line, codes, disturb):
            found = subject.differentiate(graph, cotangents)
        if disturb.ident is None:  # backward has no such line
            return
        yield found


def _code(function: type) -> Any:
    backward = getattr(function, "vjp" if "vjp" in vars(function) else "backward")
    return getattr(inspect.unwrap(backward), "__code__", None)


@contextlib.contextmanager
def _before_line(line: int, codes: set[Any], thread: threading.Thread) -> Iterator[None]:
    """Runs `thread` to its end before the line of that number (counted as they are executed) of these functions."""
    seen = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code not in codes:
            return None
        seen += event == "line"
        if seen == line and thread.ident is None:
            thread.start()
            thread.join(60)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _run_all(work: Callable[[int], None], count: int) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    finally:
        sys.setswitchinterval(interval)


def _replica(subject: Subject) -> Subject:
    """The subject with a module of its own: functional_call swaps a module's parameters, which threads cannot share."""
    other = copy.copy(subject)
    if subject.module is not None:
        other.module = copy.deepcopy(subject.module)
    return other


def device(subject: Subject) -> Iterator[Finding]:
    """MB903: the gradients on the accelerator are those of the CPU."""
    if not torch.cuda.is_available() or subject.values[0].device.type != "cpu":
        raise Skipped("no other device")
    _ = subject.plain
    module = subject.module
    moved = copy.copy(subject)
    moved.leaves = [leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf for leaf in subject.leaves]
    moved.module = None if module is None else copy.deepcopy(module).cuda()
    try:
        actual = moved.gradients([v.cuda() for v in subject.values], [c if c is None else c.cuda()
                                                                      for c in subject.plain.cotangents])  # fmt: skip
    except Broken as broken:
        yield fail(
            f"it raises on cuda: {broken.error}", cause="a tensor made without device=", fix="new_zeros, zeros_like"
        )
        return
    actual = [None if g is None else g.cpu() for g in actual]
    yield from differing(
        subject, actual, subject.plain.gradients, "the gradient of {name} is another on cuda", "only on cuda"
    )


PROBES = (
    Probe("MB901", "repeat", "runtime", "Is it deterministic?", "4 passes", "", repeat),
    Probe("MB902", "threads", "runtime", "May threads share it?", "20 passes", "", threads),
    Probe("MB903", "device", "runtime", "Same result on the accelerator?", "1 pass", "an accelerator", device),
)  # fmt: skip
