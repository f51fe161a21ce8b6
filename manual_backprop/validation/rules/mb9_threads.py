"""MB902: passes in several threads at once, and a backward in another thread than forward."""

import contextlib
import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Inconclusive
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients

MB902_SKELETON = """
import time

buffers = {}


class LinearSigmoid(Function):
    @staticmethod
    def forward(ctx, input, weight):
        a = torch.sigmoid(input @ weight.mT)
        ctx.save_for_backward(input, weight, a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        input, weight, a = ctx.saved_tensors
        ___
        delta.copy_(grad_output * a * (1 - a))
        time.sleep(0.01)  # stands for a large product, in which the next thread arrives
        return delta @ weight, delta.mT @ input


validate(LinearSigmoid, (randn(64, 64), randn(64, 64)))
"""

THREADS, ROUNDS = 4, 4
MOST_LINES = 40  # of a backward before which it is stopped, because each costs two passes
LONGEST = 60.0  # seconds that the threads may take
SHARED: dict[str, Any] = {
    "cause": "threads share state: a module global, a class attribute or a buffer",
    "fix": "keep that state on ctx",
}


@rule("MB902", "May threads share it?", "20 passes", skeleton=MB902_SKELETON)
def threads(case: Case) -> Iterator[Finding]:
    """Passes in several threads at once, each with its own inputs, do not disturb each other.

    In calls from several threads (data parallel, a server) the gradients differ, because the calls share a buffer.

    Seen in: meta-pytorch/tritonbench PR#1266: the next holder of a lock read partial sums that others were still
    writing, and wrote over them.

    Wrong:
        delta = buffers.setdefault(a.shape, torch.empty_like(a))

    Right:
        delta = torch.empty_like(a)
    """
    elsewhere = _in_another_thread(case)
    predicate = "is different when backward runs in another thread"
    yield from differing(case, elsewhere, case.plain.gradients, predicate, **SHARED)
    elsewhere.clear()
    passes = _together(case)
    if not case.large:
        passes[0].found += interleaved(_replica(case), _replica(case), passes[1].values)
    for number, one in enumerate(passes):
        copied = not case.large
        expected = case.gradients(one.values, needs=one.needs, copied=copied) if number else case.plain.gradients
        while one.found:
            actual = one.found.pop()
            predicate = "is different when several threads run at once"
            wrong = list(differing(case, actual, expected, predicate, noise=case.still, **SHARED))
            yield from wrong
            if wrong:
                return


@dataclass
class OfOneThread:
    """The inputs of one thread, the flags which of these require grad, and the gradients of the passes so far."""

    values: list[Tensor]
    needs: tuple[bool, ...]
    found: list[Gradients]


def _together(case: Case) -> list[OfOneThread]:
    """Passes of several threads; no backward starts before every thread is done with forward.

    Raises:
        Broken: a pass raised.
        Inconclusive: the threads did not come to an end in time.
    """
    count, rounds = (2, 1) if case.large else (THREADS, ROUNDS)
    # In a large case the other threads ask for one gradient only, because all gradients of all threads stay in memory.
    first = case.needs.index(True)
    one = tuple(i == first for i in range(len(case.needs)))
    passes = [
        OfOneThread(case.elsewhere(("thread", k)) if k else case.values, one if case.large and k else case.needs, [])
        for k in range(count)
    ]
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def work(number: int) -> None:
        mine, replica = passes[number], _replica(case)
        try:
            for _ in range(rounds):
                graph = replica.run(mine.values, mine.needs, copied=not (case.large and number))
                given = replica.cotangents(graph.outputs)
                barrier.wait()
                mine.found.append(replica.differentiate(graph, given, copied=False))
                barrier.wait()
        except threading.BrokenBarrierError:
            return  # another thread has raised
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    _run_all(work, count)
    if errors:
        raise errors[0]
    if any(len(mine.found) < rounds for mine in passes):
        raise Inconclusive(f"the threads took over {LONGEST:g} s: the passes are slow, or wait for each other")
    return passes


def _in_another_thread(case: Case) -> Gradients:
    """The gradients of a backward in another thread than forward, because on an accelerator that is always so."""
    graph = case.run()
    cotangents = case.cotangents(graph.outputs)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(case.differentiate, graph, cotangents).result()


def interleaved(case: Case, other: Case, values: Sequence[Tensor]) -> Iterator[Gradients]:
    """Gradients of passes, each stopped before another line of a hand-written backward.

    At the stop a whole backward of `other` runs in another thread.

    A race between two threads may need thousands of passes to show by chance, because a small backward takes
    microseconds. Stopping at each line runs through every order in which the other thread may come in between.
    """
    codes = {_code(function) for function in case.functions}
    for line in range(1, MOST_LINES):
        graph = case.run()
        cotangents = case.cotangents(graph.outputs)
        theirs = other.run(values)
        disturb = threading.Thread(
            target=lambda theirs=theirs: other.differentiate(theirs, other.cotangents(theirs.outputs))
        )
        with _before_line(line, codes, disturb):
            found = case.differentiate(graph, cotangents)
        if disturb.ident is None:  # backward has fewer lines than this
            return
        yield found


def _code(function: type) -> Any:
    backward = getattr(function, "vjp" if "vjp" in vars(function) else "backward")
    return getattr(inspect.unwrap(backward), "__code__", None)


@contextlib.contextmanager
def _before_line(line: int, codes: set[Any], thread: threading.Thread) -> Iterator[None]:
    """A block in which `thread` runs, to the end, before line number `line` that functions with these codes execute."""
    seen = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal seen
        if frame.f_code not in codes:
            return None
        seen += event == "line"
        if seen == line and thread.ident is None:
            thread.start()
            thread.join(LONGEST)
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
            worker.join(LONGEST)
    finally:
        sys.setswitchinterval(interval)


def _replica(case: Case) -> Case:
    """The case with a copy of the module, because functional_call swaps parameters, which threads cannot share."""
    other = copy.copy(case)
    if case.module is not None:
        other.module = copy.deepcopy(case.module)
    return other
