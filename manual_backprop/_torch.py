"""The one door to private torch: each private or undocumented part that the package uses, as one small function.

Torch may move these parts from one version to the next. So each stands here once, found when this file is imported, and
below `instead_of` stands what runs where torch has it no longer: the public way, or the answer that is safe. Nothing
here raises at import, whatever is missing, and a call costs what torch's own part costs.

`PARTS` is the list for those who test it; `validation.self_test` asks whether what the validator leans on still works.
Seen on torch 2.9, 2.13 and 2.14; the fallbacks need nothing but documented torch.
"""

import contextlib
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from operator import attrgetter, methodcaller
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.autograd.function import BackwardCFunction

from manual_backprop._nested import leaves, rebuilt

F = TypeVar("F", bound=Callable[..., Any])


class Part(NamedTuple):
    """A private part of torch: its names, whether this torch has them, and what runs where it has not."""

    names: tuple[str, ...]
    there: bool
    fallback: Callable[..., Any]


PARTS: dict[str, Part] = {}
"""By the name of the function here."""

_MISSING: Any = object()


def _found(name: str) -> Any:
    """A part of torch by its dotted name, or `_MISSING`."""
    try:
        return attrgetter(name.removeprefix("torch."))(torch)
    except Exception:  # more than AttributeError: modules of torch import others at such a question
        return _MISSING


def instead_of(*names: str, use: Callable[..., Callable[..., Any]] | None = None) -> Callable[[F], F]:
    """The function below is the fallback for these parts of torch.

    Where torch has them all, its part takes the function's place; with ``use``, what that makes of the parts.
    """

    def choose(fallback: F) -> F:
        parts = [_found(name) for name in names]
        there = not any(part is _MISSING for part in parts)
        PARTS[fallback.__name__] = Part(names, there, fallback)
        if not there:
            return fallback
        return parts[0] if use is None else use(*parts)  # type: ignore[return-value]

    return choose


# --- who sees what is computed ----------------------------------------------------------------------------------------


class _OldForm(Function):
    """A Function that torch refuses under a transform, because its forward takes ctx."""

    forward = staticmethod(lambda ctx: None)


@instead_of("torch._C._are_functorch_transforms_active")
def transform_is_active() -> bool:
    """Whether a transform of `torch.func` (vmap, grad, jvp …) is at work.

    Without it: by a Function that torch refuses under one, in some microseconds; in a graph of the compiler always yes,
    so that the layers differentiate there as torch does.
    """
    if torch.compiler.is_compiling():
        return True
    try:
        _OldForm.apply()
    except RuntimeError:
        return True
    return False


@instead_of("torch.autograd.forward_ad._current_level", use=lambda _: lambda: forward_ad._current_level >= 0)
def forward_mode_is_on() -> bool:
    """Whether `torch.autograd.forward_ad.dual_level` is open. Without it: by opening one; torch refuses a second."""
    try:
        level = forward_ad.enter_dual_level()
    except RuntimeError:
        return True
    forward_ad.exit_dual_level(level=level)
    return level > 0


@instead_of(
    "torch._C._functorch.get_interpreter_stack",
    "torch._C._functorch.TransformType.Jvp",
    use=lambda stack, jvp: lambda: sum(transform.key() == jvp for transform in stack() or ()) > 1,
)
def forward_mode_is_nested() -> bool:
    """Whether `torch.func.jvp` runs within another, asked where a transform or forward mode is at work.

    Without it: yes, so that the layers differentiate under transforms as torch does, and give the same values.
    """
    return True


@instead_of("torch._C._is_tracing")
def is_tracing() -> bool:
    """Whether `torch.jit.trace` is at work. Without it: the public question, which asks for scripts too."""
    return torch.jit.is_tracing()


@instead_of("torch.compiler._is_exporting_flag", use=lambda _: lambda: torch.compiler._is_exporting_flag)
def is_exporting() -> bool:
    """Whether `torch.export` is at work.

    Without it: the public question, which in a graph of the compiler of torch 2.9 is always answered with yes.
    """
    return torch.compiler.is_exporting()


@instead_of("torch._C._len_torch_dispatch_stack")
def modes_active() -> int:
    """How many dispatch modes (fake tensors, selective checkpointing …) see each operation.

    Without it: as if one did, so that nothing is computed in place and no kernel but ATen's runs.
    """
    return 1


@instead_of("torch._C._is_any_autocast_enabled")
def autocast_is_on_somewhere() -> bool:
    """Whether autocast is on for any kind of device. Without it: each kind that torch 2.14 knows is asked."""
    kinds = ("cpu", "cuda", "xpu", "mps", "mtia", "hpu", "maia", "xla", "ipu", "privateuseone")
    return any(map(torch.is_autocast_enabled, kinds))


