"""A program for `test_torch`: imports and trains in a child of its own for each part of torch that is taken away.

``python without_private_torch.py torch._C._is_tracing …`` prints a line for each name: the name, and ok or the error;
a+b takes away both. A part is gone while the package is imported, and put back then, since torch itself may need it.
"""

import contextlib
import os
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes  # what torch imports at the first backward pass, once for all children
from torch import Tensor

MISSING = object()


class Gone:
    """In the place of an attribute that a class inherits from C, where it cannot be deleted."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError("gone")


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    *path, last = name.split(".")[1:]
    stand_in: Any = Gone()
    if path[:1] == ["ops"]:  # an operation is looked up anew when it is deleted: its whole namespace goes
        (*path, last), stand_in = ["ops", path[1]], types.SimpleNamespace()
    owner: Any = torch
    for step in path:
        owner = getattr(owner, step)
    before = vars(owner).get(last, MISSING)
    if before is MISSING or path == ["ops"]:
        setattr(owner, last, stand_in)
    else:
        delattr(owner, last)
    try:
        yield
    finally:
        if before is MISSING:
            delattr(owner, last)
        else:
            setattr(owner, last, before)


class NotSummed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return grad_output, grad_output  # wrong: the bias has no dimension for the samples


def import_and_train(names: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(without(name))
        import manual_backprop as mb
        import manual_backprop.validation
        from manual_backprop import _torch
    for part in _torch.PARTS.values():
        assert not part.there or not {*names} & {*part.names}, f"{part} was not taken away"
    layer = mb.nn.LinearSigmoid(3, 2)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    x, bias = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    assert not mb.validate(NotSummed, (x, bias), only="MB203"), "a gradient that is not summed passes"


def in_a_child(names: list[str]) -> str:
    """ok, or the error in one line."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            import_and_train(names)
            words = "ok"
        except BaseException:
            words = " ".join(traceback.format_exc().split())
        os.write(write, words.encode()[-4000:])
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    return words


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, in_a_child(name.split("+")), flush=True)
