"""A table becomes the labels it states, cell by cell; what it cannot mean is refused with the line where it stands."""

import codecs
import csv
import io
import pickle
import sys
import tracemalloc
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data.batch import collate
from conceptcam.data.faults import Fault
from conceptcam.data.table import TableDataset

ROWS = """image,streaks,veil,diagnosis,patient
a.png,1,0,nevus,p1
b.png,0,,melanoma,p1
c.png,-1,0.7,nevus,p2
d.png,yes,False,,
"""
CONCEPTS = ("streaks", "veil")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, 40 x 20 pixels each, alone in a folder."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate("abcd"):
        Image.new("L", (40, 20), 40 + number).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def write(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def opened(folder: Path, text: str | bytes = ROWS, *, name: str = "labels.csv", **options: Any) -> TableDataset:
    return TableDataset(write(folder, text, name), folder, **{"concepts": CONCEPTS, **options})


def refused(folder: Path, text: str | bytes, *, name: str = "labels.csv", **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        opened(folder, text, name=name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(labels: torch.Tensor) -> list[list[float | None]]:
    return [[None if value != value else round(value, 4) for value in row] for row in labels.tolist()]


def test_cells_are_labels_and_empty_ones_are_unknown(folder: Path):
    data = opened(folder)
    assert values(data.concept_labels) == [[1, 0], [0, None], [None, 0.7], [1, 0]]
    assert data.concepts == CONCEPTS and data.tasks == () and data.task_labels.shape == (4, 0)
    assert data.names == ("a.png", "b.png", "c.png", "d.png")
    assert data.patients == ["p1", "p1", "p2", ""]


def test_minus_one_counts_as_the_policy_says(folder: Path):
    assert opened(folder, uncertain="soft").concept_labels[2, 0] == pytest.approx(0.7)
    assert opened(folder, uncertain="ones").concept_labels[2, 0] == 1


def test_a_column_of_words_is_a_multiclass_task(folder: Path):
    data = opened(folder, tasks=["diagnosis"])
    assert (data.tasks, data.task_kind) == (("melanoma", "nevus"), "multiclass")
    assert values(data.task_labels) == [[0, 1], [1, 0], [0, 1], [None, None]]
    assert "'diagnosis' has 2 classes: melanoma (1), nevus (2)." in data.notes


def test_given_classes_keep_their_order_and_may_lack_images(folder: Path):
    data = opened(folder, tasks=["diagnosis"], classes=["nevus", "melanoma", "other"])
    assert data.tasks == ("nevus", "melanoma", "other") and values(data.task_labels)[1] == [0, 1, 0]


def test_binary_columns_are_tasks_by_their_names(folder: Path):
    data = opened(folder, concepts=["veil"], tasks=["streaks"])
    assert (data.tasks, data.task_kind) == (("streaks",), "multilabel")
    assert values(data.task_labels) == [[1], [0], [None], [1]]


def test_grades_are_classes_in_the_order_of_numbers(folder: Path):
    grades = "image,streaks,grade\na.png,1,10\nb.png,0,2\nc.png,0,2\nd.png,1,10\n"
    assert opened(folder, grades, concepts=["streaks"], tasks=["grade"]).tasks == ("2", "10")


def test_a_binary_column_can_be_a_task_of_two_classes(folder: Path):
    data = opened(
        folder, "image,veil,sick\na.png,1,0\nb.png,0,1\nc.png,0,1\nd.png,0,0\n",
        concepts=["veil"], tasks=["sick"], task_kind="multiclass",
    )  # fmt: skip
    assert data.tasks == ("0", "1") and values(data.task_labels)[:2] == [[1, 0], [0, 1]]


def test_a_column_per_class_must_sum_to_one(folder: Path):
    table = "image,veil,nevus,melanoma\na.png,1,0,1\nb.png,0,1,0\nc.png,0,1,1\nd.png,0,,\n"
    said = refused(folder, table, concepts=["veil"], tasks=["nevus", "melanoma"], task_kind="multiclass")
    assert "'nevus', 'melanoma' of labels.csv do not sum to 1 in line 4" in said
    data = opened(folder, table.replace("0,1,1", "0,0,1"), concepts=["veil"], tasks=["nevus", "melanoma"],
                  task_kind="multiclass")  # fmt: skip
    assert values(data.task_labels) == [[0, 1], [1, 0], [0, 1], [None, None]]
    faults: list[Fault] = []
    listed = opened(folder, table, concepts=["veil"], tasks=["nevus", "melanoma"], task_kind="multiclass",
                    on_fault=faults.append)  # fmt: skip
    assert len(faults) == 1 and values(listed.task_labels) == [[0, 1], [1, 0], [None, None], [None, None]]


SEMICOLONS = ROWS.replace(",", ";").replace("0.7", "0,7")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ROWS.replace(",", "\t"), "labels.tsv"),
        (SEMICOLONS, "labels.csv"),
        (ROWS.replace(",", "|"), "labels.txt"),
        (codecs.BOM_UTF8 + ROWS.encode(), "labels.csv"),
        (ROWS.encode("utf-16"), "labels.csv"),
        (codecs.BOM_UTF16_BE + ROWS.encode("utf-16-be"), "labels.csv"),
        (ROWS.replace("\n", "\r\n"), "labels.csv"),
        (ROWS.replace("\n", "\n\n") + ",,,,\n", "labels.csv"),
        (ROWS.replace("streaks,veil", ' "streaks", veil ').replace(' "', '"'), "labels.csv"),
    ],
    ids=["tabs", "semicolons", "bars", "bom", "utf-16", "utf-16-be", "windows", "blank lines", "quotes"],
)
def test_the_same_table_in_another_form_gives_the_same_labels(folder: Path, text: str | bytes, name: str):
    data = opened(folder, text, name=name, tasks=["diagnosis"])
    plain = opened(folder, tasks=["diagnosis"])
    assert values(data.concept_labels) == values(plain.concept_labels)
    assert values(data.task_labels) == values(plain.task_labels) and data.patients == plain.patients


