"""Does the validator still find anything on this torch? Asked once in a process, before the first report.

Where a private part of torch goes, a rule that leans on it would find nothing any more and say that all is well. So
each mechanism has to find the mistake of a tiny Function here, or to recognise a tensor of the kind that it looks for.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop import _torch
from manual_backprop.validation.audit import audited, functions_of, hand_written, reads_raw_memory
from manual_backprop.validation.subject import Subject


class _NotSummed(Function):
    """x + bias, whose gradient of the bias is not summed over the samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return grad_output, grad_output


class _ThroughNumPy(Function):
    """2x, computed where torch cannot see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return 2 * grad_output


def _asked(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


def _finds_functions() -> bool:
    x = _asked(2, 3)
    return _NotSummed in functions_of([_NotSummed.apply(x, _asked(3))]) and not functions_of([x.sin()])


def _tells_who_wrote_it() -> bool:
    x = _asked(2, 3)
    return hand_written([_NotSummed.apply(x, _asked(3)).sin()]) and not hand_written([x.sin()])


def _knows_the_name_in_cpp() -> bool:
    """Whether torch's header still gives the node of a C++ Function the name that we look for.

    Where there is no such header, nobody can compile such a Function.
    """
    header = Path(torch.__file__).parent / "include/torch/csrc/autograd/custom_function.h"
    return not header.exists() or "struct CppNode" in header.read_text(errors="replace")


def _sees_the_raw_return() -> bool:
    calls = audited(Subject(_NotSummed, (_asked(2, 3), _asked(3)))).calls
    return [(call.values[1].shape, call.arguments[1].shape) for call in calls] == [((2, 3), (3,))]


def _sees_raw_memory() -> bool:
    plain = Subject(_NotSummed, (_asked(2, 3), _asked(3)))
    return reads_raw_memory(Subject(_ThroughNumPy, (_asked(2),))) and not reads_raw_memory(plain)


def _sees_writing() -> bool:
    untouched, written = _asked(2).clone(), _asked(2).clone()
    written.mul_(2)
    return _torch.written_in_place(written) and not _torch.written_in_place(untouched)


def _sees_kept_memory() -> bool:
    x = torch.ones(2)
    alive, alias = _torch.watch_memory(x), x.detach()
    del x
    kept = alive()
    del alias
    return kept and not alive()


def _sees_zeros_without_memory() -> bool:
    zeros = _torch.zeros_without_memory((2,))  # None where nobody can make such zeros; then no backward returns them
    return (zeros is None or _torch.has_no_memory(zeros)) and not _torch.has_no_memory(torch.zeros(2))


def _makes_negative_views() -> bool:
    view = _torch.negative_view(torch.ones(2))
    return view.is_neg() and view.tolist() == [-1.0, -1.0]


def _finds_nested_arguments() -> bool:
    nested = ({"w": [1, 2]}, 3)
    leaves, structure = _torch.flatten(nested)
    paths = _torch.leaf_paths(nested)
    return leaves == [1, 2, 3] and _torch.unflatten(leaves, structure) == nested and "['w'][1]" in paths[1]


MECHANISMS: dict[Callable[[], bool], str] = {
    _finds_functions: "the Functions behind an output are not found, so nobody looks at what their backward returns",
    _tells_who_wrote_it: "a hand-written backward is taken for one of torch's own, so several rules ask nothing of it",
    _knows_the_name_in_cpp: "a backward written in C++ is taken for one of torch's own",
    _sees_the_raw_return: "a gradient of the wrong shape is not seen before torch repairs it",
    _sees_raw_memory: "NumPy and raw memory inside a pass are not seen, and vmap over them may crash the interpreter",
    _sees_writing: "an input that forward writes into and marks cannot be told apart from one that it spoils",
    _sees_kept_memory: "memory that outlives a pass cannot be told apart from memory that was freed",
    _sees_zeros_without_memory: "zeros without memory cannot be told apart from a gradient that may be written into",
    _makes_negative_views: "no tensor with the negative bit can be made to ask a backward about",
    _finds_nested_arguments: "tensors in nested arguments are not found",
}
"""Each question, and the sentence to say where the answer is no."""


@functools.cache
def broken_mechanisms() -> tuple[str, ...]:
    """A sentence for each mechanism of the validator that does not work on this torch; none where all is well.

    It takes some milliseconds, once a process, and leaves the random state as it is.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        return tuple(
            f"on torch {torch.__version__} {sentence}{why}"
            for question, sentence in MECHANISMS.items()
            if (why := _not_answered(question)) is not None
        )


def _not_answered(question: Callable[[], bool]) -> str | None:
    """None where the answer is yes; else the exception that stopped the question, in words, or "" for a plain no."""
    try:
        return None if question() else ""
    except Exception as error:
        return f" ({type(error).__name__}: {error})"
