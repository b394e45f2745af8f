"""Reading a DICOM image as its file says it is to be shown. Needs pydicom, of the extra `dicom`."""

import warnings
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

    Numbers = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 89_478_485
"""The most pixels that an image may have, from which on Pillow warns of a decompression bomb.

Reading an image of so many takes 1 to 2 GB of memory; the largest radiographs have a third of them.
"""

_HEADER = 132  # bytes: a preamble of 128, then the letters DICM
_GREY = ("MONOCHROME1", "MONOCHROME2")


class DicomIds(NamedTuple):
    """Whose image a file holds; the empty text where the file does not say."""

    patient: str
    study: str


def is_dicom(path: str | PathLike[str]) -> bool:
    """Whether a file is DICOM, by its content.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(_HEADER)[128:] == b"DICM"


def read_dicom(path: str | PathLike[str], *, bit_depth: int | None = None) -> "Numbers":
    """The picture that a DICOM file holds, as it says that it is to be shown.

    Stored values are rescaled, then windowed by the file's own VOI LUT or window, the first if there are several. No
    window is made up: without one, black and white are the ends of what its bits can store. Where low values are white
    (MONOCHROME1), the picture is inverted. Padding is black.

    Args:
        path: A file with one frame.
        bit_depth: Bits that the values really use, where the file says more and has no window; None believes the file.

    Returns:
        (H, W) float32 in [0, 1] if grey, (H, W, 3) uint8 if in colour.

    Raises:
        ImportError: If pydicom is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or decoded, holds several frames or none, or is too large.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of values that it then reads as they are
            dataset = _open(path)
            _check_frame(dataset)
            stored = _decode(dataset)
            if stored.ndim == 3:
                return _colour(stored, dataset)
            return _grey(stored, dataset, bit_depth)
    except FileNotFoundError:
        raise
    except (
        OSError, InvalidDicomError, BytesLengthException, AttributeError, ValueError, KeyError, TypeError, EOFError,
        NotImplementedError, MemoryError,
    ) as error:  # fmt: skip
        raise ValueError(f"cannot read the DICOM image {fspath(path)!r}: {error}") from error


def dicom_size(path: str | PathLike[str]) -> tuple[int, int]:
    """The width and height in pixels of a DICOM image, from its header.

    Raises:
        ImportError: If pydicom is not installed.
        ValueError: If the file says nothing of its size.
    """
    dataset = _open(path, only=["Rows", "Columns"])
    if "Rows" not in dataset or "Columns" not in dataset:
        raise ValueError(f"cannot read the DICOM image {fspath(path)!r}: it holds no image")
    return int(dataset.Columns), int(dataset.Rows)


def dicom_ids(path: str | PathLike[str]) -> DicomIds:
    """The patient and study that a DICOM file is of, for a table of results; never for pictures or model cards.

    Raises:
        ImportError: If pydicom is not installed.
    """
    dataset = _open(path, only=["PatientID", "StudyInstanceUID"])
    return DicomIds(str(dataset.get("PatientID", "")), str(dataset.get("StudyInstanceUID", "")))


def _open(path: str | PathLike[str], only: list[str] | None = None) -> "Dataset":
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(
            f"reading the DICOM image {fspath(path)!r} needs pydicom: pip install 'conceptcam[dicom]'"
        ) from error
    return pydicom.dcmread(path, stop_before_pixels=only is not None, specific_tags=only)


def _check_frame(dataset: "Dataset") -> None:
    """Refuse what is not one image of a known kind."""
    if "PixelData" not in dataset:
        raise ValueError("it holds no image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it holds {frames} frames; save the one you mean as its own file")
    check_pixels(int(dataset.Columns), int(dataset.Rows))


def check_pixels(width: int, height: int) -> None:
    """Refuse an image of no pixels, or of too many, before it is decoded."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"it is {width} x {height} pixels; expected 1 to {MAX_PIXELS} in all. Make it smaller, or cut it into tiles"
        )


def _decode(dataset: "Dataset") -> "Numbers":
    """(H, W) stored values, or (H, W, 3) RGB."""
    from pydicom.pixels import apply_color_lut, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        stored = pixel_array(dataset)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"its pixels, in {syntax.name}, cannot be decoded: {error}; pylibjpeg-openjpeg decodes JPEG 2000, pyjpegls "
            "JPEG-LS and python-gdcm lossless JPEG"
        ) from error
    return apply_color_lut(stored, dataset) if dataset.PhotometricInterpretation == "PALETTE COLOR" else stored


def _colour(stored: "Numbers", dataset: "Dataset") -> "Numbers":
    if stored.shape[2] != 3:
        raise ValueError(f"it has {stored.shape[2]} samples per pixel; expected 1 or 3")
    if stored.dtype == np.uint8:
        return stored
    # A palette says by itself how many bits its colours have.
    palette = dataset.get("RedPaletteColorLookupTableDescriptor")
    bits = int(palette[2]) if palette is not None else int(dataset.BitsStored)
    return np.asarray(np.rint(stored.astype(np.float64) * (255 / (2**bits - 1))), dtype=np.uint8)


def _grey(stored: "Numbers", dataset: "Dataset", bit_depth: int | None) -> "Numbers":
    photometric = dataset.PhotometricInterpretation
    if photometric not in _GREY:
        raise ValueError(
            f"its photometric interpretation is {photometric!r}; expected one of {list(_GREY)} or a colour"
        )
    from pydicom.pixels import apply_modality_lut

    padding = _padding(stored, dataset)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    shown = _windowed(values, dataset, bit_depth)
    if photometric == "MONOCHROME1":
        shown = 1 - shown
    if padding is not None:
        shown[padding] = 0
    return shown.astype(np.float32)


def _padding(stored: "Numbers", dataset: "Dataset") -> "Numbers | None":
    """Where pixels were filled in to make the image rectangular."""
    if (value := dataset.get("PixelPaddingValue")) is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _windowed(values: "Numbers", dataset: "Dataset", bit_depth: int | None) -> "Numbers":
    """Rescaled values to [0, 1], by the VOI LUT, else the window, else the range of the bits."""
    from pydicom.pixels import apply_voi

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(np.rint(values).astype(np.int64), dataset)
        return np.clip(np.asarray(looked_up, dtype=np.float64) / (2**bits - 1), 0, 1)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if center is not None and width is not None:
        return _window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    low, high = _value_range(dataset, bit_depth)
    if values.min() < low or values.max() > high:
        raise ValueError(f"its values span {values.min():g} to {values.max():g}, expected {low:g} to {high:g}")
    return (values - low) / (high - low)


def _first(value: Any) -> float | None:
    """The first of several values; None if there is none."""
    if value is None or value == "":
        return None
    try:
        return float(value)
    except TypeError:
        return float(value[0]) if len(value) else None


def _window(values: "Numbers", center: float, width: float, function: str) -> "Numbers":
    """The functions of DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3, from 0 to 1."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"its VOI LUT function is {function!r}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    if width <= 0:  # of one value: a threshold
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _value_range(dataset: "Dataset", bit_depth: int | None) -> tuple[float, float]:
    """The lowest and highest value that the bits can store, rescaled."""
    if lut := dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(lut[0].LUTDescriptor[2]) - 1
    bits = bit_depth or int(dataset.BitsStored)
    signed = int(dataset.get("PixelRepresentation", 0)) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    first, second = low * slope + intercept, high * slope + intercept
    return min(first, second), max(first, second)
