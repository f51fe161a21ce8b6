"""The gradients of a linear layer when one of BP1–BP4 is written wrong, to compare a wrong gradient with."""

from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.case import Case
from manual_backprop.validation.tolerances import wide


def derivatives_from(output: Tensor) -> Iterator[tuple[str, Tensor]]:
    """σ′ of the common activations, computed from the output a."""
    if output.is_complex() or not output.is_floating_point():
        return
    yield "σ′ = a(1 − a) of the sigmoid", output * (1 - output)
    yield "σ′ = 1 − a² of tanh", 1 - output * output
    yield "σ′ = [a > 0] of ReLU", (output > 0).to(output.dtype)


def output_factors(case: Case, shape: torch.Size) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one shape that a gradient is commonly multiplied by: cotangents, inputs, outputs, σ′."""
    named = [(f"grad_outputs[{i}]", c) for i, c in enumerate(case.plain.cotangents) if c is not None]
    named += [(f"`{slot.name}`", value) for slot, value in zip(case.slots, case.values, strict=True)]
    for i, output in enumerate(case.plain.outputs):
        named.append((f"output {i}", output))
        named += list(derivatives_from(output))
    for words, tensor in named:
        if tensor.numel() > 1 and tensor.shape == shape and (tensor.is_floating_point() or tensor.is_complex()):
            yield words, wide(tensor)


def linear_parts(case: Case) -> tuple[int, int, int | None] | None:
    """The slots of input ``(*, i)``, weight ``(o, i)`` and bias ``(o,)``, where the shapes fit a linear layer."""
    if len(case.plain.outputs) != 1 or case.plain.cotangents[0] is None:
        return None
    output = case.plain.outputs[0]
    if output.ndim < 1 or output.is_complex():
        return None
    for i, x in enumerate(case.values):
        for j, w in enumerate(case.values):
            if i == j or w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
                continue
            if output.shape == (*x.shape[:-1], w.shape[0]):
                bias = [k for k, b in enumerate(case.values) if k not in (i, j) and b.shape == (w.shape[0],)]
                return i, j, bias[0] if bias else None
    return None


def linear_candidates(case: Case, slot: int) -> Iterator[tuple[Tensor, str, str]]:
    """Wrong gradients of a slot, each with the equation that was written wrong, and the cure."""
    parts = linear_parts(case)
    if parts is None or slot not in parts:
        return
    x, w = (wide(case.values[k]) for k in parts[:2])
    rows = x.reshape(-1, x.shape[-1])
    g = wide(case.plain.cotangents[0]).reshape(-1, w.shape[0])
    a = wide(case.plain.outputs[0]).reshape(g.shape)

    def gradient(delta: Tensor) -> Tensor:
        if slot == parts[0]:
            return (delta @ w).reshape(x.shape)  # BP2
        return delta.mT @ rows if slot == parts[1] else delta.sum(0)  # BP4, BP3

    n = len(rows)
    for words, derivative in derivatives_from(a):
        right = gradient(g * derivative)
        wrongs = [
            (gradient(g), f"BP1 without σ′(z): {words} is missing", "let δ = grad_output ⊙ σ′(z)"),
            (gradient(g * derivative**2), f"BP1 with σ′(z) twice: {words}", "multiply by σ′ once"),
        ]
        if slot != parts[0] and n > 1:
            equation = "BP4" if slot == parts[1] else "BP3"
            first = gradient(torch.where(torch.arange(n).unsqueeze(1) == 0, g * derivative, 0.0))
            wrongs += [
                (
                    right / n,
                    f"{equation} divides by the batch of {n}, and the cost already holds that 1/N",
                    "sum over the samples",
                ),
                (first, f"{equation} takes the first sample only", "sum over the samples"),
            ]
        for candidate, cause, fix in wrongs:
            # A candidate that equals the right gradient is left out, because it would explain every mistake.
            if not torch.allclose(candidate, right, rtol=1e-3):
                yield candidate, cause, fix
