"""MB2xx: what exactly does `backward` return, below the engine, which repairs shapes and dtypes in silence?"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation.aliasing import alias
from manual_backprop.validation.audit import Audit, Call, audited, reads_raw_memory
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.differences import Slope, settled
from manual_backprop.validation.oracle import in_dtype, oracle_of
from manual_backprop.validation.report.report import Finding, fail, warn
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped
from manual_backprop.validation.subject import Broken, Gradients, Subject
from manual_backprop.validation.tolerances import SAME_RTOL, largest, mismatch


def count(subject: Subject) -> Iterator[Finding]:
    """MB201: one return value for each argument of forward, tensors or None."""
    for call in _audit(subject).calls:
        expected, found = len(call.arguments), len(call.values)
        names = ", ".join(argument.name for argument in call.arguments)
        too_many = any(value is not None for value in call.values[expected:])
        if found < expected or too_many:
            yield fail(
                f"{call.function.__name__}.backward returns {found} gradients where forward takes {expected} arguments",
                cause=f"the arguments are {names}",
                fix="return one gradient for each of them, None for those that are no tensors",
            )
            continue
        for name, value in zip(names.split(", "), call.values, strict=False):
            if value is not None and not isinstance(value, Tensor):
                yield fail(
                    f"{call.function.__name__}.backward returns a {type(value).__name__} as the gradient of `{name}`",
                    cause="a nested tuple, an array or a number is no gradient",
                    fix="return a tensor or None",
                    input=name,
                )


def missing(subject: Subject) -> Iterator[Finding]:
    """MB202: None only where the output does not depend on the input."""
    _need_truth(subject)
    absent = [i for i, g in enumerate(subject.plain.gradients) if g is None and subject.needs[i]]
    oracle = oracle_of(subject)
    for slot in absent:
        if not oracle.measurable:
            raise Inconclusive("None is returned, and differences cannot tell whether a gradient is due")
        slope = oracle.slope(oracle.direction([slot] if oracle.values[slot].numel() else [], "missing"))
        if _is_zero(slope):
            continue
        yield fail(
            f"the gradient of `{subject.slots[slot].name}` is None, and the output depends on it",
            cause=f"along a random direction of it the output changes by {slope.central:.6g} a unit",
            fix="compute it where ctx.needs_input_grad asks for it",
            input=subject.slots[slot].name,
            expected=slope.central,
            actual=0.0,
        )


def shape(subject: Subject) -> Iterator[Finding]:
    """MB203: each gradient has the shape of its argument; the engine would sum a broadcast one without a word."""
    for call, number, value in _returned(subject):
        argument = call.arguments[number]
        if argument.shape is not None and value.shape != argument.shape:
            axes = _extra_axes(tuple(value.shape), tuple(argument.shape))
            yield fail(
                f"{call.function.__name__}.backward returns shape {tuple(value.shape)} as the gradient of "
                f"`{argument.name}`, which has {tuple(argument.shape)}",
                cause=f"the sum over {axes} is missing" if axes else "it is a gradient of something else",
                fix="sum over the axes along which forward broadcast it (Tensor.sum_to_size)",
                input=argument.name,
            )


def dtype(subject: Subject) -> Iterator[Finding]:
    """MB204: each gradient has the dtype of its argument, in the sample's dtype and in the other of float32/float64."""
    for values in _dtype_variants(subject):
        for call, number, value in _returned(subject, values):
            argument = call.arguments[number]
            if argument.dtype is not None and value.dtype != argument.dtype:
                yield fail(
                    f"{call.function.__name__}.backward returns {value.dtype} as the gradient of `{argument.name}`, "
                    f"which is {argument.dtype}",
                    cause="a constant of another dtype, or a cast, is left in backward",
                    fix=f"return it in {argument.dtype}; make constants with new_zeros, zeros_like or dtype=",
                    input=argument.name,
                )
                return


def device(subject: Subject) -> Iterator[Finding]:
    """MB205: each gradient is on its argument's device, and (or it warns) in its layout."""
    for call, number, value in _returned(subject):
        argument = call.arguments[number]
        if argument.device is not None and (value.device != argument.device or value.layout != argument.layout):
            # torch's own embedding can do the latter, and some optimisers take it.
            tell = fail if value.device != argument.device else warn
            yield tell(
                f"{call.function.__name__}.backward returns the gradient of `{argument.name}` on {value.device} as "
                f"{value.layout}, which is on {argument.device} as {argument.layout}",
                cause="a tensor made in backward in another place or layout",
                fix="make it with new_zeros or zeros_like",
                input=argument.name,
            )


