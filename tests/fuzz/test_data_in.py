"""Tables, image files and caches that are made to be wrong: read as they say, mended, or refused in one sentence."""

import csv
import importlib.util
import io
import math
import posixpath
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data.faults import Fault
from conceptcam.data.image_cache import ImageCache
from conceptcam.data.images import load_image
from conceptcam.data.inspection import inspect_dataset
from conceptcam.data.phantom.cache import cached, render_part
from conceptcam.data.table import TableDataset
from conceptcam.data.table_file import UNKNOWN_CELLS
from tests.data.test_images import packed_tiff
from tests.data.test_phantom_dataset import assert_same, request as drawing
from tests.fuzz.hostile import check_sentence, damaged, value

ROWS = [["image", "a", "b", "kind"], *([f"{k}.png", str(k % 2), "0.25", ["x", "y"][k // 3]] for k in range(6))]
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


@pytest.mark.attacks("tables of labels")
def test_a_table_is_read_as_it_says_or_refused(attempts, tmp_path: Path):
    for name, *_ in ROWS[1:]:
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / name)
    for chance in attempts(100):
        rows, raw = [list(row) for row in ROWS], chance.random() < 0.3
        for _ in range(chance.randint(1, 3)):
            cell = value(chance)
            rows[chance.randrange(7)][chance.randrange(4)] = str(cell).encode("utf-8", "replace").decode()
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=chance.choice(",;\t")).writerows(rows)
        content = file.getvalue().encode(chance.choice(("utf-8", "utf-8-sig", "utf-16")))
        (tmp_path / "labels.csv").write_bytes(damaged(chance, content) if raw else content)
        try:
            data = TableDataset(tmp_path / "labels.csv", tmp_path, concepts=["a", "b"], tasks=["kind"])
        except (ValueError, FileNotFoundError) as error:
            attempts.refused(error, longest=3000)
            continue
        labels = torch.cat([data.concept_labels, data.task_labels], dim=1)
        assert ((labels >= 0) & (labels <= 1) | labels.isnan()).all()
        for number, name in enumerate(data.names):
            assert (tmp_path / name).resolve().is_relative_to(tmp_path.resolve())
            if not raw:
                check_row(data.concept_labels[number].tolist(), name, rows)


@pytest.mark.attacks("tables of boxes")
def test_a_table_of_boxes_is_boxes_or_refused(attempts, tmp_path: Path):
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "labels.csv").write_text("image,a\n0.png,1\n")
    for chance in attempts(100):
        size = chance.choice((1, 20))
        rows = [["image", "concept", *chance.choice((("x", "y", "w", "h"), ("x1", "y1", "x2", "y2")))]]
        rows += [["0.png", "a", *(str(size * place) for place in (0.1, 0.2, 0.5, 0.6))] for _ in range(3)]
        for _ in range(chance.randint(0, 2)):
            cell = str(value(chance)).encode("utf-8", "replace").decode()
            rows[chance.randrange(4)][chance.randrange(6)] = cell
        file = io.StringIO(newline="")
        csv.writer(file).writerows(rows)
        content = file.getvalue().encode()
        (tmp_path / "boxes.csv").write_bytes(damaged(chance, content) if chance.random() < 0.3 else content)
        try:
            data = TableDataset(tmp_path / "labels.csv", tmp_path, concepts=["a"], boxes=tmp_path / "boxes.csv")
        except (ValueError, FileNotFoundError) as error:
            attempts.refused(error, longest=3000)
            continue
        left, top, right, bottom = data.all_boxes.xyxy.T
        assert ((left >= 0) & (left < right) & (right <= 1) & (top >= 0) & (top < bottom) & (bottom <= 1)).all()


@pytest.mark.attacks("tables whose faults are listed")
def test_faults_of_tables_are_listed_and_the_rest_is_sound(attempts, tmp_path: Path):
    for name, *_ in ROWS[1:]:
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / name)
    boxes = [["image", "concept", "x", "y", "w", "h"], *([f"{k}.png", "b", "4", "5", "9", "8"] for k in range(4))]
    for chance in attempts(100):
        for name, sound in (("labels.csv", ROWS), ("boxes.csv", boxes)):
            rows = [list(row) for row in sound]
            for _ in range(chance.randint(0, 2)):
                cell = str(value(chance)).encode("utf-8", "replace").decode()
                rows[chance.randrange(1, len(rows))][chance.randrange(len(rows[0]))] = cell
            file = io.StringIO(newline="")
            csv.writer(file).writerows(rows)
            content = file.getvalue().encode()
            (tmp_path / name).write_bytes(damaged(chance, content) if chance.random() < 0.2 else content)
        faults: list[Fault] = []
        try:
            data = TableDataset(
                tmp_path / "labels.csv", tmp_path, concepts=["a", "b"], tasks=["kind"], boxes=tmp_path / "boxes.csv",
                on_fault=faults.append,
            )  # fmt: skip
        except (ValueError, FileNotFoundError) as error:  # nothing of it can be used
            attempts.refused(error, longest=3000)
            continue
        for fault in faults:
            check_sentence(ValueError(fault.text), longest=3000)
        labels = torch.cat([data.concept_labels, data.task_labels], dim=1)
        assert ((labels >= 0) & (labels <= 1) | labels.isnan()).all()
        assert (data.all_boxes.xyxy[:, 2:] > data.all_boxes.xyxy[:, :2]).all()
        assert inspect_dataset(data, read_images=False).images == len(data) > 0


