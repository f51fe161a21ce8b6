"""MB8xx: double backward, gradient penalty, forward mode, vmap, torch.func. What refuses loudly is a skip."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from manual_backprop.validation.audit import functions_of, reads_raw_memory
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.differences import Slope, inner, norm, slopes, typical
from manual_backprop.validation.exceptions import one_line
from manual_backprop.validation.oracle import Oracle, oracle_of
from manual_backprop.validation.report.report import Finding, fail, warn
from manual_backprop.validation.rules import compiled
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped
from manual_backprop.validation.subject import Broken, Gradients, Subject
from manual_backprop.validation.tolerances import SAME_RTOL, largest, mismatch, real

Tensors = list[Tensor]

DIFFERENTIABLE = (
    "write backward in differentiable torch operations, save inputs and outputs only, no once_differentiable"
)


def double_backward(subject: Subject) -> Iterator[Finding]:
    """MB801: the derivative of the gradient, by x and by grad_output, against differences of the gradient."""
    oracle = _measurable(subject)
    count = len(oracle.values)
    targets = [i for i, c in enumerate(oracle.cotangents) if c is not None]

    def gradients(tensors: Tensors, create_graph: bool) -> tuple[Tensors, Tensors]:
        graph = subject.run(tensors[:count], own=not create_graph)
        cotangents: list[Any] = [None] * len(graph.outputs)
        given = [t.detach().clone().requires_grad_(create_graph) for t in tensors[count:]]
        for target, cotangent in zip(targets, given, strict=True):
            cotangents[target] = cotangent
        found = subject.differentiate(graph, cotangents, create_graph=create_graph)
        return [*graph.leaves, *given], _filled(found, oracle)

    start = [*oracle.values, *(oracle.cotangents[i] for i in targets)]
    names = [f"`{slot.name}`" for slot in subject.slots] + [f"grad_output {i}" for i in targets]
    yield from _second_order(subject, oracle, gradients, start, names, "double backward")


def gradient_penalty(subject: Subject) -> Iterator[Finding]:
    """MB802: f(x).sum() with a penalty on its gradient, where grad_output requires no grad itself."""
    oracle = _measurable(subject)

    def gradients(tensors: Tensors, create_graph: bool) -> tuple[Tensors, Tensors]:
        graph = subject.run(tensors, own=not create_graph)
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

    names = [f"`{slot.name}`" for slot in subject.slots]
    yield from _second_order(subject, oracle, gradients, list(oracle.values), names, "gradient penalty through .sum()")


def _second_order(
    subject: Subject,
    oracle: Oracle,
    gradients: Callable[[Tensors, bool], tuple[Tensors, Tensors]],
    start: Tensors,
    names: Sequence[str],
    what: str,
) -> Iterator[Finding]:
    draw = subject.generator(what)
    try:
        leaves, first = gradients(start, True)
        # One row for all rows of a large gradient: it is held all along.
        shapes = [g.shape[-1:] if subject.large else g.shape for g in first]
        weights = [
            torch.randn(shape, generator=draw, dtype=torch.float64).to(g.device, g.dtype).expand(g.shape)
            for g, shape in zip(first, shapes, strict=True)
        ]
        loss = sum((g * w.conj()).sum().real for g, w in zip(first, weights, strict=True))
        finite = all(bool(g.isfinite().all()) for g in first)
        size = sum(norm(w, g) ** 2 for w, g in zip(weights, first, strict=True)) ** 0.5
        del first
        silent = not (isinstance(loss, Tensor) and loss.requires_grad)
        if not silent:
            # autograd.grad would not visit the node by which once_differentiable refuses.
            torch.autograd.backward(torch.as_tensor(loss))
    except Exception as error:
        raise Skipped(f"{what} is refused loudly: {one_line(error)}") from error
    if not finite:
        raise Inconclusive("the gradient is not finite")
    everywhere = [i for i, leaf in enumerate(leaves) if leaf.requires_grad and leaf.numel()]
    found = [leaf.grad for leaf in leaves]
    del leaves, loss
    # What is asked of the second-order gradient, so that it need not be held while the differences are taken.
    along = {
        places: _along(found, _direction(subject, start, places))
        for places in (tuple(everywhere), *((i,) for i in everywhere))
    }
    del found

    def function(tensors: Tensors) -> Tensors:
        with torch.enable_grad():
            return [g.detach() for g in gradients(tensors, False)[1]]

    def judged(*places: int) -> tuple[str, Slope]:
        slope = slopes(function, start, _direction(subject, start, places), [weights], oracle.dtype)[0]
        # Second-order terms that are nothing beside the gradient's own size are rounding. What is computed in float32
        # is not even zero where it should be, so there the outputs' size counts too.
        exact = real(oracle.dtype) == torch.float64
        slope.error += 1e-9 * size if exact else 1e-3 * (size + max(largest(y) for y in oracle.outputs))
        return slope.judge(*along[places], oracle.dtype), slope

    verdict, slope = judged(*everywhere)
    if verdict == "right":
        return
    if verdict != "wrong":
        raise Inconclusive(f"{what}: a kink, or noise above the difference looked for")
    wrong = [i for i in everywhere if judged(i)[0] == "wrong"]
    by = along[tuple(everywhere)][0]
    cause = "the gradient is cut off from the graph: " if silent else ""
    yield fail(
        f"{what}: the derivative by {', '.join(names[i] for i in wrong or everywhere)} is wrong, without an error",
        cause=cause
        + "once_differentiable, .detach(), NumPy, or an intermediate that was saved hides second-order terms",
        fix=DIFFERENTIABLE,
        expected=slope.central,
        actual=by,
        details=(f"along a random direction: expected {slope.central:.6g}, got {by:.6g}",),
    )


def _direction(subject: Subject, start: Tensors, places: tuple[int, ...]) -> list[Tensor | None]:
    draw = subject.generator("second", *places)
    return [
        torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x).mul_(typical(x)) if i in places else None
        for i, x in enumerate(start)
    ]


def _along(gradients: Gradients, direction: Sequence[Tensor | None]) -> tuple[float, float]:
    """The derivative along a direction, and the size of the terms that it is a sum of."""
    pairs = list(zip(gradients, direction, strict=True))
    return sum(inner(g, v) for g, v in pairs), sum(norm(g, v) ** 2 for g, v in pairs) ** 0.5


def _filled(found: Gradients, oracle: Oracle) -> Tensors:
    """Dense gradients of what is asked, with zeros for None."""
    filled = []
    for i in oracle.asked:
        gradient = found[i]
        dense = torch.zeros_like(oracle.values[i]) if gradient is None else gradient
        filled.append(dense.to_dense() if dense.layout != torch.strided else dense)
    return filled


def forward_mode(subject: Subject) -> Iterator[Finding]:
    """MB803: ⟨g, jvp(v)⟩ = ⟨vjp(g), v⟩."""
    plain = subject.plain
    draw = subject.generator("tangents")
    tangents = [
        torch.randn(v.shape, generator=draw, dtype=torch.float64).to(v) if need else None
        for v, need in zip(subject.values, subject.needs, strict=True)
    ]
    try:
        with forward_ad.dual_level():
            duals = [
                v.detach().clone() if t is None else forward_ad.make_dual(v.detach().clone(), t)
                for v, t in zip(subject.values, tangents, strict=True)
            ]
            moved = [forward_ad.unpack_dual(output).tangent for output in subject.call(duals)]
    except Exception as error:
        own = _with_jvp(subject)
        if own and not isinstance(error, NotImplementedError):
            yield warn(f"{own[0].__name__}.jvp raises: {one_line(error)}", cause="jvp", fix="let it run, or drop it")
            return
        raise Skipped(f"forward mode is refused loudly: {one_line(error)}") from error
    if all(t is None for t in moved) and not _with_jvp(subject):
        raise Skipped("forward mode gives no tangents")
    ahead = sum(inner(c, t) for c, t in zip(plain.cotangents, moved, strict=True) if c is not None)
    back = sum(inner(g, t) for g, t in zip(plain.gradients, tangents, strict=True))
    size = sum(norm(g, t) for g, t in zip(plain.gradients, tangents, strict=True))
    size += sum(norm(c, t) for c, t in zip(plain.cotangents, moved, strict=True) if c is not None)
    if abs(ahead - back) > 10 * SAME_RTOL[subject.dtype] * max(size, 1e-30) and ahead == ahead and back == back:
        yield fail(
            f"jvp and vjp are not transposes: ⟨g, jvp(v)⟩ = {ahead:.6g}, ⟨vjp(g), v⟩ = {back:.6g}",
            cause="jvp or backward is wrong (MB101 says whether backward is)",
            fix="derive both from one formula",
            expected=back,
            actual=ahead,
        )


def _with_jvp(subject: Subject) -> list[type]:
    default = torch.autograd.Function.jvp
    return [f for f in functions_of(subject.run().outputs) if f.jvp is not default]  # type: ignore[attr-defined]


def vmapped(subject: Subject) -> Iterator[Finding]:
    """MB804: vmap over each input and over all gives what a loop gives, values and gradients."""
    _ = subject.plain
    own_rule = any(not f.generate_vmap_rule for f in functions_of(subject.run().outputs))  # type: ignore[attr-defined]
    if reads_raw_memory(subject) and not own_rule:
        raise Skipped("NumPy or raw memory inside, which vmap cannot see through")
    asked = [i for i, need in enumerate(subject.needs) if need]
    everything, count = tuple(asked), len(asked)
    choices = [(everything, (0,) * count), (everything, (-1,) * count)]
    if count > 1:
        # Axes that differ, and as many samples as the first axis is long: to a rule that ignores them the shapes fit.
        choices += [(everything, tuple(min(k % 2, subject.values[i].ndim) for k, i in enumerate(asked)))]
        choices += [((i,), (0,)) for i in asked[:4]]
    choices = choices[:1] if subject.large else choices
    first = subject.values[asked[0]]
    many = len(first) if first.ndim and 2 <= len(first) <= 8 else 2
    refusals = []
    for chosen, axes in choices:
        count = many if len(set(axes)) > 1 else 2
        try:
            outputs, gradients = _vmap(subject, count, chosen, axes)
        except Exception as error:
            refusals.append(one_line(error))
            continue
        setting = f"under vmap over {', '.join(f'`{subject.slots[i].name}`' for i in chosen)} (in_dims {axes})"
        for number in range(count):
            sample_outputs, wanted = _pass(subject, number, chosen)
            values = [o[number] for o in outputs]
            bad = [i for i, (a, b) in enumerate(zip(values, sample_outputs, strict=True))
                   if mismatch(a, b, SAME_RTOL[subject.dtype])]  # fmt: skip
            if bad:
                yield fail(f"output {bad[0]} is wrong {setting}", output=bad[0], cause="the vmap rule",
                           fix="generate_vmap_rule = True, or mind in_dims and return the right out_dims")  # fmt: skip
                return
            found = list(
                differing(subject, [g if g is None else g[number] for g in gradients],
                          [w if i in chosen else None for i, w in enumerate(wanted)],
                          f"the gradient of {{name}} is wrong {setting}", "only under vmap")
            )  # fmt: skip
            yield from found
            if found:
                return
            del sample_outputs, wanted
    if len(refusals) == len(choices):
        raise Skipped(f"vmap is refused loudly: {refusals[0]}")


def _vmap_sample(subject: Subject, number: int, chosen: tuple[int, ...]) -> Tensors:
    """Memory of nobody else's, but for number 0."""
    if not number:
        return list(subject.values)
    near = subject.nearby(("vmap", number))
    return [near[i] if i in chosen else value.clone() for i, value in enumerate(subject.values)]


