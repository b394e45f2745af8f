"""`inspect` reads all parts of a folder and lists every fault of its files, where `train` stops at the first."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conceptcam.cli.main import main
from conceptcam.data.coco import CocoDataset
from conceptcam.data.faults import Fault
from tests.cli.test_cli import write_coco

SIZE = ["--image-size", "48", "64"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder of three parts."""
    for seed, (part, count) in enumerate((("train", 16), ("val", 8), ("test", 8))):
        write_coco(tmp_path / "data", part, count, seed)
    return tmp_path / "data"


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def inspect(folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    report = folder.parent / "report.json"
    report.unlink(missing_ok=True)
    code = main(["inspect", str(folder), *SIZE, "--json", str(report), *more])
    return code, json.loads(report.read_text()) if report.exists() else {}


def test_all_parts_of_a_folder_are_read(folder: Path):
    code, report = inspect(folder)
    assert (code, report["images"], report["faults"]) == (0, 32, [])
    assert report["notes"][:3] == ["train.json has 16 images.", "val.json has 8 images.", "test.json has 8 images."]
    assert inspect(folder, "--train", "val.json")[1]["images"] == 8
    assert inspect(folder / "val.json")[1]["images"] == 8
    assert inspect(folder / "train.json", "--test", "test.json")[1]["images"] == 24
    assert inspect(folder / "train.json", "--train", "val.json") == (2, {})


def test_a_remark_leaves_the_exit_code_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]):
    code, report = inspect(folder)
    assert code == 0 and report["remarks"] and "Remark: " + report["remarks"][0] in capsys.readouterr().out


def test_images_that_no_file_lists_are_said(folder: Path):
    (folder / "images" / "more.png").write_bytes((folder / "images" / "val-0.png").read_bytes())
    (folder / "images" / "notes.txt").write_text("no image")
    code, report = inspect(folder)
    assert code == 0 and report["notes"][3:] == [
        f"1 images in {folder / 'images'} are in none of these files: 'more.png'."
    ]
    assert not any("none of these" in note for note in inspect(folder, "--train", "val.json")[1]["notes"])


def spoil(content: dict[str, Any]) -> None:
    """Plant one fault of each kind."""
    images, boxes = content["images"], content["annotations"]
    first = {box["image_id"]: box for box in boxes}
    drawn = list(first)
    first[drawn[0]]["bbox"] = [5, 5, 0, 9]
    first[drawn[1]]["bbox"] = [5, 5, 900, 9]
    first[drawn[2]]["category_id"] = 77
    boxes.append({"id": 900, "image_id": 99, "category_id": 0, "bbox": [1, 1, 5, 5]})
    boxes.append({"id": 901, "image_id": drawn[3], "category_id": 0})
    images[drawn[4]]["annotated"] = False
    images[drawn[5]]["tasks"] = {"any": 7}
    images[drawn[6]]["concepts"] = {"sparkling": 1}
    images[drawn[7]]["concepts"] = {["bright", "dark", "striped"][first[drawn[7]]["category_id"]]: 0}
    images.append({"id": 800, "file_name": "gone.png", "width": 64, "height": 48})
    images.append({"id": 801, "file_name": "../x.png", "width": 64, "height": 48})
    images.append({"id": 802, "file_name": "./train-1.png", "width": 64, "height": 48})
    images.append({"id": 0, "file_name": "train-2.png", "width": 64, "height": 48})
    images.append({"id": 804, "file_name": 5})
    images.append({"id": 805, "file_name": "train-0.png\u0007", "width": 64, "height": 48})
    images[drawn[8]]["patient"] = ["p"]
    images[drawn[8]]["annoted"] = True


