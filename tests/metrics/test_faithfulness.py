import itertools

import pytest
import torch
from scipy import stats

from conceptcam.metrics.faithfulness import (
    FaithfulnessMetrics,
    PerturbationCurves,
    blurred,
    curve_areas,
    perturbation_curves,
    rank_correlation,
)

IMAGES = torch.rand(5, 1, 6, 4, generator=torch.Generator().manual_seed(0)) + 0.1


def cells(images):
    """Sums over each of 3 x 2 cells of 2 x 2 pixels."""
    return torch.nn.functional.avg_pool2d(images, 2)[:, 0] * 4


def total(images):
    return images.sum(dim=(1, 2, 3))


def test_curves_equal_cells_taken_one_by_one():
    maps = torch.rand(5, 3, 2)
    curves = perturbation_curves(total, IMAGES, maps, torch.zeros(()), steps=6)
    for image in range(5):
        worth, order = cells(IMAGES)[image].flatten(), maps[image].flatten().argsort(descending=True)
        for step in range(7):
            gone = float(worth[order[:step]].sum())
            assert float(curves.deletion[image, step]) == pytest.approx(float(worth.sum()) - gone, abs=1e-5)
            assert float(curves.insertion[image, step]) == pytest.approx(gone, abs=1e-5)


def test_no_order_is_better_than_that_of_what_each_cell_adds():
    def areas(maps):
        return curve_areas(perturbation_curves(total, IMAGES[:1], maps[None], torch.zeros(()), steps=6))[0]

    best = areas(cells(IMAGES)[0])
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 7):
        other = areas(torch.tensor(order).float().view(3, 2))
        assert best[0] <= other[0] + 1e-6 and best[1] >= other[1] - 1e-6


def test_of_equal_cells_every_order_scores_one_half():
    flat = torch.ones(2, 1, 6, 4)
    found = curve_areas(perturbation_curves(total, flat, torch.rand(2, 3, 2), torch.zeros(()), steps=3))
    torch.testing.assert_close(found, torch.full((2, 4), 0.5).double())


def test_both_ends_are_the_image_and_its_filling():
    fill = blurred(IMAGES)
    seen = perturbation_curves(lambda x: (x**2).sum(dim=(1, 2, 3)), IMAGES, torch.rand(5, 9, 9), fill, steps=4)
    for deleted, inserted in ((seen.deletion, seen.insertion), (seen.random_deletion, seen.random_insertion)):
        for curve, first, last in ((deleted, IMAGES, fill), (inserted, fill, IMAGES)):
            torch.testing.assert_close(curve[:, 0], (first**2).sum(dim=(1, 2, 3)))
            torch.testing.assert_close(curve[:, -1], (last**2).sum(dim=(1, 2, 3)))
    noise = torch.randn(1, 1, 32, 32)
    assert blurred(noise).std() < 0.3 * noise.std()


def test_scores_are_means_per_concept_and_merge_over_shards():
    curves = PerturbationCurves(*torch.rand(4, 9, 5).add(0.1).unbind(0))
    concept = torch.tensor([0, 1, 1, 0, 0, 3, 3, 1, 0])
    curves.deletion[3, 0] = 0.0  # a score of 0 has no share
    whole, first, second = (FaithfulnessMetrics(4) for _ in range(3))
    whole.update(concept, curves)
    for start, stop, rank in ((0, 1, first), (1, 6, second), (6, 6, second), (6, 9, first)):
        rank.update(concept[start:stop], PerturbationCurves(*(one[start:stop] for one in curves)))
    first.merge_state(second)
    for one, other in zip(first.compute(), whole.compute(), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    scores = whole.compute()
    assert scores.support.tolist() == [3, 3, 0, 2] and scores.deletion[2].isnan()
    expected = curve_areas(curves)[[5, 6], 1].mean()
    assert float(scores.insertion[3]) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="need one concept below 4 for each of 9 maps"):
        whole.update(concept + 1, curves)


def test_rank_correlation_is_that_of_scipy():
    first, second = torch.randn(4, 30).round(decimals=1), torch.randn(4, 30).round()  # with ties
    second[3] = 1.0
    found = rank_correlation(first, second)
    for row in range(3):
        assert float(found[row]) == pytest.approx(stats.spearmanr(first[row], second[row]).statistic)
    assert found[3].isnan()
