"""A COCO file becomes the labels and boxes it states; what it cannot mean is refused by name."""

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from conceptcam.data.batch import collate
from conceptcam.data.coco import CocoDataset
from conceptcam.data.labels import SOFT_LABEL, Uncertain
from conceptcam.data.transforms import Preprocess, default_augmentation

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 3, "file_name": "b.png", "width": 20, "height": 30},
        {"id": 5, "file_name": "c.png", "width": 40, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 2, "bbox": [0, 0, 5, 3], "iscrowd": 1},
        {"id": 2, "image_id": 7, "category_id": 10, "bbox": [10, 5, 20, 10]},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [0.0, 0.0, 40.0, 20.0]},
        {"id": 4, "image_id": 3, "category_id": 2, "bbox": [10, 15, 10, 15]},
    ],
    "categories": [{"id": 10, "name": "Nodule"}, {"id": 2, "name": "Edema"}, {"id": 4, "name": "Effusion"}],
}


@pytest.fixture
def content() -> dict[str, Any]:
    return copy.deepcopy(CONTENT)


def write(folder: Path, content: Any, *, pictures: bool = True) -> tuple[Path, Path]:
    if pictures:
        for entry in CONTENT["images"]:
            pixels = np.random.default_rng(entry["id"]).integers(
                0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(folder / entry["file_name"])
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path, folder


def refused(folder: Path, content: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        CocoDataset(*write(folder, content), **options)
    return str(caught.value)


def test_categories_are_concepts_in_the_order_of_their_ids(tmp_path: Path, content: dict[str, Any]):
    data = CocoDataset(*write(tmp_path, content))
    assert data.concepts == ("Edema", "Effusion", "Nodule")
    assert data.concept_labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert data.tasks == () and data.task_labels.shape == (3, 0)
    assert len(data) == 3


def test_a_text_in_place_of_names_is_not_taken_for_its_letters(tmp_path: Path, content: dict[str, Any]):
    content["categories"] = [{"id": 10, "name": "A"}, {"id": 2, "name": "B"}]
    content["annotations"] = []
    said = refused(tmp_path, content, concepts="AB")
    assert said == "`concepts` must be a list of names, got the text 'AB'; for one name write ['AB']"


def test_boxes_are_fractions_of_their_own_image(tmp_path: Path, content: dict[str, Any]):
    first, second, third = CocoDataset(*write(tmp_path, content))
    assert first.boxes.xyxy.tolist() == [[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]]
    assert first.boxes.concept.tolist() == [2, 0]
    assert second.boxes.xyxy.tolist() == [[0, 0, 0.25, pytest.approx(0.1)], [0.5, 0.5, 1, 1]]
    assert second.boxes.concept.tolist() == [0, 0]  # the crowd too
    assert third.boxes is not None and len(third.boxes) == 0
    assert [item.name for item in (first, second, third)] == ["a.png", "b.png", "c.png"]


def test_items_show_the_file(tmp_path: Path, content: dict[str, Any]):
    item = CocoDataset(*write(tmp_path, content))[1]
    assert np.array_equal(item.image.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / "b.png")))


def test_named_concepts_are_taken_in_the_order_given(tmp_path: Path, content: dict[str, Any]):
    data = CocoDataset(*write(tmp_path, content), concepts=["Nodule", "Edema"])
    assert data.concept_labels.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert data[0].boxes.concept.tolist() == [0, 1]
    only = CocoDataset(*write(tmp_path, content), concepts=["Nodule"])
    assert [len(item.boxes) for item in only] == [1, 0, 0]


def test_image_level_labels_replace_those_from_boxes(tmp_path: Path, content: dict[str, Any]):
    content["images"][0]["concepts"] = {"Effusion": 0.5, "Nodule": None}
    content["images"][2]["concepts"] = {"Effusion": 1, "Edema": -1}
    labels = CocoDataset(*write(tmp_path, content)).concept_labels
    assert torch.equal(labels.nan_to_num(-1), torch.tensor([[1, 0.5, -1], [1, 0, 0], [-1, 1, 0]], dtype=torch.float32))


MEANING = {"ignore": torch.nan, "zeros": 0.0, "ones": 1.0, "soft": SOFT_LABEL}
each_policy = pytest.mark.parametrize(("policy", "meaning"), MEANING.items())


def same(labels: Tensor, expected: list[list[float]]) -> bool:
    return torch.equal(labels.nan_to_num(9), torch.tensor(expected, dtype=torch.float32).nan_to_num(9))


