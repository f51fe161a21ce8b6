"""MB801 and MB802: the derivative of the gradient. A refusal with an error is a skip."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.differences import Slope, inner, norm, slopes, typical
from manual_backprop.validation.exceptions import Broken, Inconclusive, Skipped, one_line
from manual_backprop.validation.oracle import Oracle
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients
from manual_backprop.validation.tolerances import largest, real

CUBE = """
class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    ___


validate(Cube, (randn(4, 3),))
"""

Tensors = list[Tensor]


DIFFERENTIABLE = (
    "write backward in differentiable torch operations, save inputs and outputs only, and drop once_differentiable"
)


@rule("MB801", "Is the derivative of the gradient right?", "25 passes", needs="plain differences", skeleton=CUBE)
def double_backward(case: Case) -> Iterator[Finding]:
    """The gradient can be differentiated again, by the inputs and by grad_output, to what differences of it measure.

    backward can be differentiated, and the derivative is wrong, because a tensor in backward is detached or computed
    outside of the graph. Gradient penalties and second-order methods then calculate with a wrong number.

    Seen in: pytorch/pytorch#104040: intermediates that are saved in forward carry no graph, so that double backward
    is wrong in silence.

    Wrong:
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad_output.data

    Right:
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad_output
    """
    oracle = case.oracle
    count = len(oracle.values)
    targets = [i for i, c in enumerate(oracle.cotangents) if c is not None]

    def gradients(tensors: Tensors, create_graph: bool) -> tuple[Tensors, Tensors]:
        graph = case.run(tensors[:count], copied=create_graph)
        cotangents: list[Any] = [None] * len(graph.outputs)
        given = [t.detach().clone().requires_grad_(create_graph) for t in tensors[count:]]
        for target, cotangent in zip(targets, given, strict=True):
            cotangents[target] = cotangent
        found = case.differentiate(graph, cotangents, create_graph=create_graph)
        return [*graph.leaves, *given], _filled(found, oracle)

    start = [*oracle.values, *(oracle.cotangents[i] for i in targets)]
    names = [f"`{slot.name}`" for slot in case.slots] + [f"grad_output {i}" for i in targets]
    yield from _second_order(case, oracle, gradients, start, names, "double backward")


@rule("MB802", "Is a gradient penalty through .sum() right?", "25 passes", needs="plain differences", skeleton=CUBE)
def gradient_penalty(case: Case) -> Iterator[Finding]:
    """A penalty on the gradient of f(x).sum() is differentiated right, though grad_output requires no grad there.

    A penalty on the gradient of f(x).sum() misses the second-order term. @once_differentiable raises only where
    grad_output requires grad, and the grad_output of .sum() does not, so no error is raised.

    Seen in: lab-cosmo/sphericart#139: second derivatives that “fail silently”.

    Wrong:
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad_output

    Right:
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad_output
    """
    oracle = case.oracle

    def gradients(tensors: Tensors, create_graph: bool) -> tuple[Tensors, Tensors]:
        graph = case.run(tensors, copied=create_graph)
        parts = [torch.view_as_real(o) if o.is_complex() else o for o in graph.outputs if o.requires_grad]
        asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
        total = sum(part.sum() for part in parts)
        try:
            given_up = torch.autograd.grad(torch.as_tensor(total), asked, allow_unused=True, create_graph=create_graph)
            found = iter(given_up)
        except Exception as error:
            raise Broken("backward", error) from error
        given = [next(found) if leaf.requires_grad else None for leaf in graph.leaves]
        return graph.leaves, _filled(given, oracle)

    names = [f"`{slot.name}`" for slot in case.slots]
    yield from _second_order(case, oracle, gradients, list(oracle.values), names, "gradient penalty through .sum()")


@dataclass
class Second:
    """The numbers that are needed of a second-order gradient, so that its tensors need not stay in memory."""

    weights: Tensors  # the cotangents of the gradient
    size: float  # the size of the gradient itself
    silent: bool  # whether the gradient is cut off from the graph, without an error
    everywhere: tuple[int, ...]  # the places by which the gradient is differentiated
    along: dict[tuple[int, ...], tuple[float, float]]  # by places: the derivative along a direction there, and its size


def _second_order(
    case: Case,
    oracle: Oracle,
    gradients: Callable[[Tensors, bool], tuple[Tensors, Tensors]],
    start: Tensors,
    names: Sequence[str],
    what: str,
) -> Iterator[Finding]:
    second = _differentiated(case, gradients, start, what)

    def function(tensors: Tensors) -> Tensors:
        with torch.enable_grad():
            return [g.detach() for g in gradients(tensors, False)[1]]

    def judged(*places: int) -> tuple[str, Slope]:
        case.compared += 1
        slope = slopes(function, start, _direction(case, start, places), [second.weights], oracle.dtype)[0]
        # Second-order terms that are tiny in comparison with the gradient count as rounding: 1e-9 of it in float64, and
        # in float32 1e-3, the digits that differences have there. In float32 the size of the outputs counts too,
        # because there not even a term that should be zero comes out as zero.
        exact = real(oracle.dtype) == torch.float64
        slope.error += 1e-9 * second.size if exact else 1e-3 * (second.size + max(map(largest, oracle.outputs)))
        return slope.judge(*second.along[places], oracle.dtype), slope

    verdict, slope = judged(*second.everywhere)
    if verdict == "right":
        return
    if verdict != "wrong":
        raise Inconclusive(f"{what}: there is a kink, or noise hides the difference")
    wrong = [i for i in second.everywhere if judged(i)[0] == "wrong"] or second.everywhere
    by = second.along[second.everywhere][0]
    cut = "the gradient is cut off from the graph: " if second.silent else ""
    yield case.fail(
        f"{what}: the derivative by {', '.join(names[i] for i in wrong)} is wrong, without an error",
        cause=cut + "once_differentiable, .detach(), NumPy or a saved intermediate hides the second-order terms",
        fix=DIFFERENTIABLE,
        expected=slope.central,
        actual=by,
        details=(f"along a random direction: expected {slope.central:.6g}, got {by:.6g}",),
    )


def _differentiated(
    case: Case, gradients: Callable[[Tensors, bool], tuple[Tensors, Tensors]], start: Tensors, what: str
) -> Second:
    """The derivative of the gradient by autograd.

    Raises:
        Skipped: torch, or the backward, refuses with an error.
        Inconclusive: the gradient is not finite.
    """
    try:
        leaves, first = gradients(start, True)
        weights = _weights(case, first, what)
        loss = sum((g * w.conj()).sum().real for g, w in zip(first, weights, strict=True))
        finite = all(bool(g.isfinite().all()) for g in first)
        size = sum(norm(w, g) ** 2 for w, g in zip(weights, first, strict=True)) ** 0.5
        del first
        silent = not (isinstance(loss, Tensor) and loss.requires_grad)
        if not silent:
            # backward() and not autograd.grad, because the latter skips the node by which once_differentiable raises.
            torch.autograd.backward(torch.as_tensor(loss))
    except Exception as error:
        raise Skipped(f"{what} is refused with an error: {one_line(error)}") from error
    if not finite:
        raise Inconclusive("the gradient is not finite")
    everywhere = tuple(i for i, leaf in enumerate(leaves) if leaf.requires_grad and leaf.numel())
    found = [leaf.grad for leaf in leaves]
    del leaves, loss
    places = [everywhere, *((i,) for i in everywhere)]
    along = {chosen: _along(found, _direction(case, start, chosen)) for chosen in places}
    return Second(weights, size, silent, everywhere, along)


def _weights(case: Case, first: Tensors, what: str) -> Tensors:
    draw = case.generator(what)
    # All rows of a large gradient share one row of weights, because the weights stay in memory all along.
    shapes = [g.shape[-1:] if case.large else g.shape for g in first]
    return [
        torch.randn(shape, generator=draw, dtype=torch.float64).to(g.device, g.dtype).expand(g.shape)
        for g, shape in zip(first, shapes, strict=True)
    ]


def _direction(case: Case, start: Tensors, places: tuple[int, ...]) -> list[Tensor | None]:
    draw = case.generator("second", *places)
    return [
        torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x).mul_(typical(x)) if i in places else None
        for i, x in enumerate(start)
    ]


def _along(gradients: Gradients, direction: Sequence[Tensor | None]) -> tuple[float, float]:
    """The derivative along a direction, and the typical size of the terms of which it is the sum."""
    pairs = list(zip(gradients, direction, strict=True))
    return sum(inner(g, v) for g, v in pairs), sum(norm(g, v) ** 2 for g, v in pairs) ** 0.5


def _filled(found: Gradients, oracle: Oracle) -> Tensors:
    """Dense gradients of the asked slots, with zeros for None."""
    filled = []
    for i in oracle.asked:
        gradient = found[i]
        dense = torch.zeros_like(oracle.values[i]) if gradient is None else gradient
        filled.append(dense.to_dense() if dense.layout != torch.strided else dense)
    return filled
