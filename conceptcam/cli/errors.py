"""What went wrong, in one sentence, told once however many processes it went wrong in."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
"""What a user can mend; all else is a defect, and shows its traceback."""

WAIT = 10.0
"""Seconds that processes wait for one another to tell what went wrong."""


def sentence(error: Exception) -> str:
    """An error on one line; empty if it is not one that a user can mend.

    Of an error that crossed from a loader's process, it is the line that says what was wrong.
    """
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return "the device has no memory left; use a smaller --batch-size, or save memory with --gradient-checkpointing"
    known = isinstance(error, USER_ERRORS) or "a worker of the data loader died" in str(error)
    if not known:
        return ""
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.splitlines())


def tell(text: str, *, head: str = "") -> bool:
    """Write to standard error what went wrong, once.

    Of several processes the first one speaks. Where it went wrong in another one alone, that is named. A process
    that was only told that another one had gone has nothing to say of its own.

    Args:
        text: What went wrong; empty if this process does not know.
        head: What to write before it.

    Returns:
        Whether it is told; if not, nobody knows more than the error itself.
    """
    if processes() == 1:
        return _write(f"{head}{text}") if text else False
    with _shared_store() as store:
        return _tell_as_first(store, text, head) if _rank() == 0 else _tell_as_other(store, text, head)


def processes() -> int:
    """How many processes were started together, by `torchrun`, say."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _tell_as_first(store: "Store | None", text: str, head: str) -> bool:
    where = ""
    if not text and store is not None:
        other = _first_of(store, [f"process {rank}" for rank in range(1, processes())])
        where, text = (f"in {other} of {processes()}: ", store.get(other).decode()) if other else ("", "")
    if text:
        _write(f"{head}{where}{text}")
        if store is not None:
            store.set("told", "1")
    return bool(text)


def _tell_as_other(store: "Store | None", text: str, head: str) -> bool:
    if store is not None and text:
        store.set(f"process {_rank()}", text)
    if store is not None and _first_of(store, ["told"]):
        return True
    return _write(f"{head}in process {_rank()} of {processes()}: {text}") if text else False


def _first_of(store: "Store", keys: Collection[str]) -> str:
    """The first key that is set within some seconds, or nothing."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        for key in keys:
            if store.check([key]):
                return key
        time.sleep(0.1)
    return ""


@contextlib.contextmanager
def _shared_store() -> "Iterator[Store | None]":
    """Where processes can leave word for one another even when their group is broken; None if there is none."""
    from torch.distributed import PrefixStore, TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=WAIT))
    except (KeyError, ValueError, RuntimeError):
        yield None
        return
    yield PrefixStore(f"conceptcam/complaints/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _rank() -> int:
    return int(os.environ["RANK"])


def _write(line: str) -> bool:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return True


def _of_the_system(error: OSError) -> str:
    """A sentence for an error of the operating system, which says what but not what to do."""
    path = error.filename if error.filename is not None else "a file"
    sentences = {
        errno.ENOENT: f"there is no {path}; is the path right, from the folder you are in?",
        errno.EACCES: f"{path} may not be read or written by you; change its rights, or choose another place",
        errno.EROFS: f"{path} cannot be written, its disk is read-only; choose another place",
        errno.EISDIR: f"{path} is a folder; give a file",
        errno.ENOTDIR: f"{path} is in what is a file, not a folder; correct the path",
        errno.EEXIST: f"{path} is there already; choose another place",
        errno.ENOSPC: f"no room left on the disk to write {path}; make room, and go on",
    }
    return sentences.get(error.errno or 0, f"{error.strerror}: {path}")
