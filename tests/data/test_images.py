"""An image is read as it is, or refused with a sentence that says why; it is never quietly changed."""

import itertools
import logging
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, TiffImagePlugin

from conceptcam.data.images import image_size, load_image

RAMP = (np.arange(64 * 48).reshape(48, 64) * 21).astype(np.uint16)  # 0 to 64491
COLORS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def first(image: torch.Tensor) -> np.ndarray:
    """The picture in a grey image, after checking that it is grey."""
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    return image[0].numpy()


def test_colours_are_read_exactly(tmp_path: Path):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), COLORS)


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2", "pgm"])
def test_sixteen_bits_are_scaled_by_the_bit_depth_and_none_are_lost(tmp_path: Path, suffix: str):
    options = {"irreversible": False} if suffix == "jp2" else {}
    Image.fromarray(RAMP).save(tmp_path / f"a.{suffix}", **options)
    image = load_image(str(tmp_path / f"a.{suffix}"))
    assert image.dtype == torch.float32
    assert np.allclose(first(image) * 65535, RAMP, atol=0.01)


def test_twelve_bits_packed_in_a_tiff_are_scaled_by_twelve_bits(tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(twelve_bit_tiff([0, 4095, 2048, 1024]))
    assert first(load_image(tmp_path / "a.tif")) == pytest.approx(np.array([[0, 4095], [2048, 1024]]) / 4095, abs=1e-6)


@pytest.mark.parametrize(("stated", "high"), [(None, 1), (12, 1), (16, 4095 / 65535)])
def test_a_stated_bit_depth_counts_in_a_tiff_of_twelve_bits(tmp_path, caplog, stated, high):
    (tmp_path / "a.tif").write_bytes(twelve_bit_tiff([0, 4095, 2048, 1024]))
    with caplog.at_level(logging.WARNING):
        image = load_image(tmp_path / "a.tif", bit_depth=stated)
    assert float(image.max()) == pytest.approx(high, abs=1e-6)
    said = "comes out black; if it holds numbers of 12 bits, say so with `bit_depth`"
    assert (said in caplog.text) == (high < 1) == bool(caplog.text)


def test_bits_are_told_of_the_range_that_was_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.tif"
    path.write_bytes(packed_tiff([[1, 2, 3, 4], [5, 6, 7, 1023]], 10, photometric=1))
    load_image(path, bit_depth=14)
    assert "so it comes out black; if it holds numbers of 10 bits" in caplog.text


def test_a_sliver_comes_out_white_where_zero_is_white(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.tif"
    path.write_bytes(packed_tiff([[1, 2, 3, 4], [5, 6, 7, 1023]], 10, photometric=0))
    assert load_image(path).max() > 0.9 and not caplog.text
    assert load_image(path, bit_depth=16).min() > 0.9
    assert "so it comes out white; if it holds numbers of 10 bits and 0 is white in it, say so" in caplog.text


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_white_is_zero_in_a_tiff_of_sixteen_bits(tmp_path: Path, compression: str | None):
    """Pillow turns such images up to 8 bits over, and leaves 16 as they are."""
    Image.fromarray(RAMP).save(tmp_path / "a.tif", compression=compression, tiffinfo={262: 0})
    assert np.allclose(first(load_image(tmp_path / "a.tif")), 1 - RAMP / 65535, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_tiff_of_any_depth_shows_its_values(tmp_path: Path, bits: int, white_is_zero: bool):
    values = [0, 2**bits - 1, 2 ** (bits - 1), 0, 2**bits - 1, 0, 0, 0]
    path = tmp_path / "a.tif"
    path.write_bytes(packed_tiff([values], bits, photometric=0 if white_is_zero else 1))
    image = load_image(path)
    shown = first(image) / (255 if image.dtype == torch.uint8 else 1)
    expected = np.array([values]) / (2**bits - 1)
    assert shown == pytest.approx(1 - expected if white_is_zero else expected, abs=1e-6)
    assert image_size(path) == (8, 1)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_packed_tiff_shows_what_its_plain_twin_shows(
    tmp_path: Path, bits: int, white_is_zero: bool, compression: str | None
):
    """Within a step of 8 bits, as the plain twin is rounded; of odd width, so that rows end within a byte."""
    random = np.random.default_rng(bits)
    values = random.integers(0, 2**bits, (300, 37))
    text = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    wide = -(-37 * bits // 8)
    rows = np.array([list(int(row.ljust(8 * wide, "0"), 2).to_bytes(wide, "big")) for row in text], np.uint8)
    path, plain = tmp_path / "a.tif", tmp_path / "b.png"
    Image.fromarray(rows).save(path, compression=compression)  # as if the bytes of a row were pixels
    retag(path, {256: 37, 258: bits, 262: 0 if white_is_zero else 1})
    eight = values * 255 / (2**bits - 1)
    Image.fromarray((255 - eight if white_is_zero else eight).round().astype(np.uint8)).save(plain)
    image = load_image(path)
    assert image_size(path) == (37, 300) and image.shape == (3, 300, 37)
    assert np.abs(first(image) * 255 - first(load_image(plain))).max() <= 0.5 + 1e-3
    retag(path, {256: 37, 258: bits, 262: 3})
    assert "it is a TIFF of a kind that is not read" in refused(path)


def test_a_packed_tiff_is_turned_upright_and_cut_short_refused(tmp_path: Path):
    path, content = tmp_path / "a.tif", packed_tiff([[1, 2, 3, 4], [5, 6, 7, 1023]], 10, photometric=1, turned=6)
    path.write_bytes(content)
    assert (first(load_image(path)) * 1023).round().tolist() == [[5, 1], [6, 2], [7, 3], [1023, 4]]
    assert image_size(path) == (2, 4)
    for length in range(4, len(content), 5):
        path.write_bytes(content[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about the tags that are cut off
            assert "unpack" not in refused(path)  # in words of this package


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("bits", "photometric"), [(8, 2), *itertools.product([8, 9, 10, 12, 15, 16], [0, 1])])
def test_a_tiled_tiff_shows_its_values(tmp_path: Path, bits: int, photometric: int, compressed: bool, order: str):
    shape = (37, 50, 3) if photometric == 2 else (37, 50, 1)  # tiles of 16 x 32 hang over on both sides
    values = np.random.default_rng(bits).integers(0, 2**bits, shape)
    path = tmp_path / "a.tif"
    path.write_bytes(tiled_tiff(values, bits, photometric=photometric, compressed=compressed, order=order))
    expected = values.transpose(2, 0, 1) / (2**bits - 1)
    image = load_image(path)
    shown = image.double().numpy() / (255 if image.dtype == torch.uint8 else 1)
    assert image_size(path) == (50, 37) and shown.shape == (3, 37, 50)
    assert np.abs(shown - (1 - expected if photometric == 0 else expected)).max() < 1e-6


def tiled_tiff(values: np.ndarray, bits: int, *, photometric: int, compressed: bool, order: str) -> bytes:
    """A TIFF of tiles of 16 x 32 pixels, of values (H, W, C)."""
    height, width, samples = values.shape
    down, across = -(-height // 16), -(-width // 32)
    canvas = np.zeros((16 * down, 32 * across, samples), int)
    canvas[:height, :width] = values
    tiles = [canvas[16 * i : 16 * i + 16, 32 * j : 32 * j + 32] for i in range(down) for j in range(across)]
    packed = [_packed(tile, bits, order) for tile in tiles]
    packed = [zlib.compress(one) if compressed else one for one in packed]
    starts = np.cumsum([8, *map(len, packed)]).tolist()
    more, after = b"", starts.pop()
    entries = b""
    for tag, kind, numbers in (
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * samples), (259, 3, [8 if compressed else 1]),
        (262, 3, [photometric]), (277, 3, [samples]), (322, 3, [32]), (323, 3, [16]), (324, 4, starts),
        (325, 4, [len(one) for one in packed]),
    ):  # fmt: skip
        content = struct.pack(f"{order}{len(numbers)}{'HI'[kind - 3]}", *numbers)
        if len(content) > 4:
            content, more = struct.pack(f"{order}I", after + len(more)), more + content + bytes(len(content) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", after + len(more))
    return head + b"".join(packed) + more + struct.pack(f"{order}H", 10) + entries + bytes(4)


def _packed(tile: np.ndarray, bits: int, order: str) -> bytes:
    if bits == 16:
        return tile.astype(f"{order}u2").tobytes()
    return np.packbits((tile.flatten()[:, None] >> np.arange(bits - 1, -1, -1)) & 1).tobytes()


@pytest.mark.parametrize("bits", [10, 12])
def test_a_packed_tiff_of_several_pages_is_refused_by_number(tmp_path: Path, bits: int):
    content = packed_tiff([[1, 2, 3, 4]], bits, photometric=1)
    start = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[start : start + 2], "little")
    pages = [content[start : start + 2 + 12 * count] for _ in range(3)]
    chain = content[:start]
    for number, page in enumerate(pages):
        chain += page + (0 if number == 2 else len(chain) + len(page) + 4).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(chain)
    assert "it holds 3 pages or frames; save the one you mean" in refused(tmp_path / "a.tif")


def retag(path: Path, tags: dict[int, int]) -> None:
    """Write other numbers into the tags of a little-endian TIFF, which has them."""
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[4:8], "little")
    for place in range(start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12):
        tag = int.from_bytes(content[place : place + 2], "little")
        if tag in tags:
            content[place + 8 : place + 12] = tags.pop(tag).to_bytes(4, "little")
    assert not tags
    path.write_bytes(content)


def packed_tiff(rows: list[list[int]], bits: int, *, photometric: int, turned: int = 1) -> bytes:
    """An uncompressed grey TIFF, little-endian; values of less than 16 bits are packed from the left."""
    if bits == 16:
        pixels = np.array(rows, "<u2").tobytes()
    else:
        text = "".join(f"{value:0{bits}b}" for row in rows for value in row)
        pixels = int(text, 2).to_bytes(len(text) // 8, "big")
    tags = {
        256: len(rows[0]), 257: len(rows), 258: bits, 259: 1, 262: photometric,
        273: 8, 274: turned, 277: 1, 278: len(rows), 279: len(pixels),
    }  # fmt: skip
    pixels += bytes(len(pixels) % 2)
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    header = b"II*\x00" + (8 + len(pixels)).to_bytes(4, "little")
    return header + pixels + len(tags).to_bytes(2, "little") + entries + bytes(4)


def twelve_bit_tiff(values: list[int]) -> bytes:
    """An uncompressed 2x2 grey TIFF with 12 bits per pixel, each row in three bytes."""
    bits = "".join(f"{value:012b}" for value in values)
    pixels = int(bits, 2).to_bytes(6, "big")
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 6}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    header = b"II*\x00" + (8 + len(pixels)).to_bytes(4, "little")
    return header + pixels + len(tags).to_bytes(2, "little") + entries + bytes(4)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", lambda image: image.convert("L").convert("RGB")),
        ("1", lambda image: image.convert("1").convert("RGB")),
        ("P", lambda image: image.convert("P").convert("RGB")),
        ("CMYK", lambda image: image.convert("CMYK").convert("RGB")),
        ("RGBA", lambda image: image),
        ("LA", lambda image: image.convert("L").convert("RGB")),
    ],
)
def test_every_common_mode_shows_its_colours(mode: str, expected: Callable[[Image.Image], Image.Image]):
    image = Image.fromarray(COLORS)
    assert np.array_equal(load_image(image.convert(mode)).permute(1, 2, 0).numpy(), np.asarray(expected(image)))


def test_transparent_pixels_are_laid_over_black(tmp_path: Path):
    image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    image.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[:, 0].T.tolist() == [[200, 100, 50], [0, 0, 0]]


def test_the_transparent_colour_of_a_palette_is_laid_over_black(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png")[:, 0].T.tolist() == [[0, 0, 0], [200, 100, 50]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int):
    # Where the top left pixel of the upright picture lies in the stored one.
    rows = {1: 0, 2: 0, 3: -1, 4: -1, 5: 0, 6: -1, 7: -1, 8: 0}
    columns = {1: 0, 2: -1, 3: -1, 4: 0, 5: 0, 6: 0, 7: -1, 8: -1}
    stored = np.zeros((4, 6), np.uint8)
    stored[rows[orientation], columns[orientation]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = first(load_image(tmp_path / "a.png"))
    assert upright.shape == ((4, 6) if orientation < 5 else (6, 4))
    assert np.argwhere(upright).tolist() in ([[0, 0]], [[upright.shape[0] - 1, 0]])
    assert upright[0, 0] == 255


def test_a_float_tiff_in_the_unit_range_is_read(tmp_path: Path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.array_equal(first(load_image(tmp_path / "a.tif")), values)


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read the image {str(path)!r}: ")
    return message


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File)")  # Pillow's, before it gives up
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif", "jp2"])
@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 0.97))
def test_a_file_cut_short_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, suffix: str, share: float):
    path = tmp_path_factory.mktemp("cut") / f"a.{suffix}"
    Image.fromarray(COLORS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path)


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.png").write_text("not found")
    assert "it is none of PNG, JPEG, TIFF" in refused(tmp_path / "a.png")
    assert "irectory" in refused(tmp_path) or "ermission" in refused(tmp_path)


def test_a_format_that_runs_programs_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An EPS file is a program, which Pillow hands to Ghostscript, whatever the file's name."""
    from PIL import EpsImagePlugin

    Image.fromarray(COLORS).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **more: pytest.fail("Ghostscript ran"))
    assert "it is none of PNG, JPEG" in refused(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ValueError, match="its format is EPS; expected one of"):
        load_image(image)


