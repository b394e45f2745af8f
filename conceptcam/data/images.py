"""Reading an image without changing what it shows: from a file, or from whatever a caller holds."""

import logging
import math
import struct
import warnings
from collections.abc import Container
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from conceptcam.data.dicom import check_pixels, dicom_size, is_dicom, read_dicom
from conceptcam.data.packed_tiff import packed_tiff_size, read_packed_tiff, several_pages

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""What Pillow may open, by its own names. Nothing else is tried, whatever a file's name: some formats run programs."""

# Modes of 8 bits or less per channel that Pillow converts to RGB without loss.
_OPAQUE = ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112  # the tag of EXIF
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# What Pillow raises on files that are cut short, damaged, or larger than it dares to decode.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)
# Numbers of more than 8 bits that use less than this fraction of their range come out black or white.
_SLIVER = 1 / 8
# Resizing may overshoot [0, 1] by rounding; more than this is another scale.
_SLACK = 1e-3
_log = logging.getLogger(__name__)


def load_image(image: Any, *, bit_depth: int | None = None) -> Tensor:
    """An image as a tensor, checked, upright and at its full bit depth.

    Grey images are repeated to three channels. In files and Pillow images, a rotation noted in EXIF is applied,
    palettes are looked up, and transparent pixels are laid over black. Colour files of 16 bits per channel come at
    8 bits, because Pillow reads them so.

    A DICOM file comes as it says that it is to be shown, by its own window or VOI LUT; see `read_dicom`. Which format a
    file has, its content says, not its name.

    Args:
        image: The path of a PNG, JPEG, TIFF, BMP, GIF, WebP, JPEG 2000, PNM or, with the extra `dicom`, DICOM file; a
            Pillow image; or a numpy array or tensor of shape (H, W), (3, H, W), (H, W, 3), (1, H, W) or (H, W, 1), of
            type uint8, uint16, or float in [0, 1].
        bit_depth: Bits that the values of an image of more than 8 bits really use, such as 12; None takes all that the
            file has. What is stated counts, also where a file says less, as a TIFF of 12 bits does. If the values of a
            file use less than an eighth of their range, and so come out black or white, that is logged.

    Returns:
        (3, H, W) uint8, or, for more than 8 bits, float32 in [0, 1], where 1 is the highest value that the bit depth
        allows (65535 for 16 bits).

    Raises:
        TypeError: If `image` is none of these.
        FileNotFoundError: If there is no such file.
        ImportError: If a file is DICOM and pydicom is not installed.
        ValueError: If a file cannot be read, is of another format, cut short or far too large, holds several pages, or
            holds numbers without a known range (32-bit integers, floats outside [0, 1]); or if shape, type or range
            cannot be those of a raw image.
    """
    if isinstance(image, str | PathLike):
        tensor = decode_file(image, bit_depth=bit_depth)
        notice_sliver(tensor, fspath(image), bit_depth=bit_depth)
        return tensor
    _check_bit_depth(bit_depth)
    if isinstance(image, Tensor):
        return _from_numbers(image.detach().as_subclass(Tensor), bit_depth, prefer_last=False)
    if isinstance(image, np.ndarray):
        # A copy in the machine's byte order, which torch needs.
        native = np.array(image, dtype=image.dtype.newbyteorder("="))
        if native.dtype.kind not in "uifb":
            raise ValueError(f"image has dtype {image.dtype}; expected uint8, uint16 or float in [0, 1]")
        return _from_numbers(torch.from_numpy(native), bit_depth, prefer_last=True)
    from PIL import Image

    if isinstance(image, Image.Image):
        try:
            return _from_pillow(image, bit_depth)
        except _DAMAGE as error:
            raise ValueError(f"cannot use the Pillow image: {error}") from error
    raise TypeError(f"expected a path, Pillow image, numpy array or tensor, got {type(image).__name__}")


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """The width and height in pixels that `load_image` gives, read from the header of a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read.
    """
    from PIL import Image

    try:
        if is_dicom(path):
            return dicom_size(path)
        try:
            opened = _open(path)
        except _UnknownTiff:
            return packed_tiff_size(path)
        with opened as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else (image.width, image.height)
    except FileNotFoundError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {fspath(path)!r}: {error}") from error


