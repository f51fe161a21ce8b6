"""One process or many: what `torchrun` started, and sums over it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Workers(NamedTuple):
    """The processes of a run; rank 0 logs and saves."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all processes, in each of them."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def maximum(self, x: float, device: torch.device) -> float:
        """The largest ``x`` of all processes, in each of them."""
        if self.size == 1:
            return x
        largest = torch.tensor(x, dtype=torch.float64, device=device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)


def from_environment() -> Workers:
    """The processes that `torchrun` announces in its environment variables; one where there are none."""
    return Workers(*(int(os.environ.get(name, default)) for name, default in _TORCHRUN.items()))


_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


@contextmanager
def process_group(workers: Workers, device: torch.device) -> Iterator[None]:
    """gloo between CPU processes, nccl between GPUs; nothing for one process."""
    if workers.size == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