def finite(subject: Subject) -> Iterator[Finding]:
    """MB206: no NaN or infinity where the derivative is finite."""
    oracle = oracle_of(subject)
    unsure = False
    for slot, gradient in enumerate(subject.plain.gradients):
        if gradient is None or bool(_dense(gradient).isfinite().all()):
            continue
        places = (~_dense(gradient).isfinite()).flatten().nonzero().flatten().tolist()
        slopes = oracle.elements(slot, places[:8]).slopes if oracle.measurable else []
        smooth = bool(slopes) and settled(oracle.slope(oracle.direction([slot], "settled")))
        sure = [place for place, slope in zip(places, slopes, strict=False) if smooth and settled(slope)]
        unsure |= not sure
        if not sure or not subject.trusted:
            continue
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(sure[0]), gradient.shape))
        yield fail(
            f"the gradient of `{subject.slots[slot].name}` is {_dense(gradient)[index].item()} where it is finite",
            cause=f"{len(places)} elements: 0/0, 0·∞ or an overflow inside backward",
            fix="write the derivative in its stable form",
            input=subject.slots[slot].name,
            index=index,
            expected=slopes[places.index(sure[0])].central,
            actual=_dense(gradient)[index].item(),
        )
    if unsure:
        raise Inconclusive("a gradient is not finite, and differences cannot tell whether the derivative is")


def subsets(subject: Subject) -> Iterator[Finding]:
    """MB208: the values do not depend on which inputs require grad (frozen weights)."""
    asked = [i for i, need in enumerate(subject.needs) if need]
    if len(asked) < 2:
        raise Skipped("one input requires grad")
    for chosen in _subsets(asked):
        needs = tuple(i in chosen for i in range(len(subject.needs)))
        frozen = " and ".join(f"`{subject.slots[i].name}`" for i in asked if i not in chosen)
        expected = [g if need else None for g, need in zip(subject.plain.gradients, needs, strict=True)]
        actual = _for_subset(subject, needs, frozen)
        if isinstance(actual, Finding):
            yield actual
            return
        message = f"the gradient of {{name}} is another when {frozen} does not require grad"
        found = list(differing(subject, actual, expected, message, f"only when {frozen} is frozen"))
        yield from found
        if found:
            return


def _for_subset(subject: Subject, needs: tuple[bool, ...], frozen: str) -> Any:
    try:
        graph = subject.run(needs=needs)
        plain = subject.plain.cotangents
        cotangents = [c if o.requires_grad else None for o, c in zip(graph.outputs, plain, strict=True)]
        return subject.differentiate(graph, cotangents)
    except Broken as broken:
        return fail(
            f"{broken.stage} raises when {frozen} does not require grad: {type(broken.error).__name__}: {broken.error}",
            cause="something is saved or computed only for inputs that require grad, and then used for others",
            fix="guard each gradient, and what it reads, by its own ctx.needs_input_grad",
        )


def _subsets(asked: list[int]) -> list[tuple[int, ...]]:
    if len(asked) <= 4:
        sizes = range(1, len(asked))
        return [subset for size in sizes for subset in itertools.combinations(asked, size)]
    ends = [(i,) for i in asked] + [tuple(j for j in asked if j != i) for i in asked]
    return ends + list(itertools.combinations(asked, 2)) if len(asked) <= 8 else ends


def wasted(subject: Subject) -> Iterator[Finding]:
    """MB209: nothing is computed that was not asked for."""
    asked = [i for i, need in enumerate(subject.needs) if need]
    if len(asked) < 2:
        raise Skipped("one input requires grad")
    for keep in asked:
        needs = tuple(i == keep for i in range(len(subject.needs)))
        for call in audited(subject, needs=needs).calls:
            waste = [
                argument.name
                for argument, needed, value in zip(call.arguments, call.needed, call.values, strict=False)
                if not needed and isinstance(value, Tensor)
            ]
            if waste:
                yield warn(
                    f"{call.function.__name__}.backward computes the gradient of `{'`, `'.join(waste)}`, which nobody "
                    f"asked for ({1e6 * call.seconds:.0f} µs for the call)",
                    cause="ctx.needs_input_grad is not looked at",
                    fix="if ctx.needs_input_grad[i]: …",
                )
                return


