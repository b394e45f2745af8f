"""Every planted fault of a data set is found and named, and nothing is said of a sound one."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data.inspection import Inspection, inspect_dataset
from conceptcam.data.label_counts import count_pairs, rare_label_remarks
from conceptcam.data.table import TableDataset

SIDE = 64


def film(seed: int) -> np.ndarray:
    """A picture that is like all others in the large, and like none in detail."""
    random = np.random.default_rng(seed)
    across = np.sin(np.linspace(0, np.pi, SIDE))
    detail = random.normal(0, 1, (8, 8)).repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)
    return np.clip(60 + 120 * across[:, None] * across + 25 * detail, 0, 255).astype(np.uint8)


def sound(folder: Path, count: int = 40) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and boxes of a data set without faults, whose images are written."""
    (folder / "images").mkdir()
    rows: list[dict[str, Any]] = []
    for number in range(count):
        Image.fromarray(film(number)).save(folder / "images" / f"{number:02d}.png")
        part = "val" if number >= 28 else "train"
        rows.append({"image": f"{number:02d}.png", "patient": f"p{number}", "veil": number % 2, "dots": number // 2 % 2,
                     "split": part})  # fmt: skip
    return rows, ["image,concept,x,y,w,h", "01.png,veil,8,8,20,20"]


def inspected(folder: Path, rows: list[dict[str, Any]], boxes: list[str]) -> Inspection:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n")
    concepts = [name for name in rows[0] if name not in ("image", "patient", "split")]
    data = TableDataset(folder / "labels.csv", folder / "images", concepts=concepts, boxes=folder / "boxes.csv")
    return inspect_dataset(data, parts=data.parts, image_size=(SIDE, SIDE))


def test_nothing_is_said_of_a_sound_data_set(tmp_path: Path):
    found = inspected(tmp_path, *sound(tmp_path))
    assert found.faults == () and found.lines()[-1] == "No faults were found."
    assert found.remarks == () and not any(line.startswith("Remark") for line in found.lines())
    assert [(one.name, one.present, one.absent, one.unknown, one.boxes) for one in found.labels] == [
        ("veil", 20, 20, 0, 1), ("dots", 20, 20, 0, 0),
    ]  # fmt: skip
    assert (found.images, found.patients) == (40, 40)


def test_twelve_planted_faults_are_found_and_nothing_else(tmp_path: Path):
    rows, boxes = sound(tmp_path)
    images = tmp_path / "images"

    def save(number: int, values: np.ndarray) -> None:
        Image.fromarray(values).save(images / f"{number:02d}.png")

    (images / "00.png").write_bytes((images / "00.png").read_bytes()[:200])  # 1 cut short
    save(2, np.full((SIDE, SIDE), 90, np.uint8))  # 2 constant
    save(3, film(3).astype(np.uint16) * 16)  # 3 twelve bits in sixteen, so black, and 4 an odd bit depth
    save(4, 255 - film(4))  # 5 a negative
    save(5, film(5)[::2, ::2])  # 6 too small
    save(6, film(7))  # 7 the same as another, with other labels
    save(31, np.clip(film(8) * 0.8 + 20, 0, 255).astype(np.uint8))  # 8 nearly the same, on the other side
    rows[32]["patient"] = "p9"  # 9 on both sides
    boxes.append("11.png,veil,5,5,1,9")  # 10 too small to see
    for row in rows:
        row |= {"never": 0, "copy": row["veil"]}  # 11 one-sided, 12 the same labels
    inspection = inspected(tmp_path, rows, boxes)
    assert inspection.remarks == ()
    found = {fault.kind: fault.text for fault in inspection.faults}
    expected = {
        "unreadable image": "1 images cannot be read: '00.png' (cannot read the image",
        "constant image": "1 images have one value everywhere: '02.png'",
        "dark image": "come out black; see `bit_depth` (--bit-depth): '03.png'",
        "odd bit depth": "1 images have another bit depth than the others: '03.png'",
        "negative image": "1 images look like negatives of the others: '04.png'",
        "small image": "enlarged: '05.png' (32 x 32)",
        "image twice": "1 pairs: '06.png' and '07.png' (with other labels)",
        "nearly the same images": "1 pairs: '08.png' and '31.png' (with other labels, in 'train' and 'val')",
        "patient on both sides": "1 patients are in more than one part: 'p9'",
        "small box": "1 boxes are under 3 pixels at the model's size: 1.0 x 9.0 in '11.png'",
        "one-sided label": "'never' is present in no image; nothing is learned",
        "same labels": "'veil', 'copy' have the same label in each image",
    }
    assert set(found) == set(expected)
    for kind, text in expected.items():
        assert text in found[kind]


def test_labels_alone_are_inspected_without_reading_images(tmp_path: Path):
    rows, boxes = sound(tmp_path)
    rows[39]["patient"] = "p0"
    inspected(tmp_path, rows, boxes)
    data = TableDataset(tmp_path / "labels.csv", tmp_path / "images", concepts=["veil"])
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    found = inspect_dataset(data, parts=data.parts, read_images=False)
    assert [fault.kind for fault in found.faults] == ["patient on both sides"]


