import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.components import best_overlaps
from conceptcam.metrics.detection import (
    FALSE_ALARMS,
    OVERLAPS,
    DetectionMetrics,
    find_alarms,
    normalize_maps,
    pixel_average_precision,
    pixel_counts,
)
from conceptcam.metrics.map_scores import drawn_pairs
from tests.metrics.test_localization import boxes_of, perfect_maps, random_boxes, random_maps


def scores_of(maps, boxes, image_size, masks=None):
    metric = DetectionMetrics(maps.shape[1])
    metric.update(maps, boxes, image_size, masks)
    return metric.compute()


def whole_pixels(box, height, width):
    """Columns and rows of a box by the rule for pixels, as first and past-the-last."""

    def along(start, stop, pixels):
        own = [p for p in range(pixels) if start <= (p + 0.5) / pixels <= stop or int((start + stop) / 2 * pixels) == p]
        return own[0], own[-1] + 1

    left, top, right, bottom = box
    return *along(left, right, width), *along(top, bottom, height)


def slow_iou(one, other):
    wide = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    high = max(0, min(one[3], other[3]) - max(one[2], other[2]))
    areas = [(box[1] - box[0]) * (box[3] - box[2]) for box in (one, other)]
    return wide * high / (sum(areas) - wide * high)


def slow_overlap(values, boxes, threshold):
    """The best overlap, by labelling the map above one threshold."""
    labels, _ = ndimage.label(values >= threshold, structure=[[1, 1, 1]] * 3)
    found = [(x.start, x.stop, y.start, y.stop) for y, x in ndimage.find_objects(labels)]
    drawn = [whole_pixels(box, *values.shape) for box in boxes.tolist()]
    return max(slow_iou(one, other) for one in found for other in drawn)


@pytest.mark.parametrize("ties", [False, True])
def test_overlaps_at_each_threshold_equal_labelled_maps(ties):
    maps = normalize_maps(random_maps(8, 12, 17).round(decimals=0 if ties else 6))
    boxes, pair = random_boxes(8, 1, 20).xyxy, torch.randint(1, 8, (20,))
    overlaps = best_overlaps(maps, boxes, pair, 20)
    for index in range(8):
        for level in range(20):
            own = boxes[pair == index]
            # A value on a threshold belongs to it, so thresholds are compared as `maps * levels` is.
            expected = slow_overlap((maps[index] * 20).floor().numpy(), own, level) if len(own) else 0
            assert float(overlaps[index, level]) == pytest.approx(expected, abs=1e-6)
    assert not overlaps[0].any()


def test_pixel_precision_equals_that_of_scikit_learn():
    maps, inside = normalize_maps(random_maps(6, 9, 11)), random_maps(6, 9, 11, seed=1) > 2
    inside[0] = False
    counts = pixel_counts(maps, inside, 50)
    binned = (maps * 50).long().clamp(max=49)
    for index in range(1, 6):
        expected = average_precision_score(inside[index].flatten(), binned[index].flatten())
        assert float(pixel_average_precision(counts[index])) == pytest.approx(expected)
    assert pixel_average_precision(counts[0]).isnan()
    pooled = average_precision_score(inside.flatten(), binned.flatten())
    assert float(pixel_average_precision(counts.sum(dim=0))) == pytest.approx(pooled)


def slow_peaks(grid):
    """Cells that exceed their neighbours, or equal later ones in reading order, but the lowest."""
    height, width = len(grid), len(grid[0])
    lowest = min(min(row) for row in grid)
    found = []
    for y in range(height):
        for x in range(width):
            key = (grid[y][x], -y * width - x)
            near = [(v, u) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2) if (v, u) != (y, x)]
            near = [(v, u) for v, u in near if 0 <= v < height and 0 <= u < width]
            if grid[y][x] > lowest and all(key > (grid[v][u], -v * width - u) for v, u in near):
                found.append((x, y))
    return found


def slow_froc(maps, boxes, concept):
    """Sensitivities at `FALSE_ALARMS` of one concept, threshold by threshold."""
    images, _, height, width = maps.shape
    best, alarms = [], []
    for image in range(images):
        grid = maps[image, concept].tolist()
        own = boxes.xyxy[(boxes.image == image) & (boxes.concept == concept)].tolist()
        cells = [whole_pixels(box, height, width) for box in own]
        peaks = slow_peaks(grid)
        hit = [[left <= x < right and top <= y < bottom for left, right, top, bottom in cells] for x, y in peaks]
        best += [
            max([grid[y][x] for (x, y), of in zip(peaks, hit, strict=True) if of[n]], default=-99)
            for n in range(len(own))
        ]
        alarms += [grid[y][x] for (x, y), of in zip(peaks, hit, strict=True) if not any(of)]
    thresholds = sorted({*best, *alarms} - {-99})
    rows = [
        (sum(a >= t for a in alarms) / images, sum(b >= t for b in best) / len(best) if best else torch.nan)
        for t in thresholds
    ]
    return [max([found for rate, found in rows if rate <= allowed], default=0.0) for allowed in FALSE_ALARMS]


@pytest.mark.parametrize("ties", [False, True])
def test_froc_equals_a_loop_over_thresholds(ties):
    maps = random_maps(12, 3, 7, 9)
    maps = maps.round() if ties else (maps * 64).round() / 64  # whole bins
    boxes = random_boxes(12, 2, 30)
    scores = scores_of(maps, boxes, (21, 27))
    for concept in range(2):
        assert scores.froc[concept].tolist() == pytest.approx(slow_froc(maps, boxes, concept))
    assert scores.froc[2].isnan().all()  # nobody drew any
    assert scores.boxes.tolist() == torch.bincount(boxes.concept, minlength=3).tolist()
    assert scores.sensitivity[0] == scores.froc[0, FALSE_ALARMS.index(1)]