def undefined(subject: Subject) -> Iterator[Finding]:
    """MB210: an output whose gradient is undefined (None, with set_materialize_grads(False)) counts as zero."""
    targets = subject.targets
    for target in targets if len(targets) > 1 else []:
        alone = [c if i == target else None for i, c in enumerate(subject.plain.cotangents)]
        zeros = [c if i == target or c is None else torch.zeros_like(c) for i, c in enumerate(subject.plain.cotangents)]
        try:
            actual = subject.gradients(cotangents=alone)
        except Broken as broken:
            yield _undefined(f"backward raises when only output {target} is used", broken)
            return
        message = f"the gradient of {{name}} through output {target} alone is not that with zeros for the others"
        yield from differing(subject, actual, subject.gradients(cotangents=zeros), message)
    graph = subject.run()
    below = [_Undefined.apply(o) if o.requires_grad else o for o in graph.outputs]
    graph.outputs = below
    try:
        gradients = subject.differentiate(graph, subject.plain.cotangents)
    except Broken as broken:
        yield _undefined("backward raises when no gradient comes in at all", broken)
        return
    message = "the gradient of {name} is not zero when no gradient comes in"
    nothing: Gradients = [None] * len(gradients)
    yield from differing(subject, gradients, nothing, message, noise=[0.0] * len(nothing))


