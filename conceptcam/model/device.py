"""Where a model computes: devices of this machine, and a model in eval mode on one of them for a while."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


def resolve_device(device: torch.device | str | int) -> torch.device:
    """The device that a name means, after a trial that it works.

    Call it before a download or an hour of work, so that a wrong name fails at once.

    Args:
        device: Such as `"cpu"`, `"cuda"` or `"cuda:1"`; as `torch.device` takes.

    Raises:
        ValueError: If there is no such device, or it does not work; the message lists those that this machine has.
    """
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    # Each kind of device fails in its own way: torch built without CUDA asserts, one without HPU lacks a module.
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise ValueError(f"cannot use the device {str(device)!r} here; this machine has {_devices()}") from error
    return where


def _devices() -> list[str]:
    """The processor and the accelerators that torch finds."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None  # as it is available
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has instructions for bf16; without them bf16 is several times slower than fp32."""
    if cpuinfo.is_file():
        flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
        return bool(flags & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # torch was built without it
        return False


@contextlib.contextmanager
def eval_mode(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """A model in eval mode, and on a device, for a while; gives the device.

    The device, and the mode of each part, are put back at the end.
    """
    training, home = [part for part in model.modules() if part.training], next(model.parameters()).device
    where = home if device is None else resolve_device(device)
    moves = where != home
    try:
        (model.to(where) if moves else model).eval()
        yield where
    finally:
        if moves:
            model.to(home)
        for part in training:
            part.training = True