def _pass(subject: Subject, number: int, chosen: tuple[int, ...]) -> tuple[Tensors, Gradients]:
    if not number:
        return subject.plain.outputs, subject.plain.gradients
    graph = subject.run(_vmap_sample(subject, number, chosen), own=True)
    gradients = subject.differentiate(graph, subject.cotangents(graph.outputs))
    return [output.detach() for output in graph.outputs], gradients


def _vmap(subject: Subject, count: int, chosen: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Tensors, Gradients]:
    stacked = {i: subject.values[i].new_empty((count, *subject.values[i].shape)) for i in chosen}
    for number in range(count):
        sample = _vmap_sample(subject, number, chosen)
        for i in chosen:
            stacked[i][number] = sample[i]
    del sample
    for i, axis in zip(chosen, axes, strict=True):
        stacked[i] = stacked[i].movedim(0, axis).contiguous().requires_grad_()

    def one(*parts: Tensor) -> tuple[Tensor, ...]:
        return tuple(subject.call(_with(subject.values, chosen, parts)))

    outputs = list(torch.func.vmap(one, in_dims=axes)(*stacked.values()))
    given = [
        None if c is None or not o.requires_grad else torch.stack([c] * count)
        for o, c in zip(outputs, subject.plain.cotangents, strict=True)
    ]
    pairs = [(o, c) for o, c in zip(outputs, given, strict=True) if c is not None]
    found = torch.autograd.grad([o for o, _ in pairs], list(stacked.values()), [c for _, c in pairs], allow_unused=True)
    gradients: Gradients = [None] * len(subject.values)
    for i, axis, gradient in zip(chosen, axes, found, strict=True):
        gradients[i] = gradient.movedim(axis, 0) if gradient is not None and axis else gradient
    return [output.detach() for output in outputs], gradients


