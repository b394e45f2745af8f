"""Signals that ask a run to stop, held back until it has written where it is."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_ASKING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_held_back(*, wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Within it, the first SIGINT or SIGTERM is only noted; gives what says whether one was.

    At its end the signal comes as it would have come at first. A second signal is not held back. Only the main
    thread can hold signals back; in others nothing happens.

    Args:
        wanted: Whether to hold them back.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []
    # A handler that Python did not set is None, and cannot be set again.
    before = {one: handler for one in _ASKING if (handler := signal.getsignal(one)) is not None}

    def put_back() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def note(number: int, frame: object) -> None:
        noted.append(number)
        put_back()

    for one in before:
        signal.signal(one, note)
    try:
        yield lambda: bool(noted)
    finally:
        put_back()
    if noted:
        signal.raise_signal(noted[0])
