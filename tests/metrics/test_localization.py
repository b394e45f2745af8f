import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics import map_scores as pairs_module
from conceptcam.metrics.classification import macro_average
from conceptcam.metrics.localization import (
    LocalizationMetrics,
    LocalizationScores,
    PairScores,
    best_iou_thresholds,
    pair_scores,
    summarize,
)
from conceptcam.metrics.map_scores import (
    IOU_THRESHOLDS,
    drawn_pairs,
    energy_in_box,
    find_peaks,
    iou_curve,
    map_iou,
    pointing_game,
    random_peaks,
    relevance_rank,
    side_accuracy,
    upsample,
)

nan = torch.nan
Box = tuple[float, float, float, float]


def boxes_of(*rows: tuple[int, int, Box]) -> ConceptBoxes:
    """Boxes from (image, concept, corners)."""
    return ConceptBoxes(
        torch.tensor([corners for _, _, corners in rows]),
        torch.tensor([concept for _, concept, _ in rows]),
        torch.tensor([image for image, _, _ in rows]),
    )


def random_boxes(images: int, concepts: int, count: int, seed: int = 0) -> ConceptBoxes:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * 0.8
    size = torch.rand(count, 2, generator=random) ** 3 * 0.18 + 0.01
    return ConceptBoxes(
        torch.cat([corner, corner + size], dim=1),
        torch.randint(concepts, (count,), generator=random),
        torch.randint(images, (count,), generator=random),
    )


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def scores_of(
    maps: Tensor, boxes: ConceptBoxes | None, image_size: tuple[int, int], tolerance: float = 0.0
) -> LocalizationScores:
    metric = LocalizationMetrics(maps.shape[1], tolerance=tolerance)
    metric.update(maps, boxes, image_size)
    return metric.compute()