def test_a_wrong_suffix_does_no_harm(tmp_path: Path):
    Image.fromarray(COLORS).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.jpg")
    assert np.array_equal(load_image(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), COLORS)


def test_an_empty_file_is_refused_by_name(tmp_path: Path):
    (tmp_path / "a.png").touch()
    assert "it is empty, of 0 bytes" in refused(tmp_path / "a.png")


def png_of_size(width: int, height: int, *, colour: int = 0, pixels: int = 100) -> bytes:
    """A black PNG file that claims a size; what is in it is next to nothing, or a number of bytes."""
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(pixels), level=1)
    parts = [(13, chunk), (len(data) - 4, data), (0, b"IEND")]
    body = b"".join(n.to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for n, part in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png_of_size(100_000, 100_000))
    assert "decompression bomb" in refused(tmp_path / "a.png")


READING = """
import resource, sys, warnings
import numpy as np
from conceptcam.data.images import load_image

warnings.simplefilter("error")
load_image(np.zeros((4, 4), np.uint8))
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        print(tuple(load_image(path).shape))
    except ValueError as error:
        print(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
def test_a_huge_image_is_refused_and_a_large_one_copied_twice(tmp_path: Path):
    """The first has 144 million pixels, all there; the second takes Pillow's 4 bytes per pixel, and 3 twice."""
    huge, large = tmp_path / "huge.png", tmp_path / "large.png"
    huge.write_bytes(png_of_size(12_000, 12_000, pixels=12_000 * 12_001))
    large.write_bytes(png_of_size(4000, 4000, colour=2, pixels=4000 * 12_001))
    done = subprocess.run([sys.executable, "-c", READING, huge, large], capture_output=True, text=True, check=True)
    refusal, least, shape, memory = done.stdout.splitlines()
    assert "it is 12000 x 12000 pixels; expected 1 to 89478485 in all. Make it smaller, or cut it into tiles" in refusal
    assert int(least) * 1024 < 30e6
    assert shape == "(3, 4000, 4000)" and int(memory) * 1024 < 4000 * 4000 * 12
    with pytest.raises(ValueError, match="it is 12000 x 12000 pixels; expected"):
        image_size(huge)


