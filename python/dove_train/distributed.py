"""Several processes of one run: who this one is, sums over all, and how a model is spread over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dove_ext.models.stack import Layer
from dove_ext.models.vqgan import Level
from dove_train.settings import TrainingError


@dataclass(frozen=True)
class World:
    """The processes of a run, as torchrun started them; one process without it."""

    rank: int
    size: int
    device: torch.device
    parallel: str = "ddp"

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process keeps only a part of every weight."""
        return self.size > 1 and self.parallel == "fsdp2"

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def mean(self, value: float) -> float:
        """The mean of a number over all processes, on each of them."""
        return self.sum(torch.tensor(value, device=self.device)).item() / self.size

    def gather(self, value: Any) -> list[Any]:
        """What every process has, by rank, on each of them: slow, for what happens rarely."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def spread(self, module: nn.Module, blocks: tuple[type[nn.Module], ...] = (Layer, Level)) -> nn.Module:
        """DDP or FSDP2 around a pass, `blocks` in shards of their own; itself with one process."""
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            for part in module.modules():
                if isinstance(part, blocks):
                    fully_shard(part)
            return fully_shard(module)
        return self.spread_whole(module)

    def spread_whole(self, module: nn.Module) -> nn.Module:
        """DDP around a module, whatever the model has; itself with one process."""
        if self.size == 1:
            return module
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            module, device_ids=[self.device] if on_gpu else None, broadcast_buffers=False
        )


def place(device: str) -> torch.device:
    """The device named in the settings; "cuda" is this process's GPU, "auto" that or the CPU.

    Raises:
        TrainingError: if it is not there, or is one GPU for several processes.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        elif chosen.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise TrainingError(f"the device {device!r} is one GPU for several processes; use auto or cuda")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"the device {device!r} cannot be used ({reason}); try auto or cpu") from error
    return chosen


@contextmanager
def join(device: str, parallel: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be the only one."""
    where = place(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, where, parallel)
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which FSDP2 keeps a shard in each process, put together; others as they are.

    Every process must call it, in the same order.
    """
    gathered: Any = tensor
    return gathered.full_tensor() if hasattr(gathered, "full_tensor") else gathered
