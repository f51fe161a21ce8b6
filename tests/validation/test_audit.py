"""Methods that are replaced for one pass: whose calls count, and how they are put back."""

import _thread
import threading

import pytest
import torch

from manual_backprop.validation.audit import RAW, reads_raw_memory
from manual_backprop.validation.replaced import replaced
from manual_backprop.validation.subject import Subject
from tests.validation.cases import made, matrix


def asks(method: str) -> None:
    t = torch.ones(2)
    if method == "data":
        _ = t.data
    else:
        getattr(t, method)()


def directly(method: str) -> None:
    asks(method)


def in_a_thread_of_its_own(method: str) -> None:
    thread = threading.Thread(target=asks, args=(method,))
    thread.start()
    thread.join()


def in_a_thread_that_is_none_of_pythons(method: str) -> None:
    """As those of the autograd engine, in which a backward on a GPU runs."""
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        asks(method)
        done.release()

    _thread.start_new_thread(run, ())
    done.acquire()


def pass_that(how, method: str) -> Subject:
    def backward(ctx, grad):
        how(method)
        return 2 * grad

    return Subject(made("Doubled", lambda ctx, x: 2 * x, backward), matrix())


@pytest.mark.parametrize("method", [*RAW, "data"])
@pytest.mark.parametrize("how", [directly, in_a_thread_of_its_own, in_a_thread_that_is_none_of_pythons])
def test_what_the_pass_reads_counts(how, method) -> None:
    assert reads_raw_memory(pass_that(how, method))


def test_another_thread_of_the_program_does_not_count() -> None:
    go, done, stop = threading.Event(), threading.Event(), threading.Event()

    def reads() -> None:
        while go.wait(10) and not stop.is_set():
            go.clear()
            for method in (*RAW, "data"):
                asks(method)
            done.set()

    def lets_the_other_read(method: str) -> None:
        done.clear()
        go.set()
        assert done.wait(10)

    other = threading.Thread(target=reads)
    other.start()
    try:
        assert not reads_raw_memory(pass_that(lets_the_other_read, ""))
    finally:
        stop.set()
        go.set()
        other.join()


class Base:
    def method(self) -> str:
        return "base"


class Own(Base):
    def method(self) -> str:
        return "own"


class Inherits(Base):
    pass


@pytest.mark.parametrize("owner", [Own, Inherits])
@pytest.mark.parametrize("raises", [False, True], ids=["ends", "raises"])
def test_a_method_is_put_back_as_it_was(owner, raises) -> None:
    before, found = dict(vars(owner)), owner().method()
    try:
        with replaced(owner, "method", lambda self: "replaced"):
            assert owner().method() == "replaced"
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert dict(vars(owner)) == before
    assert owner().method() == found