@each_policy
def test_uncertain_follows_the_policy_and_null_is_always_unknown(
    tmp_path: Path, content: dict[str, Any], policy: Uncertain, meaning: float
):
    content["images"][0] |= {"concepts": {"Effusion": -1}, "tasks": {"Pneumonia": -1, "COPD": 0.2}}
    content["images"][2] |= {"concepts": {"Effusion": None, "Edema": -1.0}, "tasks": {"COPD": None}}
    data = CocoDataset(*write(tmp_path, content), uncertain=policy)
    unknown = torch.nan
    assert same(data.concept_labels, [[1, meaning, 1], [1, 0, 0], [meaning, unknown, 0]])
    assert same(data.task_labels, [[meaning, 0.2], [unknown, unknown], [unknown, unknown]])
    assert same(torch.stack([item.concepts for item in data]), data.concept_labels.tolist())
    assert same(torch.stack([item.targets for item in data]), data.task_labels.tolist())


@each_policy
def test_a_box_of_an_uncertain_concept_is_kept_by_each_policy(
    tmp_path: Path, content: dict[str, Any], policy: Uncertain, meaning: float
):
    content["images"][1]["concepts"] = {"Edema": -1}
    data = CocoDataset(*write(tmp_path, content), uncertain=policy)
    assert same(data[1].concepts[None], [[meaning, 0, 0]])
    assert data[1].boxes.concept.tolist() == [0, 0]


@pytest.mark.parametrize("policy", [policy for policy in MEANING if policy != "ignore"])
def test_uncertain_labels_of_a_multiclass_task_can_only_be_ignored(
    tmp_path: Path, content: dict[str, Any], policy: Uncertain
):
    content["images"][0]["tasks"] = {"Normal": 1, "COPD": 0}
    content["images"][1] |= {"tasks": {"Normal": -1, "COPD": -1}, "concepts": {"Nodule": -1}}
    message = refused(tmp_path, content, uncertain=policy, task_kind="multiclass")
    assert message == (
        "'tasks' says -1 (uncertain) in 'b.png'; in a multi-class task that can only be ignored: write null there, "
        "or set `uncertain` to 'ignore' (--uncertain ignore)"
    )
    ignored = CocoDataset(*write(tmp_path, content), task_kind="multiclass")
    assert same(ignored.task_labels, [[1, 0], [torch.nan] * 2, [torch.nan] * 2])
    content["images"][1]["tasks"] = {"Normal": None, "COPD": None}
    data = CocoDataset(*write(tmp_path, content), uncertain=policy, task_kind="multiclass")
    assert same(data.task_labels, ignored.task_labels.tolist())
    assert data.concept_labels[1, 2].item() == pytest.approx(MEANING[policy])  # concepts are not tasks


def test_task_labels_are_unknown_where_an_image_does_not_give_them(tmp_path: Path, content: dict[str, Any]):
    content["images"][0]["tasks"] = {"Pneumonia": 1, "COPD": 0}
    content["images"][1]["tasks"] = {"Pneumonia": 0, "COPD": None}
    data = CocoDataset(*write(tmp_path, content), tasks=["COPD", "Pneumonia"])
    assert data.tasks == ("COPD", "Pneumonia")
    assert data.task_labels.nan_to_num(-1).tolist() == [[0, 1], [-1, 0], [-1, -1]]
    assert data[1].targets.nan_to_num(-1).tolist() == [-1, 0]


def test_an_image_nobody_drew_in_has_unknown_labels_and_no_boxes(tmp_path: Path, content: dict[str, Any]):
    content["images"][2] |= {"annotated": False, "concepts": {"Edema": 1}}
    data = CocoDataset(*write(tmp_path, content))
    assert data[2].boxes is None
    assert data[2].concepts.nan_to_num(-1).tolist() == [1, -1, -1]
    assert data[1].boxes is not None and not data[1].concepts.isnan().any()


def test_batches_come_out_of_a_loader(tmp_path: Path, content: dict[str, Any]):
    data = CocoDataset(
        *write(tmp_path, content),
        augmentation=default_augmentation((24, 24)),
        preprocess=Preprocess((16, 24), (0.5,) * 3, (0.5,) * 3),
    )
    batch = next(iter(DataLoader(data, batch_size=3, collate_fn=collate)))
    assert batch.images.shape == (3, 3, 16, 24)
    assert batch.boxes.image.tolist() == [0, 0, 1, 1]