def decode_file(path: str | PathLike[str], *, bit_depth: int | None = None) -> Tensor:
    """As `load_image` reads a file, without a word about an image that uses a sliver of its range."""
    from PIL import Image

    _check_bit_depth(bit_depth)
    try:
        if is_dicom(path):
            picture = read_dicom(path, bit_depth=bit_depth)
            tensor = torch.from_numpy(picture)
            return _grey(tensor) if picture.ndim == 2 else tensor.permute(2, 0, 1)
        try:
            opened = _open(path)
        except _UnknownTiff:
            packed = read_packed_tiff(path)
            values = _unit_range(packed.values, 2 ** (bit_depth or packed.bits) - 1)
            return _grey(1 - values if packed.negative else values)
        with opened as image:
            return _from_pillow(image, bit_depth)
    except FileNotFoundError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        text = str(error)
        if not text.startswith("cannot read"):  # as of DICOM
            text = f"cannot read the image {fspath(path)!r}: {text}"
        raise ValueError(text) from error


def _check_bit_depth(bit_depth: int | None) -> None:
    if bit_depth is not None and not 8 < bit_depth <= 16:
        raise ValueError(f"`bit_depth` (--bit-depth) must be 9 to 16, got {bit_depth}")


class _UnknownTiff(ValueError):
    """A TIFF that Pillow does not know; grey ones of 9 to 16 bits are read without it."""


