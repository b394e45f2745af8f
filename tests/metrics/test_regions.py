import math

import pytest
import torch

from conceptcam.metrics.map_scores import energy_in_box, find_peaks, upsample
from conceptcam.metrics.regions import RegionMetrics, box_regions, map_logits, region_scores
from tests.metrics.test_localization import random_maps

SIZE = (12, 15)


def random_regions(count, seed=0):
    regions = torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(seed)) < 0.3
    regions[::4] = False
    return regions


def scores_of(maps, regions, labels=None):
    metric = RegionMetrics(maps.shape[1])
    metric.update(maps, regions, labels)
    return metric.compute()


def test_scores_of_each_concept_equal_a_loop():
    maps, regions = random_maps(9, 3, 4, 5), random_regions(9)
    labels = (torch.rand(9, 3) < 0.6).float()
    labels[0, 1], labels[:, 2] = torch.nan, 0
    scores = scores_of(maps, regions, labels)
    for concept in range(2):
        rows = [i for i in range(9) if regions[i].any() and labels[i, concept] == 1]
        peaks, energy = 0, 0.0
        for image in rows:
            one = maps[image : image + 1, concept]
            full = upsample(one, SIZE)
            peaks += bool(regions[image].flatten()[find_peaks(one, full)])
            mass = full[0].sigmoid()
            energy += float(mass[regions[image]].sum() / mass.sum())
        assert int(scores.support[concept]) == len(rows) > 1
        assert float(scores.peaks[concept]) == pytest.approx(peaks / len(rows))
        assert float(scores.energy[concept]) == pytest.approx(energy / len(rows), abs=1e-6)
        area = sum(float(regions[image].float().mean()) for image in rows) / len(rows)
        assert float(scores.area[concept]) == pytest.approx(area)
    assert scores.peaks[2].isnan() and scores.support[2] == 0


def test_mass_can_leave_a_marker_that_the_peak_still_sits_on():
    maps = torch.full((1, 1, 14, 14), -2.0)
    maps[0, 0, 4:10, 4:10] = 2.0
    maps[0, 0, 0, 12] = 3.0
    scores = scores_of(maps, box_regions([(0.85, 0.0, 0.93, 0.08)], (112, 112)))
    assert scores.peaks == 1 and scores.energy < 0.05


def test_a_constant_map_has_the_energy_of_the_area():
    scores = scores_of(torch.zeros(3, 1, 4, 4), random_regions(3))
    assert float(scores.energy) == pytest.approx(float(scores.area))


def test_shards_merge_to_the_same_number():
    maps, regions = random_maps(11, 3, 4, 5), random_regions(11)
    first, second = RegionMetrics(3), RegionMetrics(3)
    for start, stop, rank in ((0, 1, first), (1, 7, second), (7, 7, second), (7, 11, first)):
        rank.update(maps[start:stop], regions[start:stop])
    first.merge_state(second)
    for merged, whole in zip(first.compute(), scores_of(maps, regions), strict=True):
        torch.testing.assert_close(merged, whole)
    assert first.sums.shape == (3, 3)


def test_box_regions_are_the_pixels_whose_centres_are_inside():
    regions = box_regions([(0.1, 0.2, 0.5, 0.9), None], (7, 9))
    for y in range(7):
        for x in range(9):
            assert bool(regions[0, y, x]) == (0.1 <= (x + 0.5) / 9 <= 0.5 and 0.2 <= (y + 0.5) / 7 <= 0.9)
    assert not regions[1].any() and box_regions([], (7, 9)).shape == (0, 7, 9)


def test_foreign_maps_become_logits_of_their_own_values():
    maps = torch.rand(2, 3, 6, 6) * 40 - 5
    logits = map_logits(maps)
    positive = maps.clamp(min=0)
    expected = positive / positive.amax(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(logits.sigmoid(), expected, atol=2e-6, rtol=0)
    inside = torch.rand(6, 6, 6) < 0.4
    share = (positive.flatten(0, 1) * inside).sum(dim=(1, 2)) / positive.flatten(0, 1).sum(dim=(1, 2))
    torch.testing.assert_close(energy_in_box(logits.flatten(0, 1), inside), share, atol=1e-4, rtol=0)
    torch.testing.assert_close(map_logits(expected, stretch=False), logits)


def test_a_map_of_zeros_scores_its_chance():
    logits, regions = map_logits(torch.zeros(1, 4, 4)), random_regions(2)[1:]
    _, energy, area = region_scores(logits, regions)
    assert math.isclose(float(energy), float(area), rel_tol=1e-5)


def test_what_is_no_map_is_refused():
    with pytest.raises(ValueError, match="infinite or NaN"):
        map_logits(torch.tensor([[[torch.nan]]]))
    with pytest.raises(ValueError, match="must not exceed 1; found 7"):
        map_logits(torch.full((1, 2, 2), 7.0), stretch=False)
    with pytest.raises(ValueError, match=r"regions \(B, H, W\), got \(2, 3, 4, 4\) and \(1, 4, 4\)"):
        RegionMetrics(3).update(torch.zeros(2, 3, 4, 4), torch.ones(1, 4, 4) > 0)
