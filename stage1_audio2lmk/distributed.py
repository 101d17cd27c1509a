"""torch.distributed helpers: rank, world size, barrier, all-gather; one process alone needs none of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=6)  # for the slowest process to prepare its clips


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did: NCCL on GPUs, gloo on CPUs. Yields this process's own device."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0; rank 0 writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def gather(rows: Tensor) -> Tensor:
    """Rows (B, …) of every process, one after the other (world_size·B, …); gradients flow into this rank's rows only.

    A loss of gathered rows is the loss of the whole batch, however many processes share it. Its gradients in all the
    processes add up to that of the whole batch.
    """
    if not dist.is_initialized():
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[rank()] = rows
    return torch.cat(parts)


def share_gradients(module: nn.Module, device: torch.device) -> nn.Module:
    """The module as it is to be called in training, so that all processes get the mean of their gradients."""
    if not dist.is_initialized():
        return module
    return DistributedDataParallel(module, [device.index] if device.type == "cuda" else None)
