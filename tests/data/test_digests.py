"""Which changes of data a digest tells apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data.coco import CocoDataset
from conceptcam.data.digests import digest_files
from conceptcam.data.phantom.dataset import PhantomDataset
from conceptcam.data.splits import ConceptSubset
from conceptcam.data.table import TableDataset
from tests.worlds import Squares

NAMES = ("a.bmp", "b.bmp", "c.bmp")  # all of one size in bytes


def content(folder: Path) -> dict:
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return {
        "images": [{"id": k, "file_name": name, "width": 40, "height": 30} for k, name in enumerate(NAMES)],
        "annotations": [{"image_id": k, "category_id": 1, "bbox": [4, 5, 10, 10 + k]} for k in (2, 0)],
        "categories": [{"id": 1, "name": "Nodule"}, {"id": 2, "name": "Edema"}],
    }


def read(folder: Path, found: dict) -> CocoDataset:
    (folder / "boxes.json").write_text(json.dumps(found))
    return CocoDataset(folder / "boxes.json", folder)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys() == {"labels", "names", "boxes", "files"}
    return {name for name in before if before[name] != after[name]}


def test_the_digest_says_which_part_of_the_data_has_changed(tmp_path):
    found = content(tmp_path)
    before = read(tmp_path, found).digests()
    assert changed(before, read(tmp_path, found).digests()) == set()
    found["annotations"][0]["bbox"] = [1, 1, 4, 4]
    assert changed(before, read(tmp_path, found).digests()) == {"boxes"}
    found = content(tmp_path)
    for image, name in zip(found["images"], NAMES[1:] + NAMES[:1], strict=True):
        image["file_name"] = name
    assert changed(before, read(tmp_path, found).digests()) == {"names", "files"}
    found = content(tmp_path)
    found["images"][1]["concepts"] = {"Edema": 1}
    assert changed(before, read(tmp_path, found).digests()) == {"labels"}
    found = content(tmp_path)
    first, second = ((tmp_path / name).read_bytes() for name in NAMES[:2])
    assert len(first) == len(second)
    (tmp_path / NAMES[0]).write_bytes(second)
    (tmp_path / NAMES[1]).write_bytes(first)
    assert changed(before, read(tmp_path, found).digests()) == {"files"}


def test_data_that_moved_to_another_place_are_the_same(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (read(tmp_path / name, content(tmp_path / name)) for name in ("a", "b"))
    assert changed(first.digests(), second.digests()) == set()


def test_a_part_of_the_data_has_the_boxes_of_its_images(tmp_path):
    whole = read(tmp_path, content(tmp_path))
    part = ConceptSubset(whole, [2, 1])
    assert part.all_boxes.image.tolist() == [0]
    assert torch.equal(part.all_boxes.xyxy, whole.load_item(2).boxes.xyxy)
    assert changed(part.digests(), whole.digests()) == {"labels", "names", "boxes", "files"}
    assert "boxes" not in ConceptSubset(Squares(4), [0]).digests()


def test_all_boxes_are_those_of_each_item(tmp_path):
    content(tmp_path)
    (tmp_path / "t.csv").write_text("image,Nodule\na.bmp,1\nb.bmp,0\nc.bmp,1\n")
    (tmp_path / "b.csv").write_text("image,label,x,y,width,height\nc.bmp,Nodule,1,2,3,4\na.bmp,Nodule,5,6,7,8\n")
    table = TableDataset(tmp_path / "t.csv", tmp_path, concepts=["Nodule"], boxes=tmp_path / "b.csv")
    for data in (table, PhantomDataset(6, seed=1, cache_dir=False), read(tmp_path, content(tmp_path))):
        for index in range(len(data)):
            own, boxes = data.all_boxes.image == index, data.load_item(index).boxes
            expected = torch.zeros(0, 4) if boxes is None else boxes.xyxy
            assert torch.equal(data.all_boxes.xyxy[own], expected)


@pytest.mark.parametrize("size", [0, 1, 4096, 10_000])
def test_a_file_is_known_by_its_size_middle_and_end(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    before = digest_files([path])
    for place in {size // 2, size - 1} if size else ():
        path.write_bytes(bytes(place) + b"1" + bytes(size - place - 1))
        assert digest_files([path]) != before
    path.write_bytes(bytes(size + 1))
    assert digest_files([path]) != before
    assert digest_files([path]) == digest_files([path])
