"""A DICOM image is shown as its file says, whatever its bits, window, sign, inversion and compression."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data.images import image_size, load_image

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
RAMP = np.arange(48 * 64).reshape(48, 64) * 4095 // (48 * 64 - 1)  # 0 to 4095


def write(path: Path, values: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """A DICOM file of 12 bits in 16, unless tags say otherwise."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientID, data.StudyInstanceUID = "p-17", "1.2.3.4"
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 1 if values.ndim == 2 else 3
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.PixelRepresentation = 16, 12, 0
    pixels = tags.pop("pixels", None)
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    kind = {8: "u1", 16: "i2" if data.PixelRepresentation else "u2"}[data.BitsAllocated]
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = encapsulate([pixels]) if pixels is not None else values.astype(order + kind).tobytes()
    data["PixelData"].VR = "OB" if pixels is not None or data.BitsAllocated == 8 else "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path, **options: Any) -> np.ndarray:
    image = load_image(path, **options)
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    return image[0].numpy()


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_twelve_bits_keep_every_step_whatever_the_byte_order(tmp_path: Path, syntax: UID):
    image = shown(write(tmp_path / "a.dcm", RAMP, syntax))
    assert image.dtype == np.float32 and np.allclose(image * 4095, RAMP, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_ramp_of_any_depth_survives_within_a_step_of_eight_bits(tmp_path: Path, bits: int):
    ramp = np.round(np.linspace(0, 2**bits - 1, 48 * 64)).reshape(48, 64)
    allocated = 8 if bits == 8 else 16
    image = shown(write(tmp_path / "a.dcm", ramp, BitsStored=bits, BitsAllocated=allocated))
    assert np.abs(image * 255 - np.linspace(0, 255, 48 * 64).reshape(48, 64)).max() < 1


def test_low_values_are_white_in_monochrome1(tmp_path: Path):
    image = shown(write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert np.allclose(image, 1 - RAMP / 4095, atol=1e-5)


def slow_window(value: float, center: float, width: float, function: str) -> float:
    """DICOM PS3.3, C.11.2.1.2, for one value."""
    if function == "SIGMOID":
        return float(1 / (1 + np.exp(-4 * (value - center) / width)))
    if function == "LINEAR":
        if value <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if value > center - 0.5 + (width - 1) / 2:
            return 1.0
        return ((value - (center - 0.5)) / (width - 1)) + 0.5
    if value <= center - width / 2:
        return 0.0
    return 1.0 if value > center + width / 2 else (value - center) / width + 0.5


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("inverted", [False, True])
def test_the_files_own_window_is_applied_to_rescaled_values(tmp_path: Path, function: str | None, inverted: bool):
    tags: dict[str, Any] = {"VOILUTFunction": function} if function else {}
    path = write(
        tmp_path / "a.dcm", RAMP, WindowCenter=1000, WindowWidth=800, RescaleSlope=2, RescaleIntercept=-1024,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2", **tags,
    )  # fmt: skip
    expected = np.vectorize(slow_window)(RAMP * 2 - 1024.0, 1000.0, 800.0, function or "LINEAR")
    assert np.allclose(shown(path), 1 - expected if inverted else expected, atol=1e-5)


def test_of_several_windows_the_first_counts(tmp_path: Path):
    several = shown(write(tmp_path / "a.dcm", RAMP, WindowCenter=[1000, 50], WindowWidth=[800, 400]))
    assert np.array_equal(several, shown(write(tmp_path / "b.dcm", RAMP, WindowCenter=1000, WindowWidth=800)))


def test_no_window_is_made_up(tmp_path: Path):
    """A radiograph through a lung window of CT would be white everywhere."""
    image = shown(write(tmp_path / "a.dcm", RAMP, Modality="DX"))
    assert image.min() == 0 and image.max() == 1 and 0.49 < image.mean() < 0.51


def test_a_lookup_table_of_the_file_is_applied(tmp_path: Path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], [65535 - 16 * value for value in range(4096)]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    image = shown(write(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2))
    assert np.allclose(image * 65535, 65535 - 16 * RAMP, atol=0.01)


def test_signed_values_span_their_bits(tmp_path: Path):
    image = shown(write(tmp_path / "a.dcm", RAMP - 2048, PixelRepresentation=1, BitsStored=12))
    assert np.allclose(image * 4095, RAMP, atol=1e-3)


def test_padding_is_black_in_both_interpretations(tmp_path: Path):
    values = RAMP.copy()
    values[:5] = 4000
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        path = write(tmp_path / "a.dcm", values, PhotometricInterpretation=photometric, PixelPaddingValue=4000)
        image = shown(path)
        assert (image[:5] == 0).all() and image[20].mean() > 0.2


def encoded(values: np.ndarray, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **options)
    return file.getvalue()


EIGHT = np.round(RAMP / 4095 * 255).astype(np.uint8)
COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def test_jpeg_inside_gives_the_picture_of_its_plain_twin(tmp_path: Path):
    eight: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8}
    plain = load_image(write(tmp_path / "a.dcm", EIGHT, **eight))
    jpeg = encoded(EIGHT, "JPEG", quality=100)
    packed = load_image(write(tmp_path / "b.dcm", EIGHT, JPEGBaseline8Bit, pixels=jpeg, **eight))
    assert (packed.float() - plain.float() * (1 if plain.dtype == packed.dtype else 255)).abs().max() <= 3 / 255 * 255


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_jpeg_2000_inside_gives_the_picture_of_its_plain_twin(tmp_path: Path, photometric: str):
    tags: dict[str, Any] = {"BitsStored": 16, "PhotometricInterpretation": photometric}
    values = (RAMP * 16).astype(np.uint16)
    plain = shown(write(tmp_path / "a.dcm", values, **tags))
    packed = encoded(values, "JPEG2000", irreversible=False, no_jp2=True)
    assert np.array_equal(shown(write(tmp_path / "b.dcm", values, JPEG2000Lossless, pixels=packed, **tags)), plain)


def test_run_length_coding_gives_the_picture_of_its_plain_twin(tmp_path: Path):
    path = write(tmp_path / "a.dcm", RAMP)
    data = pydicom.dcmread(path)
    data.compress(RLELossless)
    data.save_as(tmp_path / "b.dcm")
    assert np.array_equal(shown(tmp_path / "b.dcm"), shown(path))


def test_colours_are_read_exactly_and_from_jpeg_nearly(tmp_path: Path):
    tags: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "PlanarConfiguration": 0}
    plain = load_image(write(tmp_path / "a.dcm", COLORS, PhotometricInterpretation="RGB", **tags))
    assert plain.dtype == torch.uint8 and np.array_equal(plain.permute(1, 2, 0).numpy(), COLORS)
    jpeg = encoded(COLORS, "JPEG", quality=100, subsampling=0)
    path = write(
        tmp_path / "b.dcm", COLORS, JPEGBaseline8Bit, pixels=jpeg, PhotometricInterpretation="YBR_FULL", **tags
    )
    assert (load_image(path).float() - plain.float()).abs().mean() < 3