PLANTED = {
    "box that cannot be": "2 of ",
    "annotation of nothing": "1 of ",
    "entry that cannot be read": "1 of ",
    "box on an image that has none": "'annotated' is false, yet there are annotations, for",
    "label that cannot be": "is 7; expected 0 to 1, -1 for uncertain",
    "unknown label": "labels unknown concepts 'sparkling'",
    "box that a label denies": "'concepts' says 0 where boxes are drawn, in",
    "missing image": "images are missing from",
    "image outside the folder": "images are outside the folder",
    "repeated entry": "repeated ",
    "name that cannot be used": "characters that cannot be printed",
    "field of another type": "'patient' of image",
    "misspelt field": "did you mean 'annotated'?",
}


def test_every_fault_of_a_file_is_listed(folder: Path):
    change(folder / "train.json", spoil)
    code, report = inspect(folder)
    assert code == 1 and report["images"] == 32
    found = Counter(fault["kind"] for fault in report["faults"])
    twice = {"annotation of nothing", "entry that cannot be read", "repeated entry"}
    assert found == {kind: 1 + (kind in twice) for kind in PLANTED}
    for fault in report["faults"]:
        assert fault["text"].startswith("train.json: ") and PLANTED[fault["kind"]] in fault["text"]


def test_train_still_refuses_the_first_fault(folder: Path, capsys: pytest.CaptureFixture[str]):
    change(folder / "train.json", spoil)
    assert main(["train", str(folder), "--out", str(folder.parent / "out")]) == 2
    assert "lack one of" in capsys.readouterr().err


def test_faults_between_parts_are_found(folder: Path):
    other = json.loads((folder / "train.json").read_text())["images"][3]

    def leak(content: dict[str, Any]) -> None:
        content["images"][0] = {**content["images"][0], "file_name": other["file_name"], "patient": "p1"}
        content["images"][1]["patient"] = "p2"
        content["categories"].append({"id": 9, "name": "new"})

    change(folder / "val.json", leak)
    change(folder / "test.json", lambda content: content["images"][5].update(patient="p2"))
    code, report = inspect(folder)
    found = {fault["kind"]: fault["text"] for fault in report["faults"]}
    assert code == 1
    assert found["image on both sides"] == f"1 images are in more than one part: {other['file_name']!r}"
    assert found["patient on both sides"] == "1 patients are in more than one part: 'p2'"
    assert "does not have the concepts 'new', which another part has" in found["label that a part lacks"]
    assert "image twice" not in found  # the file was named already


def test_a_part_that_cannot_be_read_stops_no_other(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "val.json").write_text("{")
    code, report = inspect(folder)
    assert code == 1 and report["images"] == 24
    (fault,) = report["faults"]
    assert fault["kind"] == "labels that cannot be read" and "val.json" in fault["text"]
    for part in ("train", "test"):
        (folder / f"{part}.json").write_text("{")
    assert inspect(folder) == (2, {})
    said = capsys.readouterr()
    assert "test.json" in said.err and "labels that cannot be read: " in said.out and "val.json" in said.out


def test_what_is_at_fault_is_left_out_of_the_data(folder: Path):
    sound = CocoDataset(folder / "train.json", folder / "images")
    change(folder / "train.json", spoil)
    faults: list[Fault] = []
    data = CocoDataset(folder / "train.json", folder / "images", on_fault=faults.append)
    assert list(data.names) == list(sound.names) and len(faults) == 16
    assert len(data.all_boxes) < len(sound.all_boxes)
    assert not (data.concept_labels[data.all_boxes.image, data.all_boxes.concept] == 0).any()
    with pytest.raises(ValueError, match="lack one of"):
        CocoDataset(folder / "train.json", folder / "images")


