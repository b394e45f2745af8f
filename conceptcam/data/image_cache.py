"""How a data set reads its image files: each time anew, or decoded once and kept at the model's size."""

import contextlib
import logging
import os
import shutil
import threading
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_number
from conceptcam.data.images import decode_file, load_image, notice_sliver, resize_image

if TYPE_CHECKING:
    import sqlite3  # a Python may be built without it

LIMIT = 32_000_000_000
"""Bytes that a cache may take by default."""

# Part of what identifies an image in a cache: to be raised when images are decoded or resized in another way.
_VERSION = 2
_MOST_ROWS = 10**7  # whose checksums a process remembers
_PAGE = 16384  # bytes; a file of SQLite is made of pages
_MOST = 64e12  # bytes; SQLite counts at most 2**32 - 2 pages
_PATIENCE = 10.0  # seconds to wait for another process that writes
_TABLE = (
    "CREATE TABLE IF NOT EXISTS images (path BLOB, how TEXT, bytes INTEGER, mtime INTEGER, height INTEGER, "
    "width INTEGER, checksum INTEGER, pixels BLOB, PRIMARY KEY (path, how))"
)
_FIND = (
    "SELECT rowid, height, width, checksum, pixels FROM images WHERE path = ? AND how = ? AND bytes = ? AND mtime = ?"
)
_KEEP = "REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# Codes of SQLite's errors: busy and locked; another table, corrupt, and not its file at all.
_BUSY = (5, 6)
_DAMAGED = (1, 11, 26)
_log = logging.getLogger(__name__)


class ReadImage(NamedTuple):
    """An image of a file."""

    image: Tensor
    """(3, h, w), as `load_image` gives it, or uint8 at the size of a cache."""
    size: tuple[int, int]
    """(H, W) in pixels that it has in its file, upright."""


