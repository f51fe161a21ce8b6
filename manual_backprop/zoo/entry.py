"""The entries of the zoo, and the decorators by which its files add them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Inputs = Callable[[], tuple]
Grads = tuple[Tensor | None, ...]
F = TypeVar("F", bound=Callable)

# The codes that a simply wrong formula fails: differences, the Taylor remainder, and differences at large inputs.
EVERYWHERE = ("MB101", "MB104", "MB604")


@dataclass(frozen=True)
class Entry:
    """A hand-written backward, wrong or right, and the codes that a validator has to fail it with.

    Attributes:
        name: kebab-case and unique.
        operation: the name of what is computed, for example ``"linear"``.
        function: the Function class, or any callable on tensors.
        inputs: a function that makes the input tuple, with the same numbers at every call.
        codes: exactly the codes that fail, all in one call of `validate` and each asked alone; empty for a right entry.
        mistake: one sentence about the author's mistake or, for a right entry, about its delicate point.
        source: a public bug of this class, as repository and number; empty where there is none.
        reference: the same function in plain torch; given only where the mistake cannot be seen without it.
        batch_dim: as in `validate`; given where the edge cases of the batch are worth a look.
        skip: codes that do not apply to the entry, for example ``("MB1",)`` for a surrogate gradient.
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
    """Decorator: add a wrong Function that fails exactly `codes`; its docstring, or `mistake`, tells the mistake."""

    def add(function: F) -> F:
        mistake = options.pop("mistake", function.__doc__)
        registry.append(Entry(name, operation, function, inputs, tuple(sorted(codes)), mistake, **options))
        return function

    return add


def right(name: str, operation: str, inputs: Inputs, **options: Any) -> Callable[[F], F]:
    """Decorator: add a right Function whose docstring tells the delicate point."""
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
    """`make`, after emptying what the entry's module keeps between calls, so that no validation depends on another."""

    def emptied() -> tuple:
        for memory in memories:
            memory.clear()
        return make()

    return emptied


def leaf(*numbers: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of these numbers that requires grad."""
    return torch.tensor(numbers, dtype=dtype, requires_grad=True)
