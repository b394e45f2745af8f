import logging
import math

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F

from conceptcam.model.heads import LinearProjector
from conceptcam.training.prototype_init import enforce_min_angle, fit_projector, init_prototypes, spherical_kmeans


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosines(vectors):
    return (vectors @ vectors.T).masked_fill(torch.eye(len(vectors), dtype=torch.bool), -1)


def bundles(count: int, each: int, size: int = 16, noise: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions at right angles to one another, with vectors scattered around each; and whose each vector is."""
    axes = torch.eye(size)[:count]
    vectors = axes.repeat_interleave(each, dim=0) + noise * torch.randn(count * each, size, generator=rng())
    return F.normalize(vectors, dim=-1), torch.arange(count).repeat_interleave(each)


def test_clusters_that_lie_apart_are_found_whatever_the_start():
    vectors, truth = bundles(4, 30)
    for seed in range(10):
        centres = spherical_kmeans(vectors, 4, generator=rng(seed))
        nearest = (vectors @ centres.T).argmax(dim=1)
        assert {(int(a), int(b)) for a, b in zip(nearest, truth, strict=True)} == set(
            zip(nearest[::30].tolist(), range(4), strict=True)
        )
        means = torch.stack([F.normalize(vectors[nearest == k].mean(dim=0), dim=0) for k in range(4)])
        torch.testing.assert_close(centres, means)


def test_no_step_of_the_clustering_moves_vectors_from_centres():
    vectors = F.normalize(torch.randn(200, 8, generator=rng()), dim=-1)
    near = [
        (vectors @ spherical_kmeans(vectors, 6, generator=rng(1), steps=steps).T).amax(dim=1).sum().item()
        for steps in range(12)
    ]
    assert all(later >= earlier - 1e-4 for earlier, later in zip(near, near[1:], strict=False))
    assert near[-1] > near[0]


def test_as_many_vectors_as_centres_are_each_a_centre():
    vectors, _ = bundles(5, 1)
    centres = spherical_kmeans(vectors, 5, generator=rng())
    assert sorted((vectors @ centres.T).argmax(dim=1).tolist()) == list(range(5))


def test_spreading_stops_just_where_no_two_are_nearer_than_the_limit():
    near = F.normalize(torch.ones(5, 8) + 0.05 * torch.randn(5, 8, generator=rng()), dim=-1)
    assert cosines(near).max() > 0.98
    apart = enforce_min_angle(near, limit=0.95)
    assert 0.9499 < cosines(apart).max() <= 0.95 + 2e-4
    torch.testing.assert_close(apart.norm(dim=-1), torch.ones(5))


def test_two_that_are_near_move_apart_evenly_and_the_others_stay():
    vectors = torch.eye(8)[:4].clone()
    vectors[1] = F.normalize(vectors[0] + 0.001 * vectors[1], dim=-1)
    apart = enforce_min_angle(vectors, limit=0.95)
    assert torch.equal(apart[2:], vectors[2:])
    assert math.isclose(apart[0] @ apart[1], 0.95, abs_tol=2e-4)
    assert math.isclose(apart[0] @ vectors[0], apart[1] @ vectors[1], abs_tol=1e-4)
    assert apart[0] @ vectors[0] > 0.98


@pytest.mark.parametrize("noise", [1e-5, 1e-2, 0.3])
@pytest.mark.parametrize("shape", [(5, 3), (5, 128), (60, 32)])
def test_no_two_stay_nearer_than_the_limit_and_none_goes_far(shape, noise):
    vectors = F.normalize(torch.ones(shape) + noise * torch.randn(shape, generator=rng()), dim=-1)
    apart = enforce_min_angle(vectors, limit=0.95)
    assert cosines(apart).max() <= 0.95 + 2e-4
    torch.testing.assert_close(apart.norm(dim=-1), torch.ones(len(apart)))
    if len(vectors) <= 5:
        assert (apart * vectors).sum(dim=-1).min() > 0.9


def test_identical_ones_stay_identical_and_leave_the_others():
    vectors = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.01, 0.0], [1.0, 0.0, 0.0]]), dim=-1)
    apart = enforce_min_angle(vectors, limit=0.95)
    assert torch.equal(apart[0], apart[2]) and apart[0] @ apart[1] <= 0.95 + 2e-4


def test_what_is_apart_already_stays_as_it_is():
    vectors, _ = bundles(5, 1)
    assert torch.equal(enforce_min_angle(vectors, limit=0.95), vectors)


def test_each_concepts_prototypes_lie_among_its_own_vectors():
    first, second = F.normalize(torch.randn(2, 16, generator=rng()), dim=-1)
    own = torch.cat(
        [first + 0.1 * torch.randn(50, 16, generator=rng(1)), second + 0.1 * torch.randn(50, 16, generator=rng(2))]
    )
    concept = torch.tensor([0, 1]).repeat_interleave(50)
    prototypes = torch.randn(2, 5, 16, generator=rng(3))
    init_prototypes(prototypes, 7 * own, concept, names=("a", "b"))
    nearest = (F.normalize(prototypes, dim=-1) @ torch.stack([first, second]).T).argmax(dim=-1)
    assert nearest.tolist() == [[0] * 5, [1] * 5]
    torch.testing.assert_close(prototypes.norm(dim=-1), torch.full((2, 5), 4.0))
    assert all(cosines(F.normalize(of, dim=-1)).max() < 0.951 for of in prototypes)


def test_a_concept_of_few_vectors_has_some_prototypes_twice(caplog):
    prototypes, vectors = torch.randn(3, 3, 4), torch.randn(12, 4)
    before = prototypes.clone()
    with caplog.at_level(logging.WARNING):
        init_prototypes(prototypes, vectors, torch.tensor([0] * 10 + [1] * 2), names=("many", "rare", "none"))
    assert "fewer positives than the 3 prototypes of a concept: rare (2), none (0)" in caplog.text
    assert torch.equal(prototypes[2], before[2]), "there is nothing to learn it from"
    own = F.cosine_similarity(prototypes[1][:, None], vectors[None, 10:], dim=-1)
    assert (own.amax(dim=1) > 0.999).all() and (own.amax(dim=0) > 0.999).all()


@pytest.mark.parametrize("size", [3, 6, 9])
def test_a_fitted_projector_compares_standardized_channels(size):
    torch.manual_seed(0)
    features = torch.randn(8, 6, 5, 5) * torch.tensor([1.0, 2, 5, 0.1, 3, 7])[:, None, None] + 4
    features[:, 1] += features[:, 2]
    projector = LinearProjector(6, size)
    fit_projector(projector, features.split(3))
    places = rearrange(features, "b c h w -> (b h w) c")
    standard = (places - places.mean(dim=0)) / places.std(dim=0, correction=0)
    directions = torch.linalg.svd(standard, full_matrices=False).Vh[:size]
    expected = F.normalize(standard @ directions.T, dim=-1)
    found = F.normalize(projector(places[None])[0], dim=-1)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=1e-4, rtol=1e-4)


def test_placing_leaves_the_random_state_and_is_the_same_each_time():
    vectors, concept = bundles(2, 20)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(torch.zeros(2, 3, 16))
        init_prototypes(results[-1], vectors, concept, names=("a", "b"))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)


@pytest.mark.parametrize("steps", [0, 20])
def test_centres_are_unit_vectors(steps):
    vectors = F.normalize(torch.randn(60, 8), dim=-1)
    norms = spherical_kmeans(vectors, 7, generator=rng(), steps=steps).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(7))