@instead_of("torch.utils._python_dispatch._disable_current_modes")
def without_modes() -> contextlib.AbstractContextManager[Any]:
    """A block that no dispatch mode of the caller's sees.

    Without it: they see it. A selective checkpoint then keeps what `Monitor` computes beside the model, and may raise.
    """
    return contextlib.nullcontext()


# --- the graph --------------------------------------------------------------------------------------------------------


def _subclasses(owner: Any) -> Iterator[Any]:
    for below in owner.__subclasses__():
        yield below
        yield from _subclasses(below)


@instead_of(
    "torch.autograd.Function._backward_cls._forward_cls",
    use=lambda _: lambda node: (node._forward_cls,) if hasattr(node, "_forward_cls") else (),
)
def functions_of_node(node: Any) -> tuple[type, ...]:
    """The Function class behind a node of the graph, ``(Square,)``; nothing for torch's own and for C++.

    A custom op (`torch.library.custom_op` with `register_autograd`) is a Function that torch makes,
    ``GeneratedBackwardFor_…``. Without it: every Function whose name the node bears, several where names are shared.
    """
    if not isinstance(node, BackwardCFunction):
        return ()
    return tuple(owner for owner in _subclasses(Function) if f"{owner.__name__}Backward" == type(node).__name__)


def is_hand_written(node: Any) -> bool:
    """Whether a node is no operation of torch's: a Function in Python, or one in C++, which torch calls a CppNode.

    Its name in C++ is documented nowhere. Without it: a Function in C++ counts as torch's own.
    """
    return isinstance(node, BackwardCFunction) or "CppNode" in node.name()


@instead_of(
    "torch.autograd.Function.maybe_clear_saved_tensors", use=lambda _: methodcaller("maybe_clear_saved_tensors")
)
def free_saved(ctx: Any) -> None:
    """Frees the saved tensors of a Function in the middle of its backward, unless the graph is retained.

    Without it: they are freed when backward has run.
    """


@instead_of("torch.Tensor._version", use=lambda _: lambda x: x.grad_fn is not None and x._version > 0)
def written_in_place(clone: Tensor) -> bool:
    """Whether an operation that torch saw has written into a tensor that `Tensor.clone` made, with a graph behind it.

    Without it: whether another node than that of clone is behind it now.
    """
    return clone.grad_fn is not None and not clone.grad_fn.name().startswith("CloneBackward")


# --- memory -----------------------------------------------------------------------------------------------------------


def _watch_by(reference: Any) -> Callable[[Tensor], Callable[[], bool]]:
    def watch_memory(tensor: Tensor) -> Callable[[], bool]:
        storage = reference(tensor.untyped_storage())
        return lambda: not storage.expired()

    return watch_memory


@instead_of("torch.multiprocessing.reductions.StorageWeakRef", use=_watch_by)
def watch_memory(tensor: Tensor) -> Callable[[], bool]:
    """A question to ask later: is the memory of this tensor still held, be it by a detached alias?

    Without it: by a weak reference to the storage's object in Python, which torch keeps as long as the memory.
    """
    storage = weakref.ref(tensor.untyped_storage())
    return lambda: storage() is not None


@instead_of("torch.Tensor._is_zerotensor")
def has_no_memory(tensor: Tensor) -> bool:
    """Whether a tensor is zeros that torch does not write down, and refuses to have written to.

    Without it: whether it has elements, and no address.
    """
    return bool(tensor.numel()) and tensor.layout == torch.strided and tensor.data_ptr() == 0


@instead_of("torch._efficientzerotensor")
def zeros_without_memory(shape: Sequence[int]) -> Tensor | None:
    """Zeros that torch does not write down. Without it: None, since no public operation promises them."""
    return None


@instead_of("torch._neg_view")
def negative_view(x: Tensor) -> Tensor:
    """−x as a view of x with the negative bit set. Without it: as the imaginary part of a conjugate, with strides."""
    return torch.complex(torch.zeros_like(x), x).conj().imag


# --- nested arguments -------------------------------------------------------------------------------------------------


_TREE = (
    "torch.utils._pytree.tree_flatten",
    "torch.utils._pytree.tree_unflatten",
    "torch.utils._pytree.tree_flatten_with_path",
    "torch.utils._pytree.keystr",
)  # all of them or none: what one takes apart another puts together


@instead_of(*_TREE)
def flatten(value: Any) -> tuple[list[Any], Any]:
    """The leaves of nested arguments, and how they are nested: tuples, lists, dicts, and what `torch` was told of.

    Without it: tuples, lists and dicts; a container of another kind is a leaf.
    """
    return [leaf for _, leaf in leaves(value)], rebuilt(value, itertools.repeat(None))


