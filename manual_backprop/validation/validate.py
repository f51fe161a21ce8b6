"""`validate`: checks what it is given, asks every probe, and leaves everything of the caller's as it was."""

import contextlib
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from manual_backprop.validation import memory
from manual_backprop.validation.consequences import with_roots
from manual_backprop.validation.exceptions import one_line, where
from manual_backprop.validation.naming import argument_names, name_of
from manual_backprop.validation.report.report import STATUSES, Finding, Report, fail
from manual_backprop.validation.rules import PROBES
from manual_backprop.validation.rules.rule import Inconclusive, Probe, Skipped, select
from manual_backprop.validation.subject import Broken, Subject
from manual_backprop.validation.untouched import seed_all, untouched

Progress = Callable[[Probe, int, int], None]


def validate(
    func: Any,
    inputs: Sequence[Any],
    reference: Any = None,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] = (),
    batch_dim: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Asks of a hand-written backward pass every question in the table `PROBES`.

    Args:
        func: an `autograd.Function` class, its ``.apply``, an `nn.Module` (its parameters count as inputs), a
            partial, or any callable on tensors.
        inputs: the arguments, a tuple as for `torch.autograd.gradcheck`, or a list of such tuples. Those with
            ``requires_grad`` are differentiated. They are never written to.
        reference: the same function in plain torch, or a module with the same ``state_dict``.
        only, skip: codes (``"MB301"``), prefixes (``"MB3"``), checks or families. A surrogate gradient
            (straight-through, spikes) is told by ``skip="MB1"``.
        batch_dim: the dimension of the inputs that counts samples; allows the probes that change it.
        seed: all random numbers come from it; two calls give the same report.
        progress: called before each probe with the probe, its number and how many there are.

    Returns:
        A `Report`, true where no finding is a ``fail``.

    Raises:
        TypeError, ValueError: an argument that cannot be validated; the message says why, and the cure.

    Example:
        >>> x = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
        >>> bool(validate(torch.sigmoid, (x,), only="MB3"))
        True
    """
    started = time.perf_counter()
    probes = select(PROBES, only, skip)
    samples = _samples(inputs)
    trusted = not any(name.upper() in ("MB1", "MB101", "CALCULUS", "DERIVATIVE") for name in _listed(skip))
    arguments = _repro_arguments(reference, batch_dim, seed, len(samples))
    findings: list[Finding] = []
    with untouched(), contextlib.ExitStack() as stack:
        subjects = [_subject(func, sample, reference, batch_dim, seed, trusted) for sample in samples]
        stack.enter_context(memory.freed_at_once(value for subject in subjects for value in subject.values))
        for subject in subjects:
            if subject.large:  # what every comparison asks for, before a probe holds tensors of its own
                with contextlib.suppress(Broken):
                    _ = subject.dtype, subject.noise
        for number, probe in enumerate(probes):
            if progress is not None:
                progress(probe, number, len(probes))
            memory.tidy(value for subject in subjects for value in subject.values)
            repro = f'validate({name_of(func)}, inputs, only="{probe.code}"{arguments})'
            findings += [replace(finding, repro=repro) for finding in _asked(probe, subjects)]
    seconds = time.perf_counter() - started
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return Report(name_of(func), tuple(with_roots(findings)), seed, seconds, versions)


def _asked(probe: Probe, subjects: Sequence[Subject]) -> list[Finding]:
    """The findings of one probe over all samples: whatever is not a pass, or one finding that says all is well."""
    started = time.perf_counter()
    found: list[Finding] = []
    for number, subject in enumerate(subjects):
        for finding in _answers(probe, subject):
            place = f"sample {number}: " if len(subjects) > 1 and finding.status != "pass" else ""
            found.append(replace(finding, message=place + finding.message))
    statuses = {finding.status for finding in found}
    if statuses & {"fail", "warn"}:
        found = [finding for finding in found if finding.status in ("fail", "warn")]
    elif "pass" in statuses:
        found = [finding for finding in found if finding.status == "pass"][:1]
    else:
        found = [min(found, key=lambda finding: -STATUSES.index(finding.status))]
    seconds = (time.perf_counter() - started) / len(found)
    return [
        replace(finding, code=probe.code, check=probe.check, family=probe.family, seconds=seconds) for finding in found
    ]


def _answers(probe: Probe, subject: Subject) -> list[Finding]:
    seed_all(subject.seed)
    try:
        found = list(probe.function(subject))
    except Skipped as reason:
        return [Finding("skip", str(reason))]
    except Inconclusive as reason:
        return [Finding("inconclusive", str(reason))]
    except Broken as broken:
        return [_broken(subject, broken)]
    except Exception as error:
        if not where(error):  # not in the user's code
            return [Finding("inconclusive", f"the probe itself stopped at {type(error).__name__}: {one_line(error)}")]
        return [_crash(f"the probe stopped at {type(error).__name__}: {one_line(error)}", error)]
    return found or [Finding("pass", "ok")]


def _broken(subject: Subject, broken: Broken) -> Finding:
    """The plain pass itself raises: told once as a failure, and as a skip wherever else it stops a probe."""
    if "plain" in vars(subject) and broken.stage == "forward":
        return Finding("inconclusive", f"forward does not take the values tried: {one_line(broken)}")
    if subject.memo.get("told") == str(broken):
        return Finding("skip", f"not asked: {one_line(broken)}")
    subject.memo["told"] = str(broken)
    return _crash(one_line(broken), broken.error)


def _crash(message: str, error: BaseException) -> Finding:
    place = where(error)
    return fail(
        message + (f" ({place})" if place else ""),
        cause=f"an exception{' at ' + place if place else ''}",
        fix="let forward and backward run in this setting, which torch allows",
    )


# --- what it is given ---------------------------------------------------------------------------------------------


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _samples(inputs: Any) -> list[tuple]:
    if isinstance(inputs, Tensor):
        return [(inputs,)]
    if isinstance(inputs, list) and inputs and all(isinstance(sample, tuple) for sample in inputs):
        return list(inputs)
    if isinstance(inputs, tuple | list) and inputs:
        return [tuple(inputs)]
    raise TypeError(f"inputs: expected a tuple of arguments, or a list of such tuples, found {type(inputs).__name__}")


def _subject(func: Any, sample: tuple, reference: Any, batch_dim: int | None, seed: int, trusted: bool) -> Subject:
    if not callable(func):
        raise TypeError(f"func: expected a Function, a module or a callable, found {type(func).__name__}")
    tensors = [leaf for leaf in pytree.tree_leaves(sample) if isinstance(leaf, Tensor)]
    _refuse_inference_tensors(func, sample)
    if any(t.layout != torch.strided for t in tensors):
        raise TypeError("inputs: a sparse tensor is not supported; build it inside func from its values")
    if isinstance(func, nn.Module):
        tensors += list(func.parameters())
    devices = {str(t.device) for t in tensors}
    if len(devices) > 1:
        raise ValueError(f"inputs: they are on several devices ({', '.join(sorted(devices))}); move them to one")
    subject = Subject(func, sample, reference, batch_dim, seed, trusted)
    if not any(subject.needs):
        raise ValueError("inputs: no tensor requires grad; call .requires_grad_() on those whose gradient is meant")
    _check_forward(subject)
    if subject.reference is not None:
        _check_reference(subject, subject.reference)
    return subject


def _refuse_inference_tensors(func: Any, sample: tuple) -> None:
    named = list(zip(argument_names(func, sample), pytree.tree_leaves(sample), strict=True))
    named += func.named_parameters() if isinstance(func, nn.Module) else []
    for name, value in named:
        if isinstance(value, Tensor) and value.is_inference():
            raise ValueError(
                f"inputs: `{name}` was made under torch.inference_mode, so autograd cannot record it; make it outside"
            )


def _check_forward(subject: Subject) -> None:
    """Raises where a forward pass shows that the callable cannot be validated; one that raises is a finding."""
    try:
        first = _seeded(subject, 1)
    except Broken as broken:
        if "leaf Variable that requires grad" not in str(broken) and "view of a leaf" not in str(broken):
            return
        subject.in_place = True
        first = _seeded(subject, 1)
    if not any(output.requires_grad for output in first):
        raise ValueError(
            "func: no output has a grad_fn; return a tensor that depends on the inputs, outside of no_grad and detach"
        )
    if not _same(first, _seeded(subject, 2)) and _same(first, _seeded(subject, 1)):
        raise ValueError(
            "func: it is random (two calls on the same inputs differ); seed it inside, or pass its mask as an input"
        )


def _check_reference(subject: Subject, reference: Subject) -> None:
    try:
        mine, theirs = subject.run().outputs, reference.run().outputs
    except Broken as broken:
        if broken.__context__ is not None and not _runs(reference):
            raise ValueError(f"reference: {one_line(broken)}") from broken
        return
    if len(mine) != len(theirs):
        raise ValueError(f"reference: it has {len(theirs)} outputs where func has {len(mine)}")
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"reference: output {number} has shape {tuple(b.shape)} where func has {tuple(a.shape)}; "
                "return the same shapes in the same order"
            )


def _runs(subject: Subject) -> bool:
    try:
        subject.run()
    except Broken:
        return False
    return True


def _seeded(subject: Subject, seed: int) -> list[Tensor]:
    seed_all(seed)
    return subject.run().outputs


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True) if not a.is_sparse else True
        for a, b in zip(first, second, strict=True)
    )


def _repro_arguments(reference: Any, batch_dim: int | None, seed: int, samples: int) -> str:
    text = f", reference={name_of(reference)}" if reference is not None else ""
    text += f", batch_dim={batch_dim}" if batch_dim is not None else ""
    return f"{text}, seed={seed}"
