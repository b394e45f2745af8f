"""Preprocessing is one reversible step, and boxes stay on the pixels they were drawn on."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from conceptcam.data.batch import ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.transforms import BoxAwareTransform, Preprocess, default_augmentation

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMOOTH = InterpolationMode.BILINEAR


def make_item(boxes: list[list[int]], size: tuple[int, int] = (80, 100)) -> ConceptItem:
    """Box i marks concept i and is painted white in channel i."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for channel, (left, top, right, bottom) in enumerate(boxes):
        image[channel, top:bottom, left:right] = 255
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    fractions = corners / torch.tensor([size[1], size[0]] * 2)
    count = torch.arange(len(boxes))
    return ConceptItem(
        image,
        torch.ones(3),
        torch.zeros(2),
        ConceptBoxes(fractions, count, torch.zeros_like(count)),
        "painted",
    )


def painted(image: Tensor) -> tuple[list[float], float]:
    """Left, top, right, bottom and area, in pixels, of what is at least half white in (H, W)."""
    rows, columns = np.nonzero(image.numpy() >= 128)
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0], 0.0
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float(len(rows))


def misfit(item: ConceptItem) -> tuple[float, float]:
    """How far, in pixels, boxes cut paint off, and how far they reach beyond it; worst over boxes."""
    assert item.boxes is not None
    height, width = item.image.shape[1:]
    cut, beyond = 0.0, 0.0
    for box, concept in zip(item.boxes.xyxy, item.boxes.concept, strict=True):
        paint, _ = painted(item.image[concept])
        outward = np.array([-1, -1, 1, 1]) * (box.numpy() * [width, height, width, height] - paint)
        cut, beyond = max(cut, -outward.min()), max(beyond, outward.max())
    return cut, beyond


@st.composite
def box_lists(draw: st.DrawFn) -> list[list[int]]:
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(0, 70)), draw(st.integers(0, 50))
        boxes.append([left, top, left + draw(st.integers(8, 30)), top + draw(st.integers(8, 30))])
    return boxes


# Transform, most pixels that a box may cut off, most pixels that it may reach beyond the paint. Half a pixel is the
# grid's. At the image's border torchvision fades paint twice, by interpolating with the zeros outside and by its mask
# of the fill, so half of the white is left at sqrt(1/2) of the fade and not at 1/2: .21 pixels further in, times 1.2
# where the image is enlarged.
GEOMETRY = {
    "horizontal flip": (v2.RandomHorizontalFlip(p=1), 0, 0),
    "vertical flip": (v2.RandomVerticalFlip(p=1), 0, 0),
    "center crop": (v2.CenterCrop((50, 60)), 0, 0),
    "random crop": (v2.RandomCrop((50, 60)), 0, 0),
    "crop wider than the image": (v2.RandomCrop((60, 120), pad_if_needed=True), 0, 0),
    "pad": (v2.Pad([3, 5, 7, 9]), 0, 0),
    "zoom out": (v2.RandomZoomOut(p=1), 0, 0),
    "quarter turn": (v2.RandomRotation((90, 90), expand=True), 0, 0),
    "crop, then pad": (v2.Compose([v2.CenterCrop((50, 60)), v2.Pad(10)]), 0, 0),
    "crop, then sanitize": (v2.Compose([v2.RandomCrop((50, 60)), v2.SanitizeBoundingBoxes()]), 0, 0),
    "resize": (v2.Resize((130, 70)), 1, 1),
    "resized crop": (v2.RandomResizedCrop((64, 64), scale=(0.5, 1)), 1, 1.5),
    "shift and scale": (
        v2.RandomAffine(0, translate=(0.2, 0.2), scale=(0.8, 1.2), interpolation=SMOOTH),
        0.51,
        0.76,
    ),
    "turn by up to 15 degrees": (v2.RandomAffine(15, interpolation=SMOOTH), 0.6, 6),
    "default augmentation": (default_augmentation().transform, 0.6, 3),
}