@instead_of(*_TREE, use=lambda flat, unflat, paths, words: unflat)
def unflatten(parts: Iterable[Any], structure: Any) -> Any:
    """`flatten` undone, with other leaves. Without it: as `flatten`."""
    return rebuilt(structure, iter(parts))


@instead_of(*_TREE, use=lambda flat, unflat, paths, words: lambda value: [words(path) for path, _ in paths(value)[0]])
def leaf_paths(value: Any) -> list[str]:
    """Where each leaf stands, ``["[0]['weight']"]``; "" for a leaf by itself. Without it: as `flatten`."""
    return [path for path, _ in leaves(value)]


# --- modules ----------------------------------------------------------------------------------------------------------

FEED_FORWARD = dict.fromkeys((nn.TransformerEncoderLayer, nn.TransformerDecoderLayer), "_ff_block")
"""Classes whose forward looks at its input, which `torch.fx` cannot follow, and the method that calls their Linears.
Without it: a Linear in them is left alone, and `convert` says that its forward cannot be followed."""


def children(module: nn.Module) -> dict[str, Any]:
    """The children of a module by name, repeated ones and None too, in the very dictionary that the module reads.

    Without it: none, so that nothing is converted and nothing taken for a Sequential's content.
    """
    return vars(module).get("_modules", {})


def hooks(module: nn.Module) -> list[str]:
    """The names of the hooks that a module has: ``["_forward_hooks"]``.

    Without it: all that a module may have, so that it is left as it is.
    """
    return [name for name in _HOOKS if vars(module).get(name)] if _HOOKS else ["_forward_hooks", "_backward_hooks"]


_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def compiled_in_place(module: nn.Module) -> bool:
    """Whether `nn.Module.compile` was called on it. Without it: no; what was compiled then runs on after `convert`."""
    return vars(module).get("_compiled_call_impl") is not None


def compiled_module(model: nn.Module) -> nn.Module | None:
    """The module that `torch.compile` wrapped, or None. Without it: the only child of a class of that name."""
    only = next(model.children(), None) if type(model).__name__ == "OptimizedModule" else None
    return children(model).get("_orig_mod", only)


# --- random numbers, operations and programs --------------------------------------------------------------------------


def _seed_queues(cuda: Any) -> Callable[[], list[Any]]:
    found = [cuda, *(_found(f"torch.{kind}._lazy_seed_tracker") for kind in ("xpu", "mtia"))]
    return lambda: [queue for queue in found if queue is not _MISSING]


@instead_of("torch.cuda._lazy_seed_tracker", use=_seed_queues)
def seed_queues() -> list[Any]:
    """The objects in whose attributes `torch.manual_seed` leaves a seed for a device that is not initialised yet.

    Without it: none, so the seed that a user's function sets there stays.
    """
    return []


def operation(name: str) -> Callable[..., Any] | None:
    """One of ATen's operations, ``"sigmoid_backward.grad_input"``; None where torch has it no longer."""
    found = _found(f"torch.ops.aten.{name}")
    return None if found is _MISSING else found


ONEDNN = "torch.ops.mkldnn._linear_pointwise"
ONEDNN_SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)


@cache
def onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's product with an activation behind it, ``(x, w, b, activation, [], "") → a``.

    None where torch is built without oneDNN, or its operation has another signature than on torch 2.9 to 2.14.
    """
    schemas, product = _found("torch._C._jit_get_schemas_for_operator"), _found(ONEDNN)
    if _MISSING in (schemas, product) or not torch.backends.mkldnn.is_available():
        return None
    try:
        same = ONEDNN_SCHEMA in map(str, schemas("mkldnn::_linear_pointwise"))
    except Exception:  # torch may ask for other arguments
        return None
    return product if same else None


@instead_of("torch.ops.mkldnn._is_mkldnn_bf16_supported")
def onednn_has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor, which takes AVX-512. Without it: no."""
    return False


def show_graph(writer: Any, model: nn.Module, x: Tensor) -> None:
    """The graph of a model on TensorBoard, which takes it from `torch.jit.trace`.

    That is deprecated, and may break on Python 3.14. Without it: a warning, and no graph.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.trace")
        warnings.filterwarnings("ignore", "The input to trace is already a ScriptModule")
        try:
            # Traced here, because TensorBoard would check the graph too, for which torch imports modules for a second.
            writer.add_graph(torch.jit.trace(model, x, check_trace=False), x)
            return
        except (AttributeError, ImportError, NotImplementedError) as error:
            reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"torch.jit.trace is gone ({reason}): TensorBoard shows no graph of the model", stacklevel=3)