def test_a_small_overshoot_is_cut_and_counted(
    tmp_path: Path, content: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    content["annotations"][1]["bbox"] = [-1, 5, 42.5, 16]
    with caplog.at_level(logging.INFO):
        data = CocoDataset(*write(tmp_path, content))
    assert data[0].boxes.xyxy[0].tolist() == [0, 0.25, 1, 1]
    assert "cut 1 of 4 boxes at the border" in caplog.text


ABSURD = [
    [10, 5, -3, 10],
    [10, 5, 3, 0],
    [10, 5, 40, 10],
    [-3, 5, 10, 10],
    [41, 5, 1, 1],
    [float("nan"), 5, 1, 1],
    [1, 2, 3],
    ["1", 2, 3, 4],
]


@pytest.mark.parametrize("bbox", ABSURD)
def test_absurd_boxes_are_refused_by_name(tmp_path: Path, content: dict[str, Any], bbox: list[Any]):
    content["annotations"][1]["bbox"] = bbox
    message = refused(tmp_path, content)
    assert message.startswith(f"1 of 4 boxes cannot be: {bbox} (annotation 2) in 'a.png' of 40 x 20 pixels")
    assert "expected [x, y, width, height] in pixels" in message and "set `invalid_boxes` to 'skip'" in message


@pytest.mark.parametrize("bbox", ABSURD)
def test_skipped_boxes_are_named_and_leave_an_unknown_label(
    tmp_path: Path, content: dict[str, Any], bbox: list[Any], caplog: pytest.LogCaptureFixture
):
    content["annotations"][1]["bbox"] = bbox
    content["annotations"][0]["bbox"] = bbox  # the concept has another box in this image
    data = CocoDataset(*write(tmp_path, content), invalid_boxes="skip")
    assert "left out 2 of 4 boxes, which cannot be: " in caplog.text and "'a.png'" in caplog.text
    assert data.concept_labels.nan_to_num(-1).tolist() == [[1, 0, -1], [1, 0, 0], [0, 0, 0]]
    assert [len(item.boxes) for item in data] == [1, 1, 0]


def test_missing_images_are_named_and_counted(tmp_path: Path, content: dict[str, Any]):
    content["images"] += [
        {"id": number, "file_name": f"gone{number}.png", "width": 4, "height": 4} for number in range(20, 30)
    ]
    assert refused(tmp_path, content) == (
        f"10 of 13 images are missing from {str(tmp_path)!r}: 'gone20.png', 'gone21.png', 'gone22.png' and 7 more"
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("category_id", "1 of 4 annotations have an unknown category_id: 99"),
        ("image_id", "1 of 4 annotations have an unknown image_id: 99"),
    ],
)
def test_annotations_of_nothing_known_are_refused(tmp_path: Path, content: dict[str, Any], key: str, message: str):
    content["annotations"][2][key] = 99
    assert refused(tmp_path, content) == message


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ("images", "id", "repeated ids in `images`: 7"),
        ("images", "file_name", "repeated file names in `images`: 'a.png'"),
        ("annotations", "id", "repeated ids in `annotations`: 1"),
        ("categories", "id", "repeated ids in `categories`: 10"),
        ("categories", "name", "repeated category names: 'Nodule'"),
    ],
)
def test_repeated_ids_and_names_are_refused(tmp_path: Path, content: dict[str, Any], part: str, key: str, message: str):
    content[part][1][key] = content[part][0][key]
    assert refused(tmp_path, content) == f"{message}; each may occur once"


def test_unknown_names_list_the_near_ones(tmp_path: Path, content: dict[str, Any]):
    content["images"][0]["tasks"] = {"Pneumonia": 1}
    message = refused(tmp_path, content, concepts=["Efusion", "Nodule"])
    assert message.startswith("unknown concepts 'Efusion' (near: 'Effusion'); the file has ['Edema',")
    message = refused(tmp_path, content, tasks=["pneumonia", "Gout"])
    assert message == "unknown tasks 'pneumonia' (near: 'Pneumonia'), 'Gout'; the file has ['Pneumonia']"
    content["images"][1]["concepts"] = {"Oedema": 1}
    assert refused(tmp_path, content) == "image 'b.png' labels unknown concepts 'Oedema' (near: 'Edema')"


