"""The arguments of `validate`: refused in words where they cannot be validated, and made into cases."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manual_backprop import _torch
from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken, one_line
from manual_backprop.validation.naming import argument_names, counted
from manual_backprop.validation.rule import Rule
from manual_backprop.validation.subject import Subject
from manual_backprop.validation.untouched import seed_all

Names = str | Iterable[str]


def chosen(rules: Sequence[Rule], only: Names | None, skip: Names) -> list[Rule]:
    """The rules that `only` names (all for None) less those that `skip` names.

    Raises:
        ValueError: a name that fits no rule, or nothing is left.
    """
    wanted = None if only is None else _names("only", only, rules)
    unwanted = _names("skip", skip, rules)
    found = [
        rule
        for rule in rules
        if (wanted is None or any(map(rule.answers_to, wanted))) and not any(map(rule.answers_to, unwanted))
    ]
    if not found:
        raise ValueError(f"only: {_shown(wanted)} less skip: {_shown(unwanted)} leaves no rule to ask")
    return found


def _names(argument: str, names: Names, rules: Sequence[Rule]) -> list[str]:
    names = listed(names)
    for name in names:
        if not isinstance(name, str) or not name or not any(rule.answers_to(name) for rule in rules):
            raise ValueError(
                f"{argument}: no rule answers to {name!r}; give a code (MB301), a prefix (MB3), a name "
                "(sign-of-grad-output) or a family (linearity)"
            )
    return names


def listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _shown(names: Sequence[str] | None) -> str:
    return "everything" if names is None else ", ".join(names) or "nothing"


def cases(func: Any, inputs: Any, reference: Any, batch_dim: int | None, seed: int) -> list[Case]:
    """A case for each sample.

    Raises:
        TypeError, ValueError: an argument that cannot be validated; the message says why, and the cure.
    """
    if not callable(func):
        raise TypeError(f"func: expected a Function, a module or a callable, found {type(func).__name__}")
    samples = _samples(inputs)
    found = [_case(func, sample, reference, batch_dim, seed) for sample in samples]
    for number, case in enumerate(found):
        case.sample = number if len(found) > 1 else None
    return found


def _samples(inputs: Any) -> list[tuple]:
    if isinstance(inputs, Tensor):
        return [(inputs,)]
    if isinstance(inputs, list) and inputs and all(isinstance(sample, tuple) for sample in inputs):
        return list(inputs)
    if isinstance(inputs, tuple | list) and inputs:
        return [tuple(inputs)]
    raise TypeError(f"inputs: expected a tuple of arguments, or a list of such tuples, found {type(inputs).__name__}")


def _case(func: Any, sample: tuple, reference: Any, batch_dim: int | None, seed: int) -> Case:
    tensors = [leaf for leaf in _torch.flatten(sample)[0] if isinstance(leaf, Tensor)]
    _refuse_inference_tensors(func, sample)
    if any(t.layout != torch.strided for t in tensors):
        raise TypeError("inputs: a sparse tensor is not supported; build it inside func from its values")
    if isinstance(func, nn.Module):
        tensors += list(func.parameters())
    devices = {str(t.device) for t in tensors}
    if len(devices) > 1:
        raise ValueError(f"inputs: they are on several devices ({', '.join(sorted(devices))}); move all to one device")
    case = Case(func, sample, reference, batch_dim, seed)
    if not any(case.needs):
        raise ValueError(
            "inputs: no tensor requires grad; call .requires_grad_() on each whose gradient is to be checked"
        )
    _check_forward(case)
    if case.reference is not None:
        _check_reference(case, case.reference)
    return case


def _refuse_inference_tensors(func: Any, sample: tuple) -> None:
    named = list(zip(argument_names(func, sample), _torch.flatten(sample)[0], strict=True))
    named += func.named_parameters() if isinstance(func, nn.Module) else []
    for name, value in named:
        if isinstance(value, Tensor) and value.is_inference():
            raise ValueError(
                f"inputs: `{name}` was made under torch.inference_mode, so autograd cannot record it; make it outside"
            )


def _check_forward(case: Case) -> None:
    """Raises where a forward pass shows that the callable cannot be validated; a forward that itself raises is
    reported later, as a finding."""
    try:
        first = _seeded(case, 1)
    except Broken as broken:
        # In torch's own English, because torch has no exception class for this. Should the words change, a forward that
        # writes into its arguments is reported as a failure (it raises), never as a pass.
        if "leaf Variable that requires grad" not in str(broken) and "view of a leaf" not in str(broken):
            return
        case.in_place = True
        first = _seeded(case, 1)
    if not any(output.requires_grad for output in first):
        raise ValueError(
            "func: no output has a grad_fn; return a tensor that depends on the inputs, outside of no_grad and detach"
        )
    if not _same(first, _seeded(case, 2)) and _same(first, _seeded(case, 1)):
        raise ValueError(
            "func: it is random: two calls on the same inputs differ; seed it inside, or pass the mask as an input"
        )


def _check_reference(case: Case, reference: Subject) -> None:
    try:
        mine = case.run().outputs
    except Broken:
        return  # because the rules report it as a finding
    try:
        theirs = reference.run().outputs
    except Broken as broken:
        raise ValueError(f"reference: {one_line(broken)}") from broken
    if len(mine) != len(theirs):
        raise ValueError(f"reference: it has {counted(len(theirs), 'output')} where func has {len(mine)}")
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"reference: output {number} has shape {tuple(b.shape)} where func has {tuple(a.shape)}; "
                "return the same shapes in the same order"
            )


def _seeded(subject: Subject, seed: int) -> list[Tensor]:
    seed_all(seed)
    return subject.run().outputs


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True) if not a.is_sparse else True
        for a, b in zip(first, second, strict=True)
    )
