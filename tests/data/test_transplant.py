"""Findings that are put into another background: what stays, what is replaced, and what can no longer be learned."""

import pytest
import torch
from torch import Tensor

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.transplant import FindingTransplant, soft_boxes

SIDE = 20
CORNER = (slice(0, 3), slice(17, 20))


class Marked(ConceptDataset):
    """Grey squares of their index; those with a finding have it in the middle, and a white corner."""

    concepts, tasks = ("Nodule",), ()

    def __init__(self, present: list[float], *, drawn: bool = True, side: int = SIDE) -> None:
        self.concept_labels = torch.tensor(present)[:, None]
        self.task_labels = torch.zeros(len(present), 0)
        self.drawn, self.side = drawn, side

    def load_item(self, index: int) -> ConceptItem:
        image = torch.full((3, self.side, self.side), index, dtype=torch.uint8)
        has = bool(self.concept_labels[index, 0] > 0)
        if has:
            image[:, 8:12, 8:12] = 200
            image[:, *CORNER] = 255
        box = [[{"concept_idx": 0, "bbox": (0.4, 0.4, 0.6, 0.6)}] if has else []]
        boxes = ConceptBoxes.from_dicts(box) if self.drawn else None
        return ConceptItem(image, self.concept_labels[index], self.task_labels[index], boxes, str(index))


def inside() -> Tensor:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[8:12, 8:12] = True
    return mask


@pytest.mark.parametrize("fade", [0.0, 0.1])
def test_the_finding_stays_and_what_is_far_from_it_is_the_hosts(fade):
    data = Marked([1.0, 0.0])
    item = data.load_item(0)
    moved = FindingTransplant(data, fade=fade)(item)
    assert torch.equal(moved.image[:, inside()], item.image[:, inside()])
    reach = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    width = round(fade * SIDE)
    reach[8 - width : 12 + width, 8 - width : 12 + width] = True
    assert (moved.image[:, ~reach] == 1).all()
    assert moved.concepts is item.concepts and moved.boxes is item.boxes and moved.name == item.name


def test_the_region_is_the_hosts_where_its_pixels_are():
    data = Marked([1.0, 0.0])
    regions = torch.ones(SIDE, SIDE, dtype=torch.uint8), torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    load_item = data.load_item
    data.load_item = lambda index: load_item(index)._replace(region=regions[index])
    moved = FindingTransplant(data, fade=0.0)(data.load_item(0)).region
    assert moved is not None and torch.equal(moved.bool(), inside())
    assert FindingTransplant(data)(data.load_item(0)._replace(region=None)).region is None


def test_a_mark_that_goes_with_a_finding_is_gone_with_it():
    data = Marked([1.0, 0.0, 1.0, 0.0])
    data.augmentation = FindingTransplant(data)
    assert all((data.load_item(index).image[:, *CORNER] == 255).all() for index in (0, 2))
    assert not any((data[index].image[:, *CORNER] == 255).any() for index in range(4))


def test_images_without_findings_get_empty_patches_too():
    data = Marked([0.0, 0.0, 1.0])
    torch.manual_seed(0)
    seen = {tuple(FindingTransplant(data, fade=0.0)(data.load_item(0)).image[0][[0, 9], [0, 9]].tolist())}
    for _ in range(20):
        seen.add(tuple(FindingTransplant(data, fade=0.0)(data.load_item(0)).image[0][[0, 9], [0, 9]].tolist()))
    assert seen == {(0, 0), (1, 0)}  # the middle is its own, what is around it of either image without findings


@pytest.mark.parametrize("data", [Marked([1.0, 0.0], drawn=False)], ids=["nobody drew"])
def test_an_item_without_boxes_of_its_findings_is_left_alone(data):
    item = data.load_item(0)
    assert FindingTransplant(data)(item) is item
    empty = item._replace(boxes=ConceptBoxes.empty())  # the concept is present, yet has no box
    assert FindingTransplant(data)(empty) is empty


def test_a_host_of_another_size_is_resized():
    data, larger = Marked([1.0, 0.0]), Marked([1.0, 0.0], side=30)
    moved = FindingTransplant(larger)(data.load_item(0))
    assert moved.image.shape == (3, SIDE, SIDE) and moved.image.dtype == torch.uint8
    assert (moved.image[:, 0, 0] == 1).all()


def test_images_as_floats_stay_floats():
    data = Marked([1.0, 0.0])
    item = data.load_item(0)
    moved = FindingTransplant(data)(item._replace(image=item.image / 255)).image
    assert moved.is_floating_point() and torch.equal(moved[:, inside()], (item.image / 255)[:, inside()])
    assert (moved[:, 0, 0] == 1 / 255).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FindingTransplant(Marked([1.0, float("nan")])), "no image is known to be without findings"),
        (lambda: FindingTransplant(Marked([0.0]), fade=0.6), r"`fade` must be in \[0, .5\], got 0.6"),
    ],
)
def test_transplants_that_cannot_be_made_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_soft_boxes_fall_off_linearly_and_join():
    boxes = torch.tensor([[0.2, 0.2, 0.5, 0.5], [0.3, 0.3, 0.7, 0.9]])
    soft = soft_boxes(boxes, (40, 20), 0.1)
    for row, column in [(0, 0), (8, 4), (6, 5), (20, 10), (36, 14), (38, 12), (12, 2)]:
        x, y = (column + 0.5) / 20, (row + 0.5) / 40
        each = [
            min(1, max(0, 1 + min(x - x0, x1 - x) / 0.1)) * min(1, max(0, 1 + min(y - y0, y1 - y) / 0.1))
            for x0, y0, x1, y1 in boxes.tolist()
        ]
        assert soft[row, column].item() == pytest.approx(max(each), abs=1e-5)
    assert torch.equal(soft_boxes(torch.zeros(0, 4), (3, 4), 0.1), torch.zeros(3, 4))
