"""The global random generators of torch, numpy and Python: save them, set them, and seed them for a while."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

_CPU = torch.device("cpu")


def random_states(device: torch.device = _CPU) -> dict[str, Any]:
    """States of the generators, a GPU's among them if it is the device, as plain values and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), place, has_gauss, float(gauss)),
        "python": random.getstate(),
    }


def set_random_states(states: Mapping[str, Any], device: torch.device = _CPU) -> None:
    """Set what `random_states` gave."""
    kind, keys, place, has_gauss, gauss = states["numpy"]
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    random.setstate(states["python"])


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device = _CPU) -> Iterator[None]:
    """Seed the generators, and set them back to their states afterwards; None changes nothing."""
    if seed is None:
        yield
        return
    before = random_states(device)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed a GPU whose state is not kept
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        set_random_states(before, device)
