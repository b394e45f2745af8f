"""Samples of other libraries become our items, and what cannot be one is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conceptcam.data.adapter import DatasetAdapter
from conceptcam.data.batch import collate
from conceptcam.data.coco import CocoDataset
from conceptcam.runs.options import RunOptions
from conceptcam.runs.run import train_run
from tests.worlds import CONCEPTS, TASKS, Squares, tiny_config

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
EXPECTED = torch.from_numpy(PICTURE).permute(2, 0, 1)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(PICTURE), PICTURE, EXPECTED, EXPECTED / 255],
    ids=["pillow", "array", "tensor", "floats"],
)
@pytest.mark.parametrize("labels", [[1, 0], torch.tensor([1.0, 0.0]), np.array([True, False])], ids=str)
def test_tuples_and_dicts_give_the_same_item(image: Any, labels: Any):
    pair = DatasetAdapter([(image, labels)], concepts=["a", "b"], image=0, labels=1)
    named = DatasetAdapter([{"image": image, "a": 1, "b": 0}], concepts=["a", "b"])
    whole = DatasetAdapter([{"image": image, "label": labels}], concepts=["a", "b"], labels="label")
    for data in (pair, named, whole):
        item = data[0]
        pixels = item.image if item.image.dtype == torch.uint8 else (item.image * 255).round()
        assert torch.equal(pixels.to(torch.uint8), EXPECTED) and item.concepts.tolist() == [1, 0]
        assert item.boxes is None and item.name == "0" and data.patients is None
        assert collate([item, item]).images.shape == (2, 3, 20, 30)


def test_a_wrapped_torchvision_dataset_reads_as_our_reader_does(tmp_path: Path):
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

    pytest.importorskip("pycocotools")
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(PICTURE).save(tmp_path / "images" / name)
    boxes = [(1, 3, [2, 3, 10, 8]), (1, 9, [0, 0, 30, 20]), (3, 7, [5, 5, 6, 6]), (3, 3, [1, 1, 4, 4])]
    content = {
        "images": [{"id": i, "file_name": f"{c}.png", "height": 20, "width": 30} for i, c in enumerate("abc", start=1)],
        "categories": [{"id": 3, "name": "nodule"}, {"id": 7, "name": "edema"}, {"id": 9, "name": "film"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": box, "iscrowd": 0, "area": 1}
            for n, (i, k, box) in enumerate(boxes)
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    theirs = wrap_dataset_for_transforms_v2(
        CocoDetection(tmp_path / "images", tmp_path / "train.json"), target_keys=("boxes", "labels")
    )
    data = DatasetAdapter(
        theirs, concepts=["edema", "nodule"], image=0, boxes=1, box_classes={3: "nodule", 7: "edema", 9: "film"}
    )
    ours = CocoDataset(tmp_path / "train.json", tmp_path / "images", concepts=["edema", "nodule"])
    assert torch.equal(data.concept_labels, ours.concept_labels)
    for index in range(3):
        item, expected = data[index], ours[index]
        assert item.boxes is not None and expected.boxes is not None
        assert sorted(zip(item.boxes.concept.tolist(), item.boxes.xyxy.tolist(), strict=True)) == sorted(
            zip(expected.boxes.concept.tolist(), expected.boxes.xyxy.tolist(), strict=True)
        )
        assert torch.equal(item.image, expected.image)


class Counted(list[Any]):
    """Samples that count how often they are read."""

    read = 0

    def __getitem__(self, index: Any) -> Any:
        self.read += 1
        return super().__getitem__(index)


def test_labels_come_from_samples_without_images_where_given():
    rows = Counted(
        [{"image": PICTURE, "a": 1, "kind": "calm", "who": 7}, {"image": PICTURE, "a": None, "kind": None, "who": 8}]
    )
    bare = [{key: value for key, value in row.items() if key != "image"} for row in list(rows)]
    data = DatasetAdapter(
        rows, concepts=["a"], tasks=["busy", "calm"], targets="kind", task_kind="multiclass", patient="who",
        name="who", labels_from=bare,
    )  # fmt: skip
    assert rows.read == 0
    assert data.concept_labels[0] == 1 and data.concept_labels[1].isnan()
    assert data.task_labels[0].tolist() == [0, 1] and data.task_labels[1].isnan().all()
    assert data.patients == ["7", "8"] and data.names == ["7", "8"]
    numbered = DatasetAdapter(
        [{"image": PICTURE, "a": 1, "kind": np.int64(1)}], concepts=["a"], tasks=["busy", "calm"], targets="kind",
        task_kind="multiclass",
    )  # fmt: skip
    assert numbered.task_labels.tolist() == [[0, 1]]


def test_boxes_that_nobody_drew_stay_unknown():
    one = {"boxes": torch.tensor([[0.1, 0.1, 0.4, 0.5]]), "labels": torch.tensor([1])}
    samples = [{"image": PICTURE, "target": target} for target in (one, {"boxes": []}, None)]
    data = DatasetAdapter(samples, concepts=["a", "b"], boxes="target")
    assert data.concept_labels[:2].tolist() == [[0, 1], [0, 0]] and data.concept_labels[2].isnan().all()
    found = [data[index].boxes for index in range(3)]
    assert found[0] is not None and found[0].concept.tolist() == [1]
    assert found[1] is not None and not len(found[1]) and found[2] is None


def test_a_run_learns_from_an_adapter(tmp_path: Path):
    def dicts(squares: Squares) -> list[dict[str, Any]]:
        items = [squares.load_item(index) for index in range(len(squares))]
        return [
            {
                "image": item.image,
                "label": item.concepts,
                "task": item.targets,
                "target": {"boxes": item.boxes.xyxy, "labels": item.boxes.concept},
            }
            for item in items
            if item.boxes is not None
        ]

    train, val = (
        DatasetAdapter(
            dicts(Squares(count, seed)), concepts=CONCEPTS, tasks=TASKS, labels="label", targets="task", boxes="target"
        )
        for count, seed in ((16, 0), (8, 1))
    )
    options = RunOptions(epochs={"concepts": 1, "prototypes": 1, "task": 1}, batch_size=8, precision="fp32")
    runs = [
        train_run(tiny_config(), *data, tmp_path / name, options, training_data="squares", drawn=()).model.state_dict()
        for name, data in (("theirs", (train, val)), ("ours", (Squares(16, 0), Squares(8, 1))))
    ]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


@pytest.mark.parametrize(
    ("sample", "options", "sentence"),
    [
        ((PICTURE, 1), {}, "sample 0 has no 'a' where 'a' should be: there is a tuple of 2; say where each part"),
        ({"img": PICTURE, "b": 1}, {}, r"sample 0 has no 'a' where 'a' should be: there is a dict with \['img', 'b'\]"),
        ((PICTURE, 1), {"image": 0, "labels": 1}, "the labels of sample 0 are 1; expected 1 numbers"),
        ((PICTURE, [1, 0]), {"image": 0, "labels": 1}, r"the labels of sample 0 are \[1, 0\]; expected a number"),
        ((PICTURE, [7]), {"image": 0, "labels": 1}, r"the labels of sample 0 are \[7\]; expected a number from 0 to 1"),
        ({"image": PICTURE, "a": 1, "t": [1]}, {"boxes": "t"},
         r"the boxes of sample 0 are \[1\]; expected a dict with 'boxes'"),
        ({"a": 1, "kind": 5}, {"tasks": ["x", "y"], "targets": "kind", "task_kind": "multiclass"},
         r"the class of sample 0 is 5; expected 0 to 1, or one of \['x', 'y'\]"),
        ({"a": 1}, {"box_classes": {1: "z"}}, r"`box_classes` names \['z'\], none of the concepts \['a'\]"),
        ({"a": 1}, {"labels_from": []}, "`labels_from` has 0 samples, and the data set 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(sample: Any, options: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        data = DatasetAdapter([sample], concepts=["a"], **options)
        data[0]


def test_an_image_or_box_that_cannot_be_is_named_by_its_sample():
    target = {"boxes": torch.tensor([[5.0, 5, 9, 9]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="the boxes of sample 0 cannot be used: box 0 is .* Divide pixel boxes by"):
        DatasetAdapter([{"image": PICTURE, "t": target}], concepts=["a"], boxes="t")
    data = DatasetAdapter([{"image": EXPECTED.float(), "a": 1}], concepts=["a"])
    with pytest.raises(ValueError, match=r"the image of sample 0 cannot be used: float image spans .*; divide by 255"):
        data[0]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"boxes": [[0.1, 0.1, 0.4, 0.5]], "category": [0]}, "sample 0 has 1 boxes and 0 labels of boxes; give one"),
        ({"boxes": [[0.1, 0.1, 0.4, 0.5]] * 2, "labels": [0]}, "sample 0 has 2 boxes and 1 labels of boxes"),
        (
            {"boxes": [[0.1, 0.1, 0.4, 0.5]], "labels": [1]},
            "has the label 1, but the 1 concepts count from 0; say with",
        ),
        ({"boxes": [[0.1, 0.1, 0.4, 0.5]], "labels": ["a"]}, "has the label 'a', but the 1 concepts count from 0"),
    ],
)
def test_a_box_of_no_known_concept_is_never_called_absent(target: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        DatasetAdapter([{"image": PICTURE, "t": target}], concepts=["a"], boxes="t")


def test_a_class_that_is_nan_is_unknown():
    row = {"image": PICTURE, "a": 1, "kind": float("nan")}
    data = DatasetAdapter([row], concepts=["a"], tasks=["x", "y"], targets="kind", task_kind="multiclass")
    assert data.task_labels.isnan().all()
