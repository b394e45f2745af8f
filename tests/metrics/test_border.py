import pytest
import torch

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.border import BorderMetrics, peaks_at_border


def random_boxes(count, images, concepts, dice):
    corners = torch.rand(count, 2, 2, generator=dice).sort(dim=1).values.flatten(1)
    places = [torch.randint(high, (count,), generator=dice) for high in (concepts, images)]
    return ConceptBoxes(corners, *places)


def slow_border(maps, boxes):
    """Whether each map peaks at the border, and the fraction of border cells, cell by cell."""
    images, concepts, height, width = maps.shape
    peaks, chance = torch.zeros(images, concepts), torch.zeros(images, concepts)
    for i in range(images):
        for k in range(concepts):
            border = set()
            for row in range(height):
                for column in range(width):
                    from_edge = [min(row, height - 1 - row), min(column, width - 1 - column)]
                    if from_edge[0] < max(1, height // 14) or from_edge[1] < max(1, width // 14):
                        border.add((row, column))
            for box, concept, image in zip(boxes.xyxy.tolist(), boxes.concept, boxes.image, strict=True):
                for row, column in list(border):
                    across = min(box[2], (column + 1) / width) > max(box[0], column / width)
                    down = min(box[3], (row + 1) / height) > max(box[1], row / height)
                    if concept == k and image == i and across and down:
                        border.remove((row, column))
            cells = [(row, column) for row in range(height) for column in range(width)]
            peaks[i, k] = max(cells, key=lambda cell: maps[i, k, cell[0], cell[1]].item()) in border
            chance[i, k] = len(border) / len(cells)
    return peaks.bool(), chance.double()


@pytest.mark.parametrize("grid", [(7, 9), (14, 28)])
def test_peaks_at_the_border_are_those_of_a_loop_over_cells(grid):
    dice = torch.Generator().manual_seed(0)
    maps, boxes = torch.randn(12, 3, *grid, generator=dice), random_boxes(20, 12, 3, dice)
    found, expected = peaks_at_border(maps, boxes), slow_border(maps, boxes)
    assert found[0].equal(expected[0]) and found[1].allclose(expected[1])
    assert 0 < int(found[0].sum()) < found[0].numel()


def test_random_maps_peak_at_the_border_as_often_as_chance_says():
    maps = torch.randn(4000, 1, 10, 14, generator=torch.Generator().manual_seed(1))
    at_border, chance = peaks_at_border(maps)
    assert float(at_border.double().mean()) == pytest.approx(float(chance[0, 0]), abs=0.03)


def test_a_map_that_is_the_same_everywhere_peaks_at_no_border():
    assert not peaks_at_border(torch.zeros(2, 3, 8, 8))[0].any()


def test_a_peak_in_a_box_at_the_border_is_no_border_peak():
    maps = torch.zeros(1, 2, 8, 8)
    maps[:, :, 7, 0] = 1
    costophrenic = ConceptBoxes(torch.tensor([[0.0, 0.8, 0.2, 1.0]]), torch.tensor([0]), torch.tensor([0]))
    assert peaks_at_border(maps, costophrenic)[0].tolist() == [[False, True]]  # nobody drew the other concept


def test_only_images_known_to_have_a_concept_are_counted():
    maps = torch.zeros(4, 2, 8, 8)
    maps[:, :, 0, 0] = 1
    labels = torch.tensor([[1, 0], [1, torch.nan], [0, 0.4], [0.6, 0]])
    metric = BorderMetrics(2)
    for batch in (slice(0, 1), slice(1, 4)):
        metric.update(maps[batch], labels[batch])
    found = metric.compute()
    assert found.images.tolist() == [3, 0] and found.at_border.tolist() == [3, 0]
    assert found.chance[0] == 28 / 64 and found.chance[1].isnan()


@pytest.mark.parametrize(("grid", "counted"), [((6, 6), 0), ((2, 9), 0), ((7, 7), 5)])
def test_a_grid_that_is_mostly_ring_counts_no_image(grid, counted):
    maps = torch.zeros(5, 1, *grid)
    maps[:, :, 0, 0] = 1
    metric = BorderMetrics(1)
    metric.update(maps, torch.ones(5, 1))
    assert metric.compute().images.tolist() == [counted]


def test_maps_of_other_concepts_are_refused():
    with pytest.raises(ValueError, match=r"must be \(B, 2, h, w\), got \(1, 3, 8, 8\)"):
        BorderMetrics(2).update(torch.zeros(1, 3, 8, 8), torch.ones(1, 3))


@pytest.mark.parametrize("shape", [(1, 2), (3, 1), (3, 3), (3,)])
def test_labels_of_other_images_or_concepts_are_refused(shape):
    with pytest.raises(ValueError, match=r"labels must be \(3, 2\), as the maps, got"):
        BorderMetrics(2).update(torch.zeros(3, 2, 8, 8), torch.ones(shape))