def test_repeated_and_empty_choices_are_refused(tmp_path: Path, content: dict[str, Any]):
    assert "repeated: ['Edema']" in refused(tmp_path, content, concepts=["Edema", "Edema"])
    assert "at least 1 name(s)" in refused(tmp_path, content, concepts=[])
    assert "unknown `invalid_boxes` 'drop'; known:" in refused(tmp_path, content, invalid_boxes="drop")
    said = refused(tmp_path, content, uncertain="one")
    assert "unknown policy for uncertain labels 'one'; did you mean ['ones']; known:" in said
    assert "unknown `task_kind` 'binary'; known:" in refused(tmp_path, content, task_kind="binary")


@pytest.mark.parametrize("value", [2, -0.5, "yes", float("nan")])
def test_impossible_labels_are_refused(tmp_path: Path, content: dict[str, Any], value: Any):
    content["images"][2]["concepts"] = {"Edema": value}
    assert refused(tmp_path, content) == (
        f"the label of 'Edema' of image 'c.png' is {value!r}; "
        "expected 0 to 1, -1 for uncertain, or null where nobody said"
    )


def test_a_label_that_denies_a_box_is_refused(tmp_path: Path, content: dict[str, Any]):
    content["images"][1]["concepts"] = {"Edema": 0}
    assert "'concepts' says 0 where boxes are drawn, in 'b.png' ('Edema')" in refused(tmp_path, content)


def test_boxes_where_nobody_drew_are_refused(tmp_path: Path, content: dict[str, Any]):
    content["images"][1]["annotated"] = False
    assert "'annotated' is false, yet there are annotations, for 'b.png'" in refused(tmp_path, content)


@pytest.mark.parametrize(("key", "value"), [("concepts", ["Edema"]), ("tasks", "Pneumonia"), ("annotated", "false")])
def test_optional_fields_of_another_type_are_refused(tmp_path: Path, content: dict[str, Any], key: str, value: Any):
    content["images"][1][key] = value
    assert refused(tmp_path, content).startswith(f"{key!r} of image 'b.png' is {value!r}; expected such as ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON: "),
        ("[]", "is no COCO detection file: expected the lists"),
        ('{"images": [], "annotations": []}', "got ['annotations', 'images']"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str):
    assert message in refused(tmp_path, text)


def test_a_size_is_needed_for_boxes_alone(tmp_path: Path, content: dict[str, Any]):
    for image in content["images"]:
        image.pop("width")
    said = refused(tmp_path, content)
    assert said == "images with boxes need `width` and `height`, which are missing from 'a.png', 'b.png'"
    content["annotations"] = []
    data = CocoDataset(*write(tmp_path, content))
    assert data.load_item(0).image.shape == (3, 20, 40)


@pytest.mark.parametrize("name", ["../a.png", "/etc/hosts", "b/../../a.png"])
def test_an_image_outside_the_folder_is_refused(tmp_path: Path, content: dict[str, Any], name: str):
    content["images"][1]["file_name"] = name
    assert "1 of 3 images are outside the folder" in refused(tmp_path, content)


def test_one_image_in_two_spellings_is_found(tmp_path: Path, content: dict[str, Any]):
    content["images"][1]["file_name"] = "./a.png"
    assert "repeated file names in `images`: 'a.png'" in refused(tmp_path, content)


@pytest.mark.parametrize(("slip", "meant"), [("annoted", "annotated"), ("concept", "concepts"), ("task", "tasks")])
def test_a_misspelt_field_is_named(tmp_path: Path, content: dict[str, Any], slip: str, meant: str):
    content["images"][1][slip] = False
    assert refused(tmp_path, content) == (
        f"images have a field {slip!r}, which nothing reads; did you mean {meant!r}? Rename it"
    )


def test_fields_of_other_programs_are_left_alone(tmp_path: Path, content: dict[str, Any]):
    content["images"][1] |= {
        "license": 1,
        "flickr_url": "",
        "coco_url": "",
        "date_captured": "",
        "annotations": 3,
        "tags": [],
    }
    assert CocoDataset(*write(tmp_path, content)).patients is None


@pytest.mark.parametrize("key", ["patient", "patient_id"])
def test_patients_are_read(tmp_path: Path, content: dict[str, Any], key: str):
    content["images"][0][key], content["images"][1][key] = "p1", 7
    assert CocoDataset(*write(tmp_path, content)).patients == ["p1", "7", ""]


