"""Samples of other sizes than the sample that was given, where forward takes them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.subject import Subject

MOST_CARRIERS = 5  # with more inputs than this only the choice of all is tried, because subsets double with each input


@dataclass
class Reshaped:
    """The sample with other shapes: a tensor for each slot, and all leaves, those that are no slots included."""

    values: list[Tensor]
    others: list[Any]


def batch_leaves(subject: Subject) -> list[int]:
    """The leaves that carry the samples: of those as long along `batch_dim` as the first tensor, the most that can be
    cut by one sample together so that forward still runs.

    Raises:
        Skipped: `batch_dim` is not given, or no choice of leaves lets forward run with a sample fewer.
    """
    axis = subject.batch_dim
    if axis is None:
        raise Skipped("batch_dim= is not given")
    inputs = len(subject.leaves) - len(subject.parameters)
    tensors = [i for i, leaf in enumerate(subject.leaves[:inputs]) if isinstance(leaf, Tensor)]
    tall = [i for i in tensors if -subject.leaves[i].ndim <= axis < subject.leaves[i].ndim]
    if not tall:
        raise Skipped(f"no input has an axis {axis}")
    size = subject.leaves[tall[0]].shape[axis]
    carriers = [i for i in tall if subject.leaves[i].shape[axis] == size]
    if size < 2:
        return carriers
    for count in range(len(carriers), 0, -1):
        for chosen in itertools.combinations(carriers, count):
            if carriers[0] not in chosen:
                continue
            if runs(subject, reshaped(subject, chosen, lambda t: t.narrow(axis, 0, size - 1))):
                return list(chosen)
        if count > MOST_CARRIERS:
            break
    raise Skipped("no choice of inputs that carry the samples lets forward run with one sample fewer")


def runs(subject: Subject, changed: Reshaped) -> bool:
    try:
        subject.run(changed.values, others=changed.others)
    except Broken:
        return False
    return True


def reshaped(subject: Subject, chosen: Any, change: Callable[[Tensor], Tensor]) -> Reshaped:
    others = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in subject.leaves]
    for leaf in chosen:
        others[leaf] = change(others[leaf]).clone()
    return Reshaped([others[slot.leaf] for slot in subject.slots], others)
