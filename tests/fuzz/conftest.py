"""How many attempts each fuzz test makes, and the random numbers that it makes them with."""

import random
from collections.abc import Callable, Iterator

import pytest

SEED = 20_260_101


@pytest.fixture
def attempts(request: pytest.FixtureRequest) -> Callable[[int], Iterator[random.Random]]:
    """Gives a source of random numbers for each attempt: so many, times the option `--fuzz`."""

    def attempts(count: int) -> Iterator[random.Random]:
        for number in range(count * request.config.getoption("--fuzz")):
            yield random.Random(f"{SEED} {request.node.name} {number}")

    return attempts