def same(first: LocalizationScores, second: LocalizationScores) -> bool:
    return all(torch.allclose(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


def naive_bilinear(grid: list[list[float]], height: int, width: int) -> list[list[float]]:
    def weights(pixel: int, pixels: int, cells: int) -> list[tuple[int, float]]:
        place = max((pixel + 0.5) * cells / pixels - 0.5, 0)
        low = int(place)
        return [(low, 1 - (place - low)), (min(low + 1, cells - 1), place - low)]

    return [
        [
            sum(
                grid[row][column] * by_row * by_column
                for row, by_row in weights(y, height, len(grid))
                for column, by_column in weights(x, width, len(grid[0]))
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def naive_inside(x: int, y: int, boxes: list[Box], height: int, width: int) -> bool:
    def along(pixel: int, pixels: int, start: float, stop: float) -> bool:
        return start <= (pixel + 0.5) / pixels <= stop or int((start + stop) / 2 * pixels) == pixel

    return any(along(x, width, left, right) and along(y, height, top, bottom) for left, top, right, bottom in boxes)


def naive_cell(grid: list[list[float]]) -> tuple[int, int]:
    cells = [(column, row) for row in range(len(grid)) for column in range(len(grid[0]))]
    return max(cells, key=lambda cell: grid[cell[1]][cell[0]])


def naive_peak(grid: list[list[float]], rows: list[list[float]]) -> tuple[int, int]:
    column, row = naive_cell(grid)
    middle_x = (column + 0.5) * len(rows[0]) / len(grid[0]) - 0.5
    middle_y = (row + 0.5) * len(rows) / len(grid) - 0.5
    highest = max(max(line) for line in rows)
    ties = [(x, y) for y, line in enumerate(rows) for x, value in enumerate(line) if value > highest - 1e-5]
    return min(ties, key=lambda p: round((p[0] - middle_x) ** 2 + (p[1] - middle_y) ** 2, 4))


def naive_pair(
    grid: list[list[float]], boxes: list[Box], height: int, width: int, tolerance: float
) -> dict[str, float]:
    pixels = [(x, y) for y in range(height) for x in range(width)]
    rows = naive_bilinear(grid, height, width)
    x, y = naive_peak(grid, rows)
    mirrored = [(1 - right, top, 1 - left, bottom) for left, top, right, bottom in boxes]
    transposed = [(top, left, bottom, right) for left, top, right, bottom in boxes]

    def hit(px: int, py: int, drawn: list[Box]) -> float:
        near = [p for p in pixels if (p[0] - px) ** 2 + (p[1] - py) ** 2 < tolerance**2] + [(px, py)]
        return float(any(naive_inside(*p, drawn, height, width) for p in near))

    inside = {p for p in pixels if naive_inside(*p, boxes, height, width)}
    mass = {p: 1 / (1 + math.exp(-rows[p[1]][p[0]])) for p in pixels}
    found = {p for p in pixels if mass[p] > 0.5}
    halves = {(px + 0.5) * 2 > width for px, _ in inside if (px + 0.5) * 2 != width}
    return {
        "side": float((x + 0.5 > width / 2) in halves and (x + 0.5) * 2 != width) if len(halves) == 1 else math.nan,
        "area": len(inside) / len(pixels),
        "pointing": hit(x, y, boxes),
        "pointing_grid": float(naive_inside(*naive_cell(grid), boxes, len(grid), len(grid[0]))),
        "energy": sum(mass[p] for p in inside) / sum(mass.values()),
        "iou": len(found & inside) / len(found | inside),
        "mirrored_pointing": hit(x, y, mirrored),
        "transposed_pointing": hit(x, y, transposed),
        "chance": sum(hit(*p, boxes) for p in pixels) / len(pixels),
        "center_pointing": hit(width // 2, height // 2, boxes),
    }


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 3.0])
@pytest.mark.parametrize(("grid", "size"), [((3, 5), (9, 20)), ((4, 3), (14, 9)), ((3, 3), (12, 12))])
def test_values_of_every_pair_equal_a_naive_loop(tolerance: float, grid: tuple[int, int], size: tuple[int, int]):
    maps, boxes = random_maps(4, 3, *grid), random_boxes(4, 3, 16)
    control = random_peaks(grid, size, generator=torch.Generator())
    (pairs,) = drawn_pairs(maps, boxes, size)
    scores = pair_scores(pairs, control, tolerance=tolerance)
    assert len(pairs.image) == len({*zip(boxes.image.tolist(), boxes.concept.tolist(), strict=True)}) > 5
    for index, (image, concept) in enumerate(zip(pairs.image, pairs.concept, strict=True)):
        drawn = boxes.xyxy[(boxes.image == image) & (boxes.concept == concept)]
        expected = naive_pair(maps[image, concept].tolist(), drawn.tolist(), *size, tolerance)
        values = {name: float(getattr(scores, name)[index]) for name in expected}
        assert values == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_scores_of_a_concept_are_the_means_over_its_pairs():
    maps, boxes, size = random_maps(6, 3, 4, 4), random_boxes(6, 2, 30), (16, 16)
    (pairs,) = drawn_pairs(maps, boxes, size)
    control = random_peaks((4, 4), size, generator=torch.Generator().manual_seed(0))
    each, scores = pair_scores(pairs, control), scores_of(maps, boxes, size)
    for concept in (0, 1):
        own = [index for index, found in enumerate(each.concept.tolist()) if found == concept]
        assert int(scores.support[concept]) == len(own)
        for name in set(LocalizationScores._fields) & set(PairScores._fields):
            values = [value for index in own if not (value := getattr(each, name)[index].double()).isnan().any()]
            mean = sum(values) / len(values) if values else torch.tensor(nan).double()
            assert torch.allclose(getattr(scores, name)[concept], mean, atol=1e-12, equal_nan=True), name


@pytest.mark.parametrize(("grid", "size"), [((7, 7), (56, 56)), ((4, 6), (64, 48)), ((5, 3), (15, 33))])
def test_map_that_peaks_in_a_cell_points_into_that_cell_and_no_other(grid: tuple[int, int], size: tuple[int, int]):
    height, width = grid
    cells = [(row, column) for row in range(height) for column in range(width)]
    maps = torch.zeros(len(cells), len(cells), height, width)
    for image, (row, column) in enumerate(cells):
        maps[image, :, row, column] = 1
    boxes = boxes_of(
        *(
            (image, concept, (column / width, row / height, (column + 1) / width, (row + 1) / height))
            for image in range(len(cells))
            for concept, (row, column) in enumerate(cells)
        )
    )
    metric = LocalizationMetrics(len(cells))
    metric.update(maps, boxes, size)
    hits = metric.kept()[:, 2].view(len(cells), len(cells))
    assert torch.equal(hits, torch.eye(len(cells)))
    assert torch.equal(metric.kept()[:, 3].view(len(cells), len(cells)), torch.eye(len(cells)))


def perfect_maps(boxes: ConceptBoxes, shape: tuple[int, int, int, int]) -> Tensor:
    """Maps that peak where the boxes are."""
    return boxes.coverage(shape) * 8 - 4


def one_sided() -> ConceptBoxes:
    """Boxes of two concepts in 10 images, on the left and in the upper half, off both diagonals."""
    return boxes_of(
        *((image, concept, (0.05, 0.2, 0.2, 0.4)) for image in range(10) for concept in (0, 1)),
    )


def changed(boxes: ConceptBoxes, corners: Tensor) -> ConceptBoxes:
    return ConceptBoxes(corners, boxes.concept, boxes.image)


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_mirrored_boxes_turn_the_mirror_gap_negative(size: tuple[int, int]):
    boxes, shape = one_sided(), (10, 2, size[0] // 8, size[1] // 8)
    left, top, right, bottom = boxes.xyxy.unbind(1)
    mirrored = changed(boxes, torch.stack([1 - right, top, 1 - left, bottom], dim=1))
    assert scores_of(perfect_maps(boxes, shape), boxes, size).mirror_gap.tolist() == [1, 1]
    assert scores_of(perfect_maps(mirrored, shape), boxes, size).mirror_gap.tolist() == [-1, -1]


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
def test_transposed_boxes_turn_the_transpose_gap_negative(size: tuple[int, int]):
    boxes, shape = one_sided(), (10, 2, size[0] // 8, size[1] // 8)
    transposed = changed(boxes, boxes.xyxy[:, [1, 0, 3, 2]])
    right, wrong = (scores_of(perfect_maps(taught, shape), boxes, size).transpose_gap for taught in (boxes, transposed))
    assert right.tolist() == [1, 1]
    assert wrong.tolist() == [-1, -1]


def test_maps_right_half_of_the_time_have_no_mirror_gap():
    boxes = one_sided()
    maps = perfect_maps(boxes, (10, 2, 8, 8))
    maps[::2] = maps[::2].flip(-1)
    assert scores_of(maps, boxes, (64, 64)).mirror_gap.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_rank_equals_a_mean_over_all_orders_of_ties(seed: int):
    random = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 4, (6, 3, 4), generator=random).float()  # many ties
    inside = torch.rand(6, 3, 4, generator=random) < 0.4
    inside[:, 0, 0] = True
    for index in range(6):
        values, truth = maps[index].flatten().tolist(), inside[index].flatten().tolist()
        size, total = sum(truth), 0.0
        for _ in range(4000):  # ties in a random order
            order = torch.rand(12, generator=random).tolist()
            top = sorted(range(12), key=lambda p, v=values, o=order: (-v[p], o[p]))[:size]
            total += sum(truth[p] for p in top) / size
        found = float(relevance_rank(maps[index : index + 1], inside[index : index + 1]))
        assert found == pytest.approx(total / 4000, abs=0.03)


def test_perfect_maps_have_rank_1_and_mirrored_ones_the_other_side():
    boxes = one_sided()
    maps = perfect_maps(boxes, (10, 2, 20, 20))
    scores = scores_of(maps, boxes, (20, 20))
    assert scores.rank.tolist() == scores.side.tolist() == [1, 1]
    wrong = scores_of(maps.flip(-1), boxes, (20, 20))
    assert wrong.side.tolist() == [0, 0] and (wrong.rank < 0.2).all()
    across = boxes_of(*((image, 0, (0.3, 0.2, 0.7, 0.4)) for image in range(10)))
    assert scores_of(maps, across, (20, 20)).side[0].isnan()  # on both sides


def test_constant_map_scores_its_chance_and_nothing_more():
    boxes = random_boxes(5, 2, 20)
    scores = scores_of(torch.zeros(5, 2, 4, 4), boxes, (32, 32))
    assert torch.allclose(scores.energy, scores.chance)
    assert torch.allclose(scores.rank, scores.chance)
    assert scores.iou.tolist() == [0, 0]  # exceeds .5 nowhere
    assert torch.allclose(scores_of(torch.ones(5, 2, 4, 4), boxes, (32, 32)).iou, scores.chance)


def test_random_control_falls_into_all_quarters_equally_often():
    quarters = [(x, y, x + 0.5, y + 0.5) for x in (0.0, 0.5) for y in (0.0, 0.5)]
    boxes = boxes_of(*((0, concept, corners) for concept, corners in enumerate(quarters)))
    scores = scores_of(torch.zeros(1, 4, 14, 14), boxes, (112, 112))
    assert float(scores.random_pointing.sum()) == pytest.approx(1)
    # 1000 draws: four standard errors
    assert (scores.random_pointing - scores.chance).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 1000)


def test_center_control_hits_what_lies_in_the_middle_alone():
    boxes = boxes_of((0, 0, (0.4, 0.4, 0.6, 0.6)), (0, 1, (0.0, 0.0, 0.4, 0.4)))
    scores = scores_of(torch.zeros(1, 2, 4, 6), boxes, (32, 48))
    assert scores.center_pointing.tolist() == [1, 0]


def test_boxes_of_one_pair_are_joined():
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 3, 3] = 1
    corners: list[Box] = [(0.0, 0.0, 0.25, 0.25), (0.75, 0.75, 1.0, 1.0)]
    scores = scores_of(maps, boxes_of(*((0, 0, box) for box in corners)), (16, 16))
    assert scores.support.tolist() == [1]
    assert scores.pointing.tolist() == [1]
    assert scores.chance.tolist() == [2 / 16]


def test_box_smaller_than_a_pixel_has_the_pixel_of_its_centre():
    scores = scores_of(torch.zeros(1, 1, 2, 2), boxes_of((0, 0, (0.26, 0.51, 0.27, 0.52))), (4, 8))
    assert scores.chance.tolist() == [1 / 32]


def test_iou_curve_is_the_iou_at_each_threshold():
    maps, inside = random_maps(20, 9, 7), random_maps(20, 9, 7, seed=1) > 2
    curve = iou_curve(maps, inside)
    for index, threshold in enumerate(IOU_THRESHOLDS):
        assert torch.allclose(curve[:, index], map_iou(maps, inside, threshold), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_at_a_threshold_does_not_exceed_it(dtype: torch.dtype):
    cuts = torch.tensor(IOU_THRESHOLDS, dtype=dtype).logit()
    far = torch.tensor([-1e4, -torch.inf, 1e4, torch.inf], dtype=dtype)
    up, down = (torch.nextafter(cuts, torch.full_like(cuts, side)) for side in (torch.inf, -torch.inf))
    maps = torch.cat([cuts, up, down, far])[None, None]  # the next numbers on both sides of each
    inside = torch.arange(maps.numel())[None, None] % 3 == 0
    exact = [((maps > cut) & inside).sum() / ((maps > cut) | inside).sum() for cut in cuts]
    assert iou_curve(maps, inside)[0].tolist() == torch.stack(exact).tolist()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.long, torch.float])
def test_the_side_is_told_of_masks_of_any_type(dtype: torch.dtype):
    inside = torch.zeros(2, 3, 4, dtype=dtype)
    inside[:, 1, 3] = 1
    assert side_accuracy(torch.tensor([7, 4]), inside).tolist() == [1, 0]


def test_the_best_iou_threshold_is_at_the_top_of_the_curve():
    maps, boxes = random_maps(6, 3, 4, 4), random_boxes(6, 2, 30)
    curve = scores_of(maps, boxes, (16, 16)).iou_curve
    best = best_iou_thresholds(scores_of(maps, boxes, (16, 16)))
    assert best.isnan().tolist() == [False, False, True]
    metric = LocalizationMetrics(3, iou_threshold=best)
    metric.update(maps, boxes, (16, 16))
    assert torch.allclose(metric.compute().iou[:2], curve[:2].amax(dim=1), atol=1e-6)


def test_iou_at_an_undefined_threshold_is_undefined():
    maps, inside = random_maps(2, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)
    assert map_iou(maps, inside, torch.tensor([0.5, nan])).isnan().tolist() == [False, True]


def test_energy_of_a_map_without_mass_is_undefined():
    maps = torch.full((2, 1, 2, 2), -1.0)
    maps[1, 0, 0, 0] = 1.0
    boxes = boxes_of((0, 0, (0.0, 0.0, 0.5, 0.5)), (1, 0, (0.0, 0.0, 0.5, 0.5)))
    metric = LocalizationMetrics(1, energy="relu")
    metric.update(maps, boxes, (2, 2))
    assert metric.compute().energy.tolist() == [1]
    assert metric.compute().support.tolist() == [2]
    inside = torch.ones(2, 2, 2, dtype=torch.bool)
    assert energy_in_box(maps[:, 0], inside, "relu").isnan().tolist() == [True, False]


def test_pointing_takes_masks_of_any_shape():
    peaks, inside = torch.tensor([5, 5]), torch.zeros(2, 3, 3, dtype=torch.bool)
    inside[0, 1, 2] = inside[1, 1, 0] = True
    assert pointing_game(peaks, inside).tolist() == [1, 0]
    assert pointing_game(peaks, inside, tolerance=2).tolist() == [1, 0]  # nearer than 2, not at 2
    assert pointing_game(peaks, inside, tolerance=2.1).tolist() == [1, 1]


def test_tolerance_is_a_disc_without_its_rim():
    inside = torch.zeros(1, 9, 9, dtype=torch.bool)
    inside[0, 4, 5] = True
    corner = torch.tensor([1 * 9 + 1])  # 3 up and 4 left of it: at a distance of 5
    assert pointing_game(corner, inside, tolerance=5).tolist() == [0]
    assert pointing_game(corner, inside, tolerance=5.01).tolist() == [1]


@pytest.mark.parametrize(("grid", "size"), [((3, 5), (9, 35)), ((4, 4), (32, 32)), ((2, 3), (2, 3))])
def test_peak_lies_at_the_centre_of_its_cell_on_the_border_too(grid: tuple[int, int], size: tuple[int, int]):
    cells = grid[0] * grid[1]
    maps = torch.eye(cells).view(cells, *grid) + 0.1
    peaks = find_peaks(maps, upsample(maps, size))
    row, column = torch.arange(cells) // grid[1], torch.arange(cells) % grid[1]
    assert ((peaks // size[1] + 0.5) / size[0] * grid[0] - row - 0.5).abs().max() <= grid[0] / size[0] / 2
    assert ((peaks % size[1] + 0.5) / size[1] * grid[1] - column - 0.5).abs().max() <= grid[1] / size[1] / 2


def test_flipping_maps_and_boxes_together_changes_no_pointing():
    maps, boxes, size = random_maps(40, 3, 5, 5), random_boxes(40, 3, 100), (35, 35)
    left, top, right, bottom = boxes.xyxy.unbind(1)
    mirrored = changed(boxes, torch.stack([1 - right, top, 1 - left, bottom], dim=1))
    straight, flipped = scores_of(maps, boxes, size), scores_of(maps.flip(-1), mirrored, size)
    torch.testing.assert_close(straight.pointing, flipped.pointing)
    torch.testing.assert_close(straight.mirrored_pointing, flipped.mirrored_pointing)


def test_pairs_are_sorted_by_the_area_of_their_union():
    boxes = boxes_of(
        (0, 0, (0.0, 0.0, 0.05, 0.05)),
        (1, 0, (0.5, 0.5, 0.7, 0.7)),
        (2, 0, (0.0, 0.0, 1.0, 1.0)),
        (2, 1, (0.0, 0.0, 0.1, 0.2)),
        (2, 1, (0.5, 0.5, 0.6, 0.9)),
    )
    scores = scores_of(torch.zeros(3, 2, 4, 4), boxes, (100, 100))  # all peak in the first cell
    assert scores.support_by_size.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert scores.pointing_by_size[0].tolist() == [0, 0, 1]
    assert scores.pointing_by_size[1, :2].isnan().all()
    assert scores.random_by_size[0, 2] == 1
    assert torch.equal(scores.support_by_size.sum(dim=1), scores.support)


def test_batches_of_any_size_on_any_rank_score_as_one():
    maps, boxes, size = random_maps(30, 3, 4, 5), random_boxes(30, 3, 50), (20, 30)
    first, second = LocalizationMetrics(3), LocalizationMetrics(3)
    for start, stop, rank in ((0, 1, first), (1, 20, second), (20, 20, second), (20, 30, first)):
        some = (boxes.image >= start) & (boxes.image < stop)
        own = ConceptBoxes(boxes.xyxy[some], boxes.concept[some], boxes.image[some] - start)
        rank.update(maps[start:stop], own, size)
    first.merge_state(second)
    merged, whole = first.compute(), scores_of(maps, boxes, size)
    for one, other in zip(merged, whole, strict=True):
        assert torch.allclose(one.double(), other.double(), equal_nan=True, atol=1e-12)


def test_pairs_handled_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch):
    maps, boxes = random_maps(10, 3, 4, 5), random_boxes(10, 3, 30)
    whole = scores_of(maps, boxes, (20, 30))
    monkeypatch.setattr(pairs_module, "_CHUNK_PIXELS", 1300)
    assert len(list(drawn_pairs(maps, boxes, (20, 30)))) > 5
    assert same(scores_of(maps, boxes, (20, 30)), whole)


def test_metric_keeps_numbers_and_no_maps():
    metric = LocalizationMetrics(3)
    metric.update(random_maps(10, 3, 4, 5).requires_grad_(), random_boxes(10, 3, 30), (20, 30))
    pairs = int(metric.compute().support.sum())
    assert metric.kept().shape == (pairs, 13 + len(IOU_THRESHOLDS))
    assert not metric.kept().requires_grad


def test_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    scores_of(random_maps(4, 2, 4, 4), random_boxes(4, 2, 9), (16, 16))
    assert torch.equal(torch.get_rng_state(), before)


def test_control_is_the_same_for_a_seed_and_differs_between_seeds():
    draws = [random_peaks((6, 6), (24, 24), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    boxes, controls = random_boxes(4, 2, 9), []
    for seed in (0, 0, 1):
        metric = LocalizationMetrics(2, seed=seed)
        metric.update(torch.zeros(4, 2, 4, 4), boxes, (16, 16))
        controls.append(metric.compute().random_pointing)
    assert torch.equal(controls[0], controls[1])
    assert not torch.equal(controls[0], controls[2])


@pytest.mark.parametrize("boxes", [None, ConceptBoxes.empty()])
def test_nothing_drawn_gives_nan_with_no_support(boxes: ConceptBoxes | None):
    scores = scores_of(random_maps(4, 2, 4, 4), boxes, (16, 16))
    assert scores.support.tolist() == [0, 0]
    assert scores.pointing.isnan().all()
    assert scores.mirror_gap.isnan().all()
    assert best_iou_thresholds(scores).isnan().all()
    assert macro_average(scores.pointing).isnan()


def test_one_concept_keeps_its_axis_through_copies():
    metric = LocalizationMetrics(1)
    metric.update(random_maps(4, 1, 4, 4), random_boxes(4, 1, 9), (16, 16))
    for held in (metric, pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert held.compute().pointing.shape == (1,)
        assert held.compute().iou_curve.shape == (1, len(IOU_THRESHOLDS))


def test_half_precision_maps_are_welcome():
    maps, boxes = random_maps(4, 2, 4, 4).bfloat16(), random_boxes(4, 2, 9)
    assert same(scores_of(maps, boxes, (16, 16)), scores_of(maps.float(), boxes, (16, 16)))


def test_size_limits_are_the_users():
    (pairs,) = drawn_pairs(torch.zeros(1, 1, 2, 2), boxes_of((0, 0, (0.0, 0.0, 0.5, 0.5))), (8, 8))
    each = pair_scores(pairs, torch.tensor([0]))
    assert summarize(each, 1, (0.3, 0.6)).support_by_size.tolist() == [[1, 0, 0]]
    assert summarize(each, 1, (0.25, 0.6)).support_by_size.tolist() == [[0, 1, 0]]


def test_bad_input_is_named():
    boxes = boxes_of((0, 1, (0.0, 0.0, 0.5, 0.5)))
    with pytest.raises(ValueError, match=r"must be \(B, 3, h, w\), got \(2, 2, 4, 4\)"):
        LocalizationMetrics(3).update(torch.zeros(2, 2, 4, 4), boxes, (8, 8))
    with pytest.raises(ValueError, match="concept index 1, but there are 1"):
        LocalizationMetrics(1).update(torch.zeros(2, 1, 4, 4), boxes, (8, 8))
    with pytest.raises(ValueError, match="infinite or NaN"):
        LocalizationMetrics(2).update(torch.full((2, 2, 4, 4), nan), boxes, (8, 8))