def check_row(labels: list[float], name: str, rows: list[list[str]]) -> None:
    """The labels of an image are what its row says, read by hand."""
    (row,) = [row for row in rows[1:] if posixpath.splitext(posixpath.normpath(row[0].strip()))[0] == name[:-4]]
    for label, cell in zip(labels, row[1:3], strict=True):
        said = cell.strip().lower()
        expected = math.nan if said in UNKNOWN_CELLS else WORDS[said] if said in WORDS else float(said)
        expected = math.nan if expected == -1 else expected  # uncertain
        assert label == pytest.approx(expected, rel=1e-6) or (label != label and expected != expected)


FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")


@pytest.mark.attacks("image files")
def test_an_image_file_is_an_image_or_refused(attempts, tmp_path: Path):
    waves = np.sin(np.arange(40) / 5)[:, None] * np.cos(np.arange(30) / 4)
    files = {}
    for form in FORMATS:
        file = io.BytesIO()
        Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(file, form)
        files[form] = file.getvalue()
    deep = io.BytesIO()
    Image.fromarray((30_000 * (waves + 1)).astype(np.uint16)).save(deep, "TIFF")
    files["TIFF of 16 bits"] = deep.getvalue()
    files["TIFF of 10 bits"] = packed_tiff((500 * (waves[:, :24] + 1)).astype(int).tolist(), 10, photometric=0)
    if importlib.util.find_spec("pydicom") is not None:
        from tests.data.test_dicom import write  # which is skipped without it

        write(tmp_path / "a.dcm", (2000 * (waves + 1)).astype(np.uint16))
        files["DICOM"] = (tmp_path / "a.dcm").read_bytes()
    for chance in attempts(100):
        path = tmp_path / f"a.{chance.choice(('png', 'jpg', 'tif', 'dcm'))}"
        path.write_bytes(damaged(chance, files[chance.choice(list(files))]))
        try:
            with warnings.catch_warnings():  # of the decoders, about what they could still read
                warnings.simplefilter("ignore")
                image = load_image(path)
        except ValueError as error:
            attempts.refused(error)
            continue
        assert image.ndim == 3 and len(image) == 3 and image.numel() > 0
        assert image.dtype == torch.uint8 or (image.min() >= 0 and image.max() <= 1)


@pytest.mark.attacks("the cache of images")
def test_a_cache_of_images_is_right_whatever_is_in_its_file(attempts, tmp_path: Path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(paths[-1])
    with ImageCache(tmp_path / "cache", (16, 24)) as cache:
        right = [cache.load(path) for path in paths]
    good = {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir()}
    for chance in attempts(100):
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").mkdir()
        hit = chance.choice(list(good))
        for name, content in good.items():
            (tmp_path / "cache" / name).write_bytes(damaged(chance, content) if name == hit else content)
        with ImageCache(tmp_path / "cache", (16, 24)) as cache:
            for path, expected in zip([*paths, *paths], [*right, *right], strict=True):
                found = cache.load(path)
                assert torch.equal(found.image, expected.image) and found.size == expected.size == (20, 30)


@pytest.mark.attacks("the cache of drawn images")
def test_a_cache_of_drawn_images_is_right_whatever_is_in_its_files(attempts, tmp_path: Path):
    cached(drawing(), tmp_path, processes=1)
    expected = render_part(drawing())
    good = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".npz"}
    for chance in attempts(100):
        path = chance.choice(list(good))
        path.write_bytes(damaged(chance, good[path]))
        assert_same(cached(drawing(), tmp_path, processes=1), expected)
        path.write_bytes(good[path])
