"""Data sets that are joined keep their images, boxes and patients; labels are matched by name."""

from pathlib import Path

import pytest
import torch

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.image_cache import ImageCache
from conceptcam.data.inspection import inspect_dataset
from conceptcam.data.joined import JoinedDataset, compare_labels


class Few(ConceptDataset):
    """Images of one value each, with a box of each concept that is present."""

    def __init__(self, prefix: str, concepts: tuple[str, ...], labels: list[list[float]], patients: list[str] | None):
        self.prefix, self.concepts, self.tasks = prefix, concepts, ()
        self.concept_labels, self.task_labels = torch.tensor(labels), torch.zeros(len(labels), 0)
        self.patients = patients

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}{number}" for number in range(len(self))]

    def boxes_of(self, index: int) -> ConceptBoxes:
        present = (self.concept_labels[index] == 1).nonzero()[:, 0]
        corners = torch.tensor([[0.1, 0.2, 0.3, 0.5]]).expand(len(present), 4) + 0.1 * present[:, None]
        return ConceptBoxes(corners, present, torch.zeros_like(present))

    @property
    def all_boxes(self) -> ConceptBoxes:
        return ConceptBoxes.cat([self.boxes_of(index) for index in range(len(self))])

    def load_item(self, index: int) -> ConceptItem:
        image = torch.full((3, 4, 4), index, dtype=torch.uint8)
        labels = self.concept_labels[index], self.task_labels[index]
        return ConceptItem(image, *labels, self.boxes_of(index), self.names[index])


@pytest.fixture
def parts() -> dict[str, Few]:
    first = Few("a", ("veil", "dots"), [[1, 0], [0, 1], [1, 1]], ["p0", "p1", "p1"])
    return {"first": first, "second": Few("b", ("dots", "red"), [[1, 0], [1, 1]], None)}


def test_items_of_joined_data_are_those_of_its_parts(parts: dict[str, Few]):
    joined = JoinedDataset(list(parts.values()))
    assert joined.concepts == ("veil", "dots", "red") and list(joined.names) == ["a0", "a1", "a2", "b0", "b1"]
    assert joined.patients is not None and list(joined.patients) == ["p0", "p1", "p1", "", ""]
    expected = [(one, index) for one in parts.values() for index in range(len(one))]
    for row, (one, index) in enumerate(expected):
        item, own = joined[row], one[index]
        assert item.name == own.name and torch.equal(item.image, own.image)
        for number, name in enumerate(joined.concepts):
            label = float(item.concepts[number])
            assert label == own.concepts[one.concepts.index(name)] if name in one.concepts else label != label
        assert item.boxes is not None and own.boxes is not None
        named = [joined.concepts[k] for k in item.boxes.concept.tolist()]
        assert named == [one.concepts[k] for k in own.boxes.concept.tolist()]


def test_boxes_of_joined_data_are_those_of_its_items(parts: dict[str, Few]):
    joined = JoinedDataset(list(parts.values()))
    boxes = joined.all_boxes
    one_by_one = ConceptBoxes.cat([item.boxes for item in joined])
    assert boxes is not None
    for name in ("xyxy", "concept", "image"):
        assert torch.equal(getattr(boxes, name), getattr(one_by_one, name))


def test_labels_that_a_part_lacks_are_named(parts: dict[str, Few]):
    assert [fault.text for fault in compare_labels(parts)] == [
        "first does not have the concepts 'red', which another part has",
        "second does not have the concepts 'veil', which another part has",
    ]
    assert compare_labels({"a": parts["first"], "b": parts["first"]}) == []
    with pytest.raises(ValueError, match="`datasets` is empty; expected at least one"):
        JoinedDataset([])


class Files(Few):
    """Images in a folder."""

    def __init__(self, folder: Path):
        super().__init__("", ("veil", "dots"), [[1, 0], [0, 1]], None)
        self.folder = folder
        self.cache: ImageCache | None = None

    @property
    def image_cache(self) -> ImageCache | None:
        return self.cache

    def cache_images(self, cache: ImageCache | None) -> None:
        self.cache = cache

    def load_item(self, index: int) -> ConceptItem:
        ramp = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).expand(3, 4, 4) * (index + 1)
        return super().load_item(index)._replace(image=ramp if index else ramp.flip(-1))


def test_equal_names_are_one_file_only_in_one_folder(tmp_path: Path):
    def kinds(*folders: str, parts: list[str] | None) -> set[str]:
        joined = JoinedDataset([Files(tmp_path / one) for one in folders])
        found = inspect_dataset(joined, parts=parts, image_size=(4, 4)).faults
        return {fault.kind for fault in found} & {"image on both sides", "image twice"}

    halves = ["train", "train", "val", "val"]
    assert kinds("a", "b", parts=halves) == kinds("a", "a", parts=None) == {"image twice"}
    assert kinds("a", "a", parts=halves) == {"image on both sides"}


def test_joined_data_share_a_cache(tmp_path: Path):
    first, second = Files(tmp_path), Files(tmp_path)
    joined = JoinedDataset([first, second])
    with ImageCache(tmp_path / "cache", (4, 4)) as cache:
        first.cache_images(cache)
        assert joined.image_cache is None
        joined.cache_images(cache)
        assert joined.image_cache is second.cache is cache


def with_tasks(part: Few, kind: str, tasks: tuple[str, ...]) -> Few:
    part.tasks, part.task_kind = tasks, kind
    part.task_labels = torch.eye(len(tasks)).repeat(len(part), 1)[: len(part)]
    return part


def test_tasks_of_two_kinds_are_not_joined(parts: dict[str, Few]):
    first, second = parts.values()
    with_tasks(first, "multilabel", ("pneumonia",)), with_tasks(second, "multiclass", ("nevus", "melanoma"))
    with pytest.raises(ValueError, match=r"'multiclass': nevus, melanoma\) and .* \('multilabel': pneumonia\)"):
        JoinedDataset([first, second])


def test_joined_tasks_are_of_the_kind_of_data_that_have_tasks(parts: dict[str, Few]):
    first, second = parts.values()
    with_tasks(second, "multiclass", ("nevus", "melanoma"))
    assert JoinedDataset([first, second]).task_kind == "multiclass"  # the first has none, and so no kind
    joined = JoinedDataset([second, with_tasks(first, "multiclass", ("nevus", "melanoma"))])
    assert joined.task_kind == "multiclass" and joined.task_labels.sum(dim=1).tolist() == [1] * 5
