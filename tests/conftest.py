"""What holds for every test: one thread, which is faster for tiny tensors, and the same random numbers each time."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """A test that draws from torch's global generator draws the same numbers alone and among others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