def _with(values: Tensors, places: Sequence[int], parts: Sequence[Tensor]) -> Tensors:
    """Copies of the values, with others at some places."""
    others = dict(zip(places, parts, strict=True))
    return [others[i] if i in others else value.clone() for i, value in enumerate(values)]


def func(subject: Subject) -> Iterator[Finding]:
    """MB805: torch.func.vjp, grad and jacrev, and batched gradients, agree with autograd."""
    plain = subject.plain
    asked = [i for i, need in enumerate(subject.needs) if need]

    def chosen(*parts: Tensor) -> tuple[Tensor, ...]:
        outputs = subject.call(_with(subject.values, asked, parts))
        return tuple(outputs[i] for i in subject.targets)

    def contracted(*parts: Tensor) -> Tensor:
        cotangents = [plain.cotangents[i] for i in subject.targets]
        return sum((o * c.conj()).sum().real for o, c in zip(chosen(*parts), cotangents, strict=True))  # type: ignore[return-value]

    def values() -> Tensors:
        return [subject.values[i].clone() for i in asked]

    given = tuple(plain.cotangents[i].clone() for i in subject.targets)
    ways: list[tuple[str, Callable[[], Sequence[Tensor | None]]]] = [
        ("torch.func.vjp", lambda: torch.func.vjp(chosen, *values())[1](given)),
        ("torch.func.grad", lambda: torch.func.grad(contracted, argnums=tuple(range(len(asked))))(*values())),
    ]
    if not reads_raw_memory(subject):
        ways.append(("batched gradients", lambda: _batched(subject)))
    if sum(c.numel() for c in given) * sum(subject.values[i].numel() for i in asked) <= 4096 and not any(
        c.is_complex() for c in given
    ):
        ways.append(("torch.func.jacrev", lambda: _contracted_jacobian(chosen, values(), given)))
    refusals = []
    for name, way in ways:
        try:
            found = dict(zip(asked, way(), strict=True))
        except Exception as error:
            refusals.append(f"{name} is refused loudly: {one_line(error)}")
            continue
        actual = [found.get(i) for i in range(len(subject.values))]
        message = f"the gradient of {{name}} is another under {name}"
        wrong = list(differing(subject, actual, plain.gradients, message, f"only under {name}"))
        yield from wrong
        if wrong:
            return
        del actual, found
    if len(refusals) == len(ways):
        raise Skipped(refusals[0])