def test_a_dataframe_and_parquet_give_the_same_labels(folder: Path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(write(folder, ROWS))
    plain = opened(folder, tasks=["diagnosis"])
    sources: list[Any] = [frame]
    try:
        frame.to_parquet(folder.parent / "labels.parquet")
        sources.append(folder.parent / "labels.parquet")
    except ImportError:
        pass
    for source in sources:
        data = TableDataset(source, folder, concepts=CONCEPTS, tasks=["diagnosis"])
        assert values(data.concept_labels) == values(plain.concept_labels)
        assert values(data.task_labels) == values(plain.task_labels) and data.patients == plain.patients


def test_a_dataframe_keeps_whole_patient_numbers_whole(folder: Path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": list("abcd"), "veil": [1, 0, None, True], "subject_id": [7, 8, None, 7]})
    data = TableDataset(frame, folder, concepts=["veil"])
    assert data.patients == ["7", "8", "", "7"] and values(data.concept_labels) == [[1], [0], [None], [1]]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "labels.csv", "is empty"),
        ("image,streaks,veil\n", "labels.csv", "labels.csv has no rows below its header 'image', 'streaks', 'veil'"),
        (ROWS.encode("utf-8").replace(b"nevus", "Nävus".encode("latin-1")), "labels.csv",
         "is not in UTF-8: byte 0xe4 in line 2; save it as CSV UTF-8"),
        (b"PK\x03\x04xxxx", "labels.csv", "is a spreadsheet, not a text table; save it as CSV UTF-8"),
        (b"a\0b,c\n", "labels.csv", "is no text: it holds zero bytes"),
        (ROWS + "e.png,1\n", "labels.csv", "line 6 of"),
        (ROWS + "e.png,1\n", "labels.csv", "has 2 cells, but the header has 5, separated by ','"),
        (ROWS + '"e.png,1,1,,\n', "labels.csv", "cannot be read as CSV"),
        (ROWS.replace("veil", "streaks"), "labels.csv", "has several columns of the name 'streaks'"),
        (ROWS.replace(",veil", ","), "labels.csv", "columns [3] of labels.csv have no name"),
        (ROWS.replace("veil", "vail"), "labels.csv", "has no concept column 'veil'; did you mean ['vail']"),
        (ROWS.replace("image,", "picture,"), "labels.csv", "cannot tell which column of labels.csv names the images"),
        (ROWS.replace("0.7", "2"), "labels.csv", "column 'veil' of labels.csv holds '2' in line 4, one of 1"),
        (ROWS.replace("0.7", "maybe"), "labels.csv", "holds 'maybe' in line 4"),
        (ROWS.replace("0.7", "01.07.2024"), "labels.csv", "looks like a date, which spreadsheets make of numbers"),
        (ROWS.replace("0.7", "1-Jul"), "labels.csv", "looks like a date"),
        (ROWS.replace("0.7", "inf"), "labels.csv", "expected 0 to 1, -1 for uncertain, yes, no, true or false"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused(folder: Path, text: str | bytes, name: str, said: str):
    assert said in refused(folder, text, name=name)


def test_a_file_of_another_kind_is_refused(folder: Path):
    assert "is not read as a table; expected a file ending in .csv" in refused(folder, ROWS, name="labels.json")
    with pytest.raises(TypeError, match="expected a path or a pandas DataFrame as table, got list"):
        TableDataset([1], folder, concepts=["a"])  # type: ignore[arg-type]


def test_broken_parquet_is_refused_in_a_sentence(folder: Path):
    pytest.importorskip("pyarrow")
    assert "cannot be read as Parquet" in refused(folder, b"no parquet", name="labels.parquet")


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (ROWS, {"tasks": ["diagnose"]}, "has no task column 'diagnose'; did you mean ['diagnosis'"),
        (ROWS.replace("p1\nb", "p1\nb").replace("melanoma", "1"), {"tasks": ["diagnosis"]},
         "holds labels, such as '1', and words, such as 'nevus' in line 2"),
        (ROWS, {"tasks": ["diagnosis"], "classes": ["melanoma", "nevi"]},
         "holds 'nevus' in line 2, which is no known class; did you mean ['nevi']"),
        (ROWS, {"tasks": ["image"]}, "cannot be one of class names: it has 4 different values in 4 rows"),
        (ROWS, {"tasks": ["diagnosis", "streaks"]}, "holds class names, so it must be the only task; got"),
        (ROWS, {"concepts": "streaks"}, "must be a list of names"),
        (ROWS, {"patient_column": "person"}, "has no column 'person'"),
    ],
)  # fmt: skip
def test_tasks_and_names_that_do_not_fit_are_refused(folder: Path, text: str, options: dict[str, Any], said: str):
    assert said in refused(folder, text, **options)


