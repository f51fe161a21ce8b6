"""Which module of a model takes the output of which, found without running the model.

An `nn.Sequential` is read, other forwards are followed by `torch.fx`, one forward at a time: every module called in it
is a leaf, so that no hook runs and nothing is assumed about what is inside.
"""

import copy
import inspect
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node, Proxy, Tracer
from torch.fx.node import map_arg
from torch.nn import Module

from manual_backprop import _torch


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module, in one forward.

    Attributes:
        module: what is called.
        source: the module whose output is its only argument, if it is one.
        target: the module that takes the output as its only argument, if that is all that happens to the output.
        uses: how often the output is used, being returned included.
        why: where there is no target, what happens to the output instead.
    """

    module: Module
    source: Module | None = None
    target: Module | None = None
    uses: int = 1
    why: str = ""


def follow(model: Module, watched: Collection[Module]) -> list[Call]:
    """The calls in all the forwards of a model.

    Args:
        model: nothing in it is changed or run.
        watched: the modules that matter: a forward that has none of them below it is not followed.

    Returns:
        The calls; for a forward that cannot be followed, a `Call` with the reason for each module that it may call.
    """
    calls: list[Call] = []
    inner = _inner_sequentials(model)
    for module in model.modules():
        if module in inner or not any(below in watched for below in module.modules()):
            continue
        if _is_sequential(module):
            calls += _calls_in_a_row(list(_flat(module, inner)))
        elif type(module).forward is not Module.forward or "forward" in vars(module):
            calls += _calls_in_a_forward(module)
    return calls


def own_forward(module: Module) -> bool:
    """Whether this object runs something else than the forward of its class (accelerate does so; `Module.compile`)."""
    return "forward" in vars(module) or _torch.compiled_in_place(module)


# nn.Sequential


def _is_sequential(module: Module) -> bool:
    return type(module).forward is torch.nn.Sequential.forward and "forward" not in vars(module)


def _inner_sequentials(model: Module) -> set[Module]:
    """The Sequentials that may be read as if their modules stood in the Sequential around them: they have no hooks and
    stand in one place only."""
    parents = [module for module in model.modules() if _is_sequential(module)]
    places = Counter(child for module in model.modules() for child in _torch.children(module).values())
    children = {child for parent in parents for child in parent.children() if _is_sequential(child)}
    return {child for child in children if places[child] == 1 and child is not model and not _torch.hooks(child)}


def _flat(module: Module, inner: Collection[Module]) -> Iterator[Module]:
    for child in _torch.children(module).values():  # All of them, where `children` leaves out repeated ones.
        if child is not None:
            yield from _flat(child, inner) if child in inner else [child]


def _calls_in_a_row(row: list[Module]) -> Iterator[Call]:
    for source, module, target in zip([None, *row], row, [*row[1:], None], strict=False):
        yield Call(module, source, target, why="" if target else "it is the last of its Sequential")


# Any other forward


def _calls_in_a_forward(module: Module) -> list[Call]:
    """Followed in training and in evaluation, with its optional arguments given and left out."""
    forward = type(module).forward
    name = type(module).__name__
    method = next((method for owner, method in _torch.FEED_FORWARD.items() if forward is owner.forward), "forward")
    if own_forward(module):
        return _not_followed(module, f"this {name} has a forward of its own")
    if method == "forward" and (forward.__module__ or "").split(".")[0] == "torch":
        return _not_followed(module, f"the forward of {name} is torch's own")
    try:
        parameters = inspect.signature(getattr(type(module), method)).parameters.values()
        left_out = {parameter.name: None for parameter in parameters if parameter.default is None}
        arguments = [{}, left_out] if left_out else [{}]
        return [call for given in arguments for mode in (True, False) for call in _traced(module, method, mode, given)]
    except Exception as reason:  # The forward gets proxies, no tensors, so its code may raise anything.
        first_line = (str(reason) or type(reason).__name__).splitlines()[0]
        return _not_followed(module, f"torch.fx cannot follow the forward of {name}: {first_line}")


def _not_followed(module: Module, why: str) -> list[Call]:
    return [Call(child, why=why) for child in _reachable(module)]


def _reachable(module: Module) -> Iterator[Module]:
    """The children, also those in containers without a forward, such as ModuleList."""
    for child in module.children():
        yield child
        if type(child).forward is Module.forward:
            yield from _reachable(child)


def _traced(module: Module, method: str, training: bool, given: dict[str, None]) -> list[Call]:
    tracer = _LeafTracer(method)
    trial = _trial(module, training)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        tracer.trace(trial, given)
    # Read here, while `trial` lives, because a forward may have kept an output in an attribute of it.
    return [_call(node, tracer.called, type(module).__name__) for node in tracer.called]


def _trial(module: Module, training: bool) -> Module:
    """The same module, in which a forward may set attributes and add to lists without changing the original."""
    trial: Module = object.__new__(type(module))
    for name, value in vars(module).items():
        vars(trial)[name] = copy.copy(value) if isinstance(value, dict | list | set) else value
    vars(trial)["training"] = training
    return trial


@dataclass(frozen=True)
class _Called:
    module: Module
    grad_mode: bool
    output: Callable[[], Proxy | None]


class _LeafTracer(Tracer):
    """Notes each call of a module, and does not go into it."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method
        self.called: dict[Node, _Called] = {}

    def call_module(self, m: Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        output = self.create_proxy("call_module", type(m).__name__, args, kwargs)
        self.called[output.node] = _Called(m, torch.is_grad_enabled(), weakref.ref(output))
        return output


def _call(node: Node, called: dict[Node, _Called], caller: str) -> Call:
    uses = [use for user in node.users for use in _arguments(user) if use is node]
    user = next(iter(node.users), None)
    why = _why(node, user, len(uses), called, caller)
    return Call(
        module=called[node].module,
        source=_source(node, called),
        target=None if why or user is None else called[user].module,
        uses=len(uses) + (called[node].output() is not None),
        why=why,
    )


def _source(node: Node, called: dict[Node, _Called]) -> Module | None:
    argument = node.args[0] if len(node.args) == 1 and not node.kwargs else None
    if not isinstance(argument, Node) or argument not in called:
        return None
    return called[argument].module if called[argument].grad_mode == called[node].grad_mode else None


def _why(node: Node, user: Node | None, uses: int, called: dict[Node, _Called], caller: str) -> str:
    if called[node].output() is not None:
        return f"its output is kept by the forward of {caller}"
    if user is None or uses != 1:
        return f"its output is used {uses} times in the forward of {caller}"
    if user.op == "output":
        return f"its output is what {caller} returns"
    if user in called:
        together = "with other arguments, or in another grad mode"
        return "" if _source(user, called) else f"its output is passed on {together}, in the forward of {caller}"
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", str(user.target))
    return f"its output goes to {name}(), which is written into the forward of {caller}"


def _arguments(node: Node) -> list[Node]:
    found: list[Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found
