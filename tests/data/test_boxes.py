import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from conceptcam.data.boxes import ConceptBoxes

nan, inf = torch.nan, torch.inf


def boxes_of(
    *rows: tuple[float, ...], concept: list[int] | None = None, image: list[int] | None = None
) -> ConceptBoxes:
    """Boxes of concept 0 in image 0, unless said otherwise."""
    return ConceptBoxes(
        torch.tensor(rows, dtype=torch.float64),
        torch.tensor(concept or [0] * len(rows)),
        torch.tensor(image or [0] * len(rows)),
    )


def boxes_on_lattice(seed: int, *, n: int, shape: tuple[int, int, int, int], steps: int) -> tuple[Tensor, ConceptBoxes]:
    """Boxes whose corners are points of a lattice with `steps` steps per cell, and those corners as whole numbers."""
    random = torch.Generator().manual_seed(seed)
    images, concepts, height, width = shape
    sizes = torch.tensor([width * steps, height * steps])
    first = (torch.rand(n, 2, generator=random) * (sizes - 1)).long()
    second = first + 1 + (torch.rand(n, 2, generator=random) * (sizes - first - 1)).long()
    points = torch.cat([first, second], dim=1)
    boxes = ConceptBoxes(
        points / sizes.repeat(2).double(),
        torch.randint(concepts, (n,), generator=random),
        torch.randint(images, (n,), generator=random),
    )
    return points, boxes


def counted_coverage(points: Tensor, boxes: ConceptBoxes, shape: tuple[int, int, int, int], steps: int) -> Tensor:
    """Coverage by counting the lattice squares of each cell that lie in each box, one at a time."""
    covered = torch.zeros(shape, dtype=torch.float64)
    for (left, top, right, bottom), concept, image in zip(
        points.tolist(), boxes.concept.tolist(), boxes.image.tolist(), strict=True
    ):
        one = torch.zeros(shape[2], shape[3], dtype=torch.float64)
        for y in range(top, bottom):
            for x in range(left, right):
                one[y // steps, x // steps] += 1 / steps**2
        covered[image, concept] = torch.maximum(covered[image, concept], one)
    return covered


fractions = st.floats(0, 1).map(lambda value: round(value, 4))


@st.composite
def valid_box(draw: st.DrawFn) -> tuple[float, float, float, float]:
    left, right = sorted(draw(st.lists(fractions, min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(fractions, min_size=2, max_size=2, unique=True)))
    return left, top, right, bottom


sides = st.integers(1, 24)


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (3, 2, 5, 9), (1, 1, 1, 1)])
def test_coverage_is_what_counting_small_squares_gives(shape):
    for seed in range(5):
        points, boxes = boxes_on_lattice(seed, n=12, shape=shape, steps=4)
        torch.testing.assert_close(boxes.coverage(shape), counted_coverage(points, boxes, shape, steps=4))


@settings(max_examples=200, deadline=None)
@given(valid_box(), sides, sides)
def test_coverage_times_cell_area_sums_to_the_area_of_the_box(box, height, width):
    left, top, right, bottom = box
    coverage = boxes_of(box).coverage((1, 1, height, width))
    assert coverage.sum().item() / (height * width) == pytest.approx((right - left) * (bottom - top), rel=1e-6)
    assert coverage.min() >= 0 and coverage.max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(valid_box(), min_size=2, max_size=4), sides, sides, st.sampled_from(["coverage", "center"]))
def test_the_union_of_a_pair_is_nowhere_less_than_any_of_its_boxes(rows, height, width, rule):
    shape = (1, 1, height, width)
    (union,) = boxes_of(*rows).pair_masks(shape, rule).inside
    for row in rows:
        (alone,) = boxes_of(row).pair_masks(shape, rule).inside
        assert (union >= alone).all()


@settings(max_examples=100, deadline=None)
@given(valid_box(), sides, sides, st.sampled_from(["coverage", "center"]))
def test_every_valid_box_marks_at_least_one_cell(box, height, width, rule):
    assert boxes_of(box).pair_masks((1, 1, height, width), rule).inside.sum() > 0


def test_an_11_pixel_box_keeps_its_area():
    side, grid, start = 224, 14, 18
    box = (start / side, start / side, (start + 11) / side, (start + 11) / side)
    by_int = [int(start / side * grid), int((start + 11) / side * grid)]
    assert by_int == [1, 1], "the rule of the predecessor makes this mask empty"
    coverage = boxes_of(box).coverage((1, 1, grid, grid))
    assert coverage.sum().item() == pytest.approx((11 / 16) ** 2)
    assert coverage[0, 0, 1, 1] > 0


