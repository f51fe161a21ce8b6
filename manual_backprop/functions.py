"""The backward passes as `torch.autograd.Function`s: each line of a `backward` is one equation of the chapter.

Conventions of every Function here (`NetworkCostFunction` has some of its own, and says so):

- ``forward`` without ctx and ``setup_context``, since only that form works under `torch.func`; no arithmetic in
  ``setup_context``. Wherever no transform asks for it, `TwoForms` runs the same as one ``forward(ctx, …)``.
- It saves inputs and outputs only (an intermediate would be cut off from the graph, and a second derivative silently
  wrong: pytorch issue 58509), and only those that the gradients asked for will read.
- ``backward`` writes into nothing that it is given, and is made of differentiable operations.
- `Activation` and `Cost` are arguments rather than subclasses: one Function a shape of computation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop import _torch, feedforward, kernels
from manual_backprop.activations import Activation, identity
from manual_backprop.costs import Cost, reduce
from manual_backprop.equations import bias_gradient, input_gradient, output_error, weight_gradient


class LinearActivationFunction(Function):
    """a = σ(input @ weightᵀ + bias), for an activation whose derivative is computed from a (or is constant).

    Shapes: input ``(*, i)``, weight ``(o, i)``, bias ``(o,)`` or None; a ``(*, o)``.

    An activation whose derivative takes z is a Function of its own, `ActivationFunction`, behind the identity layer:
    then z is an input that may be saved, where here it would be an intermediate.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
        return kernels.linear(input, weight, bias, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, weight, _, ctx.activation = inputs
        input_needs_grad, weight_needs_grad, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            input if weight_needs_grad else None,
            weight if input_needs_grad else None,
            output if ctx.activation.needs else None,
        )
        ctx.save_for_forward(input, weight, output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, a = ctx.saved_tensors
        needs = ctx.needs_input_grad
        gradients = kernels.gradients(grad_output, input, weight, a, ctx.activation, needs)
        if gradients is not None:  # the kernel has computed the lines below in one call
            return *gradients, None
        delta = output_error(grad_output, ctx.activation.derivative_of(a))  # BP1, and the second half of BP2
        return *_gradients(delta, input, weight, needs), None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, d_weight: Tensor, d_bias: Tensor | None, _: None) -> Tensor:
        input, weight, a = ctx.saved_tensors
        d_z = torch.nn.functional.linear(d_input, weight) + torch.nn.functional.linear(input, d_weight, d_bias)
        return ctx.activation.derivative(a) * d_z  # da = σ′(z) ⊙ dz


