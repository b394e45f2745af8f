"""Public sets are read from their own tables: every label, box and patient as the table says, and no other."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conceptcam.data.public_tables import CHEXPERT_CONCEPTS, NIH_CONCEPTS
from conceptcam.data.table import TableDataset
from conceptcam.data.vindr import VINDR_CONCEPTS, VINDR_TASKS

SHARED = Path(__file__).parents[3] / "shared" / "data"


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 90).save(path)


def values(labels: torch.Tensor) -> list[list[float | None]]:
    return [[None if value != value else round(value, 4) for value in row] for row in labels.tolist()]


NIH = """Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\
OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]
00000001_000.png,Cardiomegaly|Effusion,0,1,58,M,PA,2682,2749,0.143,0.143
00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143
00000002_000.png,Infiltration,0,2,81,M,PA,2500,2048,0.171,0.171
"""
NIH_BOXES = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,\r\n00000001_000.png,Cardiomegaly,4,5,20,10\r\n00000002_000.png,\
Infiltrate,0,0,40,20\r\n"
)


def test_nih_tables_give_labels_patients_and_boxes(tmp_path: Path):
    for name in ("00000001_000", "00000001_001", "00000002_000"):
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(NIH)
    (tmp_path / "BBox_List_2017.csv").write_text(NIH_BOXES)
    data = TableDataset(
        tmp_path / "Data_Entry_2017_v2020.csv", tmp_path / "images", concepts=NIH_CONCEPTS,
        boxes=tmp_path / "BBox_List_2017.csv",
    )  # fmt: skip
    present = [[NIH_CONCEPTS[k] for k in row.nonzero()[:, 0].tolist()] for row in data.concept_labels]
    assert present == [["Cardiomegaly", "Effusion"], [], ["Infiltration"]]
    assert data.patients == ["1", "1", "2"]
    assert "Data_Entry_2017_v2020.csv has the columns of NIH ChestX-ray14." in data.notes
    first, second, third = (data.load_item(number).boxes for number in range(3))
    assert first is not None and torch.allclose(first.xyxy, torch.tensor([[0.1, 0.25, 0.6, 0.75]]))
    assert second is None and third is not None and third.concept.tolist() == [NIH_CONCEPTS.index("Infiltration")]


def test_an_unknown_finding_of_nih_is_refused(tmp_path: Path):
    picture(tmp_path / "00000001_000.png")
    (tmp_path / "labels.csv").write_text(NIH.splitlines()[0] + "\n00000001_000.png,Cardiomegalie,0,1,58,M,PA,1,1,1,1\n")
    with pytest.raises(
        ValueError, match=r"labels.csv has the finding 'Cardiomegalie' in line 2; known: \['Atelectasis'"
    ):
        TableDataset(tmp_path / "labels.csv", tmp_path, concepts=["Cardiomegaly"])


@pytest.mark.skipif(not (SHARED / "nih-sample").is_dir(), reason="the sample is not part of the project")
def test_real_nih_tables_are_read_in_full():
    folder = SHARED / "nih-sample"
    data = TableDataset(
        folder / "Data_Entry_2017_v2020.csv", folder / "images", concepts=NIH_CONCEPTS,
        boxes=folder / "BBox_List_2017.csv",
    )  # fmt: skip
    with (folder / "Data_Entry_2017_v2020.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, labels, patient in zip(rows, data.concept_labels, data.patients or (), strict=True):
        found = {NIH_CONCEPTS[k] for k in labels.nonzero()[:, 0].tolist()}
        assert found == set(row["Finding Labels"].split("|")) - {"No Finding"} and patient == row["Patient ID"]
    with (folder / "BBox_List_2017.csv").open() as file:
        boxes = list(csv.reader(file))[1:]
    drawn = [box for item in map(data.load_item, range(len(data))) if item.boxes for box in item.boxes.xyxy.tolist()]
    expected = [[float(x), float(y), float(x) + float(w), float(y) + float(h)] for _, _, x, y, w, h in boxes]
    assert sorted([round(1024 * end, 1) for end in box] for box in drawn) == sorted(
        [round(end, 1) for end in box] for box in expected
    )


CHEXPERT = """Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,\
Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,\
Support Devices
CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0
CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1,1.0,,-1.0,-1,,-1.0,,-1.0,,1.0,
CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,0.0,1.0,0,0,0,0,0,0,0,0,0,0
"""


@pytest.mark.parametrize("inside", ["", "CheXpert-v1.0-small"])
def test_chexpert_keeps_uncertain_and_unmentioned_apart(tmp_path: Path, inside: str):
    folder = tmp_path / inside
    for line in CHEXPERT.splitlines()[1:]:
        picture(folder / line.split(",")[0].removeprefix("CheXpert-v1.0-small/"))
    (tmp_path / "train.csv").write_text(CHEXPERT)
    options: dict[str, Any] = {"concepts": CHEXPERT_CONCEPTS}
    data = TableDataset(tmp_path / "train.csv", folder, **options)
    assert values(data.concept_labels)[0] == [None] * 8 + [0, None, None, None, 1]
    assert values(data.concept_labels)[1][:4] == [None, None, 1, None]
    ones = TableDataset(tmp_path / "train.csv", folder, uncertain="ones", **options)
    assert values(ones.concept_labels)[1] == [None, 1, 1, None, 1, 1, None, 1, None, 1, None, 1, None]
    assert data.patients == ["patient00001", "patient00002", "patient64541"]
    assert data.parts == ["train", "train", "val"]
    assert data.load_item(0).name == "train/patient00001/study1/view1_frontal.jpg"


# In the order of the published file, which spells one name otherwise than the paper.
PHYSIONET = ",".join(
    [
        *(
            "image_id",
            "rad_ID",
            "Aortic enlargement",
            "Atelectasis",
            "Calcification",
            "Cardiomegaly",
            "Clavicle fracture",
        ),
        *("Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity"),
        *("Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
        *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
        *("Other diseases", "No finding"),
    ]
)


def physionet(rows: list[tuple[str, str, set[str]]]) -> str:
    columns = PHYSIONET.split(",")[2:]
    lines = [
        ",".join([image, reader, *("1" if name in found else "0" for name in columns)]) for image, reader, found in rows
    ]
    return "\n".join([PHYSIONET, *lines]) + "\n"


READINGS = [
    ("aa", "R1", {"Lung Opacity", "Pneumonia"}), ("aa", "R2", {"Lung Opacity", "Pneumonia"}), ("aa", "R3", {"Edema"}),
    ("bb", "R1", {"No finding"}), ("bb", "R2", {"No finding"}), ("bb", "R3", {"Nodule/Mass"}),
]  # fmt: skip
PHYSIONET_BOXES = """image_id,rad_ID,class_name,x_min,y_min,x_max,y_max
aa,R1,Lung Opacity,4,5,24,15
aa,R2,Lung Opacity,6,5,26,15
aa,R3,Edema,0,0,10,10
bb,R1,No finding,,,,
bb,R2,No finding,,,,
bb,R3,Nodule/Mass,1,1,9,9
"""


def vindr(folder: Path, readers: Any = None, **options: Any) -> TableDataset:
    for name in ("aa", "bb"):
        picture(folder / "train" / f"{name}.png")
    (folder / "image_labels_train.csv").write_text(physionet(READINGS))
    (folder / "annotations_train.csv").write_text(PHYSIONET_BOXES)
    return TableDataset(
        folder / "image_labels_train.csv", folder / "train", concepts=VINDR_CONCEPTS, tasks=VINDR_TASKS,
        boxes=folder / "annotations_train.csv", readers=readers, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "opacity", "edema", "nodule"),
    [
        ("any", 1, 1, 1),
        ("majority", 1, 0, 0),
        ("all", 0, 0, 0),
        ("soft", 2 / 3, 1 / 3, 1 / 3),
        ("unanimous", None, None, None),
    ],
)
def test_vindr_readers_merge_by_the_stated_rule(
    tmp_path: Path, rule: str, opacity: float | None, edema: float | None, nodule: float | None
):
    data = vindr(tmp_path, rule)
    labels = values(data.concept_labels)
    expected = [None if one is None else round(one, 4) for one in (opacity, edema, nodule)]
    index = [VINDR_CONCEPTS.index(name) for name in ("Lung opacity", "Edema", "Nodule/Mass")]
    assert [labels[0][index[0]], labels[0][index[1]], labels[1][index[2]]] == expected
    assert labels[0][VINDR_CONCEPTS.index("Cardiomegaly")] == 0
    assert data.tasks == VINDR_TASKS and values(data.task_labels)[0][VINDR_TASKS.index("Pneumonia")] == expected[0]


def test_vindr_boxes_that_the_readers_denied_are_left_out(tmp_path: Path):
    data = vindr(tmp_path, "majority")
    boxes = data.load_item(0).boxes
    assert boxes is not None and boxes.concept.tolist() == [VINDR_CONCEPTS.index("Lung opacity")] * 2
    looked = data.load_item(1).boxes
    assert looked is not None and len(looked) == 0
    assert "2 boxes are of concepts that the merged labels call absent, and left out." in data.notes
    every = vindr(tmp_path, "any").load_item(0).boxes
    assert every is not None and len(every) == 3


def test_several_readers_need_a_rule(tmp_path: Path):
    with pytest.raises(ValueError, match=r"name an image that another row names: .* with `readers` \(--readers\)"):
        vindr(tmp_path)


def test_the_test_set_of_vindr_spells_one_task_otherwise(tmp_path: Path):
    picture(tmp_path / "aa.png")
    header = PHYSIONET.replace("rad_ID,", "").replace("Other diseases", "Other disease")
    (tmp_path / "image_labels_test.csv").write_text(f"{header}\naa,{','.join(['0'] * 26 + ['1', '0'])}\n")
    data = TableDataset(tmp_path / "image_labels_test.csv", tmp_path, concepts=["Edema"], tasks=["Other diseases"])
    assert data.task_labels.tolist() == [[1.0]]


KAGGLE = """image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max
aa,Lung Opacity,7,R8,4,5,24,15
aa,Lung Opacity,7,R9,6,5,26,15
aa,No finding,14,R10,,,,
bb,No finding,14,R8,,,,
bb,No finding,14,R9,,,,
bb,No finding,14,R11,,,,
"""


def test_kaggles_table_of_vindr_is_labels_and_boxes_at_once(tmp_path: Path):
    for name in ("aa", "bb"):
        picture(tmp_path / "train" / f"{name}.png")
    path = tmp_path / "train.csv"
    path.write_text(KAGGLE)
    data = TableDataset(path, tmp_path / "train", concepts=["Lung opacity"], boxes=path, readers="soft")
    assert values(data.concept_labels) == [[0.6667], [0]]
    boxes = data.load_item(0).boxes
    assert boxes is not None and torch.allclose(boxes.xyxy[0], torch.tensor([0.1, 0.25, 0.6, 0.75]))
    assert TableDataset(path, tmp_path / "train", concepts=["Lung opacity"], readers="all").concept_labels.tolist() == [
        [0.0], [0.0],
    ]  # fmt: skip
    path.write_text(KAGGLE.replace("aa,Lung Opacity", "aa,Lung opacities", 1))
    with pytest.raises(ValueError, match="train.csv has the class 'Lung opacities' in line 2; known:"):
        TableDataset(path, tmp_path / "train", concepts=["Lung opacity"], readers="any")


def test_columns_that_are_not_named_are_no_concepts(tmp_path: Path):
    """Every column was taken for a concept once, ids and ages among them."""
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,age,edema,rad_id\na.png,58,,R1\n")
    data = TableDataset(tmp_path / "labels.csv", tmp_path, concepts=["edema"])
    assert data.concepts == ("edema",) and values(data.concept_labels) == [[None]]