def test_an_image_without_pixels_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png_of_size(0, 5))
    refused(tmp_path / "a.png")


def test_twelve_bits_in_sixteen_are_noticed_and_scaled(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    twelve = RAMP // 16
    Image.fromarray(twelve).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert first(load_image(tmp_path / "a.png")).max() * 255 <= 16
    assert caplog.text.count("so it comes out black; if it holds numbers of 12 bits, say so with `bit_depth`") == 1
    assert np.allclose(first(load_image(tmp_path / "a.png", bit_depth=12)) * 4095, twelve, atol=0.01)
    assert np.allclose(first(load_image(twelve, bit_depth=12)) * 4095, twelve, atol=0.01)
    with pytest.raises(ValueError, match="its values span 0 to 64491, expected 0 to 4095"):
        Image.fromarray(RAMP).save(tmp_path / "c.png")
        load_image(tmp_path / "c.png", bit_depth=12)
    with pytest.raises(ValueError, match=r"`bit_depth` \(--bit-depth\) must be 9 to 16, got 8"):
        load_image(tmp_path / "a.png", bit_depth=8)


def test_a_full_range_is_not_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    load_image(tmp_path / "a.png")
    assert caplog.text == ""


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_of_an_image_is_that_of_its_picture(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLORS).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == tuple(load_image(tmp_path / "a.jpg").shape[:0:-1])


def test_a_missing_file_is_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        load_image(tmp_path / "nowhere.png")


def test_an_image_of_several_pages_is_refused(tmp_path: Path):
    page = Image.fromarray(COLORS)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    assert "it holds 3 pages or frames; save the one you mean" in refused(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integers_without_a_known_range_are_refused(tmp_path: Path, dtype: type):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if dtype is np.int16:
        tags[258], tags[339] = 16, 2
        raw = (RAMP.astype(np.int32) - 30000).astype(np.int16)
        image = Image.frombytes("I;16", (64, 48), raw.tobytes())
    else:
        image = Image.fromarray(RAMP.astype(np.int32) * 7)
    image.save(tmp_path / "a.tif", tiffinfo=tags)
    assert "32-bit or signed integers, whose range the file does not say" in refused(tmp_path / "a.tif")


def test_floats_of_another_scale_are_refused(tmp_path: Path):
    Image.fromarray(COLORS[..., 0].astype(np.float32)).save(tmp_path / "a.tif")
    assert "float image spans 0 to 255, expected 0 to 1; divide by 255" in refused(tmp_path / "a.tif")


def test_a_mode_that_cannot_be_shown_is_refused(tmp_path: Path):
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    assert "its Pillow mode is 'LAB'; save it as 8-bit or 16-bit grey, or as RGB" in refused(tmp_path / "a.tif")


def test_an_image_that_is_all_transparent_is_not_replaced_by_black(tmp_path: Path):
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "a.png")
    assert "every pixel is fully transparent" in refused(tmp_path / "a.png")


def test_a_truncated_pillow_image_is_refused(tmp_path: Path):
    Image.fromarray(COLORS).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:800])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(ValueError, match="cannot use the Pillow image"):
        load_image(image)


