"""Outlines of COCO files become the masks that a slow loop, and COCO's own tools, make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from conceptcam.data.coco import CocoDataset
from conceptcam.data.coco_masks import decode_runs, fill_polygon
from conceptcam.data.faults import Fault
from conceptcam.data.image_cache import ImageCache

HEIGHT, WIDTH = 30, 40


def is_inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """Whether a ray from a point to the right passes an odd number of edges."""
    passed = 0
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
            passed += 1
    return passed % 2 == 1


numbers = st.floats(-10, 55, allow_nan=False).map(lambda value: round(value * 4) / 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=9))
def test_a_polygon_covers_the_pixels_whose_centre_is_in_it(corners: list[tuple[float, float]]):
    filled = fill_polygon(np.array(corners), (HEIGHT, WIDTH))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            # A ray that just grazes a crossing at the centre itself may be counted either way.
            expected = {is_inside(column + 0.5 + nudge, row + 0.5, corners) for nudge in (-1e-7, 1e-7)}
            assert bool(filled[row, column]) in expected


def slow_runs(mask: np.ndarray) -> list[int]:
    runs, last = [0], 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            value = int(mask[row, column])
            if value != last:
                runs.append(0)
            runs[-1] += 1
            last = value
    return runs


@pytest.mark.parametrize("density", [0, 0.02, 0.5, 1])
def test_run_lengths_are_decoded(density: float):
    mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) < density
    runs = slow_runs(mask)
    assert np.array_equal(decode_runs(runs, (HEIGHT, WIDTH)), mask)


@pytest.mark.parametrize("shape", [(30, 40), (300, 400), (1, 1)])
def test_masks_are_those_of_cocos_own_tools(shape: tuple[int, int]):
    tools = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(1)
    for density in (0.0, 0.001, 0.3, 0.999, 1.0):
        mask = random.random(shape) < density
        text = tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert np.array_equal(decode_runs(text, shape), mask)


def test_polygons_are_nearly_those_of_cocos_own_tools():
    tools = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(2)
    for _ in range(20):
        angle = np.sort(random.uniform(0, 2 * np.pi, 12))
        radius = random.uniform(60, 140, 12)
        corners = np.stack([200 + radius * np.cos(angle), 150 + radius * np.sin(angle)], axis=1)
        runs = tools.frPyObjects([corners.flatten().tolist()], 300, 400)[0]["counts"]
        theirs = decode_runs(runs.decode(), (300, 400))
        ours = fill_polygon(corners, (300, 400))
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97  # they round corners, to the outside


def coco(folder: Path, annotations: list[dict[str, Any]], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        Image.new("L", (WIDTH, HEIGHT), 90).save(folder / "images" / name)
    content = {
        "categories": [{"id": 1, "name": "nodule"}, {"id": 2, "name": "lung"}],
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]} for number, name in enumerate(names)
        ],
        "annotations": [{"id": number, "bbox": [4, 5, 8, 6], **one} for number, one in enumerate(annotations)],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def lung(image: int, outline: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 2, "segmentation": outline}


def test_outlines_of_chosen_categories_are_the_region(tmp_path: Path):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:9, 20:31] = True
    file = coco(tmp_path, [
        lung(0, [[0, 0, 10, 0, 10, 20, 0, 20]]),
        lung(0, {"size": [HEIGHT, WIDTH], "counts": slow_runs(mask)}),
        lung(1, []),  # its box
        {"image_id": 2, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ])  # fmt: skip
    data = CocoDataset(file, tmp_path / "images", regions=["lung"])
    assert data.concepts == ("nodule",)  # a category that is a region is no concept unless it is named
    regions = [data.load_item(index).region for index in range(3)]
    expected = mask.copy()
    expected[:20, :10] = True
    assert regions[0] is not None and np.array_equal(regions[0].numpy() > 0, expected)
    assert regions[1] is not None and regions[1].nonzero().aminmax(dim=0).min.tolist() == [5, 4]
    assert regions[1].sum() == 6 * 8 and regions[2] is None
    named = CocoDataset(file, tmp_path / "images", regions=["nodule"], concepts=["nodule", "lung"])
    assert named.load_item(2).region is not None and named.concepts == ("nodule", "lung")
    assert CocoDataset(file, tmp_path / "images").load_item(0).region is None


def test_a_region_has_the_size_of_a_cached_image(tmp_path: Path):
    file = coco(tmp_path, [lung(0, [[0, 0, 20, 0, 20, 30, 0, 30]])])
    data = CocoDataset(file, tmp_path / "images", regions=["lung"])
    with ImageCache(tmp_path / "cache", (12, 12)) as cache:
        data.cache_images(cache)
        region = data.load_item(0).region
    assert region is not None and torch.equal(region[0], torch.tensor([1] * 6 + [0] * 6, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("outline", "sentence"),
    [
        ([[1, 2, 3, 4]], r"outline of annotation 0 in 'a.png' is \[\[1, 2, 3, 4\]\]; expected polygons such as"),
        ([[1, 2, 3, 4, 5, None]], "expected polygons such as"),
        ("abc", "expected polygons such as"),
        ({"counts": [3]}, r"the mask of annotation 0 in 'a.png' is of size None, and the image of \[30, 40\]"),
        ({"counts": [3], "size": [40, 30]}, r"is of size \[40, 30\], and the image of \[30, 40\]"),
    ],
)
def test_an_outline_that_cannot_be_is_refused_by_name(tmp_path: Path, outline: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        CocoDataset(coco(tmp_path, [lung(0, outline)]), tmp_path / "images", regions=["lung"])


@pytest.mark.parametrize("box", [[1, 2, 3], [None] * 4, ["a", 2, 3, 4], [True, 2, 3, 4]])
def test_an_outline_that_is_no_box_is_refused_by_name(tmp_path: Path, box: list[Any]):
    file = coco(tmp_path, [{**lung(0, None), "bbox": box}])
    with pytest.raises(
        ValueError, match=r"the box of annotation 0 in 'a.png' is \[.*; expected \[x, y, width, height\]"
    ):
        CocoDataset(file, tmp_path / "images", regions=["lung"])


def test_outlines_that_cannot_be_are_counted_where_faults_are_listed(tmp_path: Path):
    faults: list[Fault] = []
    file = coco(tmp_path, [lung(0, "abc"), lung(0, "abd"), lung(1, None)])
    data = CocoDataset(file, tmp_path / "images", regions=["lung"], on_fault=faults.append)
    ((kind, text),) = faults
    assert kind == "outline that cannot be read" and "annotation 0" in text and "(1 others cannot be read" in text
    assert data.load_item(0).region is None and data.load_item(1).region is not None


@pytest.mark.parametrize("counts", [[3, 5], [-1, 1201], "no text of theirs!", "\x7f", [1.5, 1198.5]])
def test_run_lengths_that_do_not_fill_an_image_are_refused(tmp_path: Path, counts: Any):
    file = coco(tmp_path, [lung(0, {"size": [HEIGHT, WIDTH], "counts": counts})])
    data = CocoDataset(file, tmp_path / "images", regions=["lung"])
    with pytest.raises(
        ValueError, match="an outline in 'a.png' cannot be used: run lengths .* do not fill the 40 x 30"
    ):
        data.load_item(0)


def test_a_region_that_the_file_does_not_have_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown regions 'lungs' \(near: 'lung'\); the file has"):
        CocoDataset(coco(tmp_path, []), tmp_path / "images", regions=["lungs"])
