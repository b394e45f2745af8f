import pytest
import torch
from torch import Tensor, nn

from conceptcam.model.heads import (
    ConceptHead,
    IbnProjector,
    Projector,
    Prototypes,
    TaskHead,
    create_projector,
    project_grid,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("height, width", [(7, 7), (4, 9), (1, 1)])
def test_concept_head_scores_each_place_by_itself(height, width):
    head = ConceptHead(6, 3)
    features = randn(2, 6, height, width)
    maps = head(features)
    assert maps.shape == (2, 3, height, width)
    for row in range(height):
        for column in range(width):
            at_place = features[:, :, row, column] @ head.score.weight[:, :, 0, 0].T + head.score.bias
            torch.testing.assert_close(maps[:, :, row, column], at_place)


def test_an_untrained_concept_head_starts_near_its_prior():
    head = ConceptHead(768, 22, prior=0.05)
    probability = head(randn(4, 768, 14, 14)).amax(dim=(-2, -1)).sigmoid()
    assert probability.min() > 0.04 and probability.max() < 0.2
    assert nn.Conv2d(768, 22, 1)(randn(4, 768, 14, 14)).amax(dim=(-2, -1)).sigmoid().min() > 0.6, "torch's default"


def test_a_prior_of_half_is_a_bias_of_0():
    assert (ConceptHead(4, 2, prior=0.5).score.bias == 0).all()
    assert ConceptHead(4, 2, bias=False).score.bias is None


@pytest.mark.parametrize("kind, expected", [("mlp", Projector), ("ibn", IbnProjector)])
def test_projectors_map_vectors_to_the_embedding(kind, expected):
    projector = create_projector(kind, 10, 6)
    assert isinstance(projector, expected)
    assert projector(randn(2, 5, 10)).shape == (2, 5, 6)


@pytest.mark.parametrize("kind", ["mlp", "ibn"])
def test_a_vector_is_projected_as_a_place_of_a_grid_is(kind):
    projector = create_projector(kind, 10, 7)
    features = randn(2, 10, 3, 5)
    projector.train()
    projector(randn(8, 4, 10, seed=1))  # gives batch norm some statistics
    projector.eval()
    grid = project_grid(projector, features).permute(0, 2, 3, 1)
    for row in range(3):
        for column in range(5):
            alone = projector(features[:1, :, row, column][:, None])[0, 0]
            torch.testing.assert_close(grid[0, row, column], alone)


def test_ibn_normalizes_half_by_the_batch_and_half_by_the_vector():
    projector = IbnProjector(4, 9, blocks=1)
    block = projector.blocks[0]
    assert (block.batch_norm.num_features, block.instance_norm.normalized_shape) == (4, (5,))
    vectors = randn(4, 6, 9)
    mixed = block.mix(vectors)
    by_batch = (mixed[..., :4] - mixed[..., :4].mean((0, 1))) / (
        mixed[..., :4].var((0, 1), unbiased=False) + 1e-5
    ).sqrt()
    own = mixed[..., 4:]
    by_vector = (own - own.mean(-1, keepdim=True)) / (own.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(block(vectors), vectors + torch.cat([by_batch, by_vector], -1).relu())


def test_a_vector_comes_out_at_its_place_row_by_row():
    features = torch.arange(6.0).view(1, 1, 2, 3)
    assert project_grid(nn.Identity(), features).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_prototypes_give_cosines_whatever_the_lengths():
    prototypes = Prototypes(3, 2, 8)
    vectors = randn(4, 5, 8)
    cosines = prototypes(vectors)
    assert cosines.shape == (4, 5, 3, 2)
    for concept in range(3):
        for member in range(2):
            one = prototypes.vectors[concept, member].expand_as(vectors)
            torch.testing.assert_close(cosines[:, :, concept, member], torch.cosine_similarity(vectors, one, dim=-1))
    torch.testing.assert_close(prototypes(7 * vectors), cosines)
    assert (prototypes(torch.zeros(1, 1, 8)) == 0).all(), "a vector of zeros is like nothing, not NaN"


def test_the_cosine_of_a_prototype_with_itself_is_1():
    prototypes = Prototypes(2, 3, 16)
    itself = prototypes(prototypes.vectors.flatten(0, 1)[None])[0]
    torch.testing.assert_close(itself.flatten(1).diagonal(), torch.ones(6))


@pytest.mark.parametrize("tasks", [0, 1, 4])
def test_contributions_and_bias_are_the_task_logit(tasks):
    head = TaskHead(5, 3, tasks)
    head.weight.data, head.bias.data = randn(tasks, 5, 3), randn(tasks)
    evidence = randn(7, 5, 3, seed=1)
    contributions, logits = head.contributions(evidence), head(evidence)
    assert (contributions.shape, logits.shape) == ((7, tasks, 5, 3), (7, tasks))
    torch.testing.assert_close(contributions.sum(dim=(-2, -1)) + head.bias, logits)
    expected = evidence.flatten(1).double() @ head.weight.flatten(1).double().T + head.bias.double()
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_an_untrained_task_head_has_no_opinion():
    assert (TaskHead(5, 3, 2)(randn(4, 5, 3)) == 0).all()