class ImageCache:
    """Images that were decoded once, kept as bytes at the size that a model takes.

    They are in one file, `images.sqlite` of the folder, which SQLite maps into memory. All processes on a machine read
    and fill it together, and later runs and other data sets find what is in it. An image is known by the path, size and
    time of its file, by how it was decoded and to which size: a file that changes is decoded anew.

    What is kept of a file of 8 bits is what `Preprocess` makes of it before it normalizes, to the last bit. Values of
    more than 8 bits are resized, then rounded to 1/255. Boxes are fractions and stay as they are. An augmentation gets
    the image at the cache's size, as behind the resizing with which `default_augmentation` begins; one that cuts out a
    part finds less detail than in the file.

    A process that is killed leaves a cache that is whole. One that is damaged is made anew, and one that is full or
    cannot be written is left as it is, with a sentence in the log.

    Args:
        folder: Where the file is, or will be; on a disk of this machine, because SQLite locks files.
        image_size: (H, W) in pixels that images are kept at: the model's.
        limit: Bytes that the file may take, whichever process fills it.

    Raises:
        ValueError: If the size is not above 0, or the limit is not from 16,384 bytes to 64 TB.
    """

    def __init__(self, folder: str | os.PathLike[str], image_size: tuple[int, int], *, limit: float = LIMIT) -> None:
        height, width = image_size
        if not min(height, width) > 0:
            raise ValueError(f"`image_size` must be above 0, got {image_size}")
        check_number("`limit`", limit, _PAGE, _MOST)
        self.file, self.image_size, self.limit = Path(folder) / "images.sqlite", (height, width), limit
        self._open: dict[tuple[int, int], tuple[sqlite3.Connection, int]] = {}
        self._reason = ""  # why nothing more is kept
        self._form = f", {self.image_size}, {_VERSION}"
        # By number of a row, 1 more than the checksum that this process has compared with its bytes. SQLite may give
        # the number of a row that is gone to another one, which has another checksum.
        self._checked = array("Q")

    def load(self, path: str | os.PathLike[str], *, bit_depth: int | None = None) -> ReadImage:
        """An image in place of `load_image`: as it is kept, or decoded, resized and kept.

        Returns:
            (3, h, w) uint8 of the cache's size, and the size in the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: As `load_image` does; nothing is kept then.
        """
        return self.keep(path, f"bit depth {bit_depth}", lambda: load_image(path, bit_depth=bit_depth))

    def keep(self, path: str | os.PathLike[str], how: str, decode: Callable[[], Tensor]) -> ReadImage:
        """What is kept of a file, or else what `decode` makes of it, which is then kept.

        Args:
            path: The file.
            how: Says what `decode` does, so that one file can be kept in several ways.
            decode: Gives (3, H, W) uint8, or floats in [0, 1].
        """
        name = os.fspath(path)
        status = os.stat(name)
        place = name if name.startswith("/") else os.path.abspath(name)  # which takes a microsecond
        key = os.fsencode(place), how + self._form, status.st_size, status.st_mtime_ns
        found = self._find(key)
        if found is not None:
            return found
        image = decode()
        small = resize_image(image, self.image_size)
        if small.is_floating_point():
            small = (small * 255).round().to(torch.uint8)
        self._add(key, small, tuple(image.shape[1:]))
        return ReadImage(small, (image.shape[1], image.shape[2]))

    def close(self) -> None:
        """Close the file in all threads of this process; reading opens it again. No thread may be reading meanwhile."""
        own = [key for key in self._open if key[0] == os.getpid()]
        for key in own:
            self._open.pop(key)[0].close()

    def __enter__(self) -> "ImageCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # else the arguments were refused
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: where the file is."""
        return {**self.__dict__, "_open": {}, "_checked": array("Q")}

    def _find(self, key: tuple[bytes, str, int, int]) -> ReadImage | None:
        import sqlite3

        if self._reason and not self._open:  # it cannot be opened
            return None
        try:
            row = self._connection().execute(_FIND, key).fetchone()
        except sqlite3.Error as error:
            self._handle(error)
            return None
        if row is None:
            return None
        number, height, width, checksum, pixels = row
        if not self._is_right(number, checksum, pixels, (height, width)):
            _log.warning("what the cache %s holds of %s is damaged; it is decoded anew", self.file, os.fsdecode(key[0]))
            return None
        channels = len(pixels) // (self.image_size[0] * self.image_size[1])
        image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(channels, *self.image_size)
        return ReadImage(image if channels == 3 else image.repeat(3, 1, 1), (height, width))

    def _is_right(self, number: int, checksum: int, pixels: bytes, size: tuple[int, int]) -> bool:
        """Whether a row is as it was kept, compared when it is first read here; a damaged one may hold anything."""
        area = self.image_size[0] * self.image_size[1]
        if not isinstance(pixels, bytes) or len(pixels) not in (area, 3 * area):
            return False
        if not 0 <= number < _MOST_ROWS:
            return _checksum(pixels, size) == checksum
        if number >= len(self._checked):
            self._checked.extend([0] * (number + 1000 - len(self._checked)))
        if self._checked[number] - 1 == checksum:
            return True
        right = _checksum(pixels, size) == checksum
        self._checked[number] = checksum + 1 if right else 0
        return right

    def _add(self, key: tuple[bytes, str, int, int], image: Tensor, size: tuple[int, ...]) -> None:
        """Keep an image, if there is room; one channel of a grey one is enough."""
        import sqlite3

        if self._reason:
            return
        grey = torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        pixels = (image[:1] if grey else image).contiguous().numpy().tobytes()
        try:
            self._connection().execute(_KEEP, (*key, *size, _checksum(pixels, size), pixels))
        except sqlite3.Error as error:
            self._handle(error)

    def _connection(self) -> "sqlite3.Connection":
        """The file, opened by this process and thread: neither may use what another has opened."""
        import sqlite3

        key = (os.getpid(), threading.get_ident())
        if key not in self._open:
            with contextlib.suppress(OSError):  # SQLite says that it cannot open a file there
                self.file.parent.mkdir(parents=True, exist_ok=True)
            # Each thread uses its own alone, but `close` closes those of all threads.
            connection = sqlite3.connect(self.file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                for setting in (
                    f"page_size = {_PAGE}", f"max_page_count = {int(self.limit // _PAGE)}",
                    f"mmap_size = {int(self.limit)}", "journal_mode = TRUNCATE", "synchronous = OFF",
                ):  # fmt: skip
                    connection.execute(f"PRAGMA {setting}")
                connection.execute(_TABLE)
            except sqlite3.Error:
                connection.close()
                raise
            self._open[key] = connection, self.file.stat().st_ino
        return self._open[key][0]

    def _handle(self, error: "sqlite3.Error") -> None:
        """Say what an error means: the image is decoded, and kept the next time, or nothing is kept any more."""
        code = error.sqlite_errorcode & 0xFF
        if code in _BUSY:
            _log.info("another process holds the image cache %s; an image is decoded without it", self.file)
        elif code in _DAMAGED:
            self._rebuild(error)
        elif not self._reason:
            self._reason = str(error)
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self.file.parent).free
                self._reason += f"; it may take {self.limit / 1e9:.3g} GB, and its disk has {free / 1e9:.3g} GB free"
            _log.warning(
                "the image cache %s keeps no more images, which are decoded each time: %s", self.file, self._reason
            )

    def _rebuild(self, error: "sqlite3.Error") -> None:
        """Begin anew in place of a damaged file, unless another process has."""
        _log.warning("the image cache %s is damaged and made anew: %s", self.file, error)
        self._checked = array("Q")
        opened = self._open.pop((os.getpid(), threading.get_ident()), None)
        if opened is not None:
            opened[0].close()
        with contextlib.suppress(OSError):
            if opened is None or self.file.stat().st_ino == opened[1]:
                self.file.unlink()
                self.file.with_name(f"{self.file.name}-journal").unlink(missing_ok=True)


def _checksum(pixels: bytes, size: tuple[int, ...]) -> int:
    """Of an image's bytes and its size in the file."""
    return zlib.crc32(repr(tuple(size)).encode(), zlib.crc32(pixels))


class ImageReader:
    """Reads the image files of one data set, and says once that images use a sliver of their range.

    Args:
        bit_depth: Bits that 16-bit images really use; see `load_image`.

    Attributes:
        cache: Where decoded images are kept; None decodes each time.
    """

    def __init__(self, bit_depth: int | None = None) -> None:
        self.bit_depth = bit_depth
        self.cache: ImageCache | None = None
        self._said: set[int] = set()

    def read(self, path: str | os.PathLike[str]) -> ReadImage:
        """An image and its size in the file; see `load_image` for errors."""
        if self.cache is not None:
            return self.cache.keep(path, f"bit depth {self.bit_depth}", lambda: self._decode(path))
        image = self._decode(path)
        return ReadImage(image, (image.shape[1], image.shape[2]))

    def _decode(self, path: str | os.PathLike[str]) -> Tensor:
        image = decode_file(path, bit_depth=self.bit_depth)
        if bits := notice_sliver(image, os.fspath(path), self._said):
            self._said.add(bits)
        return image
