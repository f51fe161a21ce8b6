"""What an entry of the zoo is, and how a file of it adds one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Inputs = Callable[[], tuple]
Grads = tuple[Tensor | None, ...]
F = TypeVar("F", bound=Callable)

# The codes of a formula that is simply wrong: by differences, by the Taylor remainder, and by differences far out.
EVERYWHERE = ("MB101", "MB104", "MB604")


@dataclass(frozen=True)
class Entry:
    """A hand-written backward, wrong or right, and what a validator has to say about it.

    Attributes:
        name: kebab-case and unique.
        operation: what is computed, for example ``"linear"``.
        function: the Function class, or any callable on tensors.
        inputs: makes the input tuple; the same one at every call.
        codes: exactly those that fail, in one call of `validate` and each asked alone; empty for a right one.
        mistake: one sentence: what the author got wrong, or, for a right one, what is delicate about it.
        source: a public bug of this class, as repository and number; empty where there is none.
        reference: the same in plain torch; given only where the mistake cannot be seen without.
        batch_dim: as `validate` takes it; given where the edges are worth a look.
        skip: codes that do not apply, for example ``("MB1",)`` for a surrogate gradient.
    """

    name: str
    operation: str
    function: Callable
    inputs: Inputs
    codes: tuple[str, ...]
    mistake: str
    source: str = ""
    reference: Callable | None = None
    batch_dim: int | None = None
    skip: Collection[str] = ()


registry: list[Entry] = []


def wrong(name: str, operation: str, inputs: Inputs, *codes: str, **options: Any) -> Callable[[F], F]:
    """Decorator: add a wrong Function, caught by exactly `codes`; its docstring (or `mistake`) is the mistake."""

    def add(function: F) -> F:
        mistake = options.pop("mistake", function.__doc__)
        registry.append(Entry(name, operation, function, inputs, codes, mistake, **options))
        return function

    return add


def right(name: str, operation: str, inputs: Inputs, **options: Any) -> Callable[[F], F]:
    """Decorator: add a right Function, whose docstring says what is delicate about it."""
    return wrong(name, operation, inputs, **options)


def draw(*values: Any, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = torch.float64) -> Inputs:
    """A maker of inputs: a tuple of sizes becomes a random leaf, a tensor is copied, anything else is passed on.

    Example:
        >>> x, index, p = draw((4, 3), torch.tensor([0, 2]), 0.5)()
        >>> x.shape, x.requires_grad, index, p
        (torch.Size([4, 3]), True, tensor([0, 2]), 0.5)
    """

    def make() -> tuple:
        generator = torch.Generator().manual_seed(0)

        def value(item: Any) -> Any:
            if isinstance(item, Tensor):
                return item.detach().clone().requires_grad_(item.requires_grad)
            if isinstance(item, tuple):
                return (torch.randn(item, generator=generator, dtype=dtype) * scale + shift).requires_grad_()
            return item

        return tuple(value(item) for item in values)

    return make


def afresh(make: Inputs, *memories: dict | list) -> Inputs:
    """`make`, which first empties what the entry's module keeps between calls: each validation starts from nothing."""

    def emptied() -> tuple:
        for memory in memories:
            memory.clear()
        return make()

    return emptied


def leaf(*numbers: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of these numbers that requires grad."""
    return torch.tensor(numbers, dtype=dtype, requires_grad=True)