CHANNELS_FIRST = COLORS.transpose(2, 0, 1)


@pytest.mark.parametrize(
    "image",
    [
        COLORS,
        CHANNELS_FIRST,
        COLORS[::-1][::-1],
        Image.fromarray(COLORS),
        torch.tensor(COLORS),
        torch.tensor(CHANNELS_FIRST),
        torch.tensor(CHANNELS_FIRST / 255),
        torch.tensor(CHANNELS_FIRST / 255, dtype=torch.float16),
        (COLORS / 255).astype(">f4"),
        COLORS.astype(np.uint16) * 257,
        torch.tensor(CHANNELS_FIRST.astype(np.uint16) * 257),
        torch.tensor(CHANNELS_FIRST / 255, requires_grad=True),
    ],
)
def test_every_form_of_one_image_gives_the_same_picture(image: Any):
    read = load_image(image)
    assert read.shape == (3, 48, 64)
    assert read.dtype in (torch.uint8, torch.float32) and not read.requires_grad
    levels = read if read.dtype == torch.uint8 else (read * 255).round()
    assert np.array_equal(levels.permute(1, 2, 0).numpy(), COLORS)


@pytest.mark.parametrize("shape", [(48, 64), (1, 48, 64), (48, 64, 1)])
@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_one_channel_is_repeated(shape: tuple[int, ...], convert: Callable[[np.ndarray], Any]):
    assert np.array_equal(first(load_image(convert(COLORS[..., 0].reshape(shape)))), COLORS[..., 0])


