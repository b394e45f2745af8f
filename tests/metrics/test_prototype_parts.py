import pytest
import torch
from scipy import stats

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.prototype_parts import (
    PrototypeParts,
    add_noise,
    prototype_reliance,
    relevance_agreement,
    shown_parts,
)
from tests.metrics.test_localization import boxes_of, naive_cell, naive_inside, random_boxes


def scores_of(maps, labels, boxes, noisy=None, min_images=1):
    metric = PrototypeParts(*maps.shape[1:3], min_images=min_images)
    metric.update(maps, labels, boxes, noisy)
    return metric.compute()


def slow_parts(grid, boxes, image):
    """Concepts in whose boxes the highest cell lies."""
    column, row = naive_cell(grid)
    drawn = [
        (int(k), box) for i, k, box in zip(boxes.image, boxes.concept, boxes.xyxy.tolist(), strict=True) if i == image
    ]
    return {k for k, box in drawn if naive_inside(column, row, [box], len(grid), len(grid[0]))}


@pytest.mark.parametrize("min_images", [1, 3])
def test_scores_equal_a_loop_over_images(min_images):
    maps, noisy = torch.rand(9, 3, 2, 4, 5), torch.rand(9, 3, 2, 4, 5)
    noisy[::2] = maps[::2]
    labels, boxes = (torch.rand(9, 3) < 0.6).float(), random_boxes(9, 3, 40)
    labels[0, 0] = torch.nan
    scores = scores_of(maps, labels, boxes, noisy, min_images)
    for k in range(3):
        rows = [image for image in range(9) if labels[image, k] == 1]
        assert int(scores.support[k]) == len(rows)
        for m in range(2):
            shares, same = {}, 0
            for part in range(3):
                drawn = [i for i in rows if ((boxes.image == i) & (boxes.concept == part)).any()]
                if len(drawn) >= min_images:
                    shows = [part in slow_parts(maps[i, k, m].tolist(), boxes, i) for i in drawn]
                    shares[part] = sum(shows) / len(drawn)
            boxed = [i for i in rows if (boxes.image == i).any()]
            for i in boxed:
                same += slow_parts(maps[i, k, m].tolist(), boxes, i) == slow_parts(noisy[i, k, m].tolist(), boxes, i)
            assert float(scores.share[k, m]) == pytest.approx(max(shares.values()))
            assert shares[int(scores.part[k, m])] == max(shares.values())
            assert float(scores.stability[k, m]) == pytest.approx(same / len(boxed))


def test_a_prototype_of_one_part_is_consistent_a_wanderer_is_not():
    boxes = boxes_of(*((image, 0, (0.0, 0.0, 0.5, 0.5)) for image in range(10)))
    maps = torch.zeros(10, 1, 2, 4, 4)
    maps[:, 0, 0, 1, 1] = 1.0
    for image in range(10):
        maps[image, 0, 1, image % 4, 3 * (image % 2)] = 1.0
    scores = scores_of(maps, torch.ones(10, 1), boxes)
    assert float(scores.share[0, 0]) == 1 and float(scores.share[0, 1]) < 0.8
    assert scores.consistency() == 0.5 and scores.stability.isnan().all()


def test_what_no_image_says_is_undefined():
    maps = torch.rand(2, 2, 1, 3, 3)
    scores = scores_of(maps, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), ConceptBoxes.empty(), maps)
    assert scores.share.isnan().all() and scores.part.eq(-1).all()
    assert scores.stability.isnan().all()
    untouched = PrototypeParts(2, 1)
    untouched.update(maps, torch.ones(2, 2), None)
    assert untouched.images.eq(0).all()


def test_a_share_at_the_threshold_counts():
    boxes = boxes_of(*((image, 0, (0.0, 0.0, 0.5, 0.5)) for image in range(10)))
    maps = torch.zeros(10, 1, 1, 4, 4)
    maps[:7, 0, 0, 1, 1] = maps[7:, 0, 0, 3, 3] = 1.0
    scores = scores_of(maps, torch.ones(10, 1), boxes)
    assert float(scores.share) == 0.7 and scores.consistency(0.7) == 1


def test_images_without_boxes_do_not_count_as_stable():
    boxes = boxes_of((0, 0, (0.0, 0.0, 0.5, 0.5)))
    maps, noisy = torch.zeros(5, 1, 1, 4, 4), torch.zeros(5, 1, 1, 4, 4)
    maps[:, 0, 0, 0, 0] = noisy[:, 0, 0, 3, 3] = 1.0
    assert float(scores_of(maps, torch.ones(5, 1), boxes, noisy).stability) == 0


def test_shards_merge_to_the_same_number():
    maps, labels, boxes = torch.rand(12, 3, 2, 4, 5), (torch.rand(12, 3) < 0.6).float(), random_boxes(12, 3, 40)
    first, second = PrototypeParts(3, 2, min_images=1), PrototypeParts(3, 2, min_images=1)
    for start, stop, rank in ((0, 1, first), (1, 7, second), (7, 7, second), (7, 12, first)):
        some = (boxes.image >= start) & (boxes.image < stop)
        own = ConceptBoxes(boxes.xyxy[some], boxes.concept[some], boxes.image[some] - start)
        rank.update(maps[start:stop], labels[start:stop], own, maps[start:stop])
    first.merge_state(second)
    for merged, whole in zip(first.compute(), scores_of(maps, labels, boxes, maps), strict=True):
        torch.testing.assert_close(merged, whole, equal_nan=True)


def test_parts_are_those_of_the_own_image_alone():
    boxes = boxes_of((1, 0, (0.0, 0.0, 1.0, 1.0)))
    assert shown_parts(torch.rand(2, 1, 1, 3, 3), boxes).flatten().tolist() == [False, True]


def test_noise_is_cut_off_and_follows_its_seed():
    noise = add_noise(torch.zeros(4, 3, 20, 20))
    assert float(noise.abs().max()) == 0.25 and 0.15 < float(noise.std()) < 0.2
    assert torch.equal(noise, add_noise(torch.zeros(4, 3, 20, 20)))


def test_reliance_is_the_change_of_the_logits_without_a_prototype():
    evidence, weight = torch.rand(30, 2, 3), torch.randn(4, 2, 3)
    evidence[:, 0, 0] = 0.7  # always the same, so nothing rests on it
    found = prototype_reliance(evidence, weight)
    for k in range(2):
        for m in range(3):
            without = evidence.clone()
            without[:, k, m] = evidence[:, k, m].mean()
            change = torch.einsum("nkm,tkm->nt", evidence - without, weight)
            assert float(found[k, m]) == pytest.approx(float(change.abs().mean()), abs=1e-6)
    assert float(found[0, 0]) == pytest.approx(0, abs=1e-6)
    usage = torch.rand(2, 3)
    expected = stats.spearmanr(usage.flatten(), found.flatten()).statistic
    assert relevance_agreement(usage, found) == pytest.approx(expected)
