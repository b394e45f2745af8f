"""Rows of tensors by number, in memory or on disk, within a bound and gone with the process."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Where = Literal["auto", "memory", "disk"]

SMALL = 1_000_000_000
"""Bytes that a table of storage `"auto"` keeps in memory; beyond them it moves to the disk."""


class NoRoom(Exception):
    """There is no place for more rows; the message says which bound was met."""


class Budget:
    """How many bytes all tables together may take.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def check(self, count: int) -> None:
        """Refuse a number of bytes more than there may be.

        Raises:
            NoRoom: Saying how many were wanted.
        """
        if self.used + count > self.limit:
            raise NoRoom(f"{(self.used + count) / 1e9:.3g} GB are wanted and {self.limit / 1e9:.3g} GB allowed")


class Table:
    """For each of many numbers a few rows, all of one shape and type.

    On disk the rows are in a file without a name, so that nothing is left of it however the process ends. It is read
    and not mapped into memory: a mapping would count as memory where that is limited, and a failing disk would kill
    the process where reading raises an error. The system keeps in free memory what was read or written lately.

    Args:
        where: `"memory"`, `"disk"`, or `"auto"`: in memory as long as it is small.
        budget: Counts the bytes of this and other tables.
        dtype: Floating-point type to store as; None stores rows as they are. They are read in the type they had.
        folder: Of the file; None is the system's folder for temporary files, which on some systems is memory itself.
    """

    def __init__(
        self, where: Where, budget: Budget, *, dtype: torch.dtype | None = None, folder: Path | None = None
    ) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._budget, self._stored_as, self._on_disk = budget, dtype, where == "disk"
        # A size of 0 never leaves memory.
        self._file: Any = tempfile.SpooledTemporaryFile(SMALL if where == "auto" else 0, dir=str(self._folder))  # noqa: SIM115
        if where == "disk":
            self._file.rollover()
        self._places: dict[int, tuple[int, int]] = {}  # number -> first byte, rows
        self._row: Tensor | None = None  # an empty tensor of the rows' shape and type
        self.size = 0
        """In bytes."""

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def dtype(self) -> torch.dtype | None:
        """Type that rows are stored as; None before the first."""
        return None if self._row is None else self._narrow(self._row).dtype

    def check_room(self, rows: Tensor, numbers: int) -> None:
        """Refuse rows like these for so many numbers, if they cannot all be kept.

        Raises:
            NoRoom: If the budget or the disk has no room for them.
        """
        wanted = numbers * _bytes(self._narrow(rows))
        self._budget.check(wanted)
        free = shutil.disk_usage(self._folder).free
        if (self._on_disk or wanted > SMALL) and wanted > free:
            raise NoRoom(f"{wanted / 1e9:.3g} GB are wanted, and {self._folder} has {free / 1e9:.3g} GB free")

    def add(self, numbered: Iterable[tuple[int, Tensor]]) -> None:
        """Keep the rows (n, ...) of some numbers; n may differ and may be 0.

        Raises:
            NoRoom: If the budget, the memory or the disk has no room for all of them; the table is of no use then.
        """
        try:
            for number, rows in numbered:
                narrow = self._narrow(rows).contiguous()
                count = _bytes(narrow)
                self._budget.check(count)
                self._file.seek(self.size)
                self._file.write(_raw(narrow))
                self._row = rows[:0].cpu()
                self._places[number] = (self.size, len(rows))
                self.size += count
                self._budget.used += count
            self._file.flush()
        except (OSError, MemoryError) as error:
            raise NoRoom(f"writing them failed: {error or 'out of memory'}") from error

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The rows of some numbers, one after the other: (sum of n, ...).

        Raises:
            OSError: If the disk fails.
        """
        assert self._row is not None
        places = [self._places[number] for number in numbers]
        narrow = self._narrow(self._row)
        found = narrow.new_empty(sum(rows for _, rows in places), *narrow.shape[1:])
        start = 0
        for first, rows in places:
            target = _raw(found[start : start + rows])
            self._file.seek(first)
            if self._file.readinto(target) != len(target):
                raise OSError("a temporary file has become shorter than what was written to it")
            start += rows
        return found.to(self._row.dtype)

    def close(self) -> None:
        """Free everything."""
        with contextlib.suppress(OSError):  # what a full disk has refused is tried once more, and not needed
            self._file.close()
        self._budget.used -= self.size
        self._places, self.size = {}, 0

    def _narrow(self, rows: Tensor) -> Tensor:
        return rows.to(self._stored_as) if self._stored_as is not None and rows.is_floating_point() else rows


def _bytes(rows: Tensor) -> int:
    return rows.numel() * rows.element_size()


def _raw(rows: Tensor) -> memoryview:
    return rows.flatten().view(torch.uint8).numpy().data