def test_box_accuracy_is_the_best_share_over_thresholds():
    maps, boxes, size = random_maps(9, 2, 4, 5), random_boxes(9, 2, 25), (12, 20)
    scores = scores_of(maps, boxes, size)
    (pairs,) = drawn_pairs(maps, boxes, size)
    for concept in range(2):
        own = (pairs.concept == concept).nonzero()[:, 0].tolist()
        shares = torch.zeros(100, 3)
        for index in own:
            image = int(pairs.image[index])
            drawn = boxes.xyxy[(boxes.image == image) & (boxes.concept == concept)]
            values = (normalize_maps(pairs.maps[index : index + 1])[0] * 100).floor()
            for level in range(100):
                overlap = slow_overlap(values.numpy(), drawn, level)
                shares[level] += torch.tensor([overlap >= least - 1e-6 for least in OVERLAPS])
        assert scores.box_accuracy[concept].tolist() == pytest.approx((shares / len(own)).amax(dim=0).tolist())
        assert float(scores.max_box_accuracy[concept]) == pytest.approx(float((shares / len(own)).amax(dim=0).mean()))
        assert int(scores.pairs[concept]) == len(own)


def apart() -> ConceptBoxes:
    """Boxes that do not touch, of cells of an 8 x 8 grid, two of them in one image."""
    corners = [(0.25, 0.125, 0.5, 0.5), (0.625, 0.75, 1.0, 1.0)]
    return boxes_of((0, 0, corners[0]), (0, 0, corners[1]), (1, 0, corners[1]), (2, 1, corners[0]))


def test_perfect_maps_score_1_on_each():
    boxes = apart()
    scores = scores_of(perfect_maps(boxes, (4, 2, 64, 64)), boxes, (64, 64))
    assert scores.box_accuracy.eq(1).all() and scores.max_box_accuracy.eq(1).all()
    assert scores.pixel_precision.eq(1).all()
    assert scores.froc.eq(1).all()
    assert scores.images.tolist() == [4, 4] and scores.pairs.tolist() == [2, 1]


def test_constant_maps_score_their_chance():
    boxes = boxes_of((0, 0, (0.0, 0.0, 0.5, 0.9)), (1, 0, (0.0, 0.0, 1.0, 0.8)))
    scores = scores_of(torch.zeros(2, 1, 4, 4), boxes, (10, 10))
    assert float(scores.pixel_precision) == pytest.approx(0.625) == float(scores.pixel_chance)
    assert scores.box_accuracy[0].tolist() == [1, 0.5, 0.5]  # areas .45 and .8
    assert float(scores.box_chance) == pytest.approx(2 / 3) == float(scores.max_box_accuracy)
    assert not scores.froc.any()  # a map without peaks finds nothing


def test_masks_count_where_boxes_are_too_wide():
    boxes = apart()
    masks = torch.zeros(4, 2, 64, 64, dtype=torch.bool)
    masks[..., 20:24, 20:24] = True
    scores = scores_of(masks.float(), boxes, (64, 64), masks)
    assert scores.pixel_precision.eq(1).all()
    assert scores_of(masks.float(), boxes, (64, 64)).pixel_precision.lt(1).all()


def test_images_without_boxes_add_false_alarms():
    maps = torch.zeros(2, 1, 8, 8)
    maps[0, 0, 2, 2] = 1.0
    maps[1, 0, 5, 5] = 2.0  # the higher peak, where nothing is
    boxes = boxes_of((0, 0, (0.2, 0.2, 0.4, 0.4)))
    assert scores_of(maps, boxes, (8, 8)).froc[0].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert scores_of(maps[:1], boxes, (8, 8)).froc[0].tolist() == [1] * 7
    assert find_alarms(maps, ConceptBoxes.empty()).alarm.tolist() == [1, 2]


def test_shards_merge_to_the_same_number_and_keep_no_maps():
    maps, boxes, size = random_maps(20, 3, 4, 5), random_boxes(20, 3, 40), (12, 20)
    first, second = DetectionMetrics(3), DetectionMetrics(3)
    sizes = {name: getattr(first, name).shape for name in ("pixels", "found", "hits", "alarms")}
    for start, stop, rank in ((0, 1, first), (1, 12, second), (12, 12, second), (12, 20, first)):
        some = (boxes.image >= start) & (boxes.image < stop)
        own = ConceptBoxes(boxes.xyxy[some], boxes.concept[some], boxes.image[some] - start)
        rank.update(maps[start:stop], own, size)
    first.update(maps, None, size)  # nobody drew: nothing to add
    first.merge_state(second)
    for merged, whole in zip(first.compute(), scores_of(maps, boxes, size), strict=True):
        assert torch.equal(merged, whole)
    assert sizes == {name: getattr(first, name).shape for name in sizes}


def test_nothing_at_all_is_undefined():
    metric = DetectionMetrics(2)
    metric.update(torch.zeros(1, 2, 3, 3), ConceptBoxes.empty(), (6, 6))
    scores = metric.compute()
    assert scores.max_box_accuracy.isnan().all() and scores.pixel_precision.isnan().all() and scores.froc.isnan().all()
    with pytest.raises(ValueError, match=r"must be \(B, 2, h, w\)"):
        metric.update(torch.zeros(1, 3, 3, 3), None, (6, 6))
