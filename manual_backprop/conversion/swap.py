"""An existing model with our layers in it, and back again.

A Linear that is converted stays the same object and changes its class, as `torch.nn.utils.parametrize` does it. So
whatever holds it goes on: the optimizer its parameters, DDP and FSDP the module, a list of the user's the layer, its
hooks. (A new module with the same parameters would leave all of these with the old one.) Its activation is replaced by
an `nn.Identity` in the one place where it stands, since the object may be used in another model too.
"""

import contextlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from manual_backprop import _torch, nn
from manual_backprop.conversion.calls import Call, follow, own_forward
from manual_backprop.conversion.report import Row, check, keep

M = TypeVar("M", bound=Module)


@dataclass(frozen=True)
class Fusion:
    """An activation after a Linear, as a module or as a function, and the layer that is both."""

    module: type[Module]
    functions: tuple[Callable[[Tensor], Tensor], ...]
    layer: type[nn._NamedLinear]


FUSIONS = tuple(
    Fusion(layer._activation.module, layer._activation.functions, layer)
    for layer in (nn.LinearSigmoid, nn.LinearTanh, nn.LinearReLU)
    if layer._activation.module is not None
)

OURS = (nn.Linear, *(fusion.layer for fusion in FUSIONS))

# Attributes by which `revert` finds a layer and its activation. Each pair has a random name, which pickle and deepcopy
# keep, because the two halves may be separated before they are reverted.
_PAIR = "_converted_pair"  # of a layer: the name of its pair, "" for a lone Linear
_STANDS_FOR = "_converted_from"  # of what stands in the activation's place: (the name of its pair, the activation)


def convert(model: M, linears: bool = False) -> M:
    """Make each Linear followed by Sigmoid, Tanh or ReLU the fused layer with the hand-written backward, in place.

    The pairs are found in `nn.Sequential`, nested ones too, and by `torch.fx` in other modules, where the activation is
    a module or a function kept as an attribute. The model computes the same; its parameters are the same objects and
    its ``state_dict`` has the same keys. `nn.Identity` stands where an activation module was.

    A pair is left alone, and `conversions` says why, where the swap could be seen: hooks on the activation or on the
    output of the Linear, an activation that is shared or called elsewhere, an output of either that is used twice or
    kept, a subclass of Linear, an activation called as a function in the code of a forward, a forward that torch.fx
    cannot follow. Only forwards are looked at: code elsewhere that calls a converted layer by itself gets a and no
    longer z, and so does another model that contains the same Linear object.

    Args:
        model: any module; changed in place.
        linears: make the other Linears `manual_backprop.nn.Linear`, too.

    Returns:
        The model, the same object; `conversions` of it tells what was swapped, what was left, and why.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> convert(model)
        Sequential(
          (0): LinearTanh(in_features=4, out_features=3, bias=True)
          (1): Identity()
          (2): Linear(in_features=3, out_features=1, bias=True)
        )
    """
    check(model)
    places = list(_places(model))
    originals = Counter(id(place.original) for place in places if isinstance(place.original, Module))
    shared = {place.stand_in for place in places if originals[id(place.original)] > 1}
    targets: dict[Module, _Place] = {place.stand_in: place for place in places}
    calls: dict[Module, list[Call]] = defaultdict(list)
    candidates = {module for module in model.modules() if type(module) is torch.nn.Linear}
    with _stand_ins(places):
        for call in follow(model, candidates):
            calls[call.module].append(call)
    rows = []
    for path, linear in _linears(model):
        place, why = _match(linear, calls, targets, shared)
        before = _name(type(linear))
        if place:
            _swap(linear, place.fusion.layer, place)
        elif linears and not _unfit(linear):
            _swap(linear, nn.Linear, None)
        rows.append(Row(path, before, _name(type(linear)), why))
    keep(model, rows)
    return model


def revert(model: M) -> M:
    """Undo `convert`: the classes, the activations and the attributes are what they were; parameters stay.

    A layer is left fused where nothing stands in the place of its activation any more (as in a part of the model).

    Args:
        model: a converted model, or a copy of one; changed in place. Layers that were ours from the beginning stay.

    Returns:
        The model, the same object; `conversions` of it tells what was swapped back, and what was left.

    Raises:
        TypeError: `model` is not a module.
        ValueError: a converted layer has got another class since; nothing is changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
        >>> revert(convert(model))
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Tanh()
        )
    """
    check(model)
    layers = [(path, module) for path, module in _linears(model) if _PAIR in vars(module)]
    for path, layer in layers:
        if type(layer) not in OURS:
            raise ValueError(
                f"model: expected the layer {path!r} as convert left it, found {type(layer).__name__}: undo first what "
                "changed its class (a parametrization, fully_shard)"
            )
    standing = [(*found, *vars(found[2])[_STANDS_FOR]) for found in _standing(model)]
    whole = {vars(layer)[_PAIR] for _, layer in layers} & ({pair for *_, pair, _ in standing} | {""})
    for namespace, name, stand_in, pair, original in standing:
        if pair in whole:
            namespace[name] = _as_before(original, stand_in)
    keep(model, [_swap_back(path, layer, whole) for path, layer in layers])
    return model


def _linears(model: Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, torch.nn.Linear))


def _name(layer: type) -> str:
    return "manual_backprop.nn.Linear" if layer is nn.Linear else layer.__name__


# The places of activations


class StandIn(torch.nn.Identity):
    """Stands for an activation while `follow` looks for calls, so that each place of one is a module of its own."""