def test_labels_that_few_have_or_lack_are_remarked_and_no_faults(tmp_path: Path):
    rows, boxes = sound(tmp_path)
    train, val = (["train"] * 28, ["val"] * 12)
    for number, row in enumerate(rows):
        held_out = number - len(train)
        row |= {"rare": int(number < 4), "common": int(number != 30), "enough": int(0 <= held_out < 5 or number < 5)}
        row |= {"uneven": int(number < 6 or number == 30)}
    found = inspected(tmp_path, rows, boxes)
    few = "fewer than 5 are too few to learn from, and to measure by"
    assert found.remarks == (
        f"'rare' is present in 4 images; {few}",
        f"'common' is absent in 1 image; {few}",
        f"'uneven' is present in 1 image of 'val'; {few}",
    )
    assert found.faults == () and found.lines()[-1] == "No faults were found."
    assert [line for line in found.lines() if few in line] == [f"Remark: {one}." for one in found.remarks]
    assert json.loads(json.dumps(found.as_dict()))["remarks"] == list(found.remarks)
    assert found.remarks == rare_label_remarks(["rare", "common", "enough", "uneven"], _columns(rows), train + val)


def _columns(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[row[name] for name in ("rare", "common", "enough", "uneven")] for row in rows]).float()


def test_remarks_count_known_labels_of_each_part_alone():
    labels = torch.zeros(30, 2)
    labels[:6] = 1  # all of them in the first part
    labels[20:, 1] = torch.nan  # known nowhere in the third
    parts = [part for part in ("a", "b", "c") for _ in range(10)]
    few = "fewer than 5 are too few to learn from, and to measure by"
    assert rare_label_remarks(["x", "y"], labels, parts) == (
        f"'x' is present in no image of 'b' and no image of 'c'; {few}",
        f"'x' is absent in 4 images of 'a'; {few}",
        f"'y' is present in no image of 'b'; {few}",
        f"'y' is absent in 4 images of 'a'; {few}",
    )
    assert rare_label_remarks(["x"], torch.zeros(30, 1), parts) == rare_label_remarks(["x"], labels[:, :1]) == ()


def test_pairs_of_labels_are_counted_as_a_loop_counts_them():
    labels = torch.randint(0, 2, (60, 5), generator=torch.Generator().manual_seed(0)).float()
    labels[torch.rand(60, 5, generator=torch.Generator().manual_seed(1)) < 0.2] = torch.nan
    labels[:, 4] = 0  # comes with no other
    pairs = {(pair.first, pair.second): pair for pair in count_pairs("abcde", labels)}
    for i, j in itertools.combinations(range(5), 2):
        counts = Counter((a, b) for a, b in labels[:, [i, j]].tolist())
        expected = (counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0])
        if counts[1, 1]:
            assert pairs["abcde"[i], "abcde"[j]][2:] == expected
        else:
            assert ("abcde"[i], "abcde"[j]) not in pairs
    overlaps = [pair.overlap for pair in count_pairs("abcde", labels)]
    assert overlaps == sorted(overlaps, reverse=True) and 0 < overlaps[-1] < overlaps[0] <= 1


def test_boxes_are_measured_at_the_models_size_and_on_its_grid(tmp_path: Path):
    rows, boxes = sound(tmp_path)
    boxes += ["11.png,veil,0,0,2,30", "13.png,veil,0,0,5,5", "06.png,dots,0,0,32,64"]  # of 64 x 64 pixels
    found = inspected(tmp_path, rows, boxes)
    assert found.grid == (14, 14) and found.image_size == (SIDE, SIDE)
    veil, dots = found.box_sizes
    assert veil == ("veil", 3, 5, 20, pytest.approx(60 * (14 / SIDE) ** 2), 0, 1)
    assert dots == ("dots", 1, 32, 64, 98, 0, 0)
    data = TableDataset(
        tmp_path / "labels.csv", tmp_path / "images", concepts=["veil", "dots"], boxes=tmp_path / "boxes.csv"
    )
    coarse = inspect_dataset(data, image_size=(SIDE, SIDE), grid=(2, 4), read_images=False)
    assert [one.under_cell for one in coarse.box_sizes] == [3, 0]  # of 32 x 16 pixels
    lines = "\n".join(coarse.lines())
    assert "boxes at 64 x 64 pixels, 2 x 4 cells" in lines and "veil + dots" in lines
    written = json.loads(json.dumps(coarse.as_dict()))
    assert written["grid"] == [2, 4] and written["box_sizes"][1]["cells"] == 4 and written["pairs"][0]["both"] == 10


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data are not part of the project")
def test_nothing_untrue_is_said_of_real_images():
    concepts = ["asymmetry", "streaks", "red", "light_brown"]
    data = TableDataset(SHARED / "ph2" / "labels.csv", SHARED / "ph2", concepts=concepts, tasks=["diagnosis"])
    assert inspect_dataset(data).faults == ()
    folder = SHARED / "nih-sample"
    data = TableDataset(
        folder / "Data_Entry_2017_v2020.csv", folder / "images", concepts=["Pneumonia", "Effusion"],
        boxes=folder / "BBox_List_2017.csv",
    )  # fmt: skip
    assert inspect_dataset(data).faults == ()
