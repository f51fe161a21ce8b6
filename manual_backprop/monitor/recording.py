"""One step of training as hooks see it: from the tensors that pass by to the numbers that TensorBoard shows.

Layers get their hooks for the forward pass alone. For the backward pass the hooks sit on the tensors and nodes of that
pass's graph and go with it: a full backward hook of a module would forbid an in-place activation behind it, and a hook
on a parameter would stay in its attributes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks

from manual_backprop import _torch, functions
from manual_backprop.activations import identity
from manual_backprop.monitor import measures
from manual_backprop.monitor.measures import Histogram
from manual_backprop.nn import LinearActivation

ELEMENTWISE = (
    nn.Sigmoid, nn.Tanh, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Tanhshrink,
)  # fmt: skip
"""Activations with a σ′(z) of each element. (RReLU draws random numbers, and a second call would draw others.)"""

RECTIFIERS = (nn.ReLU, nn.ReLU6)


@contextmanager
def _unseen_by_checkpoints() -> Iterator[None]:
    """Keeps the tensors of this block from an activation checkpoint around a layer, because it would count them among
    the model's own and hand them to the layers behind."""
    with _torch.without_modes(), saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


class Recording:
    """The scalars, histograms and marks of one step of training.

    Args:
        model: without its wrappers, so that the paths are those of its own modules.
        step: its number.
        reference: whether to hold the hand-written gradients against autograd's.

    Attributes:
        scalars, histograms: by tag.
        marks: a line for each tensor with a NaN or an infinity, in the order in which they came up.
        differentiated: whether a backward pass has come to a parameter.
        written: whether the scalars and histograms have been written.
    """

    def __init__(self, model: nn.Module, step: int, reference: bool) -> None:
        self.model, self.step, self.reference = model, step, reference
        self.scalars: dict[str, float] = {}
        self.histograms: dict[str, Histogram] = {}
        self.marks: list[str] = []
        self.differentiated = self.written = False
        self.before = {name: p.detach().clone() for name, p in _parameters(model)}
        self._layer_handles: list[Any] = []
        self._graph_handles: list[Any] = []
        self._nodes: list[Any] = []  # of the parameters; kept here, because torch drops a node that nobody refers to
        self._seen: set[str] = set()
        self._last: tuple[str, Any] = ("", None)  # the layer that ran last, and its output
        for name, value in self.before.items():
            self._show(f"weights/{name}", value, f"`{name}`")

    # --- the hooks ------------------------------------------------------------------------------------------------

    def attach(self, whole: nn.Module, layers: bool) -> None:
        """Before the forward pass of ``whole``, the model in its wrappers. ``layers``: False where hooks on layers do
        not run, in a compiled model."""
        ends = whole.register_forward_hook(lambda *_: self.forward_ends(), always_call=True)
        self._layer_handles.append(ends)
        for path, module in self.model.named_modules() if layers else ():
            path = path or type(module).__name__
            if isinstance(module, ELEMENTWISE):
                hook = module.register_forward_pre_hook(partial(self._activation_runs, path))
                self._layer_handles.append(hook)
            elif next(module.parameters(recurse=False), None) is not None:
                # `prepend`, because the model itself may be such a layer: this hook has to run before `forward_ends`.
                hook = module.register_forward_hook(partial(self._layer_ran, path), prepend=True, with_kwargs=True)
                self._layer_handles.append(hook)
        for name, parameter in _parameters(self.model):
            if parameter.requires_grad:
                node = get_gradient_edge(parameter).node
                self._nodes.append(node)
                self._graph_handles.append(node.register_prehook(partial(self._gradient, name)))

    def forward_ends(self) -> None:
        """After the forward pass: the layers are as they were."""
        _remove(self._layer_handles)
        self._last = ("", None)

    def detach(self) -> None:
        """Nothing is followed any longer."""
        self.forward_ends()
        _remove(self._graph_handles)
        self._nodes.clear()

    @_unseen_by_checkpoints()
    def _layer_ran(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        a = _first(output)
        if a is None or path in self._seen:  # of several runs in one step, the first
            return
        x = _first((args, kwargs))
        if x is not None:
            self._scalar(f"input/{path}", measures.share(measures.real(x).abs() < measures.NEAR_ZERO))
        self._show(f"activations/{path}", a, f"the output of `{path}`")
        self._last = (path, output)
        prime: Tensor | float = 1.0
        if isinstance(module, LinearActivation) and x is not None:
            prime = self._own_layer(path, module, x, a)
        else:
            self._show(f"saturation/{path}/z", a, "")
        if a.requires_grad:
            self._seen.add(path)
            self._graph_handles.append(a.register_hook(partial(self._error, path, prime)))

    @torch.no_grad()
    def _own_layer(self, path: str, module: LinearActivation, x: Tensor, a: Tensor) -> Tensor | float:
        """A layer of ours: its output is a, so z and σ′(z) are computed here."""
        f, z = module.activation, nn.functional.linear(x, module.weight, module.bias)
        prime = f.derivative_at(z, a)
        self._saturation(path, z, a, torch.as_tensor(prime), f.module in RECTIFIERS)
        if self.reference and a.requires_grad:
            self._follow_reference(path, module, x, a)
        return prime.detach() if isinstance(prime, Tensor) else prime

    @_unseen_by_checkpoints()
    def _activation_runs(self, path: str, module: nn.Module, args: Any) -> None:
        """Runs before an activation module, because an in-place one writes over z; the figures of an activation belong
        to the layer that it follows."""
        z = _first(args)
        if z is None:
            return
        path = self._last[0] if z is _first(self._last[1]) else path
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            a = module.forward(leaf.clone())
            (prime,) = torch.autograd.grad(a.sum(), leaf)
        self._saturation(path, z, a, prime, isinstance(module, RECTIFIERS))
        self._show(f"activations/{path}", a, f"the activation of `{path}`")

    def _gradient(self, name: str, gradients: tuple[Tensor | None, ...]) -> None:
        self.differentiated = True
        if gradients[0] is not None:
            self._scalar(f"gradient/{name}/norm", measures.norm(gradients[0]))
            self._show(f"gradient/{name}/values", gradients[0], f"the gradient of `{name}`")

    def _error(self, path: str, prime: Tensor | float, grad_output: Tensor) -> None:
        """δ = ∂C/∂a ⊙ σ′(z) (BP1, BP2); for a layer whose output is z itself, σ′ = 1."""
        delta = grad_output.detach() * prime
        self._scalar(f"error/{path}/norm", measures.norm(delta))
        self._show(f"error/{path}/delta", delta, f"δ of `{path}`")

    def _follow_reference(self, path: str, module: LinearActivation, x: Tensor, a: Tensor) -> None:
        """Holds what the layer's backward returns, for the gradient that it is given, against autograd's."""
        node: Any = a.grad_fn
        linear = node if module.activation.split()[1] is identity else node.next_functions[0][0]
        ours = (functions.linear_activation.plain, functions.linear_activation.full)
        if not set(_torch.functions_of_node(linear)).intersection(ours):
            return  # a subclass with another forward, or within a transform
        incoming: list[Tensor] = []
        operands: dict[str, Tensor | None] = {"input": x, "weight": module.weight, "bias": module.bias}

        def compare(grad_inputs: tuple[Tensor | None, ...], _: Any) -> None:
            expected = _plain_gradients(module, operands, incoming.pop())
            for name, written in zip(operands, grad_inputs, strict=False):
                if written is not None and name in expected:
                    self._scalar(f"agreement/{path}/{name}", measures.relative_error(written, expected[name]))

        self._graph_handles.append(node.register_prehook(lambda gradients: incoming.append(gradients[0])))
        self._graph_handles.append(linear.register_hook(compare))

    # --- the numbers ----------------------------------------------------------------------------------------------

    def learning_speeds(self) -> dict[str, float]:
        """‖Δw‖/‖w‖ of each parameter since the step began; empty where nothing has moved yet."""
        speeds = {}
        for name, parameter in _parameters(self.model):
            if parameter.requires_grad and name in self.before:
                before = self.before[name]
                size = max(measures.norm(before), torch.finfo(torch.float32).tiny)
                speeds[f"learning_speed/{name}"] = measures.norm(parameter.detach() - before) / size
        return speeds if any(speeds.values()) else {}

    def image(self) -> tuple[str, Tensor] | None:
        """The weights of the first layer that has a matrix of them, where they are pictures."""
        for name, value in self.before.items():
            if value.dim() > 1:
                picture = measures.weight_images(value)
                return None if picture is None else (f"weights/{name}/image", picture)
        return None

    def _saturation(self, path: str, z: Tensor, a: Tensor, prime: Tensor, rectifier: bool) -> None:
        self._scalar(f"saturation/{path}/share", measures.share(prime.abs() < measures.SATURATED))
        self._show(f"saturation/{path}/z", z, f"z of `{path}`")
        if rectifier and a.dim() > 1 and len(a):
            # A unit is a channel of a convolution and a feature of anything else; it is dead if it is 0 on all samples.
            units = (a.detach() == 0).movedim(1 if a.dim() > 3 else -1, 0)
            self._scalar(f"saturation/{path}/dead", measures.share(units.flatten(1).all(1)))

    def _scalar(self, tag: str, value: float) -> None:
        self.scalars[tag] = value

    def _show(self, tag: str, x: Tensor, words: str) -> None:
        """A histogram of ``x``, and a mark where it is not finite; ``words`` say what it is."""
        found = measures.histogram(x)
        if found is not None:
            self.histograms[tag] = found
        bad = measures.not_finite(x) if words else 0
        if bad:
            self.marks.append(f"step {self.step}: {bad} of {x.numel()} values of {words} are NaN or infinite")


def _plain_gradients(module: LinearActivation, operands: dict[str, Tensor | None], grad_a: Tensor) -> dict[str, Tensor]:
    """Autograd's gradients of the same layer in nothing but torch operations, at the same numbers."""
    with torch.enable_grad(), torch.autocast(grad_a.device.type, enabled=False):
        leaves = {name: x.detach().to(grad_a.dtype).requires_grad_() for name, x in operands.items() if x is not None}
        z = nn.functional.linear(leaves["input"], leaves["weight"], leaves.get("bias"))
        gradients = torch.autograd.grad(module.activation.function(z), list(leaves.values()), grad_a)
    return dict(zip(leaves, gradients, strict=True))


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that are real or complex numbers, by name."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            yield name, parameter


def _first(values: Any) -> Tensor | None:
    """The first floating tensor of a module's arguments or outputs, whatever they are nested in."""
    leaves, _ = _torch.flatten(values)
    return next((x for x in leaves if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())), None)


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