def _batched(subject: Subject) -> Gradients:
    """The plain gradient as the difference of two of a batch: vmap over backward alone."""
    graph = subject.run()
    pairs = [(o, c) for o, c in zip(graph.outputs, subject.plain.cotangents, strict=True) if c is not None]
    asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
    # A large gradient is one of a batch of one.
    given = [c[None] if subject.large else torch.stack([2 * c, c]) for _, c in pairs]
    found = torch.autograd.grad([o for o, _ in pairs], asked, given, is_grads_batched=True, allow_unused=True)
    del graph, pairs, asked
    return [None if g is None else g[0] if subject.large else g[0] - g[1] for g in found]


def _contracted_jacobian(function: Callable[..., Any], values: Tensors, given: Sequence[Tensor]) -> Tensors:
    rows = torch.func.jacrev(function, argnums=tuple(range(len(values))))(*values)
    total = [torch.zeros_like(value) for value in values]
    for cotangent, row in zip(given, rows, strict=True):
        for k, block in enumerate(row):
            total[k] = total[k] + torch.tensordot(cotangent, block, dims=cotangent.ndim)
    return total


def _measurable(subject: Subject) -> Oracle:
    oracle = oracle_of(subject)
    if not oracle.measurable:
        raise Inconclusive("outputs are not finite, or the dtype has too few digits for differences")
    return oracle


PROBES = (
    Probe("MB801", "double_backward", "transforms", "Is the derivative of the gradient right?", "25 passes", "",
          double_backward),
    Probe("MB802", "gradient_penalty", "transforms", "And through .sum()?", "25 passes", "", gradient_penalty),
    Probe("MB803", "forward_mode", "transforms", "Is jvp the transpose of vjp?", "1 pass", "jvp", forward_mode),
    Probe("MB804", "vmap", "transforms", "Does vmap do what a loop does?", "3 passes a choice", "a vmap rule", vmapped),
    Probe("MB805", "func", "transforms", "Does torch.func agree with autograd?", "5 passes", "setup_context", func),
    Probe("MB806", "compile", "transforms", "Does torch.compile keep the backward?", "seconds", "", compiled.compiled),
    Probe("MB807", "export", "transforms", "Does torch.export keep the backward?", "seconds", "", compiled.exported),
)  # fmt: skip