def test_split_columns_give_parts_by_one_name(folder: Path):
    split = "image,streaks,Split\na.png,1,train\nb.png,0,valid\nc.png,0,Training\nd.png,1,test\n"
    assert opened(folder, split, concepts=["streaks"]).parts == ["train", "val", "train", "test"]
    assert opened(folder).parts is None


def test_an_image_is_found_by_its_stem_and_from_other_systems(folder: Path):
    (folder / "deep").mkdir()
    (folder / "d.png").rename(folder / "deep" / "d.png")
    text = ROWS.replace("a.png", "a").replace("b.png", "./b.png").replace("d.png", "deep\\d.png")
    text = text.replace("c.png", str(folder / "c.png"))
    assert opened(folder, text).names == ("a.png", "b.png", "c.png", "deep/d.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("d.png", "x.png"), "1 of 4 images are missing from"),
        (("d.png", "x.png"), "'x.png' (line 5); it holds 'a.png', 'b.png', 'c.png' ..."),
        (("d.png", "../labels.csv"), "1 of 4 rows name images outside"),
        (("d.png", "/etc/hosts"), "'/etc/hosts' (line 5); give the folder that holds them all"),
        (("d.png", "a.png"), "1 rows name an image that another row names: 'a.png' (line 2) and 'a.png' (line 5)"),
        (("d.png", "b/../a.png"), "'a.png' (line 2) and 'b/../a.png' (line 5); give each image one row"),
        (("d.png", "a"), "'a.png' (line 2) and 'a' (line 5)"),
        (("d.png", ""), "1 of 4 rows have no image: '' (line 5)"),
    ],
)
def test_names_that_mean_no_image_are_refused(folder: Path, change: tuple[str, str], said: str):
    assert said in refused(folder, ROWS.replace(*change))


def test_a_link_in_a_circle_is_refused(folder: Path):
    (folder / "loop.png").symlink_to(folder / "loop.png")
    assert "links to nothing, or in a circle" in refused(folder, ROWS.replace("d.png", "loop.png"))


def test_images_that_no_row_names_are_said(folder: Path):
    data = opened(folder, ROWS.replace("d.png,yes,False,,\n", ""))
    assert any(note.startswith("1 images in ") and note.endswith("are in no row: d.png.") for note in data.notes)


