"""Rows of numbers, one for each sample, in memory or in a temporary file, with a limit on their bytes."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Storage = Literal["auto", "off", "memory", "disk"]

SMALL = 1_000_000_000
"""Bytes that a store of storage `"auto"` keeps in memory; a larger one moves to the disk."""


class CacheFull(Exception):
    """There is no place for more rows; the message says why."""


class Budget:
    """How many bytes all stores together may take."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def check(self, count: int) -> None:
        """Raise `CacheFull` if a number of bytes more is more than the limit allows."""
        if self.used + count > self.limit:
            raise CacheFull(f"{(self.used + count) / 1e9:.3g} GB are wanted and {self.limit / 1e9:.3g} GB allowed")


class TensorStore:
    """One row for each of many numbers, all of one shape and type, in memory or in a file.

    The file has no name, so nothing is left of it however the process ends. It is read and not mapped into memory: a
    mapping would count as memory where that is limited, and a failing disk would kill the process where reading
    raises an error. The system keeps in free memory what was read or written lately.

    Args:
        where: `"disk"`, `"auto"` (in memory as long as it is small), or in memory.
        budget: Counts the bytes of this and other stores.
        dtype: Floating-point type to store as; None stores rows as they are. They are read in the type they had.
        folder: Of the file; None is the system's folder for temporary files, which on some systems is memory itself.
    """

    def __init__(
        self, where: Storage, budget: Budget, *, dtype: torch.dtype | None = None, folder: Path | None = None
    ) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._where, self._budget, self._stored_as = where, budget, dtype
        self._file: Any = None  # is made for the first rows
        self._places: dict[int, int] = {}  # number -> first byte
        self._like = torch.empty(0)  # no rows, of the rows' shape and type
        self.size = 0
        """In bytes."""

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def dtype(self) -> torch.dtype:
        """Type that rows are stored as."""
        return self._narrow(self._like).dtype

    def check_room(self, row: Tensor, count: int) -> None:
        """Raise `CacheFull` if the budget or the disk has no room for a number of rows like this one."""
        wanted = count * self._narrow(row).nbytes
        self._budget.check(wanted)
        free = shutil.disk_usage(self._folder).free
        if (self._where == "disk" or wanted > SMALL) and wanted > free:
            raise CacheFull(
                f"{wanted / 1e9:.3g} GB are wanted, and {self._folder} has {free / 1e9:.3g} GB free; free room "
                "there, or let TMPDIR name another folder"
            )

    def add(self, numbers: Sequence[int], rows: Tensor) -> None:
        """Keep one row (n, ...) for each of n numbers; those that have one already keep it.

        Raises:
            CacheFull: If the budget, the memory or the disk has no room for all of them; the store is of no use then.
        """
        new = {number: row for row, number in enumerate(numbers) if number not in self}
        if not new:
            return
        narrow = self._narrow(rows[list(new.values())]).contiguous()
        self._budget.check(narrow.nbytes)
        try:
            if self._file is None:
                in_memory = {"auto": SMALL, "disk": 1}.get(self._where, 0)  # a size of 0 never leaves memory
                self._file = tempfile.SpooledTemporaryFile(in_memory, dir=str(self._folder))  # noqa: SIM115
            self._file.seek(self.size)
            self._file.write(_raw(narrow))
            self._file.flush()
        except MemoryError as error:
            raise CacheFull(
                "there is no memory left for them; keep them on the disk, `feature_cache='disk'` "
                "(--feature-cache disk), or nowhere"
            ) from error
        except OSError as error:
            raise CacheFull(
                f"writing them to {self._folder} failed: {error}; free room there, or let TMPDIR name another folder"
            ) from error
        places = range(self.size, self.size + narrow.nbytes, narrow[0].nbytes)
        self._places.update(zip(new, places, strict=True))
        self._like = rows[:0].cpu()
        self.size += narrow.nbytes
        self._budget.used += narrow.nbytes

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The rows (n, ...) of n numbers, in their order.

        Raises:
            OSError: If the disk fails.
        """
        narrow = self._narrow(self._like)
        found = narrow.new_empty(len(numbers), *narrow.shape[1:])
        for row, number in zip(found, numbers, strict=True):
            target = _raw(row)
            self._file.seek(self._places[number])
            if self._file.readinto(target) != len(target):
                raise OSError("a temporary file has become shorter than what was written to it")
        return found.to(self._like.dtype)

    def close(self) -> None:
        """Free everything; rows that are added later start anew."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk has refused is tried once more, and not needed
                self._file.close()
        self._budget.used -= self.size
        self._file, self._places, self.size = None, {}, 0

    def _narrow(self, rows: Tensor) -> Tensor:
        return rows.to(self._stored_as) if self._stored_as is not None and rows.is_floating_point() else rows


def _raw(rows: Tensor) -> memoryview:
    return rows.flatten().view(torch.uint8).numpy().data
