"""Reading an image without changing what it shows: from a file, or from whatever a caller holds."""

import math
import struct
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

# Modes of 8 bits or less per channel that Pillow converts to RGB without loss.
_OPAQUE = ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
# What Pillow raises on files that are cut short, damaged, or larger than it dares to decode.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError)
# Resizing may overshoot [0, 1] by rounding; more than this is another scale.
_SLACK = 1e-3


def load_image(image: Any) -> Tensor:
    """An image as a tensor, checked, upright and at its full bit depth.

    Grey images are repeated to three channels. In files and Pillow images, a rotation noted in EXIF is applied,
    palettes are looked up, and transparent pixels are laid over black. Colour files of 16 bits per channel come at
    8 bits, because Pillow reads them so.

    Args:
        image: The path of a file in any single-image format that Pillow reads; a Pillow image; or a numpy array or
            tensor of shape (H, W), (3, H, W), (H, W, 3), (1, H, W) or (H, W, 1), of type uint8, uint16, or float in
            [0, 1].

    Returns:
        (3, H, W) uint8, or, for more than 8 bits, float32 in [0, 1], where 1 is the highest value that the bit depth
        allows (65535 for 16 bits).

    Raises:
        TypeError: If `image` is none of these.
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be read, is cut short, holds several pages, or holds numbers without a known
            range (32-bit integers, floats outside [0, 1]); or if shape, type or range cannot be those of a raw image.
    """
    if isinstance(image, str | PathLike):
        return _from_file(image)
    if isinstance(image, Tensor):
        return _from_numbers(image.detach(), prefer_last=False)
    if isinstance(image, np.ndarray):
        # A copy in the machine's byte order, which torch needs.
        native = np.array(image, dtype=image.dtype.newbyteorder("="))
        if native.dtype.kind not in "uifb":
            raise ValueError(f"image has dtype {image.dtype}; expected uint8, uint16 or float in [0, 1]")
        return _from_numbers(torch.from_numpy(native), prefer_last=True)
    from PIL import Image

    if isinstance(image, Image.Image):
        try:
            return _from_pillow(image)
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
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if turned else (image.width, image.height)
    except FileNotFoundError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {fspath(path)!r}: {error}") from error


def _from_file(path: str | PathLike[str]) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _from_pillow(image)
    except FileNotFoundError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {fspath(path)!r}: {error}") from error


def _from_pillow(image: "Image.Image") -> Tensor:
    """(3, H, W) uint8 or float32 in [0, 1]; ValueError if the mode has no known range."""
    from PIL import ImageOps

    # An MPO is a photograph with previews of itself; in all other formats pages are different pictures.
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(f"it holds {pages} pages or frames; save the one you mean as its own file")
    deep = image.mode in _SIXTEEN_BIT or image.mode in ("I", "F")
    highest = _highest(image) if deep else 255  # read now: turning an image forgets its file's tags
    image = ImageOps.exif_transpose(image)
    if deep:
        return _grey(_unit_range(np.array(image), highest))
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in _TRANSPARENT:
        image = _over_black(image.convert("RGBA"))
    if image.mode not in _OPAQUE:
        raise ValueError(f"its Pillow mode is {image.mode!r}; save it as 8-bit or 16-bit grey, or as RGB")
    if image.mode in ("1", "L"):
        return _grey(torch.from_numpy(np.array(image.convert("L"))))
    # Left with channels last in memory, as decoded: torch resizes such images twice as fast.
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _highest(image: "Image.Image") -> int:
    """The highest value that a file of more than 8 bits per pixel can hold."""
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
    return int(2**bits - 1)


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


def _from_numbers(values: Tensor, *, prefer_last: bool) -> Tensor:
    """(3, H, W) uint8 or float32 in [0, 1] from an array of a caller."""
    image = _channels_first(values, prefer_last=prefer_last)
    if image.dtype == torch.uint8:
        return image.contiguous()
    if image.dtype == torch.uint16:
        return (image.float() / 65535).contiguous()
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
