"""A callable and a sample: inputs as named slots, forward and backward passes, and other samples of that kind."""

import copy
import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manual_backprop import _torch
from manual_backprop.validation import memory, tolerances
from manual_backprop.validation.differences import normal
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.naming import argument_names, callable_of, name_of
from manual_backprop.validation.tolerances import epsilon, pieces, real
from manual_backprop.validation.untouched import callers_device

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Slot:
    """A floating or complex tensor among the inputs and parameters."""

    name: str
    leaf: int  # the place of the tensor in the flattened inputs
    asked: bool  # whether the caller wants its gradient
    parameter: bool


@dataclass
class Graph:
    """One forward pass: the leaves that it started from, and the tensors among the outputs."""

    leaves: list[Tensor]
    outputs: list[Tensor]


@dataclass
class Passes:
    """How many passes were made: through forward, and through backward."""

    forward: int = 0
    backward: int = 0


class Subject:
    """A callable with one sample of inputs.

    Args:
        func: an `autograd.Function` class, its ``.apply``, a module, or any callable on tensors.
        inputs: the sample, a tuple that may nest tuples, lists and dicts of tensors and other values.
        reference: the same function in plain torch, or None.
        batch_dim: the dimension that counts samples, or None where it is not known.
        seed: the seed of all random numbers.

    Attributes:
        in_place: whether forward writes into its arguments (with `ctx.mark_dirty`). Forward then gets clones of the
            leaves, because autograd lets nobody write into a leaf.
        compared: how many comparisons the rule has made; a rule that made none is not reported as passed.
        passes: the passes made, those of the reference and of copies included.
    """

    def __init__(
        self,
        func: Any,
        inputs: Sequence[Any],
        reference: Any = None,
        batch_dim: int | None = None,
        seed: int = 0,
    ):
        self.func, self.batch_dim, self.seed = func, batch_dim, seed
        self.in_place, self.compared, self.passes = False, 0, Passes()
        self.name, self.callable = name_of(func), callable_of(func)
        self.module = copy.deepcopy(func) if isinstance(func, nn.Module) else None
        self.parameters = dict(self.module.named_parameters()) if self.module is not None else {}
        leaves, self.structure = _torch.flatten(tuple(inputs))
        self.leaves: list[Any] = [*leaves, *self.parameters.values()]
        self.slots = self._find_slots(argument_names(func, inputs), len(leaves))
        self.values = [self.leaves[slot.leaf].detach() for slot in self.slots]  # the caller's memory: `run` copies it
        self.needs = tuple(slot.asked for slot in self.slots)
        self.reference: Any = None if reference is None else _reference(self, reference, inputs)

    def _find_slots(self, names: list[str], inputs: int) -> list[Slot]:
        names = [*names, *self.parameters]
        return [
            Slot(name, place, leaf.requires_grad, parameter=place >= inputs)
            for place, (name, leaf) in enumerate(zip(names, self.leaves, strict=True))
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        ]

    # --- running it -------------------------------------------------------------------------------------------------

    def call(self, tensors: Sequence[Tensor], others: Sequence[Any] | None = None, leaves: bool = True) -> list[Tensor]:
        """The tensor outputs for these slots; `others` replaces the leaves that are no slots.

        Args:
            leaves: whether the tensors are leaves of the graph; a forward that writes in place then gets clones.
        """
        return self._called(*self._arguments(tensors, others, leaves and self.in_place))

    def _arguments(
        self, tensors: Sequence[Tensor], others: Sequence[Any] | None, cloned: bool
    ) -> tuple[Any, dict[str, Tensor]]:
        """The arguments of the callable, and the parameters and buffers of the module."""
        leaves = list(self.leaves if others is None else others)
        slots = {slot.leaf for slot in self.slots}
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and others is None and place not in slots:
                leaves[place] = leaf.detach().clone()
        for slot, tensor in zip(self.slots, tensors, strict=True):
            leaves[slot.leaf] = tensor.clone() if cloned else tensor
        count = len(leaves) - len(self.parameters)
        state = dict(zip(self.parameters, leaves[count:], strict=True))
        if self.module is not None:
            state |= {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return _torch.unflatten(leaves[:count], self.structure), state

    def _called(self, arguments: Any, state: dict[str, Tensor]) -> list[Tensor]:
        """The tensor outputs. Only the user's code runs here, so that each exception raised here is the user's."""
        self.passes.forward += 1
        with callers_device():
            if self.module is None:
                result = self.callable(*arguments)
            else:
                result = torch.func.functional_call(self.module, state, arguments)
        return [leaf for leaf in _torch.flatten(result)[0] if isinstance(leaf, Tensor)]

    def run(
        self,
        values: Sequence[Tensor] | None = None,
        needs: Sequence[bool] | None = None,
        copied: bool = True,
        others: Sequence[Any] | None = None,
    ) -> Graph:
        """A forward pass from fresh leaves, so that nothing of the caller's is ever touched.

        Without `copied` forward gets the very tensors: where their layout matters, or where nobody else needs them.

        Raises:
            Broken: the forward pass raised.
        """
        values = self.values if values is None else values
        needs = self.needs if needs is None else needs
        leaves = [value.detach().clone() if copied else value.detach() for value in values]
        for leaf, need in zip(leaves, needs, strict=True):
            leaf.requires_grad_(need)
        arguments, state = self._arguments(leaves, others, self.in_place)
        try:
            return Graph(leaves, self._called(arguments, state))
        except Exception as error:
            raise Broken("forward", error) from error

    def outputs(self, values: Sequence[Tensor] | None = None, copied: bool = True) -> list[Tensor]:
        """The outputs of a forward pass, without the graph."""
        return [output.detach() for output in self.run(values, copied=copied).outputs]

    def differentiate(
        self, graph: Graph, cotangents: Sequence[Tensor | None], copied: bool = True, **options: bool
    ) -> Gradients:
        """The gradients of the leaves for one cotangent, or None, for each output; a leaf without gradient gets None.

        Contiguous cotangents are copied, because a backward may write into them; without `copied` none is.

        Raises:
            Broken: the backward pass raised.
        """
        pairs = [
            (output, _spare(cotangent) if copied else cotangent)
            for output, cotangent in zip(graph.outputs, cotangents, strict=True)
            if cotangent is not None and output.requires_grad
        ]
        asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
        if not pairs or not asked:
            return [None] * len(graph.leaves)
        outputs, given = zip(*pairs, strict=True)
        self.passes.backward += 1
        try:
            found = iter(torch.autograd.grad(outputs, asked, given, allow_unused=True, **options))
        except Exception as error:
            raise Broken("backward", error) from error
        return [next(found) if leaf.requires_grad else None for leaf in graph.leaves]

    def gradients(
        self,
        values: Sequence[Tensor] | None = None,
        cotangents: Sequence[Tensor | None] | None = None,
        needs: Sequence[bool] | None = None,
        copied: bool = True,
        others: Sequence[Any] | None = None,
    ) -> Gradients:
        """One forward and backward pass."""
        graph = self.run(values, needs, copied, others)
        return self.differentiate(graph, self.cotangents(graph.outputs) if cotangents is None else cotangents)

    @property
    def large(self) -> bool:
        """Whether one pass takes long enough for the rules to ask fewer questions of each kind."""
        return memory.large(self.values)

    @functools.cached_property
    def kinds(self) -> list[tuple[torch.Size, bool]]:
        """The shape of each output, and whether it can be differentiated."""
        return [(output.shape, output.requires_grad) for output in self.run().outputs]

    @property
    def targets(self) -> list[int]:
        """The numbers of the outputs that can be differentiated."""
        return [i for i, (_, differentiable) in enumerate(self.kinds) if differentiable]

    def with_parts(self, places: Sequence[int], parts: Sequence[Tensor]) -> list[Tensor]:
        """Copies of the values; at `places` stand the tensors `parts` instead."""
        others = dict(zip(places, parts, strict=True))
        return [others[i] if i in others else value.clone() for i, value in enumerate(self.values)]

    def generator(self, *key: object) -> torch.Generator:
        """A generator that depends on the seed and the key alone, so that no rule changes another's numbers."""
        return torch.Generator().manual_seed(zlib.crc32(repr((self.seed, *key)).encode()))

    def cotangents(self, outputs: Sequence[Tensor], *key: object) -> list[Any]:
        """Random incoming gradients, of both signs and of sizes far from 1; None for outputs without a gradient."""
        draw = self.generator("cotangents", *key)
        return [
            times(normal(output, draw), lambda shape: 0.5 + 4.0 * torch.rand(shape, generator=draw))
            if output.requires_grad
            else None
            for output in outputs
        ]

    def nearby(self, key: object = 0, by: float = 0.05, values: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The sample with each element of the asked inputs moved by up to `by` times the element's own size."""
        values = self.values if values is None else values
        draw = self.generator("nearby", key)
        return [
            times(value.clone(), lambda s: 1 + by * (2 * torch.rand(s, generator=draw, dtype=torch.float64) - 1))
            if need
            else value.clone()
            for value, need in zip(values, self.needs, strict=True)
        ]

    def elsewhere(self, key: object = 0) -> list[Tensor]:
        """Another sample of the same shapes; `nearby` where forward does not take it.

        The elements are moved a little and stand in reverse order, so that signs and maxima are at other places.
        """
        far = self.nearby(key)
        for i, need in enumerate(self.needs):
            far[i] = far[i].flip(tuple(range(far[i].ndim))) if need else far[i]
        try:
            outputs = self.outputs(far)
        except Broken:
            return self.nearby(key)
        shapes = [output.shape for output in outputs] == [shape for shape, _ in self.kinds]
        finite = all(bool(tolerances.wide(output).isfinite().all()) for output in outputs)
        return far if shapes and finite else self.nearby(key)


def _spare(cotangent: Tensor) -> Tensor:
    """A copy of a plain cotangent; the very tensor where its layout matters or it is part of a graph."""
    plain = cotangent.is_contiguous() and cotangent.storage_offset() == 0 and not cotangent.requires_grad
    return cotangent.clone() if plain else cotangent


def times(value: Tensor, factors: Callable[[torch.Size], Tensor]) -> Tensor:
    """`value` multiplied in place by random factors, which are drawn for a piece at a time."""
    for (part,) in pieces(value):
        part.mul_(factors(part.shape).to(value.device, real(value.dtype)))
    return value


def rounded(value: Tensor, dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    """A copy with each element moved up or down by one rounding of `dtype`."""
    step = epsilon(dtype)
    return times(
        value.clone(), lambda shape: 1 + step * (2.0 * torch.randint(0, 2, shape, generator=draw).double() - 1)
    )


def _reference(subject: Subject, reference: Any, inputs: Sequence[Any]) -> Subject:
    """The reference as a subject of its own, with the same state where both are modules."""
    flags = iter(slot.asked for slot in subject.slots)
    if isinstance(reference, nn.Module):
        reference = copy.deepcopy(reference)
        if subject.module is not None:
            reference.load_state_dict(subject.module.state_dict())
            asked = {name: p.requires_grad for name, p in subject.parameters.items()}
            for name, parameter in reference.named_parameters():
                parameter.requires_grad_(asked[name])
    other = type(subject)(reference, inputs, seed=subject.seed)
    other.passes = subject.passes
    if tuple(flags) != other.needs or len(other.values) != len(subject.values):
        raise ValueError("reference: it must take the same inputs, with the same parameters, as func")
    return other
