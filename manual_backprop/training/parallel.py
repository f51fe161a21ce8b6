"""One process or many: what `torchrun` started, sums over it, and torch's own engines that divide a model among it."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # torch's engines are imported where one is used: they take as long as a short run
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle


class Workers(NamedTuple):
    """The processes of a run; rank 0 logs and saves. ``restarts``: how many torchrun allows."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0

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

    def from_first(self, x: Any) -> Any:
        """The value of the first process, in each of them."""
        if self.size == 1:
            return x
        box = [x]
        dist.broadcast_object_list(box)
        return box[0]


def from_environment() -> Workers:
    """The processes that `torchrun` announces in its environment variables; one where there are none."""
    return Workers(*(int(os.environ.get(name, default)) for name, default in _TORCHRUN.items()))


_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "0"}


TIMEOUT = timedelta(minutes=1)
"""A process that waits longer for another one ends, and torchrun starts all again."""


@contextmanager
def process_group(workers: Workers, device: torch.device) -> Iterator[None]:
    """gloo between CPU processes, nccl between GPUs; nothing for one process."""
    if workers.size == 1:
        yield
        return
    # A prefix of its own for each start, because restarted workers may meet in the store of the workers before them,
    # where the addresses of the dead still stand.
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    own = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=own, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def divided(model: torch.nn.Module, how: str, workers: Workers, device: torch.device) -> torch.nn.Module:
    """The model as it is trained: itself in one process; else as one of `ENGINES` divides it.

    Under "ddp" its parameters are those of ``model``, under "fsdp" and "tensor" they are DTensors of their own.
    """
    if workers.size == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh

    return ENGINES[how](model, init_device_mesh(device.type, (workers.size,)))


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """By name, the inputs' first; wherever in the model they are."""
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def _data(model: torch.nn.Module, mesh: "DeviceMesh") -> torch.nn.Module:
    return torch.nn.parallel.DistributedDataParallel(model)


def _fully_sharded(model: torch.nn.Module, mesh: "DeviceMesh") -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    model = copy.deepcopy(model)
    for module in (*linear_layers(model).values(), model):
        fully_shard(module, mesh=mesh)
    return model


def _tensor(model: torch.nn.Module, mesh: "DeviceMesh") -> torch.nn.Module:
    """Column by column and row by row in turn: what lies between two layers is divided and stays so."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = copy.deepcopy(model)
    names = list(linear_layers(model))
    plan: dict[str, ParallelStyle] = {
        name: RowwiseParallel() if i % 2 else ColwiseParallel(use_local_output=False) for i, name in enumerate(names)
    }
    if len(names) % 2:
        plan[names[-1]] = ColwiseParallel(output_layouts=Replicate())
    return parallelize_module(model, mesh, plan)


ENGINES: dict[str, Callable[[torch.nn.Module, "DeviceMesh"], torch.nn.Module]] = {
    "ddp": _data,
    "fsdp": _fully_sharded,
    "tensor": _tensor,
}


def whole(x: Tensor) -> Tensor:
    """All of a tensor whose parts lie on several processes (a DTensor), in each of them: all have to ask."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def like(x: Tensor, part: Tensor) -> Tensor:
    """``x``, which every process has, in parts as ``part`` is: the inverse of `whole`."""
    if not hasattr(part, "full_tensor"):
        return x
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(part, DTensor)
    return distribute_tensor(x, part.device_mesh, part.placements)