def write_table(folder: Path) -> None:
    """A sound table of 16 images with boxes, beside their images."""
    write_coco(folder, "train", 16, 0)
    content = json.loads((folder / "train.json").read_text())
    (folder / "boxes.csv").write_text("image,concept,x,y,width,height\n")
    present = Counter((box["image_id"], box["category_id"]) for box in content["annotations"])
    lines = ["image,bright,dark,striped,kind"]
    for image in content["images"]:
        labels = [str(int((image["id"], k) in present)) for k in range(3)]
        lines.append(",".join([image["file_name"], *labels, "busy" if labels.count("1") > 1 else "calm"]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    with (folder / "boxes.csv").open("a") as file:
        for box in content["annotations"]:
            name = content["categories"][box["category_id"]]["name"]
            row = [f"train-{box['image_id']}.png", name, *map(str, box["bbox"])]
            file.write(",".join(row) + "\n")


def inspect_table(folder: Path) -> tuple[int, dict[str, Any]]:
    table = ["--images", str(folder / "images"), "--concepts", "bright", "dark", "striped", "--task", "kind"]
    report = folder / "report.json"
    code = main(["inspect", str(folder / "labels.csv"), *table, "--boxes", str(folder / "boxes.csv"), *SIZE,
                 "--json", str(report)])  # fmt: skip
    return code, json.loads(report.read_text())


def test_nothing_is_said_of_a_sound_table(tmp_path: Path):
    write_table(tmp_path)
    code, report = inspect_table(tmp_path)
    assert (code, report["faults"], report["images"]) == (0, [], 16)


def test_every_fault_of_tables_is_listed(tmp_path: Path):
    write_table(tmp_path)
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("gone.png,0,0,0,calm\n../x.png,0,0,0,calm\n./train-1.png,0,0,0,calm\n,0,0,0,calm\n")
        file.write("train-2.png,0,0\n")
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    name, bright, dark, striped, kind = rows[3].split(",")
    rows[3] = ",".join([name, "2026-01-01", dark, striped, kind])
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    boxes = (tmp_path / "boxes.csv").read_text().splitlines()
    drawn = [row.split(",") for row in boxes[1:]]
    free = next(row for row in rows[5:17] if row.split(",")[1] == "0").split(",")[0]
    boxes[2] = ",".join([*drawn[1][:2], "1", "1", "0", "5"])
    boxes += [f"{drawn[2][0]},{drawn[2][1]},1,1,,5", f"{drawn[2][0]},Bright,1,1,9,9", f"{free},bright,1,1,9,9"]
    boxes += [f"{drawn[2][0]},{drawn[2][1]},0.1,0.1,0.5,0.5", f"{drawn[3][0]},{drawn[3][1]},wide,1,9,9"]
    (tmp_path / "boxes.csv").write_text("\n".join(boxes) + "\n")
    (tmp_path / "images" / drawn[-1][0]).write_bytes(b"\x89PNG\r\n\x1a\n")
    code, report = inspect_table(tmp_path)
    found = {fault["kind"]: fault["text"] for fault in report["faults"]}
    expected = {
        "missing image": "1 of 20 images are missing from",
        "image outside the folder": "1 of 20 rows name images outside",
        "repeated entry": "'train-1.png' (line 3) and './train-1.png' (line 20)",
        "row without an image": "1 of 20 rows have no image: '' (line 21)",
        "row of another length": "line 22 of ",
        "cell that cannot be read": "column 'bright' of labels.csv holds '2026-01-01' in line 4, one of 1 such cells",
        "misspelt concept": "boxes.csv has boxes of 'Bright', which is no concept here; did you mean",
        "box that a label denies": f"labels say 0 where boxes are drawn, in {free!r} ('bright')",
        "box that cannot be": " of boxes.csv ",
        "boxes in two units": "1 of ",
        "boxes on unreadable images": "the boxes of an image cannot be placed: cannot read the image",
        "unreadable image": "1 images cannot be read",
    }
    assert code == 1 and report["images"] == 16
    assert set(found) == set(expected)
    for fault, text in expected.items():
        assert text in found[fault]
    every = [fault["text"] for fault in report["faults"]]
    for text in ("cannot be: the first is [1, 1, 0, 5]", "lack a number", "column 'x' of boxes.csv holds 'wide'"):
        assert any(text in one for one in every)
