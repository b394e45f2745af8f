"""First values of prototypes: the centres of clusters of each concept's vectors, kept apart from one another."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam.training import distributed

log = distributed.main_process_logger(__name__)

_TURNS = 1000  # of each vector, at most; vectors need far fewer, unless there is no room for them
_NEAR_ENOUGH = 1e-4  # above the limit of a cosine


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
        prototypes: (K, M, D), changed in place. A concept with fewer vectors than prototypes keeps those it has,
            which is logged.
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
    kept = []
    for k, name in enumerate(names):
        own = directions[concept.cpu() == k]
        if len(own) < count:
            kept.append(f"{name} ({len(own)})")
            continue
        centres = enforce_min_angle(spherical_kmeans(own, count, generator=generator), limit=limit)
        # As long as random ones are, so that a step of the optimizer turns them as far.
        prototypes[k] = centres.to(prototypes) * size**0.5
    if kept:
        log.warning("too few vectors to place %d prototypes each, so these keep theirs: %s", count, ", ".join(kept))


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
