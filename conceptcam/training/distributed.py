"""Work in several processes: join their group, and exchange values with them; in one process nothing is exchanged.

`torchrun` starts the processes; torch's own distributed package connects them.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from conceptcam.model.device import resolve_device

T = TypeVar("T")


@contextlib.contextmanager
def process_group(device: torch.device | str) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, for the length of a `with` block; gives this process's device.

    A group that exists already is used and left as it is. Without `torchrun` there is no group.

    Args:
        device: Where to compute; `"cuda"` without a number becomes the GPU of this process.

    Raises:
        ValueError: If this machine has no such device.
    """
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    device = resolve_device(device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(device)
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1
    joins = started and dist.is_available() and not dist.is_initialized()
    if joins:
        _join()
    try:
        yield device
    finally:
        if joins:
            dist.destroy_process_group()


def _join() -> None:
    """Make the group of all processes; a group that was made and left before does not disturb it."""
    store, rank, world, *_ = next(dist.rendezvous("env://"))
    # What the group before left in the store would lead this one to sockets that are closed.
    number = store.add(f"conceptcam/{rank}", 1)
    store = dist.PrefixStore(f"conceptcam/{number}", store)
    dist.init_process_group(store=store, rank=rank, world_size=world)  # of no backend: serves the CPU and GPUs


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def main_process_logger(name: str) -> logging.Logger:
    """A logger that is silent in all processes but the first, so that nothing is said several times."""
    log = logging.getLogger(name)
    log.addFilter(lambda record: is_main_process())
    return log


def broadcast(value: T) -> T:
    """The first process's value, in every process; it must be possible to pickle it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gather(value: T) -> list[T]:
    """Every process's value, in every process, by rank; it must be possible to pickle it."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # each place has been filled


def highest(number: int) -> int:
    """The highest of all processes' whole numbers, in every process."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather_rows(tensor: Tensor, counts: list[int]) -> list[Tensor]:
    """Every process's tensor, without gradients, by rank; they may differ in their number of rows.

    Args:
        tensor: (n, ...), this process's.
        counts: How many rows each process has, by rank.
    """
    if world_size() == 1:
        return [tensor.detach()]
    most = max(counts)
    padded = tensor.new_zeros(most, *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    rows = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(rows, padded)
    return [one[:count] for one, count in zip(rows, counts, strict=True)]
