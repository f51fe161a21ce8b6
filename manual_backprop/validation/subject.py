"""What is validated: the callable, its inputs as named slots, and the runs that many probes compare with."""

import copy
import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from manual_backprop.validation import memory, tolerances
from manual_backprop.validation.differences import normal
from manual_backprop.validation.naming import argument_names, callable_of, name_of
from manual_backprop.validation.tolerances import Mismatch, coarsest, epsilon, largest, mismatch, pieces, real
from manual_backprop.validation.untouched import callers_device

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Slot:
    """A floating or complex tensor among the inputs and parameters."""

    name: str
    leaf: int  # its place in the flattened inputs
    asked: bool  # whether the caller wants its gradient
    parameter: bool


@dataclass
class Graph:
    """One forward pass: the leaves it started from, and its tensor outputs."""

    leaves: list[Tensor]
    outputs: list[Tensor]


@dataclass
class Plain:
    """One forward and backward pass in the plain setting."""

    outputs: list[Tensor]
    cotangents: list[Tensor]
    gradients: Gradients


class Broken(Exception):
    """The forward or backward pass raised; `error` is what."""

    def __init__(self, stage: str, error: BaseException):
        super().__init__(f"{stage} raised {type(error).__name__}: {error}")
        self.stage, self.error = stage, error


