"""Processes of a run, from torchrun's environment; trivial with one process."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tap_engine.model.device import resolve_device
from tap_engine.schemas.errors import ConfigError, TapError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """This process among all.

    Attributes:
        rank, world: which of how many.
        local_rank: which on this machine.
        device: what it computes on.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the process that writes and reports."""
        return self.rank == 0


def start(device: str, timeout_minutes: float = 30.0) -> Process:
    """Joins the process group that torchrun describes, if there is one.

    Args:
        device: "auto", "cpu" or "cuda".
        timeout_minutes: time that a process waits for the others before it gives up.

    Raises:
        ConfigError: CUDA asked for and not there, or fewer devices than local processes.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    use_cuda = resolve_device(device, "train.device").type == "cuda"
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local process {local_rank} has no GPU: this machine has "
                f"{torch.cuda.device_count()}; lower torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(local_rank)
    if world > 1 and not dist.is_initialized():  # Ray Train has made the group
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=timeout)
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    return Process(rank=rank, world=world, local_rank=local_rank, device=chosen)


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def from_main(make: Callable[[], T]) -> T:
    """Calls `make` in the main process and gives its result, or its error, to every process."""
    if not dist.is_initialized():
        return make()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = make()
        except TapError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def add_up(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of 0-d tensors over all processes, which have the same names."""
    if not dist.is_initialized() or not values:
        return values
    names = sorted(values)
    device = values[names[0]].device
    total = torch.stack([values[name].to(device, torch.float32) for name in names])
    dist.all_reduce(total)
    return dict(zip(names, total.unbind(), strict=True))


def is_main() -> bool:
    """Whether this is the process that reports; before `start` every process is."""
    return not dist.is_initialized() or dist.get_rank() == 0


def collect(items: Iterable[T]) -> list[T]:
    """The items of all processes, in rank order, in every process."""
    mine = list(items)
    if not dist.is_initialized():
        return mine
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return [item for part in found for item in part]


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def wrap(module: nn.Module, process: Process) -> nn.Module:
    """DDP around the module where there are several processes."""
    if process.world == 1:
        return module
    devices = [process.local_rank] if process.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
