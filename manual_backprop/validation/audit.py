"""What `backward` itself is given and returns: the Functions of a graph, wrapped for the length of one pass.

The engine sums a broadcast gradient to the input's shape and casts its dtype before anyone sees it, so the raw return
is recorded here, one level below.
"""

import contextlib
import ctypes
import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manual_backprop import _torch
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.naming import argument_names
from manual_backprop.validation.replaced import replaced
from manual_backprop.validation.subject import Subject
from manual_backprop.validation.tolerances import pieces


@dataclass
class Argument:
    """An argument of a Function's forward, as it was then."""

    name: str
    tensor: bool
    shape: torch.Size | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    layout: torch.layout | None = None


@dataclass
class Call:
    """One call of one Function's backward."""

    function: type
    arguments: list[Argument]
    needed: tuple[bool, ...]
    returned: Any
    seconds: float
    grad_outputs: list[Any] = field(default_factory=list)
    grad_outputs_written: list[int] = field(default_factory=list)
    attributes: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def values(self) -> tuple[Any, ...]:
        return self.returned if isinstance(self.returned, tuple) else (self.returned,)


def functions_of(outputs: Iterable[Tensor]) -> list[type]:
    """The Function classes in the graph behind `outputs`, outermost first."""
    return list(dict.fromkeys(owner for node in nodes_of(outputs) for owner in _torch.functions_of_node(node)))


def nodes_of(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph behind `outputs`, each once."""
    seen: set[Any] = set()
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack += [parent for parent, _ in node.next_functions if parent is not None]


def hand_written(outputs: Iterable[Tensor]) -> bool:
    """Whether a backward that is not torch's own is behind `outputs`: a Python Function, or a C++ one."""
    return any(map(_torch.is_hand_written, nodes_of(outputs)))


@dataclass
class Audit:
    """A pass whose Functions were wrapped: the calls of their backwards, as far as they came, and the Functions."""

    calls: list[Call]
    functions: list[type]


def audited(subject: Subject, values: Sequence[Tensor] | None = None, needs: Sequence[bool] | None = None) -> Audit:
    """One forward and backward pass with the raw return of each custom backward recorded."""
    functions = functions_of(subject.run(values).outputs)
    calls: list[Call] = []
    arguments: dict[int, tuple[Any, list[Argument]]] = {}
    with contextlib.ExitStack() as stack:
        for function in functions:
            stack.enter_context(_recorded(function, calls, arguments))
        graph = subject.run(values, needs)
        with contextlib.suppress(Broken):  # told by whoever asks for the gradients
            subject.differentiate(graph, subject.cotangents(graph.outputs))
    return Audit(calls, functions)


RAW = ("numpy", "__array__", "data_ptr", "untyped_storage", "__dlpack__")


def reads_raw_memory(subject: Subject) -> bool:
    """Whether a pass reads memory behind torch's back. Under vmap that crashes the interpreter, not just the pass.

    The methods are replaced for the whole process, so the program's other threads are not counted. Threads of the
    autograd engine, in which a backward on a GPU runs, are not threads of Python's; they and new ones are.
    """
    seen: list[str] = []
    others = _other_threads()

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **options: Any) -> Any:
            if threading.get_ident() not in others:
                seen.append(name)
            return original(tensor, *args, **options)

        return call

    data = Tensor.data
    methods: dict[str, Any] = {name: watched(name, getattr(Tensor, name)) for name in RAW}
    methods["data"] = property(watched("data", data.__get__), data.__set__)  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        for name, method in methods.items():
            stack.enter_context(replaced(Tensor, name, method))
        with contextlib.suppress(Broken):
            subject.gradients()
    return bool(seen)


def _other_threads() -> set[int | None]:
    """The threads that Python has started, without this one and without the "dummy threads" that others started."""
    started = (thread for thread in threading.enumerate() if not thread.name.startswith("Dummy-"))
    return {thread.ident for thread in started} - {threading.get_ident()}


@contextlib.contextmanager
def _recorded(function: type, calls: list[Call], arguments: dict[int, tuple[Any, list[Argument]]]) -> Iterator[None]:
    base = torch.autograd.Function
    combined = function.setup_context is base.setup_context  # type: ignore[attr-defined]
    opener = "forward" if combined else "setup_context"
    closer = "vjp" if function.vjp is not base.vjp else "backward"  # type: ignore[attr-defined]
    open_, close = getattr(function, opener), getattr(function, closer)

    @functools.wraps(open_)
    def opened(ctx: Any, *args: Any, **options: Any) -> Any:
        inputs = args if combined else (args[0] if args else options["inputs"])
        arguments[id(ctx)] = (ctx, _described(function, inputs))
        return open_(ctx, *args, **options)

    @functools.wraps(close)
    def closed(ctx: Any, *grad_outputs: Any) -> Any:
        before = snapshot(grad_outputs)
        started = time.perf_counter()
        returned = close(ctx, *grad_outputs)
        seconds = time.perf_counter() - started
        written = [i for i, g in enumerate(grad_outputs) if before[i] != digest(g)]
        known = arguments.get(id(ctx), (None, []))[1]
        kept = {name: tensors for name, value in vars(ctx).items() if (tensors := _tensors_in(value))}
        calls.append(
            Call(function, known, tuple(ctx.needs_input_grad), returned, seconds, list(grad_outputs), written, kept)
        )
        return returned

    with replaced(function, opener, staticmethod(opened)), replaced(function, closer, staticmethod(closed)):
        yield


def _described(function: type, inputs: Sequence[Any]) -> list[Argument]:
    names = [name.split("[")[0] for name in argument_names(function, [0] * len(inputs))]
    return [
        Argument(name, True, value.shape, value.dtype, value.device, value.layout)
        if isinstance(value, Tensor)
        else Argument(name, False)
        for name, value in zip(names, inputs, strict=True)
    ]


def _tensors_in(value: Any, depth: int = 3) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [] if isinstance(value, torch.nn.Parameter) else [value]
    if depth and isinstance(value, list | tuple | set):
        return [tensor for item in value for tensor in _tensors_in(item, depth - 1)]
    if depth and isinstance(value, dict):
        return _tensors_in(list(value.values()), depth - 1)
    return []


def digest(value: Any) -> bytes | None:
    """A hash of a tensor's bytes, which NaN and the sign of zero do not escape; None for what is no strided tensor."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    found = hashlib.blake2b(digest_size=16)
    for (part,) in pieces(value.detach()):
        flat = part.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).cpu()
        found.update(ctypes.string_at(flat.data_ptr(), flat.nbytes))
    return found.digest()


def snapshot(tensors: Iterable[Any]) -> list[bytes | None]:
    return [digest(tensor) for tensor in tensors]
