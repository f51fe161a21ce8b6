"""Two processes of a gloo group: what the rows about many processes run in.

Importing torch takes seconds, so the two are started once and kept, and each task has a process group of its own. What
a task returns comes back to the parent, where the comparison takes place: there the canary is told from a mistake.
"""

import functools
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from tests.dropin.canary import as_in_parent

SIZE = 2


def in_processes(work: Callable, *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns in each of the two processes, by rank: tensors in lists and dictionaries.

    A function of a module, since it is pickled. A DTensor comes back whole.
    """
    with TemporaryDirectory() as folder:
        # With the environment of now: the canary is in it.
        task = (os.environ.copy(), Path(folder) / "store", work, arguments)
        running = [process.submit(_take_part, rank, *task) for rank, process in enumerate(_processes())]
        wait(running)  # Where one fails, the other has to be free for the next task.
        try:
            return [torch.load(io.BytesIO(process.result())) for process in running]
        except BrokenProcessPool:  # One of them crashed.
            _processes.cache_clear()
            raise


def mine(x: Tensor) -> Tensor:
    """This process's share of the samples; in the parent all of them."""
    return x.chunk(SIZE)[dist.get_rank()] if dist.is_initialized() else x


def as_plain_tensors(values: Any) -> Any:
    """Every tensor detached, and whole where its parts are on several processes."""
    return tree_map_only(Tensor, lambda x: (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone(), values)


@functools.cache
def _processes() -> list[ProcessPoolExecutor]:
    # One each: a process keeps its rank, since what DTensor remembers of a mesh depends on it.
    spawn = multiprocessing.get_context("spawn")
    return [ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,)) for _ in range(SIZE)]


def _take_part(rank: int, environment: dict[str, str], store: Path, work: Callable, arguments: tuple) -> bytes:
    os.environ.clear()
    os.environ.update(environment)
    torch.manual_seed(0)
    with as_in_parent(), warnings.catch_warnings():
        warnings.simplefilter("error")
        # The other one ends its group where it fails, and this one with it; the timeout is for what nobody foresaw.
        group = {"rank": rank, "world_size": SIZE, "timeout": timedelta(seconds=60)}
        dist.init_process_group("gloo", store=dist.FileStore(str(store), SIZE), **group)
        try:
            result = as_plain_tensors(work(*arguments))
        finally:
            dist.destroy_process_group()
    content = io.BytesIO()
    torch.save(result, content)
    return content.getvalue()