def _open(path: str | PathLike[str]) -> "Image.Image":
    """A file that Pillow opens as one of the formats that may be opened, not yet decoded."""
    from PIL import Image, UnidentifiedImageError

    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError("it is empty, of 0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        if start in (b"II*\0", b"MM\0*"):
            raise _UnknownTiff from error
        raise ValueError(f"it is none of {', '.join(FORMATS)} and DICOM, or damaged") from error
    try:
        check_pixels(image.width, image.height)
    except ValueError:
        image.close()
        raise
    return image


def notice_sliver(image: Tensor, name: str, said: Container[int] = (), *, bit_depth: int | None = None) -> int | None:
    """Log that an image of more than 8 bits uses a sliver of its range.

    Args:
        image: As `decode_file` gives it.
        name: What to call it.
        said: Numbers of bits of which nothing is logged, because that was said.
        bit_depth: With which it was decoded.

    Returns:
        Of how many bits its numbers may be; None of an image that uses more of its range.
    """
    if not image.is_floating_point():
        return None
    low, high = (float(value) for value in image.aminmax())
    white = low > 1 - _SLIVER  # as of a TIFF in which 0 is white
    used = 1 - low if white else high
    if used >= _SLIVER or high == low:
        return None
    needed = round(used * (2 ** (bit_depth or 16) - 1)).bit_length()
    bits = next(known for known in (9, 10, 12, 14) if known >= needed)
    if bits not in said:
        _log.warning(
            "image %r uses %.2g of its range of values at most, so it comes out %s; if it holds numbers of %d bits%s, "
            "say so with `bit_depth` (--bit-depth)",
            name, used, "white" if white else "black", bits, " and 0 is white in it" if white else "",
        )  # fmt: skip
    return bits


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) at another size (h, w), of its type, by antialiased bilinear interpolation."""
    if tuple(image.shape[1:]) == size:
        return image
    batch = image[None]
    if image.dtype == torch.uint8:
        # torch has a fast path for bytes with the channels last in memory.
        batch = batch.contiguous(memory_format=torch.channels_last)
    return interpolate(batch, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def sample_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) at another size (h, w): the value at the centre of each pixel."""
    rows, columns = (
        ((torch.arange(count) + 0.5) * own / count).long() for count, own in zip(size, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


def _from_pillow(image: "Image.Image", bit_depth: int | None) -> Tensor:
    """(3, H, W) uint8 or float32 in [0, 1]; ValueError if the mode has no known range."""
    from PIL import ImageOps

    if image.format not in (None, "MPO", *FORMATS):
        raise ValueError(f"its format is {image.format}; expected one of {', '.join(FORMATS)}")
    check_pixels(image.width, image.height)
    # An MPO is a photograph with previews of itself; in all other formats pages are different pictures.
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(several_pages(pages))
    deep = image.mode in _SIXTEEN_BIT or image.mode in ("I", "F")
    # Read now: turning an image forgets its file's tags.
    highest, negative = _highest(image, bit_depth) if deep else 255, deep and _is_white_zero(image)
    image.load()  # tags may stand behind the pixels
    if image.getexif().get(_ORIENTATION, 1) != 1:  # turning makes a copy, also by nothing
        image = ImageOps.exif_transpose(image)
    if deep:
        values = _unit_range(np.array(image), highest)
        return _grey(1 - values if negative else values)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in _TRANSPARENT:
        image = _over_black(image.convert("RGBA"))
    if image.mode not in _OPAQUE:
        raise ValueError(f"its Pillow mode is {image.mode!r}; save it as 8-bit or 16-bit grey, or as RGB")
    if image.mode in ("1", "L"):
        return _grey(torch.from_numpy(np.array(image if image.mode == "L" else image.convert("L"))))
    # Left with channels last in memory, as decoded: torch resizes such images twice as fast.
    colour = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(colour)).permute(2, 0, 1)


def _is_white_zero(image: "Image.Image") -> bool:
    """Whether 0 is white, as a TIFF may say; Pillow minds that up to 8 bits alone."""
    from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _highest(image: "Image.Image", bit_depth: int | None) -> int:
    """The highest value that a file of more than 8 bits per pixel can hold, or is said to hold."""
    from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

    if image.mode == "F":
        return 1
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError(
            "it holds 32-bit or signed integers, whose range the file does not say; "
            "choose the range you want to see and save it as 8 or 16 bits"
        )
    # TIFF packs 12 bits into the 16-bit modes without rescaling.
    bits = image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16
    return int(2 ** (bit_depth or bits) - 1)


def _unit_range(values: "np.ndarray[Any, Any]", highest: int) -> Tensor:
    """(H, W) float32 in [0, 1]."""
    if values.dtype.kind == "f":
        return _check_range(torch.from_numpy(values))
    if values.min() < 0 or values.max() > highest:
        raise ValueError(f"its values span {values.min()} to {values.max()}, expected 0 to {highest}")
    return torch.from_numpy(values.astype(np.float32) / highest)


def _over_black(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.getchannel("A").getextrema()[1] == 0:
        raise ValueError("every pixel is fully transparent; save it without its alpha channel")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image).convert("RGB")


def _from_numbers(values: Tensor, bit_depth: int | None, *, prefer_last: bool) -> Tensor:
    """(3, H, W) uint8 or float32 in [0, 1] from an array of a caller."""
    image = _channels_first(values, prefer_last=prefer_last)
    if image.dtype == torch.uint8:
        return image.contiguous()
    if image.dtype == torch.uint16:
        return _check_range(image.float() / (2 ** (bit_depth or 16) - 1)).contiguous()
    if not image.is_floating_point():
        kind = str(image.dtype).removeprefix("torch.")
        raise ValueError(
            f"image has dtype {kind}; expected uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1). "
            "Convert it to the one whose range it has."
        )
    return _check_range(image.float()).contiguous()


def _channels_first(values: Tensor, *, prefer_last: bool) -> Tensor:
    shape = tuple(values.shape)
    if 0 in shape:
        raise ValueError(f"image of shape {shape} is empty")
    if values.ndim == 4:
        raise ValueError(f"expected one image, got a batch of shape {shape}; pass batch[0], batch[1], ...")
    if values.ndim == 2:
        return _grey(values)
    last = values.permute(2, 0, 1) if values.ndim == 3 else values
    for image in (last, values) if prefer_last else (values, last):
        if values.ndim == 3 and image.shape[0] in (1, 3):
            return image.expand(3, -1, -1)
    hint = "; drop the alpha channel" if values.ndim == 3 and 4 in (shape[0], shape[-1]) else ""
    raise ValueError(f"expected an image of shape (H, W), (3, H, W) or (H, W, 3), got {shape}{hint}")


def _check_range(values: Tensor) -> Tensor:
    """The same, cut to [0, 1], after a check that this changes next to nothing."""
    low, high = (float(value) for value in values.aminmax())  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("image holds NaN or infinite values; a float image must be finite, in [0, 1]")
    span = f"float image spans {low:.4g} to {high:.4g}, expected 0 to 1"
    if low < -_SLACK:
        raise ValueError(f"{span}; this looks normalized already: pass the raw image")
    if high > 1 + _SLACK:
        top = 255 if high <= 256 else 65535 if high <= 65536 else "the highest value its source allows"
        raise ValueError(f"{span}; divide by {top}")
    return values if low >= 0 and high <= 1 else values.clamp(0, 1)


def _grey(values: Tensor) -> Tensor:
    return values.expand(3, -1, -1).contiguous()
