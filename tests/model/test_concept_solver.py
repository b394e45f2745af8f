import pytest
import torch
from torch.nn import functional as F

from conceptcam.data.batch import ConceptBatch
from conceptcam.losses.classification import multilabel_loss
from conceptcam.model.concept_solver import ConceptSolver, channel_covariance, channel_statistics
from conceptcam.model.heads import ConceptHead
from conceptcam.model.pooling import AttentionPool, MeanPool, TopkPool


def example(images=24, channels=5, concepts=2, side=3):
    torch.manual_seed(0)
    features = torch.randn(images, channels, side, side) * torch.tensor([1.0, 30, 0.1, 2, 5])[:, None, None] + 3
    labels = (torch.rand(images, concepts) < 0.4).float()
    return features, ConceptBatch(torch.empty(images, 0), labels, torch.empty(images, 0))


def loss(part, batch):
    return multilabel_loss(part.concept_logits, batch.concepts)


def in_batches(features, batch, size):
    rows = torch.arange(len(features)).split(size)
    return lambda: [(features[some], batch.select(some)) for some in rows]


def test_a_mean_pooled_head_is_a_logistic_regression_of_means():
    features, batch = example()
    head = ConceptHead(5, 2)
    ConceptSolver(l2=0.05, steps=300).solve(head, MeanPool(), in_batches(features, batch, 24), loss)

    mean, scale = features.mean(dim=(0, 2, 3)), features.std(dim=(0, 2, 3), correction=0)
    inputs = ((features.mean(dim=(2, 3)) - mean) / scale).double()
    weight, bias = torch.zeros(2, 5, dtype=torch.double), torch.zeros(2, dtype=torch.double)
    for _ in range(20_000):  # slow, plain gradient descent
        error = (inputs @ weight.T + bias).sigmoid() - batch.concepts
        weight = weight - 0.5 * (error.T @ inputs / len(inputs) / 2 + 2 * 0.05 * weight / 2)
        bias = bias - 0.5 * error.mean(dim=0) / 2
    expected = inputs @ weight.T + bias
    torch.testing.assert_close(MeanPool()(head(features)), expected.float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [5, 24])
def test_batches_of_any_size_give_the_same_head(size):
    features, batch = example()
    heads = []
    for each in (24, size):
        torch.manual_seed(1)
        heads.append(ConceptHead(5, 2))
        ConceptSolver(steps=200).solve(heads[-1], MeanPool(), in_batches(features, batch, each), loss)
    torch.testing.assert_close(heads[0](features), heads[1](features), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_solved_head_is_better_than_before(bias):
    features, batch = example()
    features.requires_grad_(False)
    head, pool = ConceptHead(5, 2, bias=bias), TopkPool(0.2)

    def value():
        maps = head(features)
        return multilabel_loss(pool(maps), batch.concepts).item()

    before = value()
    found = ConceptSolver().solve(head, pool, in_batches(features, batch, 7), loss)
    assert found < before and found == pytest.approx(value(), rel=1e-5)
    assert (head.score.bias is None) == (not bias)


def test_what_a_pooling_learns_is_found_too():
    features, batch = example()
    pool = AttentionPool(2)
    ConceptSolver().solve(ConceptHead(5, 2), pool, in_batches(features, batch, 24), loss)
    assert not torch.equal(pool.sharpness, torch.ones(2))


def test_features_or_options_that_cannot_be_are_refused():
    features, batch = example()
    with pytest.raises(FloatingPointError, match="features to learn a head from are not finite"):
        ConceptSolver().solve(ConceptHead(5, 2), MeanPool(), in_batches(features * torch.inf, batch, 24), loss)
    with pytest.raises(ValueError, match="`l2` must be finite and at least 0, got -1"):
        ConceptSolver(l2=-1)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        ConceptSolver(steps=0)


def test_statistics_of_channels_are_those_of_all_places():
    features, _ = example()
    places = features.transpose(0, 1).flatten(1)
    mean, covariance = channel_covariance(features.split(7))
    torch.testing.assert_close(mean.float(), places.mean(dim=1))
    torch.testing.assert_close(covariance.float(), torch.cov(places, correction=0), atol=1e-3, rtol=1e-4)
    features[:, 2] = 4.0
    _, scale = channel_statistics([features])
    assert scale[2] > 0 and torch.isfinite(F.normalize(1 / scale, dim=0)).all()
