"""Errors of the command line: each becomes one sentence (`sentence`), printed once by one process (`tell`)."""

import errno
import os
import sys
import time
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
    if not isinstance(error, USER_ERRORS) and "a worker of the data loader died" not in str(error):
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
    that only knows that another one has gone has nothing to say of its own.

    Args:
        text: What went wrong; empty if this process does not know.
        head: What to write before it.

    Returns:
        Whether it was printed; if not, nobody knows more than the error itself.
    """
    rank = int(os.environ["RANK"]) if processes() > 1 else 0
    place = f"in process {rank} of {processes()}: " if rank else ""
    line, store = f"{head}{place}{text}\n" if text else "", _shared_store()
    if rank and store is not None:
        if line:
            store.compare_set("complaint", "", line)  # the first one stays
        if _awaited(store, "printed"):
            return True
    elif store is not None and not line:
        line = _awaited(store, "complaint")
        if line and store.check(["printed"]):  # by who complained, and could not wait
            return True
    sys.stderr.write(line)
    sys.stderr.flush()
    if line and store is not None:
        store.set("printed", "yes")
    return bool(line)


def processes() -> int:
    """How many processes were started together, by `torchrun`, say."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _shared_store() -> "Store | None":
    """Where processes can leave word for one another even when their group is broken; None if there is none."""
    if processes() == 1:
        return None
    from torch.distributed import PrefixStore, TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=WAIT))
    except (KeyError, ValueError, RuntimeError):
        return None
    return PrefixStore(f"conceptcam/complaints/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _awaited(store: "Store", key: str) -> str:
    """What a process leaves under a key within some seconds; empty if none does."""
    end = time.monotonic() + WAIT
    try:
        while time.monotonic() < end:  # in steps, between which signals come through
            if store.check([key]):
                return store.get(key).decode()
            time.sleep(0.05)
    except RuntimeError:
        pass
    return ""


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
        errno.EDQUOT: f"your quota has no room left to write {path}; remove files of yours, and go on",
        errno.EFBIG: f"{path} would be larger than files may be here; raise the limit (ulimit -f), and go on",
    }
    return sentences.get(error.errno or 0, f"{error.strerror}: {path}")