class _Undefined(torch.autograd.Function):
    """The identity, whose backward gives None: what comes before it gets an undefined gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


def _undefined(message: str, broken: Broken) -> Finding:
    return fail(
        f"{message}: {type(broken.error).__name__}: {broken.error}",
        cause="grad_output is None where the output is not used, as set_materialize_grads(False) has it",
        fix="test grad_output for None before using it, or leave the grads materialised",
    )


def non_differentiable(subject: Subject) -> Iterator[Finding]:
    """MB211: an output whose gradient is dropped is marked, or does not depend on the inputs."""
    _need_truth(subject)
    oracle = oracle_of(subject)
    if len(oracle.outputs) < 2 or not oracle.measurable:
        raise Skipped("one output")
    yield from _marked_wrongly(subject)
    for target in subject.targets:
        alone = [
            None if c is None else c if i == target else torch.zeros_like(c) for i, c in enumerate(oracle.cotangents)
        ]
        gradients = subject.differentiate(subject.run(oracle.values), alone)
        if any(largest(g) for g in gradients):
            continue
        only = [c if i == target else None for i, c in enumerate(oracle.cotangents)]
        slope = oracle.slope(oracle.direction(oracle.asked, "marked"), only)
        if not _is_zero(slope) and not slope.kinked:
            yield fail(
                f"the gradient of output {target} is dropped, and output {target} depends on the inputs",
                cause="backward does not read its grad_output, and forward does not mark it",
                fix="add its share in backward, or ctx.mark_non_differentiable(output)",
                output=target,
                expected=slope.central,
                actual=0.0,
            )


def _marked_wrongly(subject: Subject) -> Iterator[Finding]:
    """The outputs that are differentiable are constant, and one that is marked is not."""
    oracle = oracle_of(subject)
    moving = []
    for number, output in enumerate(oracle.outputs):
        if output.is_floating_point():
            # Not ones: the sum of a softmax is constant, and the softmax is not.
            given = torch.randn(output.shape, generator=subject.generator("moving", number), dtype=torch.float64)
            only = [given.to(output) if i == number else None for i in range(len(oracle.outputs))]
            slope = oracle.slope(oracle.direction(oracle.asked, "moving"), only)
            if not _is_zero(slope) and slope.error < 0.05 * abs(slope.central):
                moving.append(number)
    if moving and not set(moving) & set(subject.targets):
        yield fail(
            f"output {moving[0]} is marked as not differentiable and depends on the inputs; what is left is constant",
            cause="ctx.mark_non_differentiable names the wrong output",
            fix="mark the indices, not the values",
            output=moving[0],
        )


def no_grad(subject: Subject) -> Iterator[Finding]:
    """MB212: forward runs, to the same values, under no_grad and inference_mode."""
    nothing = (False,) * len(subject.needs)
    for mode, needs in ((torch.no_grad, None), (torch.inference_mode, None), (torch.no_grad, nothing)):
        words = mode.__name__ + (" with inputs that require no grad" if needs else "")
        try:
            with mode():
                outputs = subject.run(needs=needs).outputs
        except Broken as broken:
            yield fail(
                f"forward raises under {words}: {type(broken.error).__name__}: {broken.error}",
                cause="forward counts on a graph or on inputs that require grad",
                fix="let forward compute the same whether gradients are asked for or not",
            )
            continue
        for number, (a, b) in enumerate(zip(outputs, subject.plain.outputs, strict=True)):
            found = mismatch(a, b, SAME_RTOL[subject.dtype])
            if found is not None:
                yield fail(f"output {number} is another under {words}", output=number, index=found.index,
                           cause="forward branches on requires_grad", fix="compute the same value")  # fmt: skip


# --- shared by the probes above -----------------------------------------------------------------------------------


def _audit(subject: Subject) -> Audit:
    audit: Audit = subject.memo.get("audit") or audited(subject)
    if not subject.large:
        subject.memo["audit"] = audit
    if not audit.functions:
        raise Skipped("no autograd.Function in the graph")
    return audit


def _returned(subject: Subject, values: list[Tensor] | None = None) -> Iterator[tuple[Call, int, Tensor]]:
    """Each tensor that a Function returned for an argument that asked for it."""
    audit = _audit(subject) if values is None else audited(subject, values)
    for call in audit.calls:
        for number, (value, needed) in enumerate(zip(call.values, call.needed, strict=False)):
            if needed and isinstance(value, Tensor) and number < len(call.arguments):
                yield call, number, value


def _dtype_variants(subject: Subject) -> Iterator[list[Tensor] | None]:
    yield None
    if reads_raw_memory(subject):
        return  # NumPy has float64 wherever it was not told otherwise, and the sample may be all that it is meant for
    for other in (torch.float32, torch.float64):
        values = [in_dtype(value, other) for value in subject.values]
        if any(a.dtype != b.dtype for a, b in zip(values, subject.values, strict=True)):
            try:
                subject.run(values)
            except Broken:
                continue
            yield values


def _extra_axes(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """The axes of `found` to sum over to come to `wanted`, in words; empty where no sum does."""
    padded = (1,) * (len(found) - len(wanted)) + wanted
    if len(padded) != len(found) or any(w not in (1, f) for f, w in zip(found, padded, strict=True)):
        return ""
    axes = [i for i, (f, w) in enumerate(zip(found, padded, strict=True)) if f != w or i < len(found) - len(wanted)]
    return "axis " + ", ".join(map(str, axes))


def _need_truth(subject: Subject) -> None:
    if not subject.trusted:
        raise Skipped("a surrogate gradient (MB1 is skipped) is not compared with the derivative")


def _is_zero(slope: Slope) -> bool:
    return not abs(slope.central) > max(20 * slope.error, 1e-9)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


PROBES = (
    Probe("MB201", "count", "contract", "One gradient for each argument?", "1 pass", "a Function", count),
    Probe("MB202", "missing", "contract", "Is None returned where a gradient is due?", "1 pass", "", missing),
    Probe("MB203", "shape", "contract", "Has each gradient its argument's shape?", "1 pass", "a Function", shape),
    Probe("MB204", "dtype", "contract", "Has each gradient its argument's dtype?", "2 passes", "a Function", dtype),
    Probe("MB205", "device", "contract", "Is it on its argument's device?", "1 pass", "a Function", device),
    Probe("MB206", "finite", "contract", "Is it finite where the derivative is?", "1 pass", "", finite),
    Probe("MB207", "alias", "contract", "Is a gradient memory of its own?", "4 passes", "", alias),
    Probe("MB208", "subsets", "contract", "Same values whatever is frozen?", "1 pass a subset", "two inputs", subsets),
    Probe("MB209", "wasted", "contract", "Is anything computed in vain?", "1 pass an input", "two inputs", wasted),
    Probe("MB210", "undefined", "contract", "Is an undefined gradient a zero?", "3 passes", "", undefined),
    Probe("MB211", "non_differentiable", "contract", "Is an output without gradient marked?", "1 pass an output",
          "two outputs", non_differentiable),
    Probe("MB212", "no_grad", "contract", "Does forward run without autograd?", "2 forwards", "", no_grad),
)  # fmt: skip
