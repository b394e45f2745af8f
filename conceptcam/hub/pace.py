"""A total time for what the Hub's client downloads: its own time is for each read, which a dribble never uses up."""

import contextlib
import importlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

LEAST_RATE = 1000
"""Bytes a second, at the least, after a pause of three times the client's own time for a read."""


@contextlib.contextmanager
def least_pace(user: str) -> Iterator[None]:
    """Within it, answers to a user of the Hub's client come at a least rate, or end with an error.

    An answer of S bytes is whole after `3 * HF_HUB_DOWNLOAD_TIMEOUT + S / LEAST_RATE` seconds, or it ends. Other users
    of the client, in this process, are left alone.

    What the client has no hook for is not timed: headers of an answer, of which it reads 100 kB at most, and files that
    `hf_xet` fetches in place of the client, with limits of its own. Nor is what it fetches after it could not
    connect and tries again: it then makes a new client, without the hook.

    Args:
        user: How the User-Agent of the requests begins.

    Raises:
        TimeoutError: Where the answer is read, if it comes more slowly.
    """
    from huggingface_hub import constants, get_session

    def watch(response: Any) -> None:
        if response.request.headers.get("user-agent", "").startswith(user):
            response.stream = _paced(response, 3 * constants.HF_HUB_DOWNLOAD_TIMEOUT)

    hooks = get_session().event_hooks["response"]
    hooks.append(watch)
    try:
        yield
    finally:
        hooks.remove(watch)


def _paced(response: Any, pause: float) -> Any:
    """The stream of an answer, which ends with an error once it is too slow."""
    # The client's package for HTTP depends on its version, and wants streams to be of its own class.
    base: Any = importlib.import_module(type(response).__module__.partition(".")[0]).SyncByteStream
    stream, address = response.stream, str(response.request.url).partition("?")[0]

    class PacedStream(base):
        def __iter__(self) -> Iterator[bytes]:
            return _timed(stream, address, pause)

        def close(self) -> None:
            stream.close()

    return PacedStream()


def _timed(parts: Iterable[bytes], address: str, pause: float) -> Iterator[bytes]:
    """The same parts, as long as they come fast enough.

    Raises:
        TimeoutError: If the pause is over and fewer bytes came since it began than the least rate gives.
    """
    began, size = time.monotonic(), 0
    for part in parts:
        size += len(part)
        passed = time.monotonic() - began
        if size < LEAST_RATE * (passed - pause):
            raise TimeoutError(
                f"{address} came too slowly, {size} bytes in {passed:.0f} seconds; the environment variable "
                "HF_HUB_DOWNLOAD_TIMEOUT allows more"
            )
        yield part