class Subject:
    """A callable with one sample of inputs.

    Args:
        func: an `autograd.Function` class, its ``.apply``, a module, or any callable on tensors.
        inputs: the sample, a tuple that may nest tuples, lists and dicts of tensors and other values.
        reference: the same function in plain torch, or None.
        batch_dim: the dimension that counts samples, or None where it is not known.
        seed: what all random numbers come from.
        trusted: False for a surrogate gradient, which is not the derivative and is not compared with one.
    """

    def __init__(
        self,
        func: Any,
        inputs: Sequence[Any],
        reference: Any = None,
        batch_dim: int | None = None,
        seed: int = 0,
        trusted: bool = True,
    ):
        self.func, self.batch_dim, self.seed, self.trusted = func, batch_dim, seed, trusted
        self.name, self.callable = name_of(func), callable_of(func)
        self.module = copy.deepcopy(func) if isinstance(func, nn.Module) else None
        self.parameters = dict(self.module.named_parameters()) if self.module is not None else {}
        leaves, self.structure = pytree.tree_flatten(tuple(inputs))
        self.leaves: list[Any] = [*leaves, *self.parameters.values()]
        self.slots = self._find_slots(argument_names(func, inputs), len(leaves))
        self.values = [self.leaves[slot.leaf].detach() for slot in self.slots]  # the caller's memory: `run` copies it
        self.needs = tuple(slot.asked for slot in self.slots)
        self.reference = None if reference is None else _reference(self, reference, inputs)
        self.in_place = False
        self.memo: dict[str, Any] = {}  # what probes share: the oracle, the failure that was told

    def _find_slots(self, names: list[str], inputs: int) -> list[Slot]:
        names = [*names, *self.parameters]
        return [
            Slot(name, place, leaf.requires_grad, parameter=place >= inputs)
            for place, (name, leaf) in enumerate(zip(names, self.leaves, strict=True))
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        ]

    # --- running it -------------------------------------------------------------------------------------------------

    def call(self, tensors: Sequence[Tensor], others: Sequence[Any] | None = None) -> list[Tensor]:
        """The tensor outputs for these slots; `others` replaces the leaves that are no slots."""
        return [leaf for leaf in pytree.tree_leaves(self.raw_call(tensors, others)) if isinstance(leaf, Tensor)]

    def raw_call(self, tensors: Sequence[Tensor], others: Sequence[Any] | None = None) -> Any:
        leaves = list(self.leaves if others is None else others)
        slots = {slot.leaf for slot in self.slots}
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and others is None and place not in slots:
                leaves[place] = leaf.detach().clone()
        for slot, tensor in zip(self.slots, tensors, strict=True):
            leaves[slot.leaf] = tensor.clone() if self.in_place else tensor
        count = len(leaves) - len(self.parameters)
        arguments = pytree.tree_unflatten(leaves[:count], self.structure)
        if self.module is None:
            with callers_device():
                return self.callable(*arguments)
        state = dict(zip(self.parameters, leaves[count:], strict=True))
        state |= {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        with callers_device():
            return torch.func.functional_call(self.module, state, arguments)

    def run(
        self,
        values: Sequence[Tensor] | None = None,
        needs: Sequence[bool] | None = None,
        own: bool = False,
        others: Sequence[Any] | None = None,
    ) -> Graph:
        """A forward pass from fresh leaves, so that nothing of the caller's is ever touched.

        `own` hands over the very tensors: for the sake of their layout, or since nobody else needs them.

        Raises:
            Broken: the forward pass raised.
        """
        values = self.values if values is None else values
        needs = self.needs if needs is None else needs
        leaves = [value.detach() if own else _copied(value) for value in values]
        for leaf, need in zip(leaves, needs, strict=True):
            leaf.requires_grad_(need)
        try:
            return Graph(leaves, self.call(leaves, others))
        except Exception as error:
            raise Broken("forward", error) from error

    def outputs(self, values: Sequence[Tensor] | None = None, own: bool = False) -> list[Tensor]:
        """Those of a forward pass, without its graph."""
        return [output.detach() for output in self.run(values, own=own).outputs]

    def differentiate(
        self, graph: Graph, cotangents: Sequence[Tensor | None], own: bool = False, **options: bool
    ) -> Gradients:
        """The gradients of the leaves for one cotangent (or None) an output, None where there is none.

        Contiguous cotangents are copied, since a backward may write into them; `own` hands over the very tensors.

        Raises:
            Broken: the backward pass raised.
        """
        pairs = [
            (output, cotangent if own else _spare(cotangent))
            for output, cotangent in zip(graph.outputs, cotangents, strict=True)
            if cotangent is not None and output.requires_grad
        ]
        asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
        if not pairs or not asked:
            return [None] * len(graph.leaves)
        outputs, given = zip(*pairs, strict=True)
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
        own: bool = False,
        others: Sequence[Any] | None = None,
    ) -> Gradients:
        """One forward and backward pass."""
        graph = self.run(values, needs, own, others)
        return self.differentiate(graph, self.cotangents(graph.outputs) if cotangents is None else cotangents)

    # --- what they are compared with ----------------------------------------------------------------------------------

    @functools.cached_property
    def plain(self) -> Plain:
        graph = self.run()
        cotangents = self.cotangents(graph.outputs)
        outputs = [output.detach().clone() for output in graph.outputs]
        gradients = self.differentiate(graph, cotangents)
        for i, gradient in enumerate(gradients):  # one after the other, so that no two are held twice
            gradients[i] = None if gradient is None else gradient.detach().clone()
        return Plain(outputs, cotangents, gradients)

    @property
    def large(self) -> bool:
        """Whether one pass takes long enough for the probes to ask fewer questions of each kind."""
        return memory.large(self.values)

    @functools.cached_property
    def targets(self) -> list[int]:
        """The numbers of the outputs that can be differentiated."""
        return [i for i, output in enumerate(self.run().outputs) if output.requires_grad]

    def generator(self, *key: object) -> torch.Generator:
        """Random numbers that depend on the seed and the key alone, so that one probe's do not move another's."""
        return torch.Generator().manual_seed(zlib.crc32(repr((self.seed, *key)).encode()))

    def cotangents(self, outputs: Sequence[Tensor], *key: object) -> list[Any]:
        """Random incoming gradients, of both signs and of sizes far from 1; None for outputs that take none."""
        draw = self.generator("cotangents", *key)
        return [
            _times(normal(output, draw), lambda shape: 0.5 + 4.0 * torch.rand(shape, generator=draw))
            if output.requires_grad
            else None
            for output in outputs
        ]

    def nearby(self, key: object = 0, by: float = 0.05, values: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The sample with each element of what is asked moved by up to `by` of its size; the rest as it is."""
        values = self.values if values is None else values
        draw = self.generator("nearby", key)
        return [
            _times(value.clone(), lambda s: 1 + by * (2 * torch.rand(s, generator=draw, dtype=torch.float64) - 1))
            if need
            else value.clone()
            for value, need in zip(values, self.needs, strict=True)
        ]

    def elsewhere(self, key: object = 0) -> list[Tensor]:
        """Another sample of the same shapes: the elements in reverse order, so that signs and maxima move, and moved a
        little; `nearby` where forward does not take that."""
        far = self.nearby(key)
        for i, need in enumerate(self.needs):
            far[i] = far[i].flip(tuple(range(far[i].ndim))) if need else far[i]
        try:
            outputs = self.outputs(far)
        except Broken:
            return self.nearby(key)
        shapes = [output.shape for output in outputs] == [output.shape for output in self.plain.outputs]
        finite = all(bool(tolerances.wide(output).isfinite().all()) for output in outputs)
        return far if shapes and finite else self.nearby(key)

    @functools.cached_property
    def noise(self) -> list[float | Tensor]:
        """What each gradient changes by when inputs and cotangents move by one rounding (see `tolerances`)."""
        return self.noise_at(self.values, self.plain.cotangents, self.plain.gradients)

    def noise_at(self, values: Sequence[Tensor], cotangents: Sequence[Any], expected: Gradients) -> list[Any]:
        total: list[Any] = [0.0] * len(self.slots)
        for trial in range(2):
            draw = self.generator("noise", trial)
            moved = [
                rounded(v, v.dtype, draw) if need else v.clone() for v, need in zip(values, self.needs, strict=True)
            ]
            shaken = [None if c is None else rounded(c, c.dtype, draw) for c in cotangents]
            try:
                found = self.gradients(moved, shaken, own=True)
            except Broken:
                continue
            del moved
            for i, (before, after) in enumerate(zip(expected, found, strict=True)):
                if before is not None and after is not None and before.shape == after.shape and before.numel():
                    size = max(largest(before), largest(self.plain.gradients[i]))
                    total[i] = _noisier(total[i], after, before, size)
            found.clear()
            after = None
        return total

    def compare(
        self,
        actual: Gradients,
        expected: Gradients,
        noise: Sequence[Any] | None = None,
        scale: float = 1.0,
    ) -> list[tuple[int, Mismatch]]:
        """Slots whose two gradients differ by more than two runs of one function may.

        Args:
            noise: the conditioning noise of each slot; the plain setting's where it is None.
            scale: the size of the cotangents beside the plain ones.
        """
        noise = self.noise if noise is None else noise
        dtype = min(coarsest([*actual, *expected]), self.dtype, key=tolerances.PRECISION_ORDER.index)
        floor = tolerances.FLOOR * epsilon(dtype) * max([largest(e) for e in expected], default=0.0)
        found = []
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            wrong = mismatch(a, e, tolerances.SAME_RTOL[dtype], tolerances.NOISE_FACTOR * scale * noise[i], floor)
            if wrong is not None:
                found.append((i, wrong))
        return found

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The least precise floating dtype in play: that of a tensor, or one that forward casts to inside."""
        dtypes = (coarsest([*self.values, *self.plain.outputs]), self.computes_in)
        return min(dtypes, key=tolerances.PRECISION_ORDER.index)

    @functools.cached_property
    def computes_in(self) -> torch.dtype:
        """The dtype that forward casts its inputs to, which shows where rounding them to it changes no bit of the
        outputs; float64 where there is none."""
        found = torch.float64
        try:
            exact = self._of_many_bits()
            plain = self.outputs(exact)
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                few, many = (
                    self.outputs(self.nearby("varies", by, exact), own=True) for by in (32 * epsilon(dtype), 0.3)
                )
                # So small a step changes about as many outputs as a large one does: a floor or a sign would not.
                varies = _changed(few, plain) > 0.5 * _changed(many, plain)
                through = [_through(v, dtype) if need else v for v, need in zip(exact, self.needs, strict=True)]
                if _changed(self.outputs(through), plain) or not varies:
                    break
                found = dtype
            if found == torch.float64 and self._grainy(exact):
                found = torch.float32
        except Broken:  # it does not take float64
            pass
        return found

    def _grainy(self, values: Sequence[Tensor]) -> bool:
        """Whether the outputs jump, as those of a forward of which a part is in float32 do, where the inputs move by
        less than float32 resolves: then third differences are far above the rounding of float64."""

        def moved(k: int) -> list[Tensor]:
            draw = self.generator("grain")
            return [
                _times(v.clone(), lambda s: 1 + 3e-8 * k * torch.rand(s, generator=draw, dtype=torch.float64))
                if need
                else v.clone()
                for v, need in zip(values, self.needs, strict=True)
            ]

        line = [first := self.outputs(moved(1), own=True)]
        rough: list[Tensor | bool] = [False] * len(first)
        for k in range(2, 17):  # to one side only, so that a kink of the sample is not crossed
            line = [*line[-3:], self.outputs(moved(k), own=True)]
            if len(line) == 4:
                rough = [was | _bent(*four) for was, four in zip(rough, zip(*line, strict=True), strict=True)]
        # Most of what moves: a few elements jump where two of them change places in a sort, too.
        return any(
            int(torch.as_tensor(bent).sum()) > 0.5 * _changed([last], [start])
            for bent, start, last in zip(rough, first, line[-1], strict=True)
        )

    def _of_many_bits(self) -> list[Tensor]:
        """The sample, in float64 and moved a little where it is of few bits itself, so that rounding changes it."""
        if _changed([_through(value, torch.float32) for value in self.values], self.values):
            return self.values
        return self.nearby("bits", 1e-3, [tolerances.wide(value) for value in self.values])


def _through(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` rounded to a real dtype, in its own."""
    if value.is_complex():
        return torch.view_as_complex(torch.view_as_real(value).to(dtype).to(real(value.dtype)))
    return value.to(dtype).to(value.dtype)


def _changed(after: Sequence[Tensor], before: Sequence[Tensor]) -> int:
    """How many elements differ."""
    pairs = zip(map(tolerances.dense, after), map(tolerances.dense, before), strict=True)
    return sum(int((tolerances.wide(x) != tolerances.wide(y)).sum()) for pair in pairs for x, y in pieces(*pair))


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone()


def _spare(cotangent: Tensor) -> Tensor:
    """A copy, unless its layout is what matters or it is part of a graph."""
    plain = cotangent.is_contiguous() and cotangent.storage_offset() == 0 and not cotangent.requires_grad
    return cotangent.clone() if plain else cotangent


def _bent(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor | bool:
    """Where the third difference is not that of a smooth function."""
    if not (a.is_floating_point() or a.is_complex()):
        return False
    third = tolerances.wide(d) - tolerances.wide(a) - 3 * (tolerances.wide(c) - tolerances.wide(b))
    return third.abs() > 1e-10 * largest(a)


def _times(value: Tensor, factors: Callable[[torch.Size], Tensor]) -> Tensor:
    """`value` multiplied in place by random factors, which are drawn for a piece at a time."""
    for (part,) in pieces(value):
        part.mul_(factors(part.shape).to(value.device, real(value.dtype)))
    return value


def rounded(value: Tensor, dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    """A copy with each element moved up or down by one rounding of `dtype`."""
    step = epsilon(dtype)
    return _times(
        value.clone(), lambda shape: 1 + step * (2.0 * torch.randint(0, 2, shape, generator=draw).double() - 1)
    )


def _noisier(noise: float | Tensor, after: Tensor, before: Tensor, size: float) -> float | Tensor:
    """The larger of two noises. A change near the gradient's own size is a kink crossed at some elements, so it
    counts at those elements only."""
    most = largest(after, before)
    if most > 1e-3 * size:
        change = (tolerances.wide(after) - tolerances.wide(before)).abs().nan_to_num(0.0, 0.0, 0.0)
        return torch.maximum(change, torch.as_tensor(noise, dtype=change.dtype).expand(change.shape))
    return max(noise, most) if isinstance(noise, float) else noise.clamp(min=most)


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
    other = Subject(reference, inputs, seed=subject.seed)
    if tuple(flags) != other.needs or len(other.values) != len(subject.values):
        raise ValueError("reference: it must take the same inputs, with the same parameters, as func")
    return other