def test_content_counts_and_not_the_name(tmp_path: Path):
    path = write(tmp_path / "scan.png", RAMP)
    assert np.allclose(shown(path) * 4095, RAMP, atol=1e-3) and image_size(path) == (64, 48)


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"cannot read the DICOM image {str(path)!r}: ")
    return str(caught.value)


def test_what_is_no_single_picture_is_refused(tmp_path: Path):
    assert "it holds 3 frames; save the one you mean" in refused(write(tmp_path / "a.dcm", RAMP, NumberOfFrames=3))
    assert "it is 65535 x 65535 pixels; expected 1 to 89478485 in all" in refused(
        write(tmp_path / "b.dcm", RAMP, Rows=65535, Columns=65535)
    )
    assert "it is 64 x 0 pixels" in refused(write(tmp_path / "c.dcm", RAMP, Rows=0))
    data = pydicom.dcmread(write(tmp_path / "d.dcm", RAMP))
    del data.PixelData
    data.save_as(tmp_path / "d.dcm")
    assert "it holds no image" in refused(tmp_path / "d.dcm")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float):
    content = write(tmp_path / "a.dcm", RAMP).read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "a.dcm")


def test_a_syntax_without_decoder_is_named_with_what_decodes_it(tmp_path: Path):
    message = refused(write(tmp_path / "a.dcm", RAMP, JPEGLosslessSV1, pixels=b"\xff\xd8\xff\xd9"))
    assert "JPEG Lossless" in message and "python-gdcm lossless JPEG" in message


def test_a_missing_file_is_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.dcm"):
        load_image(tmp_path / "nowhere.dcm")


def test_twelve_bits_in_sixteen_are_noticed_and_scaled_if_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "a.dcm", RAMP, BitsStored=16)
    with caplog.at_level(logging.WARNING):
        assert shown(path).max() < 0.07
    assert "comes out black; if it holds numbers of 12 bits, say so with `bit_depth`" in caplog.text
    assert np.allclose(shown(path, bit_depth=12) * 4095, RAMP, atol=1e-3)