def test_no_folder_is_an_error_of_its_own(folder: Path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        TableDataset(write(folder, ROWS), folder / "nowhere", concepts=CONCEPTS)
    with pytest.raises(FileNotFoundError):
        TableDataset(folder / "nothing.csv", folder, concepts=CONCEPTS)


def test_items_have_the_image_and_the_labels_of_their_row(folder: Path):
    data = opened(folder, tasks=["diagnosis"])
    item = data[-2]
    assert (item.name, item.boxes) == ("c.png", None) and (item.image == 42).all()
    assert values(torch.stack([item.concepts])) == [[None, 0.7]] and item.targets.tolist() == [0, 1]
    assert collate([data[0], data[1]]).concepts.shape == (2, 2)


BOXES = """image,concept,x_min,y_min,x_max,y_max
a.png,streaks,10,5,30,15
d.png,streaks,0,0,40,20
d.png,streaks,4,2,8,10
b.png,,,,,
"""


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES,
        "image,class_name,x,y,w,h\na,streaks,10,5,20,10\nd,streaks,0,0,40,20\nd,streaks,4,2,4,8\nb,No finding,,,,\n",
        "file,label,left,top,right,bottom\na.png,streaks,.25,.25,.75,.75\nd.png,streaks,0,0,1,1\n"
        "d.png,streaks,.1,.1,.2,.5\nb.png,none,,,,\n",
    ],
    ids=["corners", "sizes", "fractions"],
)
def test_boxes_of_every_form_are_the_same_fractions(folder: Path, boxes: str):
    data = opened(folder, boxes=write(folder, boxes, "boxes.csv"))
    drawn = [data.load_item(number).boxes for number in range(4)]
    assert drawn[2] is None and drawn[1] is not None and len(drawn[1]) == 0
    assert drawn[0] is not None and drawn[0].xyxy.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert drawn[3] is not None and np.allclose(drawn[3].xyxy, [[0, 0, 1, 1], [0.1, 0.1, 0.2, 0.5]])
    unit = "fractions" if "." in boxes.split("\n")[1][6:] else "pixels"
    assert f"The boxes of boxes.csv are in {unit}." in data.notes


def test_boxes_are_of_the_size_that_the_table_says(folder: Path):
    sizes = (
        "image,streaks,image_width,image_height\na.png,1,400,200\nb.png,,400,200\nc.png,0,400,200\nd.png,1,400,200\n"
    )
    boxes = write(folder, "image,concept,x,y,w,h\na.png,streaks,100,50,200,100\n", "boxes.csv")
    data = opened(folder, sizes, concepts=["streaks"], boxes=boxes)
    drawn = data.load_item(0).boxes
    assert drawn is not None and drawn.xyxy.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    turned = opened(folder, sizes.replace("400,200", "400,400"), concepts=["streaks"], boxes=boxes)
    with pytest.raises(ValueError, match="is 40 x 20 pixels .* but the table says 400 x 400, of other proportions"):
        turned.load_item(0)


def test_boxes_alone_can_say_what_is_present(folder: Path):
    data = opened(
        folder, "image\na.png\nb.png\nc.png\nd.png\n", concepts=["streaks"], boxes=write(folder, BOXES, "b.csv")
    )
    assert values(data.concept_labels) == [[1], [0], [None], [1]]


def test_a_box_settles_an_unknown_label_but_no_uncertain_one(folder: Path):
    boxes = write(folder, "image,concept,x,y,w,h\nb.png,veil,1,1,9,9\nc.png,streaks,1,1,9,9\n", "boxes.csv")
    data = opened(folder, boxes=boxes)
    assert values(data.concept_labels)[1:3] == [[0, 1], [None, 0.7]]


