"""Grey TIFF images of 9 to 16 bits that Pillow does not know: it reads the bytes, which are parted into values here.

It does not know values without gaps between them, nor 16 bits, the high byte first, where 0 is white.
"""

import io
import struct
import warnings
from os import PathLike
from typing import Any, NamedTuple

import numpy as np

from conceptcam.data.dicom import check_pixels

_BITS = range(9, 17)
_MOST_PAGES = 10_000  # that are counted
# Tags of TIFF.
_WIDTH, _HEIGHT, _DEPTH, _INTERPRETATION, _ORIENTATION = 256, 257, 258, 262, 274
_SAMPLES, _PREDICTOR, _TILES, _SIGNED = 277, 317, 322, 339
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}  # of bytes
_SIZES = {3: "H", 4: "I"}  # types of a tag's value, as `struct` has them
_ROWS = 256  # that are parted at once
_REFUSED = "it is a TIFF of a kind that is not read, or damaged; save it as grey of 8 or 16 bits, or as RGB"


class PackedTiff(NamedTuple):
    """An image of a file."""

    values: "np.ndarray[Any, np.dtype[np.uint16]]"
    """(H, W), upright."""
    bits: int
    """How many of them each value has."""
    negative: bool
    """Whether 0 is white."""


class _Tag(NamedTuple):
    """A tag of one number."""

    place: int
    """Where the number is in the file."""
    form: str
    """As `struct` has it, with the order of bytes."""
    value: int


def read_packed_tiff(path: str | PathLike[str]) -> PackedTiff:
    """The values of a grey TIFF of 9 to 16 bits, in strips or tiles, of any lossless compression that Pillow reads.

    Raises:
        ValueError: If the file is no such TIFF, is damaged, or holds several pages or far too many pixels.
    """
    from PIL import Image, ImageOps

    with open(path, "rb") as file:
        content = bytearray(file.read())
    tags = _tags(content)
    width, height, bits = (_number(tags, tag) for tag in (_WIDTH, _HEIGHT, _DEPTH))
    check_pixels(width, height)
    rows = _decoded(content, tags, -(-width * bits // 8))
    if rows.shape != (height, -(-width * bits // 8)):
        raise ValueError(f"it is said to be of {width} x {height} pixels of {bits} bits, which its data are not")
    values = np.concatenate([_part(rows[start : start + _ROWS], width, bits) for start in range(0, height, _ROWS)])
    if (turned := _number(tags, _ORIENTATION, 1)) != 1:
        image = Image.fromarray(values)
        image.getexif()[_ORIENTATION] = turned
        values = np.array(ImageOps.exif_transpose(image))
    return PackedTiff(values, bits, _number(tags, _INTERPRETATION) == 0)


def packed_tiff_size(path: str | PathLike[str]) -> tuple[int, int]:
    """The width and height of the same, upright.

    Raises:
        ValueError: As `read_packed_tiff`, as far as the header tells.
    """
    with open(path, "rb") as file:
        tags = _tags(bytearray(file.read()))
    width, height = _number(tags, _WIDTH), _number(tags, _HEIGHT)
    check_pixels(width, height)
    return (height, width) if _number(tags, _ORIENTATION, 1) >= 5 else (width, height)


def _tags(content: bytearray) -> dict[int, _Tag]:
    """The tags of the only page of a file that hold one number, checked to be those of a packed grey image."""
    try:
        tags, following = _directory(content)
    except struct.error as error:  # it ends before its tags do
        raise ValueError(_REFUSED) from error
    if following:
        raise ValueError(several_pages(1 + _count_pages(content, following)))
    plain = _number(tags, _SAMPLES, 1) == _number(tags, _PREDICTOR, 1) == _number(tags, _SIGNED, 1) == 1
    grey = _number(tags, _INTERPRETATION) in (0, 1)
    bits = _number(tags, _DEPTH)
    # Values of 16 bits are taken apart as those of fewer, the high byte first.
    swapped = bits == 16 and content[:2] == b"II"
    whole = _number(tags, _TILES, 0) * bits % 8 == 0  # bytes in a row of a tile
    if not (plain and grey and whole) or swapped or bits not in _BITS:
        raise ValueError(_REFUSED)
    return tags


def several_pages(pages: int) -> str:
    """Why a file of several pages is refused: which of them is meant cannot be known."""
    return f"it holds {pages} pages or frames; save the one you mean as its own file"


def _count_pages(content: bytearray, start: int) -> int:
    """How many pages there are from one on, as far as their chain is whole."""
    order, found = _ORDERS[bytes(content[:4])], set[int]()
    while start and start not in found and len(found) < _MOST_PAGES:
        found.add(start)
        try:
            (count,) = struct.unpack_from(f"{order}H", content, start)
            (start,) = struct.unpack_from(f"{order}I", content, start + 2 + 12 * count)
        except struct.error:  # it is cut short
            break
    return len(found)


def _directory(content: bytearray) -> tuple[dict[int, _Tag], int]:
    """The tags of the first page that hold one number, and where the next page is; 0 if there is none."""
    order = _ORDERS.get(bytes(content[:4]))
    if order is None:
        raise ValueError("it is no TIFF")
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    tags = {}
    for number in range(count):
        place = start + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", content, place)
        if length == 1 and kind in _SIZES:
            form = order + _SIZES[kind]
            tags[tag] = _Tag(place + 8, form, struct.unpack_from(form, content, place + 8)[0])
    (following,) = struct.unpack_from(f"{order}I", content, start + 2 + 12 * count)
    return tags, following


def _number(tags: dict[int, _Tag], tag: int, usual: int = -1) -> int:
    return tags[tag].value if tag in tags else usual


def _decoded(content: bytearray, tags: dict[int, _Tag], row_bytes: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """(H, B) the bytes of each row, which Pillow decodes as those of an image of 8 bits."""
    from PIL import Image

    written = {_WIDTH: row_bytes, _DEPTH: 8, _INTERPRETATION: 1, _ORIENTATION: 1}
    written[_TILES] = _number(tags, _TILES) * _number(tags, _DEPTH) // 8
    for tag in written.keys() & tags.keys():
        struct.pack_into(tags[tag].form, content, tags[tag].place, written[tag])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pixels were counted
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            return np.array(image)


def _part(rows: "np.ndarray[Any, np.dtype[np.uint8]]", width: int, bits: int) -> "np.ndarray[Any, np.dtype[np.uint16]]":
    """(n, W) the values in n rows of bytes, each of so many bits, the highest first."""
    single = np.unpackbits(rows, axis=1, count=width * bits).reshape(len(rows), width, bits)
    return (single @ (1 << np.arange(bits - 1, -1, -1))).astype(np.uint16)
