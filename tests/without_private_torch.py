"""A program of its own: for each name on its command line, a child without that part of torch imports and trains.

``python without_private_torch.py torch._C._is_tracing …`` prints a line for each name: the name, and ``ok`` or the error.
The part is gone while the package is imported, and put back then, since torch itself may need it to train.
"""

import contextlib
import os
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
import torch.utils.checkpoint


class _Gone:
    """In the place of an attribute of a class in C, which cannot be deleted."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError("gone")


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    *path, last = name.split(".")[1:]
    owner: Any = torch
    for step in path:
        owner = getattr(owner, step)
    if name.startswith("torch.ops."):  # looked up anew where it is deleted
        owner, last, empty = torch.ops, path[1], types.SimpleNamespace()
    else:
        empty = _Gone()
    before, own = getattr(owner, last), last in vars(owner)
    if own and not isinstance(empty, types.SimpleNamespace):
        delattr(owner, last)
    else:
        setattr(owner, last, empty)
    try:
        yield
    finally:
        if own or isinstance(empty, types.SimpleNamespace):
            setattr(owner, last, before)
        else:
            delattr(owner, last)


class NotSummed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        return grad_output, grad_output


def import_and_train(names: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(without(name))
        import manual_backprop as mb
        import manual_backprop.validation
        from manual_backprop import _torch
    for name in names:
        for part in _torch.PARTS.values():
            assert name not in part.names or not part.there, f"{name} was not gone"
    layer = mb.nn.LinearSigmoid(3, 2)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    x, bias = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    assert not mb.validate(NotSummed, (x, bias), only="MB203"), "a gradient that is not summed passes"


def in_a_child(names: list[str]) -> str:
    """``ok``, or the error."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            import_and_train(names)
            words = "ok"
        except BaseException:
            words = " ".join(traceback.format_exc().split())
        os.write(write, words.encode()[:4000])
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        return pipe.read()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, in_a_child(name.split("+")), flush=True)
