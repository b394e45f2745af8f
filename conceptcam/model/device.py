"""Where tensors can be on this machine."""

import torch


def usable_device(device: torch.device | str | int) -> torch.device:
    """The device, once it has held a tensor.

    Ask before a download or an hour of work, rather than be told by torch afterwards.

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
        raise ValueError(f"cannot use device {str(device)!r} here; this machine has {_devices()}") from error
    return where


def _devices() -> list[str]:
    """The processor and the accelerators that torch finds."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None  # as it is available
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
