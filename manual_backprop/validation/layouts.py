"""The same numbers in other memory layouts."""

import torch
from torch import Tensor

from manual_backprop import _torch


def transposed(value: Tensor) -> Tensor | None:
    """The numbers of `value` stored in the reverse order of axes; None below two axes."""
    if value.ndim < 2 or value.numel() < 2:
        return None
    axes = tuple(reversed(range(value.ndim)))
    return value.permute(axes).contiguous().permute(axes)


def sliced(value: Tensor) -> Tensor | None:
    """A view of every second element along the last axis of a larger tensor, as a slice after torch.cat gives it."""
    if value.ndim == 0 or value.numel() < 2:
        return None
    room = value.new_full((*value.shape[:-1], 2 * value.shape[-1] + 1), 7)
    view = room[..., 1::2]
    return view.copy_(value)


def offset(value: Tensor) -> Tensor | None:
    """A contiguous tensor that begins 3 elements into its storage."""
    if value.numel() == 0:
        return None
    room = value.new_full((value.numel() + 5,), 7)
    return room[3 : 3 + value.numel()].view(value.shape).copy_(value)


def expanded(value: Tensor) -> Tensor | None:
    """The first row of `value` (the first number, where it has one axis), repeated by stride 0 in a larger storage."""
    if value.ndim == 0 or value.numel() < 2:
        return None
    first = value[:1]
    room = first.new_full((first.numel() * value.shape[0] + 5,), 7)
    return room[2 : 2 + first.numel()].view(first.shape).copy_(first).expand(value.shape)


def summed(value: Tensor) -> Tensor | None:
    """One number, repeated by stride 0 along all axes, as the gradient after .sum() is."""
    if value.numel() < 2:
        return None
    room = value.new_full((value.numel() + 5,), 7)
    room[2] = value.flatten()[0]
    return room[2].expand(value.shape)


def channels_last(value: Tensor) -> Tensor | None:
    if value.ndim == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last_3d) if value.ndim == 5 else None


def negative_bit(value: Tensor) -> Tensor | None:
    return _torch.negative_view(value.neg()) if value.numel() else None


def conjugate_bit(value: Tensor) -> Tensor | None:
    return value.conj().resolve_conj().conj() if value.is_complex() else None