@pytest.mark.parametrize(
    ("boxes", "options", "said"),
    [
        (BOXES.replace("10,5,30,15", "10,5,30,"), {}, "1 boxes of boxes.csv lack a number, the first in line 2"),
        (BOXES.replace("10,5,30,15", "10,five,30,15"), {}, "column 'y_min' of boxes.csv holds 'five' in line 2"),
        (BOXES.replace("10,5,30,15", "10,5,30,nan"), {}, "1 boxes of boxes.csv lack a number"),
        (BOXES.replace("10,5,30,15", "10,5,30,35"), {}, "1 of 3 boxes of boxes.csv cannot be: the first is "
         "[10, 5, 20, 30] (x, y, width, height) in line 2 of 40 x 20 pixels"),
        (BOXES.replace("10,5,30,15", "30,5,10,15"), {}, "expected boxes with an area, inside the image"),
        (BOXES, {"box_unit": "fractions"}, "said to be in fractions, but 3 of 3 go beyond 1, such as [10, 5, 20, 10]"),
        ("image,concept,x,y,w,h\na.png,streaks,.1,.1,.2,.2\n", {"box_unit": "pixels"},
         "are said to be in pixels, but none goes beyond 1, so they look like fractions"),
        (BOXES.replace("10,5,30,15", ".1,.1,.3,.3"), {}, "1 of 3 boxes of boxes.csv look like fractions, such as"),
        (BOXES.replace("concept", "thing"), {}, "needs one column that says what a box shows"),
        (BOXES.replace("x_min", "from"), {}, "has no boxes: expected the columns x_min, y_min, x_max, y_max"),
        (BOXES.replace("streaks,10", "Streaks,10"), {}, "boxes of 'Streaks', which is no concept here; did you mean"),
        (BOXES.replace("streaks,10", "streak,10"), {}, "did you mean ['streaks']"),
        (BOXES.replace("a.png,streaks", "a.png,veil"), {}, "labels say 0 where boxes are drawn, in 'a.png' ('veil')"),
        (BOXES.replace(".png", "_x.png"), {}, "has no row of an image of the table of labels: its first is 'a_x.png'"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be_are_refused(folder: Path, boxes: str, options: dict[str, Any], said: str):
    path = write(folder, boxes, "boxes.csv")
    assert said in refused(folder, ROWS, boxes=path, **options)


def test_skipped_boxes_make_their_label_unknown(folder: Path, caplog: pytest.LogCaptureFixture):
    boxes = write(folder, BOXES.replace("10,5,30,15", "10,5,30,35"), "boxes.csv")
    data = opened(
        folder, "image\na.png\nb.png\nc.png\nd.png\n", concepts=["streaks"], boxes=boxes, invalid_boxes="skip"
    )
    assert values(data.concept_labels) == [[None], [0], [None], [1]]
    assert "left out 1 of 3 boxes of boxes.csv" in caplog.text


def test_boxes_of_other_images_and_names_are_said_or_left(folder: Path):
    boxes = BOXES + "z.png,streaks,1,2,3,4\na.png,Nodule,1,2,3,4\na.png,streams over,1,2,3,4\n"
    data = opened(folder, boxes=write(folder, boxes, "boxes.csv"))
    assert "2 boxes of boxes.csv are of 'Nodule', 'streams over', no concepts here, and left out." in data.notes


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 rows of empty files, 14 concepts, a class column and patients."""
    return table_of(100_000, tmp_path_factory.mktemp("large"))


def table_of(rows: int, folder: Path) -> Path:
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (rows, 14))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient_id", *(f"c{k}" for k in range(14)), "kind"])
        for number, row in enumerate(labels.tolist()):
            name = f"{number:08d}.png"
            path = folder / "images" / name
            path.touch() if number % 1000 else path.write_bytes(b"P5 4 4 255\n" + bytes(range(16)))
            writer.writerow([name, number // 3, *row, "abc"[number % 3]])
    return folder


def open_all(folder: Path) -> TableDataset:
    concepts = [f"c{k}" for k in range(14)]
    return TableDataset(folder / "labels.csv", folder / "images", concepts=concepts, tasks=["kind"])


def test_a_hundred_thousand_rows_are_opened(large: Path):
    data = open_all(large)
    assert len(data) == 100_000 and data.concept_labels.shape == (100_000, 14) and data.tasks == ("a", "b", "c")


def count_calls(folder: Path) -> int:
    """How many calls of functions it takes to open a table."""
    calls = 0

    def count(frame: Any, event: str, what: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        open_all(folder)
    finally:
        sys.setprofile(before)
    return calls


def test_a_row_costs_as_many_calls_in_a_long_table(tmp_path_factory: pytest.TempPathFactory):
    short, long = (count_calls(table_of(rows, tmp_path_factory.mktemp("rows"))) for rows in (500, 2500))
    assert (long - short) / 2000 <= 5 * 16  # a row has 16 cells and a file
    assert long <= 5.1 * short


@pytest.fixture(scope="module")
def many(large: Path) -> TableDataset:
    return TableDataset(large / "labels.csv", large / "images", concepts=["c0", "c1"])


def test_an_item_of_many_copies_no_rows(many: TableDataset):
    many.load_item(0)
    tracemalloc.start()
    for number in range(1000, 100_000, 1000):
        assert many.load_item(number).name == f"{number:08d}.png"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000  # pointers to the texts of one column would be 800 kB


def test_a_worker_for_many_rows_gets_handles_and_no_copy(many: TableDataset):
    file = io.BytesIO()
    ForkingPickler(file).dump(many)
    received = pickle.loads(file.getvalue())
    assert len(file.getvalue()) < 10_000
    assert received.names[99_999] == "00099999.png" and received.patients[99_999] == "33333"
    assert torch.equal(received.concept_labels, many.concept_labels) and many.concept_labels.is_shared()