@pytest.mark.parametrize("width", [0, -40, float("nan")])
def test_images_without_a_size_are_refused(tmp_path: Path, content: dict[str, Any], width: float):
    content["images"][1]["width"] = width
    assert refused(tmp_path, content) == "width and height must be above 0, which they are not for 'b.png'"


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("images", "file_name", 5),
        ("annotations", "bbox", None),
        ("categories", "name", None),
        ("categories", "id", [1]),
    ],
)
def test_entries_without_what_they_need_are_refused(
    tmp_path: Path, content: dict[str, Any], part: str, key: str, value: Any
):
    content[part][1][key] = value
    message = refused(tmp_path, content)
    assert message.startswith(f"1 of {len(content[part])} `{part}` lack one of [") and key in message


def test_no_file_and_no_folder_are_named(tmp_path: Path, content: dict[str, Any]):
    path, folder = write(tmp_path, content)
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        CocoDataset(tmp_path / "nowhere.json", folder)
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
        CocoDataset(path, tmp_path / "nowhere")


def test_an_image_of_another_size_than_stated_is_refused(tmp_path: Path, content: dict[str, Any]):
    data = CocoDataset(*write(tmp_path, content))
    Image.new("RGB", (20, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"image 'a.png' is 20 x 40 pixels .*, but the JSON file says 40 x 20"):
        data[0]


def test_an_unreadable_image_is_named_and_not_replaced(tmp_path: Path, content: dict[str, Any]):
    data = CocoDataset(*write(tmp_path, content))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read the image '.*a.png'"):
        data[0]


def edit(**changes: Any) -> Any:
    """The content with fields of its first image, annotation or category changed, as in `image__id`."""
    found = copy.deepcopy(CONTENT)
    places = {"image": "images", "annotation": "annotations", "category": "categories"}
    for path, value in changes.items():
        part, key = path.split("__")
        found[places[part]][0][key] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image__id": True},
            "1 of 3 `images` lack one of .*, or have it in another type; first: {'file_name': 'a.png'",
        ),
        ({"annotation__category_id": False}, "1 of 4 `annotations` lack one of"),
        ({"annotation__bbox": [True, 0, 5, 3]}, r"1 of 4 boxes cannot be: \[True, 0, 5, 3\] \(annotation 1\)"),
        (
            {"annotation__bbox": [10**400, 0, 5, 3]},
            "1 of 4 boxes cannot be: .*expected .x, y, width, height. in pixels, not",
        ),
        ({"annotation__bbox": [0, 0, 1e400, 3]}, "1 of 4 boxes cannot be: "),
        ({"image__width": 10**400}, "width and height must be at most 1,000,000, which they are not for 'a.png'"),
        ({"image__width": True}, "'width' of image 'a.png' is True; expected such as 640"),
        (
            {"image__concepts": {"Edema": True}},
            "the label of 'Edema' of image 'a.png' is True; expected 0 to 1, -1 for",
        ),
        ({"image__concepts": {"Edema": 10**400}}, "the label of 'Edema' of image 'a.png' is a number of more than 60"),
        (
            {"category__name": "\ud800"},
            r"`categories` has names with characters that cannot be printed: '\\ud800'; take",
        ),
        ({"image__file_name": "\ud800.png"}, r"`file names` has names with characters that cannot be printed"),
        ({"image__tasks": {"\x1b[2J": 1}}, "`tasks` has names with characters that cannot be printed"),
    ],
)
def test_numbers_and_names_that_cannot_be_are_refused(tmp_path, changes, message):
    assert re.search(message, refused(tmp_path, edit(**changes)))


def test_a_file_that_says_something_twice_is_refused(tmp_path):
    text = json.dumps(CONTENT)[:-1] + ', "annotations": []}'
    assert "holds a name twice in one object ['annotations']; keep one of them" in refused(tmp_path, text)


def test_a_file_that_is_nested_beyond_reason_is_refused(tmp_path):
    assert "boxes.json' is nested too deeply" in refused(tmp_path, '{"images": ' + "[" * 100_000)


@pytest.mark.parametrize("box", [[0.25, 0.25, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.01]])
def test_one_box_in_fractions_among_pixels_is_refused(tmp_path, box):
    said = refused(tmp_path, edit(annotation__bbox=box))
    assert said.startswith(f"1 of 4 boxes cannot be: {box}") and "in pixels, not in fractions" in said


def test_a_file_of_boxes_in_fractions_is_refused(tmp_path):
    content = copy.deepcopy(CONTENT)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for entry in content["annotations"]:
        width, height = sizes[entry["image_id"]]
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x / width, y / height, w / width, h / height]
    assert refused(tmp_path, content).startswith("4 of 4 boxes cannot be: [0.25, 0.25, 0.5, 0.5] ")