def test_ambiguous_channels_follow_the_librarys_custom():
    small = COLORS[:3]  # (3, 64, 3)
    assert np.array_equal(load_image(small).numpy(), small.transpose(2, 0, 1))
    assert np.array_equal(load_image(torch.tensor(small)).numpy(), small)


def test_what_is_returned_does_not_share_memory_with_an_array():
    pixels = COLORS.copy()
    read = load_image(pixels)
    pixels[:] = 0
    assert read.any()


UNIT = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (UNIT * 255, r"float image spans .* to 2.*, expected 0 to 1; divide by 255"),
        (UNIT * 65535, r"expected 0 to 1; divide by 65535"),
        (UNIT * 1e7, r"divide by the highest value its source allows"),
        ((UNIT - 0.5) / 0.2, r"float image spans -.*; this looks normalized already: pass the raw image"),
        (torch.full((3, 8, 9), 2.0), r"float image spans 2 to 2, expected 0 to 1"),
        (torch.full((3, 8, 9), torch.nan), r"image holds NaN or infinite values"),
        (UNIT / 0, r"image holds NaN or infinite values"),
        ((UNIT * 255).long(), r"image has dtype int64; expected uint8 \(0 to 255\), uint16"),
        (UNIT > 0.5, r"image has dtype bool; expected uint8"),
        (np.zeros((8, 9), np.int16), r"image has dtype int16; expected uint8"),
        (np.zeros((8, 9), "U1"), r"image has dtype <U1; expected uint8"),
        (UNIT.to(torch.complex64), r"image has dtype complex64; expected uint8"),
        (UNIT[None], r"expected one image, got a batch of shape \(1, 3, 8, 9\); pass batch\[0\]"),
        (UNIT[0, 0], r"expected an image of shape \(H, W\), \(3, H, W\) or \(H, W, 3\), got \(9,\)"),
        (UNIT[:2], r"got \(2, 8, 9\)$"),
        (np.zeros((8, 9, 4), np.uint8), r"got \(8, 9, 4\); drop the alpha channel"),
        (UNIT[:, :0], r"image of shape \(3, 0, 9\) is empty"),
    ],
)
def test_an_impossible_image_is_refused_with_the_reason(image: Any, message: str):
    with pytest.raises(ValueError, match=message):
        load_image(image)


def test_something_else_is_refused_by_its_type():
    with pytest.raises(TypeError, match="expected a path, Pillow image, numpy array or tensor, got list"):
        load_image([[0, 1], [1, 0]])


def test_a_path_is_read(tmp_path: Path):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png"), load_image(str(tmp_path / "a.png")))
    with pytest.raises(FileNotFoundError, match=re.escape("b.png")):
        load_image(str(tmp_path / "b.png"))


def test_rounding_beyond_the_unit_range_is_forgiven():
    image = load_image(UNIT * 0 + torch.tensor([-1e-5, 0.5, 1 + 1e-5])[:, None, None])
    assert image[:, 0, 0].tolist() == [0, 0.5, 1]