def test_the_documented_box_has_9_cells_by_centre_7_84_by_area():
    box = boxes_of((0.3, 0.4, 0.7, 0.8))
    (center,) = box.pair_masks((1, 1, 7, 7), "center").inside
    expected = torch.zeros(7, 7, dtype=torch.float64)
    expected[3:6, 2:5] = 1
    assert torch.equal(center, expected)
    assert box.coverage((1, 1, 7, 7)).sum().item() == pytest.approx(7.84)


@pytest.mark.parametrize("height, width", [(7, 7), (3, 11)])
def test_center_marks_cells_with_centre_inside_and_the_middle_one(height, width):
    random = torch.Generator().manual_seed(3)
    for _ in range(30):
        low, high = torch.rand(2, 2, generator=random, dtype=torch.float64).sort(dim=0).values
        box = (low[0].item(), low[1].item(), high[0].item(), high[1].item())
        (inside,) = boxes_of(box).pair_masks((1, 1, height, width), "center").inside
        left, top, right, bottom = box
        for row in range(height):
            for column in range(width):
                x, y = (column + 0.5) / width, (row + 0.5) / height
                in_x = left <= x <= right or column == int((left + right) / 2 * width)
                in_y = top <= y <= bottom or row == int((top + bottom) / 2 * height)
                assert inside[row, column] == (in_x and in_y)


def test_a_tiny_box_marks_by_centre_the_one_cell_it_is_in():
    (inside,) = boxes_of((0.26, 0.01, 0.27, 0.02)).pair_masks((1, 1, 4, 4), "center").inside
    assert inside.nonzero().tolist() == [[0, 1]]


def test_rows_are_y_and_columns_are_x():
    coverage = boxes_of((0.5, 0.0, 1.0, 0.25)).coverage((1, 1, 4, 2))
    assert coverage[0, 0].nonzero().tolist() == [[0, 1]]


def test_a_full_image_box_covers_every_cell_wholly():
    assert torch.equal(boxes_of((0, 0, 1, 1)).coverage((1, 1, 7, 13)), torch.ones(1, 1, 7, 13, dtype=torch.float64))


def test_pairs_name_each_image_and_concept_with_a_box_once():
    boxes = boxes_of(*[(0.1, 0.1, 0.4, 0.4)] * 4, concept=[2, 0, 2, 2], image=[1, 0, 1, 0])
    pairs = boxes.pair_masks((2, 3, 4, 4))
    assert sorted(zip(pairs.image.tolist(), pairs.concept.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 2)]
    assert pairs.inside.shape == (3, 4, 4)


def test_both_spellings_of_a_dict_are_the_same_box():
    corners = [0.1, 0.2, 0.3, 0.4]
    named = dict(zip(("x_min", "y_min", "x_max", "y_max"), corners, strict=True))
    first = ConceptBoxes.from_dicts([[], [{"concept_idx": 4, "bbox": corners}]])
    second = ConceptBoxes.from_dicts([None, [{"concept_idx": 4, **named}]])
    for boxes in (first, second):
        assert boxes.xyxy.tolist() == [pytest.approx(corners)]
        assert (boxes.concept.tolist(), boxes.image.tolist()) == ([4], [1])


def test_a_dict_may_hold_tensors_and_numpy_numbers():
    box = {"concept_idx": torch.tensor(2), "bbox": torch.tensor([0.0, 0.0, 0.5, 0.5]).numpy()}
    boxes = ConceptBoxes.from_dicts([[box]])
    assert (boxes.concept.tolist(), boxes.xyxy.tolist()) == ([2], [[0.0, 0.0, 0.5, 0.5]])


def test_joining_numbers_images_in_order_and_none_keeps_its_number():
    one = boxes_of((0, 0, 0.5, 0.5), (0, 0, 1, 1), concept=[1, 3])
    joined = ConceptBoxes.cat([one, None, ConceptBoxes.empty(), one])
    assert joined.image.tolist() == [0, 0, 3, 3]
    assert joined.concept.tolist() == [1, 3, 1, 3]


def test_nothing_but_none_joins_to_no_boxes():
    assert len(ConceptBoxes.cat([None, None])) == len(ConceptBoxes.cat([])) == len(ConceptBoxes.empty()) == 0