def _gradients(
    delta: Tensor, input: Tensor, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """∂C/∂input, ∂C/∂weight and ∂C/∂bias of a layer, each None where it is not asked for."""
    grad_input = grad_weight = grad_bias = None
    if needs[0]:
        grad_input = input_gradient(weight, delta)  # BP2, its first half: the layer below does the second
    if needs[1]:
        grad_weight = weight_gradient(delta, input)  # BP4
    if needs[2]:
        grad_bias = bias_gradient(delta)  # BP3
    return grad_input, grad_weight, grad_bias


class ActivationFunction(Function):
    """a = σ(z), for an activation whose derivative is computed from z. Shapes: z and a ``(*, o)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, activation: Activation) -> Tensor:
        return activation.function(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        z, ctx.activation = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        return output_error(grad_output, ctx.activation.derivative_of(z)), None  # BP1, and the second half of BP2

    @staticmethod
    def jvp(ctx: Any, d_z: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return ctx.activation.derivative(z) * d_z  # da = σ′(z) ⊙ dz


class CostFunction(Function):
    """C(a, y) of each sample. Shapes: a and y ``(*, o)``; C ``(*,)``.

    `backward` gives ∇_a C, the first factor of BP1; for a cost of the weighted input it gives δ^L itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, target: Tensor, cost: Cost) -> Tensor:
        return cost.value(input, target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        input, target, ctx.cost = inputs
        ctx.save_for_backward(input, target)
        ctx.save_for_forward(input, target)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, target = ctx.saved_tensors
        grad_input = grad_target = None
        grad_output = grad_output.unsqueeze(-1)
        if ctx.needs_input_grad[0]:
            grad_input = grad_output * ctx.cost.derivative(input, target)
        if ctx.needs_input_grad[1]:
            grad_target = grad_output * ctx.cost.target_derivative(input, target)
        return grad_input, grad_target, None

    @staticmethod
    def jvp(ctx: Any, d_input: Tensor, d_target: Tensor, _: None) -> Tensor:
        input, target = ctx.saved_tensors
        d_cost = ctx.cost.derivative(input, target) * d_input + ctx.cost.target_derivative(input, target) * d_target
        return d_cost.sum(-1)  # dC = Σ_j (∂C/∂a_j da_j + ∂C/∂y_j dy_j)


class TwoForms:
    """A Function as it is written above, and its plain form: one ``forward(ctx, …)``, no jvp, the same backward.

    The plain form costs a call some 20 µs less, and `torch.compile` takes it, which refuses a Function with a jvp.
    """

    def __init__(self, function: type[Function]) -> None:
        compute, setup_context = function.forward, function.setup_context

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = compute(*inputs)
            setup_context(ctx, inputs, output)
            return output

        self.full = function
        self.plain: type[Function] = type(
            function.__name__, (Function,), {"forward": staticmethod(forward), "backward": function.backward}
        )

    def apply(self, *inputs: Any) -> Any:
        """The plain form wherever it will do; the full one under a transform of `torch.func` and in forward mode; the
        bare forward, with torch's own derivative, where torch would go wrong through anybody's Function in silence.

        Three such places: `torch.export`, which in strict mode leaves a Function without a gradient; `torch.compile` of
        a transform, whose gradients through a Function are 0 in torch 2.14; forward mode within forward mode, where the
        inner tangent is lost (pytorch issue 197867).
        """
        if plain_call():
            return self.plain.apply(*inputs)
        if torch.compiler.is_compiling():
            bare = torch.compiler.is_exporting() or _torch.transform_is_active()
            return self.full.forward(*inputs) if bare else self.plain.apply(*inputs)
        return self.full.forward(*inputs) if _torch.forward_mode_is_nested() else self.full.apply(*inputs)


def plain_call() -> bool:
    """Whether this call is neither traced by the compiler nor under a transform, forward mode among them."""
    return not (torch.compiler.is_compiling() or _torch.transform_is_active() or _torch.forward_mode_is_on())


linear_activation = TwoForms(LinearActivationFunction)
activation_of = TwoForms(ActivationFunction)
cost_of = TwoForms(CostFunction)


def layer(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """a = σ(input @ weightᵀ + bias) by one of the Functions, or by two where σ′ takes z."""
    of_product, after = activation.split()
    a = linear_activation.apply(input, weight, bias, of_product)
    return a if after is identity else activation_of.apply(a, after)


class NetworkCostFunction(Function):
    """The cost of a whole network as one node, with BP1 to BP4 in one loop.

    Shapes: input ``(*, i)``, target ``(*, o)``; parameters w^1, b^1, w^2, b^2 …; the sum or mean of the costs, ``()``.
    It has a plain form only (see `plain_call`), no gradient of the target, and saves what is computed on the way, or
    the gradients where the kernel gives them with the cost: so a second derivative goes through the layers one by one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        activations: tuple[Activation, ...],
        cost: Cost,
        reduction: str,
        *parameters: Any,
    ) -> Tensor:
        ctx.activations, ctx.cost, ctx.reduction = activations, cost, reduction
        samples = input.shape[:-1].numel() if reduction == "mean" else 1
        ctx.scale = 1 / max(1, samples)
        needs = ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]
        at_once = kernels.network_cost(input, target, activations, cost, ctx.scale, parameters, needs)
        ctx.at_once = at_once is not None
        if at_once:
            value, gradients = at_once
            ctx.save_for_backward(target, *parameters, input, *gradients)
            return value
        activated, weighted = [input], []  # a^0 = x, a^1 …; the z^l that σ′ is computed from
        passed = feedforward.layers(parameters[::2], parameters[1::2], activations, input, keep_z=False)
        for f, (value, a) in zip(activations, passed, strict=True):
            if f.split()[1] is not identity:
                weighted.append(value)
            activated.append(a)
        ctx.save_for_backward(target, *parameters, *activated, *weighted)
        return reduce(cost.value(activated[-1], target), reduction)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.activations)
        target, *saved = ctx.saved_tensors
        parameters, (input, *saved) = saved[: 2 * layers], saved[2 * layers :]
        if torch.is_grad_enabled():
            # Called with create_graph=True: the saved a^l and z^l carry no graph, so the pass is made again by the
            # layers' own Functions, which can be differentiated again.
            arguments = (input, target, ctx.activations, ctx.cost, ctx.reduction, *parameters)
            return _through_the_layers(arguments, ctx.needs_input_grad, grad_output)
        if ctx.at_once:
            grad_input, *gradients = (None if gradient is None else gradient * grad_output for gradient in saved)
            return grad_input, None, None, None, None, *gradients
        _torch.free_saved(ctx)  # unless the graph is retained: each a^l goes where it was used last
        needs_input_grad, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        gradients = [None] * (2 * layers)
        activated, weighted = [input, *saved[:layers]], saved[layers:]
        del saved
        a = activated.pop()
        grad_a = ctx.cost.derivative(a, target) * (ctx.scale * grad_output)
        for layer in reversed(range(layers)):
            f, own = ctx.activations[layer], slice(2 * layer, 2 * layer + 2)
            value = a if f.split()[1] is identity else weighted.pop()
            delta = output_error(grad_a, f.derivative_of(value))  # BP1, then BP2
            a, grad_a = activated.pop(), None
            asked = (layer > 0 or needs_input_grad, *needs[own])
            grad_a, *gradients[own] = _gradients(delta, a, parameters[2 * layer], asked)
        return grad_a, None, None, None, None, *gradients


def _through_the_layers(arguments: tuple, needs: tuple[bool, ...], grad_output: Tensor) -> tuple[Tensor | None, ...]:
    # Views, so that each argument is asked for by itself: one may come twice, as a shared weight does, or be computed
    # from another.
    arguments = tuple(x.view_as(x) if need else x for x, need in zip(arguments, needs, strict=True))
    a, target, activations, cost, reduction, *parameters = arguments
    for w, b, f in zip(parameters[::2], parameters[1::2], activations, strict=True):
        a = layer(a, w, b, f)
    asked = [x for x, need in zip(arguments, needs, strict=True) if need]
    value = reduce(cost_of.apply(a, target, cost), reduction)
    found = iter(torch.autograd.grad(value, asked, grad_output, create_graph=True))
    return tuple(next(found) if need else None for need in needs)