@pytest.mark.parametrize("name", GEOMETRY)
@settings(max_examples=15, deadline=None)
@given(boxes=box_lists(), seed=st.integers(0, 2**31))
@example(boxes=[[0, 0, 8, 21]], seed=0)
def test_boxes_stay_where_their_paint_goes(name: str, boxes: list[list[int]], seed: int):
    transform, may_cut, may_exceed = GEOMETRY[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Most of a box must be in view: the upright hull of a turned sliver tells little about its paint.
        moved = BoxAwareTransform(transform, min_visible=0.6)(make_item(boxes))
    cut, beyond = misfit(moved)
    assert cut <= may_cut + 1e-3
    assert beyond <= may_exceed + 1e-3


@st.composite
def painted_items(draw: st.DrawFn) -> ConceptItem:
    """An item of any size, with up to three boxes inside of it."""
    height, width = draw(st.integers(60, 150)), draw(st.integers(60, 150))
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        right, bottom = draw(st.integers(30, width)), draw(st.integers(30, height))
        boxes.append([right - draw(st.integers(8, 30)), bottom - draw(st.integers(8, 30)), right, bottom])
    return make_item(boxes, (height, width))


@pytest.mark.parametrize("name", GEOMETRY)
@settings(max_examples=15, deadline=None)
@given(item=painted_items(), seed=st.integers(0, 2**31))
def test_boxes_stay_where_their_paint_goes_at_any_size(name: str, item: ConceptItem, seed: int):
    """To transform and then to draw the boxes gives what drawing them and then transforming gives."""
    transform, may_cut, may_exceed = GEOMETRY[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        moved = BoxAwareTransform(transform, min_visible=0.6)(item)
    # Where an image is enlarged, a pixel of paint becomes several.
    larger = 3 if "resize" in name else 1
    cut, beyond = misfit(moved)
    assert cut <= larger * may_cut + 1e-3
    assert beyond <= larger * may_exceed + 1e-3


@settings(max_examples=100, deadline=None)
@given(item=painted_items(), height=st.integers(32, 200), width=st.integers(32, 200))
def test_a_box_mapped_back_from_the_models_pixels_is_the_original(item: ConceptItem, height: int, width: int):
    """Within a pixel of the coarser of the two images, at any two sizes."""
    preprocess = Preprocess((height, width), MEAN, STD)
    seen = preprocess.denormalize(preprocess(item.image))
    assert item.boxes is not None
    sides = np.array([item.image.shape[2], item.image.shape[1]] * 2)
    for number, box in enumerate(item.boxes.xyxy.numpy()):
        paint, _ = painted(seen[number])
        back = np.array(paint) / [width, height, width, height] * sides
        assert (np.abs(back - box * sides) <= np.maximum(1, sides / [width, height, width, height]) + 1e-3).all()


@settings(max_examples=40, deadline=None)
@given(boxes=box_lists(), seed=st.integers(0, 2**31))
def test_a_box_is_kept_exactly_if_enough_of_its_paint_is_in_view(boxes: list[list[int]], seed: int):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        moved = BoxAwareTransform(v2.RandomCrop((40, 50)), min_visible=0.25)(make_item(boxes))
    for concept, (left, top, right, bottom) in enumerate(boxes):
        share = painted(moved.image[concept])[1] / ((right - left) * (bottom - top))
        kept = concept in moved.boxes.concept
        assert kept == (share >= 0.25) or share == pytest.approx(0.25, abs=1e-4)
        assert bool(moved.concepts[concept].isnan()) != kept


@pytest.mark.parametrize("transform", [v2.RandomHorizontalFlip(p=1), v2.Pad([0, 0, 30, 0]), v2.CenterCrop((60, 60))])
def test_the_paint_check_notices_boxes_that_stay_behind(transform: v2.Transform):
    item = make_item([[5, 5, 25, 30]])
    left_behind = item._replace(image=transform(item.image))
    assert max(misfit(left_behind)) > 5
    assert max(misfit(BoxAwareTransform(transform, min_visible=0)(item))) < 1e-3


class LeftHalf(v2.Transform):
    def transform(self, inpt: Tensor, params: dict[str, object]) -> Tensor:
        return v2.functional.crop(inpt, 0, 0, 80, 50)


def test_a_box_is_cut_at_the_border_it_was_pushed_over():
    moved = BoxAwareTransform(LeftHalf())(make_item([[40, 10, 60, 30]]))
    assert moved.boxes.xyxy.tolist() == [[pytest.approx(0.8), pytest.approx(0.125), 1, pytest.approx(0.375)]]


def test_a_sliver_of_a_box_is_dropped_and_its_label_becomes_unknown():
    moved = BoxAwareTransform(LeftHalf(), min_visible=0.25)(make_item([[48, 10, 60, 30], [10, 10, 20, 20]]))
    assert moved.boxes.concept.tolist() == [1]
    assert moved.concepts.isnan().tolist() == [True, False, False]
    assert moved.targets.tolist() == [0, 0]


def test_a_sliver_is_kept_where_any_share_will_do():
    assert len(BoxAwareTransform(LeftHalf(), min_visible=0)(make_item([[48, 10, 60, 30]])).boxes) == 1


def test_a_box_out_of_sight_is_dropped_whatever_share_will_do():
    moved = BoxAwareTransform(LeftHalf(), min_visible=0)(make_item([[60, 10, 90, 30]]))
    assert len(moved.boxes) == 0
    assert moved.concepts[0].isnan()


def test_labels_are_kept_where_the_reader_says_so():
    moved = BoxAwareTransform(LeftHalf(), lost_boxes="keep")(make_item([[60, 10, 90, 30]]))
    assert len(moved.boxes) == 0
    assert moved.concepts.tolist() == [1, 1, 1]


def test_a_concept_with_another_box_in_view_stays_known():
    item = make_item([[60, 10, 90, 30], [10, 10, 20, 20]])
    item = item._replace(boxes=ConceptBoxes(item.boxes.xyxy, torch.tensor([2, 2]), item.boxes.image))
    assert not BoxAwareTransform(LeftHalf())(item).concepts.isnan().any()


def test_an_image_nobody_drew_in_keeps_its_labels():
    item = make_item([[10, 10, 20, 20]])
    moved = BoxAwareTransform(LeftHalf())(item._replace(boxes=None))
    assert moved.boxes is None
    assert moved.image.shape == (3, 80, 50)
    assert moved.concepts.tolist() == [1, 1, 1]


def test_an_image_without_anything_to_draw_still_says_so():
    moved = BoxAwareTransform(LeftHalf())(make_item([]))
    assert moved.boxes is not None and len(moved.boxes) == 0


def test_augmentation_leaves_the_item_it_was_given_alone():
    item = make_item([[10, 10, 50, 50]])
    before = pickle.dumps(tuple(item[:3]) + (item.boxes.xyxy,))
    default_augmentation()(item)
    assert pickle.dumps(tuple(item[:3]) + (item.boxes.xyxy,)) == before


def test_augmented_items_hold_plain_tensors_of_the_type_they_came_in():
    moved = default_augmentation((64, 48))(make_item([[10, 10, 50, 50]]))
    assert type(moved.image) is Tensor and moved.image.dtype == torch.uint8
    assert moved.image.shape == (3, 64, 48)
    assert type(moved.boxes.xyxy) is Tensor and moved.boxes.xyxy.dtype == torch.float32


def test_default_augmentation_never_mirrors():
    item = make_item([[0, 0, 40, 80]])  # the left side is bright
    for _ in range(50):
        image = default_augmentation()(item).image[0].float()
        assert image[:, :40].mean() > image[:, 60:].mean()


def test_transforms_that_would_not_move_boxes_are_refused():
    with pytest.raises(TypeError, match=r"got torchvision.transforms.transforms.RandomHorizontalFlip; only v2"):
        BoxAwareTransform(v1.RandomHorizontalFlip())


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match=r"`min_visible` must be in \[0, 1\], got 25"):
        BoxAwareTransform(LeftHalf(), min_visible=25)
    with pytest.raises(ValueError, match="unknown `lost_boxes` 'drop'; known"):
        BoxAwareTransform(LeftHalf(), lost_boxes="drop")  # type: ignore[arg-type]


def by_pillow(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(3, h, w) floats in [0, 1], resized by another library's antialiased bilinear filter."""
    small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1) / 255


@pytest.mark.parametrize("size", [(40, 56), (97, 131), (200, 30)])
@pytest.mark.parametrize("convert", [lambda image: image, lambda image: image.float() / 255])
def test_preprocessing_is_an_antialiased_resize_and_a_normalization(
    size: tuple[int, int], convert: Callable[[Tensor], Tensor]
):
    image = torch.randint(0, 256, (3, 97, 131), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    expected = (by_pillow(image, size) - mean) / std
    given_ = Preprocess(size, MEAN, STD)(convert(image))
    assert given_.dtype == torch.float32
    assert np.abs(given_.numpy() - expected).max() < 1.5 / 255 / min(STD)


def test_denormalize_gives_the_picture_back():
    image = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    preprocess = Preprocess((20, 30), MEAN, STD)
    assert torch.equal(preprocess.denormalize(preprocess(image)), image)


def test_denormalize_shows_what_left_the_range_as_black_or_white():
    preprocess = Preprocess((1, 1), MEAN, STD)
    assert preprocess.denormalize(torch.full((3, 1, 1), -9.0)).tolist() == [[[0]]] * 3
    assert preprocess.denormalize(torch.full((3, 1, 1), 9.0)).tolist() == [[[255]]] * 3


def test_preprocessing_does_not_change_the_image_it_is_given():
    for image in (torch.full((3, 8, 8), 100, dtype=torch.uint8), torch.full((3, 8, 8), 0.5)):
        before = image.clone()
        Preprocess((8, 8), MEAN, STD)(image)
        assert torch.equal(image, before)


def test_preprocessing_survives_the_way_to_a_worker():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    preprocess = Preprocess((10, 10), MEAN, STD)
    copy = pickle.loads(pickle.dumps(preprocess))
    assert copy == preprocess
    torch.testing.assert_close(copy(image), preprocess(image))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.zeros(2, 8, 8), r"expected an image of shape \(H, W\), \(3, H, W\) or"),
        (torch.zeros(2, 3, 8, 8), r"expected one image, got a batch of shape \(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "image has dtype int64; expected uint8"),
        (torch.full((3, 8, 8), -0.5), "this looks normalized already"),
        (np.full((8, 8, 3), 200.0), "divide by 255"),
        (torch.full((3, 8, 8), torch.nan), "holds NaN"),
    ],
)
def test_preprocessing_refuses_what_is_no_image(image: object, reason: str):
    with pytest.raises(ValueError, match=reason):
        Preprocess((8, 8), MEAN, STD)(image)


def test_preprocessing_takes_paths_pictures_arrays_and_tensors(tmp_path: Path):
    image = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows_last = image.permute(1, 2, 0).numpy()
    Image.fromarray(rows_last).save(tmp_path / "a.png")
    preprocess = Preprocess((20, 30), MEAN, STD)
    expected = preprocess(image)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(rows_last), rows_last, image.numpy()):
        torch.testing.assert_close(preprocess(same), expected)
    torch.testing.assert_close(preprocess(image.float() / 255), expected, atol=1e-5, rtol=0)


def test_impossible_settings_of_preprocess_are_refused():
    with pytest.raises(ValueError, match=r"`std` \(0.2, 0.0, 0.2\) \(--image-size, --std\) must be above 0"):
        Preprocess((8, 8), MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="`mean` needs 3 numbers"):
        Preprocess((8, 8), (0.5,), STD)  # type: ignore[arg-type]