def test_no_boxes_cover_nothing():
    assert torch.equal(ConceptBoxes.empty().coverage((2, 3, 4, 5)), torch.zeros(2, 3, 4, 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_small_integer_indices_do_not_overflow(dtype):
    boxes = ConceptBoxes(
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([90], dtype=dtype), torch.tensor([100], dtype=dtype)
    )
    coverage = boxes.coverage((101, 100, 1, 1))
    assert coverage.nonzero().tolist() == [[100, 90, 0, 0]]


@pytest.mark.parametrize("copied", [lambda b: b.to("cpu"), copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_a_copy_keeps_boxes_and_still_checks_indices(copied):
    boxes = boxes_of((0.1, 0.2, 0.3, 0.4), (0, 0, 1, 1), concept=[5, 1], image=[0, 2])
    other = copied(boxes)
    for name in ("xyxy", "concept", "image"):
        assert torch.equal(getattr(other, name), getattr(boxes, name))
    other.check_fits(3, 6)
    with pytest.raises(ValueError, match="concept index 5, but there are 5"):
        other.check_fits(3, 5)


def test_to_another_device_moves_every_tensor():
    moved = boxes_of((0, 0, 1, 1)).to("meta")
    assert {moved.xyxy.device.type, moved.concept.device.type, moved.image.device.type} == {"meta"}


class _Boxes(Dataset[ConceptBoxes]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> ConceptBoxes:
        return boxes_of(*[(0.0, 0.0, 0.5, (index + 1) / 4)] * index) if index else ConceptBoxes.empty()


def test_boxes_come_whole_out_of_a_worker_process():
    (batch,) = DataLoader(_Boxes(), batch_size=4, num_workers=1, collate_fn=ConceptBoxes.cat)
    assert batch.image.tolist() == [1, 2, 2, 3, 3, 3]
    assert batch.xyxy[-1].tolist() == [0, 0, 0.5, 1]


def make(
    xyxy: Any = ((0.1, 0.1, 0.2, 0.2),), concept: Any = (0,), image: Any = (0,), dtype: torch.dtype = torch.float32
) -> ConceptBoxes:
    return ConceptBoxes(torch.tensor(xyxy, dtype=dtype), torch.tensor(concept), torch.tensor(image))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"xyxy": [[0.1, 0.1, 1.2, 0.2]]}, r"box 0 is \[.*1\.2.*expected 0 <= left < right <= 1"),
        ({"xyxy": [[-0.1, 0.1, 0.2, 0.2]]}, "box 0 is .*expected 0 <= left"),
        ({"xyxy": [[0.1, 0.1, 0.1, 0.2]]}, "box 0 is .*left < right"),
        ({"xyxy": [[0.1, 0.3, 0.2, 0.2]]}, "box 0 is .*top < bottom"),
        ({"xyxy": [[0.1, nan, 0.2, 0.3]]}, "box 0 is .*nan"),
        ({"xyxy": [[0.1, 0.1, inf, 0.3]]}, "box 0 is .*inf"),
        ({"xyxy": [[10.0, 20.0, 50.0, 60.0]]}, "Divide pixel boxes by the image size first"),
        ({"xyxy": [[0.5, 0.6, 0.3, 0.2]]}, r"\(x, y, x \+ width, y \+ height\)"),
        ({"xyxy": [[10, 20, 50, 60]], "dtype": torch.int64}, r"must be floats of shape \(N, 4\), got torch.int64"),
        ({"xyxy": [0.1, 0.1, 0.2, 0.2]}, r"must be floats of shape \(N, 4\), got .* \(4,\)"),
        ({"xyxy": [[0.1, 0.1, 0.2]]}, r"shape \(N, 4\)"),
        ({"concept": [0, 1]}, r"one concept and one image per box, got 1 boxes with `concept` of shape \(2,\)"),
        ({"image": []}, r"one concept and one image per box.*`image` of shape \(0,\)"),
        ({"concept": [0.0]}, "`concept` must hold integer indices, got torch.float32"),
        ({"image": [True]}, "`image` must hold integer indices, got torch.bool"),
        ({"concept": [-1]}, "negative concept or image index; count from 0"),
        ({"image": [-2]}, "negative concept or image index"),
    ],
)
def test_bad_boxes_are_refused_in_a_sentence_that_says_why(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_the_refusal_names_the_first_bad_box():
    with pytest.raises(ValueError, match="box 2 is"):
        boxes_of((0, 0, 1, 1), (0, 0, 1, 1), (0.5, 0, 0.4, 1), (2, 2, 3, 3))


@pytest.mark.parametrize("ask", [lambda b: b.coverage((2, 3, 4, 4)), lambda b: b.pair_masks((2, 3, 4, 4))])
def test_an_index_that_is_not_there_is_refused_with_both_numbers(ask):
    with pytest.raises(ValueError, match="concept index 3, but there are 3 concepts"):
        ask(make(concept=[3]))
    with pytest.raises(ValueError, match="image index 2, but the batch has 2 images"):
        ask(make(image=[2]))


@pytest.mark.parametrize(
    "box, message",
    [
        ({"bbox": [0, 0, 1, 1], "concept_idx": True}, "'concept_idx' must be an integer, got True in"),
        (
            {"bbox": [0, 0, 1, 1], "concept_idx": 0, "format": "xywh"},
            r"a box has entries that nothing reads, \['format'\]",
        ),
        (
            {"bbox": [0, 0, 1, 1], "concept_idx": 0, "x_min": 0.5},
            "a box says where it is twice, by 'bbox' and by 'x_min'",
        ),
        ({"bbox": [0, 0, 1, 1]}, "a box needs 'concept_idx', got"),
        ({"concept_idx": 1}, "'bbox' with 4 numbers or x_min, y_min, x_max and y_max, got .*concept_idx"),
        ({"concept_idx": 1, "bbox": [0, 0, 1]}, "'bbox' with 4 numbers"),
        ({"concept_idx": 1, "bbox": None}, "'bbox' with 4 numbers"),
        ({"concept_idx": 1, "bbox": ["left", 0, 1, 1]}, "'bbox' with 4 numbers"),
        ({"concept_idx": 1, "x_min": 0, "y_min": 0, "x_max": 1}, "x_min, y_min, x_max and y_max"),
        ({"concept_idx": 1.7, "bbox": [0, 0, 1, 1]}, "'concept_idx' must be an integer, got 1.7"),
        ({"concept_idx": "1", "bbox": [0, 0, 1, 1]}, "'concept_idx' must be an integer, got '1'"),
        ({"concept_idx": 1, "bbox": [0, 0, 224, 224]}, "Divide pixel boxes by the image size"),
        ({"concept_idx": -1, "bbox": [0, 0, 1, 1]}, "negative concept or image index"),
    ],
)
def test_bad_dicts_are_refused_in_a_sentence_that_says_why(box, message):
    with pytest.raises(ValueError, match=message):
        ConceptBoxes.from_dicts([[box]])


def test_an_unknown_mask_rule_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown `rule` 'centre'; did you mean .*; known: \['coverage', 'center'\]"):
        make().pair_masks((1, 1, 4, 4), "centre")


@pytest.mark.parametrize(
    ("form", "box"), [("xyxy", [8, 4, 24, 12]), ("xywh", [8, 4, 16, 8]), ("cxcywh", [16, 8, 16, 8])]
)
def test_boxes_in_pixels_become_fractions_in_each_form(form, box):
    from torchvision import tv_tensors

    boxes = ConceptBoxes.from_pixels(torch.tensor([box]), [2], (16, 32), form=form)
    assert boxes.xyxy.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert (boxes.concept.tolist(), boxes.image.tolist()) == ([2], [0])
    drawn = tv_tensors.BoundingBoxes(torch.tensor([box]), format=form.upper(), canvas_size=(16, 32))
    from_torchvision = ConceptBoxes.from_pixels(drawn, [2])
    assert from_torchvision.xyxy.equal(boxes.xyxy) and type(from_torchvision.xyxy) is torch.Tensor


def test_boxes_in_pixels_need_the_size_of_their_image():
    with pytest.raises(ValueError, match="boxes in pixels need the `size`"):
        ConceptBoxes.from_pixels(torch.tensor([[8, 4, 24, 12]]), [0])
    with pytest.raises(ValueError, match="expected 0 <= left < right <= 1"):
        ConceptBoxes.from_pixels(torch.tensor([[8, 4, 40, 12]]), [0], (16, 32))
    assert len(ConceptBoxes.from_pixels(torch.zeros(0, 4), [], (16, 32))) == 0


def test_boxes_changed_in_place_are_checked_again_where_used():
    boxes = ConceptBoxes(torch.tensor([[0.1, 0.1, 0.4, 0.4]]), torch.tensor([0]), torch.tensor([0]))
    boxes.concept[0] = 5  # would be a concept of the next image
    with pytest.raises(ValueError, match="a box has concept index 5, but there are 3 concepts"):
        boxes.pair_masks((2, 3, 4, 4))
    boxes.concept[0] = 2
    assert boxes.pair_masks((2, 3, 4, 4)).concept.tolist() == [2]
    boxes.xyxy[0, 2] = float("nan")
    with pytest.raises(ValueError, match="box 0 is .*nan.*; expected 0 <= left < right <= 1"):
        boxes.to("cpu").pair_masks((2, 3, 4, 4))
