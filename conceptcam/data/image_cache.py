"""How a data set reads its image files: each time anew, or decoded once and kept at the model's size."""

import contextlib
import io
import logging
import os
import shutil
import sys
import threading
import zlib
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
_VERSION = 3
_MOST_KNOWN = 200_000  # images whose places a process remembers, in 80 MB
_PAGE = 4096  # bytes; a file of SQLite is made of pages
_LEAST, _MOST = 16384, 17e12  # bytes of a limit; SQLite counts at most 2**32 - 2 pages
_PATIENCE = 10.0  # seconds to wait for another process that writes
_TABLE = (
    "CREATE TABLE images (path BLOB, how TEXT, bytes INTEGER, mtime INTEGER, height INTEGER, width INTEGER, "
    "channels INTEGER, start INTEGER, checksum INTEGER, PRIMARY KEY (path, how))"
)
_FIND = (
    "SELECT height, width, channels, start, checksum FROM images WHERE path = ? AND how = ? AND bytes = ? AND mtime = ?"
)
_NUMBER = "PRAGMA user_version"
_KEEP = "REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
# Codes of SQLite's errors: busy and locked; another table, corrupt, and not its file at all.
_BUSY = (5, 6)
_DAMAGED = (1, 11, 26)
_MOVED = 1032  # somebody has removed the file that is open, or put another in its place
_log = logging.getLogger(__name__)


class ReadImage(NamedTuple):
    """An image of a file."""

    image: Tensor
    """(3, h, w), as `load_image` gives it, or uint8 at the size of a cache."""
    size: tuple[int, int]
    """(H, W) in pixels that it has in its file, upright."""


class _Damaged(OSError):
    """The table does not go with its file of pixels."""


class _Key(NamedTuple):
    """What an image is known by."""

    path: bytes
    how: str
    bytes: int
    mtime: int


class _Place(NamedTuple):
    """Size in the file, channels kept and where they begin in the file of pixels."""

    height: int
    width: int
    channels: int
    start: int


class _OpenCache(NamedTuple):
    """The two files of a cache, as one thread of one process has opened them."""

    table: "sqlite3.Connection"
    inode: int
    """Of the table's file: another one means that the cache was made anew."""
    number: int
    """That the table has in common with its file of pixels."""
    pixels: io.FileIO
    """The file of pixels, without a buffer."""
    known: dict[_Key, _Place]
    """Images whose checksum was compared here; what is written in the file of pixels stays as it is."""


