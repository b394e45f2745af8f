import math

import pytest
import torch
from torch import Tensor

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.prototypes import (
    PrototypeAccuracy,
    PrototypePurity,
    prototype_accuracy,
    prototype_health,
    prototype_usage,
)

nan = torch.nan


def examples(images: int = 40, concepts: int = 4, prototypes: int = 3) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    similarity = torch.randn(images, concepts, concepts, prototypes, generator=random)
    similarity += 1.5 * torch.eye(concepts)[None, :, :, None]
    labels = torch.rand(images, concepts, generator=random).round()
    labels[::5] = nan
    labels[1, 0] = 0.5
    labels[2, 0] = 0.6
    return similarity, labels


def present(labels: Tensor) -> list[tuple[int, int, float]]:
    """Image, concept and label, where it is known to be above 0."""
    return [
        (image, concept, label)
        for image, row in enumerate(labels.tolist())
        for concept, label in enumerate(row)
        if label > 0
    ]


def test_accuracy_equals_a_loop_over_present_concepts():
    similarity, labels = examples()
    right, total = 0.0, 0.0
    for image, concept, label in present(labels):
        flat = similarity[image, concept].flatten().tolist()
        right += label * (flat.index(max(flat)) // similarity.shape[3] == concept)
        total += label
    assert 0 < right < total
    assert total % 1  # some labels are soft
    assert float(prototype_accuracy(similarity, labels)) == pytest.approx(right / total)


def test_vectors_of_absent_and_unknown_concepts_count_nothing():
    similarity, labels = examples()
    expected = prototype_accuracy(similarity, labels), prototype_usage(similarity, labels)
    similarity[~(labels > 0)] = nan
    assert torch.equal(prototype_accuracy(similarity, labels), expected[0])
    assert torch.equal(prototype_usage(similarity, labels), expected[1])


def test_prototypes_collapsed_into_one_are_never_right():
    assert prototype_accuracy(torch.ones(3, 2, 2, 4), torch.ones(3, 2)) == 0


def test_accuracy_without_a_present_concept_is_undefined():
    similarity, labels = examples()
    assert prototype_accuracy(similarity, torch.zeros_like(labels)).isnan()
    assert prototype_accuracy(similarity, torch.full_like(labels, nan)).isnan()
    assert prototype_accuracy(similarity[:0], labels[:0]).isnan()


def test_batches_of_any_size_on_any_rank_score_as_one():
    similarity, labels = examples()
    first, second = PrototypeAccuracy(), PrototypeAccuracy()
    for rows, rank in ((slice(0, 3), first), (slice(3, 3), second), (slice(3, 40), second)):
        rank.update(similarity[rows], labels[rows])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(float(prototype_accuracy(similarity, labels)))


def test_usage_equals_a_naive_count_and_adds_up_over_batches():
    similarity, labels = examples()
    counts = torch.zeros(4, 3, dtype=torch.float64)
    for image, concept, label in present(labels):
        own = similarity[image, concept, concept].tolist()
        counts[concept, own.index(max(own))] += label
    torch.testing.assert_close(prototype_usage(similarity, labels), counts)
    halves = prototype_usage(similarity[:9], labels[:9]) + prototype_usage(similarity[9:], labels[9:])
    torch.testing.assert_close(halves, counts)
    assert torch.equal(prototype_usage(similarity, labels.round()) % 1, torch.zeros(4, 3))


def test_health_finds_dead_and_duplicate_prototypes():
    prototypes = torch.tensor([[[1.0, 0], [0, 1]], [[1, 1], [3, 3]], [[1, 0], [-1, 0]]])
    health = prototype_health(prototypes, torch.tensor([[5, 5], [3, 0], [0, 0]]))
    assert health.alive[:2].tolist() == [1, 0.5]
    assert health.top_share[:2].tolist() == [0.5, 1]
    assert health.alive[2].isnan()
    assert health.top_share[2].isnan()
    assert health.closest_cosine.tolist() == pytest.approx([0, 1, -1])


def test_usage_entropy_is_that_of_the_fractions():
    usage = torch.tensor([[5.0, 5.0, 0.0], [7.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    entropy = prototype_health(torch.randn(4, 3, 5), usage).usage_entropy
    assert entropy[:3].tolist() == pytest.approx([math.log(2) / math.log(3), 0, 1])
    assert entropy[3].isnan()


def test_purity_equals_a_slow_loop_over_the_most_similar_images():
    random = torch.Generator().manual_seed(0)
    maps = torch.rand(30, 2, 3, 4, 5, generator=random)
    maps[:, 0, 2] = 0  # no image resembles this one
    maps[5:, 1, 0] = 0  # five images do
    left = torch.rand(20, generator=random) * 0.6
    top = torch.rand(20, generator=random) * 0.6
    xyxy = torch.stack([left, top, left + 0.4, top + 0.4], dim=1)
    image, concept = torch.arange(20), torch.arange(20) % 2
    found = PrototypePurity(top=10)
    for rows in (slice(0, 7), slice(7, 30)):
        chosen = (image >= rows.start) & (image < rows.stop)
        found.update(maps[rows], ConceptBoxes(xyxy[chosen], concept[chosen], image[chosen] - rows.start))
    found.update(maps, None)  # nobody drew
    for k in range(2):
        for m in range(3):
            best = sorted(range(30), key=lambda n, k=k, m=m: -float(maps[n, k, m].max()))[:10]
            best = [n for n in best if maps[n, k, m].max() > 0]
            hits = 0
            for n in best:
                row, column = divmod(int(maps[n, k, m].flatten().argmax()), 5)
                x, y = (column + 0.5) / 5, (row + 0.5) / 4
                drawn = xyxy[(image == n) & (concept == k)].tolist()
                hits += any(a <= x <= c and b <= y <= d for a, b, c, d in drawn)
            expected = hits / len(best) if best else nan
            assert float(found.compute()[k, m]) == pytest.approx(expected, nan_ok=True)


def test_single_prototype_has_no_neighbour_to_be_close_to():
    assert prototype_health(torch.ones(2, 1, 3), torch.ones(2, 1)).closest_cosine.isnan().all()


@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 2, 2, 0), (3, 2, 3, 4), (2, 2, 2, 4)])
def test_bad_shapes_are_named(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"need similarities \(B, K, K, M\)"):
        prototype_accuracy(torch.zeros(shape), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"need similarities \(B, K, K, M\)"):
        prototype_usage(torch.zeros(shape), torch.ones(3, 2))
