"""First values of prototypes: the centres of clusters of each concept's vectors, kept apart from one another."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam.model.concept_solver import channel_covariance
from conceptcam.model.heads import LinearProjector
from conceptcam.training import distributed

log = distributed.main_process_logger(__name__)

_TURNS = 1000  # of each vector, at most; vectors need far fewer, unless there is no room for them
_NEAR_ENOUGH = 1e-4  # above the limit of a cosine


@dataclass(frozen=True, kw_only=True)
class PrototypePlacement:
    """Finds a projector and prototypes at once, without a step: what a hundred images can pay for.

    A `LinearProjector` becomes the standardized channels of the features, in the directions in which places differ
    most (`fit_projector`); any other projector stays as it is. Each concept's prototypes are the centres of the
    clusters of its vectors (`init_prototypes`).

    Attributes:
        limit: The highest cosine that two prototypes of a concept may have.
        seed: Of the start of the clustering.
    """

    limit: float = 0.95
    seed: int = 0


@torch.no_grad()
def fit_projector(projector: LinearProjector, features: Iterable[Tensor]) -> None:
    """Make a projector standardize channels and turn them into their principal directions, largest first.

    With as many dimensions as channels or more, cosines are those of standardized channels; dimensions beyond the
    channels stay 0. With fewer, they are as near to those as a linear map can be.

    Args:
        projector: Changed in place; C channels to D dimensions.
        features: (B, C, h, w) each, of all training images.
    """
    mean, covariance = channel_covariance(features)
    scale = covariance.diagonal().clamp(min=0).sqrt()
    scale = scale.clamp(min=max(float(scale.max()) * 1e-6, 1e-12))
    directions = torch.linalg.eigh(covariance / scale[:, None] / scale).eigenvectors.flip(1).T  # the last is largest
    layer = projector.layer
    kept = min(layer.out_features, len(directions))
    layer.weight.zero_()
    layer.weight[:kept] = (directions[:kept] / scale).to(layer.weight)
    layer.bias.copy_(-(layer.weight @ mean.to(layer.weight)))


@torch.no_grad()
def init_prototypes(
    prototypes: Tensor,
    embeddings: Tensor,
    concept: Tensor,
    *,
    names: Sequence[str],
    limit: float = 0.95,
    seed: int = 0,
) -> None:
    """Put each concept's prototypes at the centres of the clusters of its vectors.

    Of prototypes that start at random, most are never used: the first one that is nearest to a vector soon is nearest
    to all of them (on the phantom, 1 of 5 stays in use).

    Args:
        prototypes: (K, M, D), changed in place. A concept with fewer vectors than prototypes has some of them twice,
            one without vectors keeps the prototypes it has; both are logged.
        embeddings: (N, D) vectors of present concepts, of any length.
        concept: (N,) the index of the concept that each vector belongs to.
        names: The K names, for the log.
        limit: Highest cosine between two prototypes of a concept; nearer centres are turned apart, see
            `enforce_min_angle`.
        seed: Of the start of the clustering; the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    count, size = prototypes.shape[1:]
    directions = F.normalize(embeddings.float().cpu(), dim=-1)
    few = []
    for k, name in enumerate(names):
        own = directions[concept.cpu() == k]
        if len(own) < count:
            few.append(f"{name} ({len(own)})")
        if not len(own):
            continue
        found = spherical_kmeans(own, min(count, len(own)), generator=generator)
        centres = enforce_min_angle(found, limit=limit).repeat(math.ceil(count / len(found)), 1)[:count]
        # As long as random ones are, so that a step of the optimizer turns them as far.
        prototypes[k] = centres.to(prototypes) * size**0.5
    if few:
        log.warning("fewer positives than the %d prototypes of a concept: %s", count, ", ".join(few))


def spherical_kmeans(vectors: Tensor, count: int, *, generator: torch.Generator, steps: int = 20) -> Tensor:
    """Centres (count, D) of clusters of unit vectors (N, D), N at least `count`; the centres are unit vectors too.

    This is k-means by cosine (Dhillon and Modha, 2001) with the start of k-means++ (Arthur and Vassilvitskii, 2007). A
    cluster that loses all its vectors keeps its centre.
    """
    centres = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    for _ in range(count - 1):
        distance = (1 - (vectors @ centres.T).amax(dim=1)).clamp(min=1e-9)
        centres = torch.cat([centres, vectors[_draw(distance, generator)]])
    for _ in range(steps):
        nearest = F.one_hot((vectors @ centres.T).argmax(dim=1), count).to(vectors.dtype)
        means = F.normalize(nearest.T @ vectors, dim=-1)
        centres = torch.where(nearest.sum(dim=0)[:, None] > 0, means, centres)
    return centres


def enforce_min_angle(centres: Tensor, *, limit: float) -> Tensor:
    """Turn unit vectors (M, D) away from one another until no two have a cosine above `limit`.

    The nearest two turn first, each by half of the missing angle, in the plane of both. Vectors that are far enough
    apart do not move, and identical ones stay identical. Many vectors in few dimensions may have no room; then the
    nearest stay nearer than the limit, which is logged.
    """
    different, which = torch.unique(centres, dim=0, return_inverse=True)
    itself = torch.eye(len(different), dtype=torch.bool)
    half = math.acos(limit) / 2
    for _ in range(_TURNS * len(different)):
        cosine, place = (different @ different.T).masked_fill(itself, -1).flatten().max(dim=0)
        if cosine <= limit + _NEAR_ENOUGH:
            break
        pair = torch.tensor([place // len(different), place % len(different)])
        first, second = different[pair]
        middle, aside = F.normalize(torch.stack([first + second, first - second]), dim=-1)
        turned = math.cos(half) * middle + math.sin(half) * torch.stack([aside, -aside])
        different[pair] = F.normalize(turned, dim=-1)  # nearly equal ones have a rough difference
    else:
        log.warning("%d prototypes have no room to be apart in %d dimensions", *different.shape)
    return different[which]


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """(1,) an index, drawn by weight. `multinomial` does the same, but for a limited number of weights."""
    total = weights.double().cumsum(dim=0)
    return torch.searchsorted(total, torch.rand(1, generator=generator).double() * total[-1]).clamp(max=len(total) - 1)