class ImageCache:
    """Images that were decoded once, kept as bytes at the size that a model takes.

    Their pixels are in one file of the folder, `images-*.pixels`, and where each lies in it is in another,
    `images.sqlite`. All processes on a machine read and fill them together, and later runs and other data sets find
    what is in them. An image is known by the path, size and time of its file, by how it was decoded and to which size.
    The file's size and time are looked at each time it is read, so a file that changes is decoded anew at once.

    Pixels are copied once, from the file into a tensor of its own. A process compares their checksum when it first
    reads them, and later reads them without asking the table: nothing writes over them, and an image that changes takes
    new room. Of more than 200,000 images, the checksum of the others is compared each time.

    What is kept of a file of 8 bits is what `Preprocess` makes of it before it normalizes, to the last bit. Values of
    more than 8 bits are resized, then rounded to 1/255. Boxes are fractions and stay as they are. An augmentation gets
    the image at the cache's size, as behind the resizing with which `default_augmentation` begins; one that cuts out a
    part finds less detail than in the file.

    A process that is killed leaves a cache that is whole. One that is damaged is made anew, and one that is full or
    cannot be written is left as it is, with a sentence in the log.

    Args:
        folder: Where the files are, or will be; on a disk of this machine, because SQLite locks files.
        image_size: (H, W) in pixels that images are kept at: the model's.
        limit: Bytes that the two files may take, whichever process fills them.

    Raises:
        ValueError: If the size is not above 0, or the limit is not from 16,384 bytes to 17 TB.
    """

    def __init__(self, folder: str | os.PathLike[str], image_size: tuple[int, int], *, limit: float = LIMIT) -> None:
        height, width = image_size
        if not min(height, width) > 0:
            raise ValueError(f"`image_size` (--image-size) must be above 0, got {image_size}")
        check_number("`limit`", limit, _LEAST, _MOST)
        self.file, self.image_size, self.limit = Path(folder) / "images.sqlite", (height, width), limit
        self._open: dict[tuple[int, int], _OpenCache] = {}
        self._reason = ""  # why nothing more is kept
        self._form = f", {self.image_size}, {_VERSION}"

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
        key = _Key(os.fsencode(place), sys.intern(how + self._form), status.st_size, status.st_mtime_ns)
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
        """Close the files in all threads of this process; reading opens them again. No thread may be reading then."""
        for key in [key for key in self._open if key[0] == os.getpid()]:
            self._close(key)

    def __enter__(self) -> "ImageCache":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):  # else the arguments were refused
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: where the file is."""
        return {**self.__dict__, "_open": {}}

    def _find(self, key: _Key) -> ReadImage | None:
        import sqlite3

        if self._reason and not self._open:  # it cannot be opened
            return None
        try:
            opened = self._files()
            place = opened.known.get(key)
            if place is None:
                return self._first_read(opened, key)
            image = self._read(opened, place)
            if image is None:
                raise _Damaged("its file of pixels was cut short")
        except (sqlite3.Error, OSError) as error:
            self._handle(error)
            return None
        return ReadImage(image, place[:2])

    def _first_read(self, opened: _OpenCache, key: _Key) -> ReadImage | None:
        """An image of which this process knows no place yet: looked up, and its pixels compared with their checksum."""
        row = _run(opened.table, _FIND, key)
        if row is None:
            return None
        *fields, checksum = row
        place = _Place(*fields)
        image = self._read(opened, place)
        if image is None or _checksum(image[: place.channels].numpy().data, place[:2]) != checksum:
            _log.warning(
                "what the cache %s holds of %s is damaged; it is decoded anew", self.file, os.fsdecode(key.path)
            )
            return None
        if len(opened.known) < _MOST_KNOWN:
            opened.known[key] = place
        return ReadImage(image, place[:2])

    def _read(self, opened: _OpenCache, place: _Place) -> Tensor | None:
        """(3, h, w) uint8 that are kept in a place; None if no image can be there. A damaged row may say anything."""
        if place.channels not in (1, 3) or not isinstance(place.start, int) or not 0 <= place.start < _MOST:
            return None
        # `empty` and `readinto`, because each further copy of 150 kB takes as long as all of the rest.
        image = torch.empty(3, *self.image_size, dtype=torch.uint8)
        pixels = image.numpy()[: place.channels].data
        opened.pixels.seek(place.start)  # the file is this thread's own
        if opened.pixels.readinto(pixels) != pixels.nbytes:
            return None
        if place.channels == 1:
            image[1:] = image[0]
        return image

    def _add(self, key: _Key, image: Tensor, size: tuple[int, ...]) -> None:
        """Keep an image, if there is room; one channel of a grey one is enough."""
        import sqlite3

        if self._reason:
            return
        grey = torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        pixels = (image[:1] if grey else image).contiguous().numpy().data
        try:
            opened = self._files()
            table, file = opened.table, opened.pixels
            _run(table, "BEGIN IMMEDIATE")  # until COMMIT no other process adds an image
            try:
                if _number(table, _NUMBER) != opened.number:
                    raise _Damaged("its table was replaced")
                taken = _number(table, "SELECT taken FROM room")
                start = file.seek(0, os.SEEK_END)
                if start < taken:  # what is added now would lie where a process knows another image to be
                    raise _Damaged("its file of pixels was cut short")
                row = (*key, *size, len(pixels), start, _checksum(pixels, size))
                _run(table, _KEEP, row)
                _run(table, "UPDATE room SET taken = ?", (start + pixels.nbytes,))
                pages = _number(table, "PRAGMA page_count")
                if pages * _PAGE + start + pixels.nbytes > self.limit:
                    raise OSError("it is full")
                # If this process is killed here, the bytes belong to no row.
                if file.write(pixels) != pixels.nbytes:
                    raise OSError("its disk is full")
                _run(table, "COMMIT")  # which waits for those that read
            except BaseException:
                if table.in_transaction:  # SQLite may have ended it
                    _run(table, "ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            self._handle(error)

    def _files(self) -> _OpenCache:
        """The files, opened by this process and thread: neither may use what another has opened."""
        import sqlite3

        key = (os.getpid(), threading.get_ident())
        if key not in self._open:
            with contextlib.suppress(OSError):  # SQLite says that it cannot open a file there
                self.file.parent.mkdir(parents=True, exist_ok=True)
            # Each thread uses its own alone, but `close` closes those of all threads.
            table = sqlite3.connect(self.file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            table.text_factory = bytes  # damaged text cannot always be decoded; no text is read
            try:
                for setting in (
                    f"page_size = {_PAGE}", f"max_page_count = {int(self.limit // _PAGE)}",
                    "journal_mode = TRUNCATE", "synchronous = OFF",
                ):  # fmt: skip
                    _run(table, f"PRAGMA {setting}")
                inode = self.file.stat().st_ino
                number, pixels = self._open_pixels(table)
            except BaseException:
                table.close()
                raise
            self._open[key] = _OpenCache(table, inode, number, pixels, {})
        return self._open[key]

    def _open_pixels(self, table: "sqlite3.Connection") -> tuple[int, io.FileIO]:
        """The number that a table and the name of its file of pixels have, and that file; a new table gets both."""
        number = _number(table, _NUMBER)
        if number == 0:
            _run(table, "BEGIN IMMEDIATE")
            number = _number(table, _NUMBER)
            if number == 0:  # else another process was faster
                _run(table, _TABLE)
                _run(table, "CREATE TABLE room AS SELECT 0 AS taken")
                for other in self.file.parent.glob("images-*.pixels"):  # of a table that is gone
                    other.unlink(missing_ok=True)
                number = 1 + int.from_bytes(os.urandom(3))
                self._pixel_file(number).touch(exist_ok=False)
                _run(table, f"PRAGMA user_version = {number}")
            _run(table, "COMMIT")
        try:
            return number, io.FileIO(self._pixel_file(number), "r+")
        except OSError:  # what may not be written can still be read
            return number, io.FileIO(self._pixel_file(number), "r")

    def _pixel_file(self, number: int) -> Path:
        return self.file.with_name(f"images-{number}.pixels")

    def _close(self, key: tuple[int, int]) -> None:
        opened = self._open.pop(key, None)
        if opened is not None:
            opened.table.close()
            opened.pixels.close()

    def _handle(self, error: "sqlite3.Error | OSError") -> None:
        """Say what an error means: the image is decoded, and kept the next time, or nothing is kept any more."""
        full_code = 0 if isinstance(error, OSError) else error.sqlite_errorcode
        code = full_code & 0xFF
        if code in _BUSY:
            _log.info("another process holds the image cache %s; an image is decoded without it", self.file)
        elif code in _DAMAGED or full_code == _MOVED or isinstance(error, _Damaged | FileNotFoundError):
            self._rebuild(error)  # a file that is not found is that of the pixels
        elif not self._reason:
            self._reason = str(error)
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self.file.parent).free
                self._reason += f"; it may take {self.limit / 1e9:.3g} GB, and its disk has {free / 1e9:.3g} GB free"
            _log.warning(
                "the image cache %s keeps no more images, which are decoded each time: %s", self.file, self._reason
            )

    def _rebuild(self, error: "sqlite3.Error | OSError") -> None:
        """Begin anew in place of a damaged table, unless another process has; a new table removes the old pixels."""
        _log.warning("the image cache %s cannot be used and is made anew: %s", self.file, error)
        key = (os.getpid(), threading.get_ident())
        opened = self._open.get(key)
        self._close(key)
        with contextlib.suppress(OSError):
            if opened is None or self.file.stat().st_ino == opened.inode:
                self.file.unlink()
                self.file.with_name(f"{self.file.name}-journal").unlink(missing_ok=True)


def _run(table: "sqlite3.Connection", statement: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
    """The first row that a statement gives."""
    try:
        return table.execute(statement, values).fetchone()
    except UnicodeDecodeError as error:  # SQLite quotes what it found in place of a name
        raise _Damaged("there is no text where text should be") from error


def _number(table: "sqlite3.Connection", statement: str) -> int:
    row = _run(table, statement)
    if row is None or not isinstance(row[0], int):
        raise _Damaged("there is no number where one should be")
    return row[0]


def _checksum(pixels: memoryview, size: tuple[int, ...]) -> int:
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
        if bits := notice_sliver(image, os.fspath(path), self._said, bit_depth=self.bit_depth):
            self._said.add(bits)
        return image