class PassThrough:
    """The identity, in the place of an activation function that a module has as an attribute."""

    def __call__(self, input: Tensor) -> Tensor:
        return input


@dataclass(frozen=True, eq=False)
class _Place:
    """A child, or an attribute, of a module that is an activation."""

    path: str
    namespace: dict[str, Any]
    name: str
    original: Any
    fusion: Fusion
    stand_in: StandIn


def _places(model: Module) -> Iterator[_Place]:
    for path, owner in model.named_modules():
        for namespace in (_torch.children(owner), vars(owner)):
            for name, value in namespace.items():
                for fusion in FUSIONS:
                    if type(value) is fusion.module or any(value is function for function in fusion.functions):
                        yield _Place(f"{path}.{name}".lstrip("."), namespace, name, value, fusion, StandIn())


@contextlib.contextmanager
def _stand_ins(places: list[_Place]) -> Iterator[None]:
    try:
        for place in places:
            place.namespace[place.name] = place.stand_in
        yield
    finally:
        for place in places:
            place.namespace[place.name] = place.original


def _standing(model: Module) -> list[tuple[dict[str, Any], str, Any]]:
    """Each thing that `convert` has put in the place of an activation, after its namespace and its name there."""
    return [
        (namespace, name, value)
        for owner in model.modules()
        for namespace in (_torch.children(owner), vars(owner))
        for name, value in namespace.items()
        if isinstance(value, torch.nn.Identity | PassThrough) and _STANDS_FOR in vars(value)
    ]


# Which Linear is followed by which activation


def _match(
    linear: torch.nn.Linear, calls: dict[Module, list[Call]], places: dict[Module, _Place], shared: set[StandIn]
) -> tuple[_Place | None, str]:
    """The place of its activation, or None and the reason."""
    why = _unfit(linear) or _watched(linear)
    if not why and not calls[linear]:
        why = "no forward calls it"
    for call in calls[linear]:
        if not why and call.target not in places:
            why = call.why or f"its output goes to {type(call.target).__name__}"
    if why:
        return None, why
    place, *others = {places[call.target] for call in calls[linear] if call.target}
    if others:
        return None, f"its output goes to different activations: {_paths([place, *others])}"
    why = _bound(place, linear, calls[place.stand_in])
    if place.stand_in in shared:
        same = [other for other in places.values() if other.original is place.original]
        why = f"its activation is shared: it is {_paths(same)}"
    return (None, why) if why else (place, "")


def _paths(places: list[_Place]) -> str:
    return " and ".join(sorted(place.path for place in places))


def _unfit(linear: torch.nn.Linear) -> str:
    """Why it cannot be any layer of ours."""
    if isinstance(linear, nn.LinearActivation):
        return "it has a hand-written backward already"
    if type(linear) is not torch.nn.Linear:
        return f"{type(linear).__name__} is a subclass of Linear"
    if own_forward(linear):
        return "it has a forward of its own"
    if {"activation", _PAIR} & vars(linear).keys():
        return "it has an attribute `activation` of its own"
    return "" if linear.weight.is_floating_point() else f"its weight is {linear.weight.dtype}, which has no σ′ here"


def _watched(linear: torch.nn.Linear) -> str:
    """Why its output has to stay z."""
    seen = {"_forward_hooks", "_backward_hooks", "_backward_pre_hooks"}.intersection(_torch.hooks(linear))
    return f"it has a hook on its output ({', '.join(sorted(seen))})" if seen else ""


def _bound(place: _Place, linear: torch.nn.Linear, calls: list[Call]) -> str:
    """Why the activation has to stay where it is."""
    if isinstance(place.original, Module):
        if _torch.hooks(place.original):
            return f"its activation {place.path} has a hook ({', '.join(_torch.hooks(place.original))})"
        if own_forward(place.original):
            return f"its activation {place.path} has a forward of its own"
    if any(call.source is not linear for call in calls):
        return f"its activation {place.path} is also called on something else"
    uses = max(call.uses for call in calls)
    return f"the output of its activation {place.path} is used {uses} times" if uses > 1 else ""


# There and back


def _swap(linear: torch.nn.Linear, layer: type[nn._NamedLinear], place: _Place | None) -> None:
    pair = uuid.uuid4().hex if place else ""
    linear.__class__ = layer
    vars(linear).update({"activation": layer._activation, _PAIR: pair})
    if place is None:
        return
    stand_in: Any = PassThrough()
    if isinstance(place.original, Module):
        stand_in = torch.nn.Identity()
        vars(stand_in).update(vars(place.original))  # They share the dictionaries of hooks: one added later is in both.
    vars(stand_in)[_STANDS_FOR] = (pair, place.original)
    place.namespace[place.name] = stand_in


def _as_before(original: Any, stand_in: Any) -> Any:
    if isinstance(original, Module):  # The stand-in may have got another mode, hooks and attributes meanwhile.
        vars(original).update({name: value for name, value in vars(stand_in).items() if name != _STANDS_FOR})
    return original


def _swap_back(path: str, layer: torch.nn.Linear, whole: set[str]) -> Row:
    before = _name(type(layer))
    if vars(layer)[_PAIR] not in whole:
        return Row(path, before, before, "what stood in the place of its activation is not in this model")
    layer.__class__ = torch.nn.Linear
    del vars(layer)["activation"], vars(layer)[_PAIR]
    return Row(path, before, "Linear")
