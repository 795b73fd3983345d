"""One process, or several under `torchrun`: ranks, sums and mean gradients. Does nothing alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def process_group() -> Iterator[None]:
    """Join torchrun's group for the duration where there is one."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        # Whoever is done first would take the others' connections along.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def training_device() -> torch.device:
    """This rank's GPU where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place where there are several."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def from_first_rank(tensors: Iterable[Tensor]) -> None:
    """Overwrite every process's tensors with rank 0's."""
    if ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average_gradients(module: nn.Module) -> None:
    """Mean of the gradients over all processes."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            sum_over_ranks(parameter.grad).div_(ranks())


def share(batch: Tensor) -> Tensor:
    """This rank's equal part of a batch drawn alike on every rank."""
    size = len(batch) // ranks()
    return batch[rank() * size : (rank() + 1) * size]
