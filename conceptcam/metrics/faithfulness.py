"""Whether a score rests on what a map marks: replace it, or show it alone, and see (RISE, Petsiuk et al., 2018).

Deletion replaces the cells of an image one after the other, the highest of the map first; insertion puts them into an
image that has none of them. A faithful map makes the score fall soon and rise soon. An image with holes is like none
that a model has seen, so its score also falls for that: only the distance to the same number of cells in a random order
says something of the map.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam._checks import check_number
from conceptcam.metrics.base import RowMetric

Score = Callable[[Tensor], Tensor]
"""Takes images (P, C, H, W), and gives the score (P,) that the map of each explains, such as a probability."""


class PerturbationCurves(NamedTuple):
    """Scores of P images as more and more of their cells are replaced or shown, from none to all; (P, S + 1) each."""

    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor


class FaithfulnessScores(NamedTuple):
    """Mean areas under the curves, over the score of the whole image; (K,) float64, NaN for a concept without maps."""

    deletion: Tensor
    """Lower is better."""
    insertion: Tensor
    """Higher is better."""
    random_deletion: Tensor
    """The control: cells in a random order."""
    random_insertion: Tensor
    """The control: cells in a random order."""
    support: Tensor
    """How many maps there are."""


@torch.no_grad()
def perturbation_curves(
    score: Score, images: Tensor, maps: Tensor, fill: Tensor, *, steps: int = 14, cells: int = 14, seed: int = 0
) -> PerturbationCurves:
    """Delete and insert cells in the order of a map, and in a random order.

    Args:
        score: What is explained; called 4 S times with P images.
        images: (P, C, H, W) as `score` takes them.
        maps: (P, h, w) of any range; only their order counts.
        fill: (P, C, H, W) or what broadcasts to it, to put in place of what is deleted, such as `blurred(images)`, or
            0, the mean of normalized training images.
        steps: S, in how many equal steps.
        cells: Finer maps are averaged to so many cells along a side.
        seed: Of the random order, the same for every image.
    """
    order, random = map_order(maps, cells=cells), random_order(maps, cells=cells, seed=seed)
    fill = torch.as_tensor(fill, dtype=images.dtype, device=images.device).expand_as(images)
    deletion, insertion = order_curves(score, images, order, fill, steps=steps)
    random_deletion, random_insertion = order_curves(score, images, random, fill, steps=steps)
    return PerturbationCurves(deletion, insertion, random_deletion, random_insertion)


def map_order(maps: Tensor, *, cells: int = 14) -> Tensor:
    """The rank of each cell, 0 for the one where its map is highest: (P, 1, rows, columns) of maps (P, h, w).

    Args:
        maps: As in `perturbation_curves`.
        cells: As there.
    """
    rows, columns = (min(side, cells) for side in maps.shape[1:])
    coarse = F.adaptive_avg_pool2d(maps.detach()[:, None].float(), (rows, columns)).flatten(1)
    return coarse.argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(-1, 1, rows, columns)


def random_order(maps: Tensor, *, cells: int = 14, seed: int = 0) -> Tensor:
    """As `map_order`, of an order that has nothing to do with maps and is the same for every image."""
    rows, columns = (min(side, cells) for side in maps.shape[1:])
    random = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed)).argsort()
    return random.to(maps.device).view(1, 1, rows, columns).expand(len(maps), -1, -1, -1)


def order_curves(
    score: Score,
    images: Tensor,
    order: Tensor,
    fill: Tensor,
    *,
    steps: int,
    ends: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores as cells are deleted and as they are inserted in an order, from none to all; two (P, S + 1, ...).

    Args:
        score: Takes images (P, C, H, W), gives (P, ...); called 2 S times, the last deletion being the first insertion.
        images: (P, C, H, W).
        order: (P, 1, rows, columns), as `map_order` gives.
        fill: (P, C, H, W) to put in place of what is deleted.
        steps: S.
        ends: Scores of the whole images and of the filling, if they are known; two calls less.
    """
    place = F.interpolate(order.float(), size=images.shape[2:], mode="nearest")  # (P, 1, H, W)
    whole, nothing = (score(images), score(fill)) if ends is None else ends
    deletion, insertion = [whole], [nothing]
    for step in range(1, steps):
        first = place < round(step * order[0].numel() / steps)
        deletion.append(score(torch.where(first, fill, images)))
        insertion.append(score(torch.where(first, images, fill)))
    return torch.stack([*deletion, nothing], dim=1), torch.stack([*insertion, whole], dim=1)


def blurred(images: Tensor) -> Tensor:
    """Images (P, C, H, W) without detail, by a Gaussian of a sixteenth of their shorter side."""
    from torchvision.transforms.functional import gaussian_blur  # torchvision takes seconds to import

    sigma = min(images.shape[-2:]) / 16
    return gaussian_blur(images, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma] * 2)


def curve_areas(curves: PerturbationCurves) -> Tensor:
    """(P, 4) area under each curve, over the score of the whole image; NaN where that is not above 0."""
    whole = curves.deletion[:, :1].double()
    areas = [torch.trapezoid(one.double() / whole, dim=1) / (one.shape[1] - 1) for one in curves]
    return torch.stack(areas, dim=1).masked_fill(whole <= 0, torch.nan)


class FaithfulnessMetrics(RowMetric):
    """`FaithfulnessScores` over all batches; keeps five numbers per map.

    Args:
        num_concepts: K.
    """

    def __init__(self, num_concepts: int) -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        self.num_concepts = num_concepts

    def update(self, concept: Tensor, curves: PerturbationCurves) -> None:
        """Add the curves of P maps, and of which concept (P,) each is.

        Raises:
            ValueError: If there is not one concept for each map, or a concept is none of K.
        """
        if concept.shape != curves.deletion.shape[:1] or (len(concept) and int(concept.max()) >= self.num_concepts):
            raise ValueError(
                f"need one concept below {self.num_concepts} for each of {len(curves.deletion)} maps, got "
                f"{tuple(concept.shape)}"
            )
        areas = curve_areas(PerturbationCurves(*(one.detach().cpu() for one in curves)))
        self.keep(torch.cat([concept[:, None].double().cpu(), areas], dim=1))

    def compute(self) -> FaithfulnessScores:
        """The scores of each concept."""
        rows = self.kept(5).double()
        rows = rows[~rows.isnan().any(dim=1)]
        concept = rows[:, 0].long()
        sums = torch.zeros(self.num_concepts, 4, dtype=torch.float64).index_add(0, concept, rows[:, 1:])
        support = torch.bincount(concept, minlength=self.num_concepts)
        return FaithfulnessScores._make((*(sums / support[:, None]).unbind(1), support))


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation along the last axis of two tensors (..., n), float64, ties sharing their mean rank.

    NaN where one of them is constant.
    """
    centred = []
    for values in (first, second):
        values = values.double()
        ordered = values.sort(dim=-1).values
        low, high = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
        ranks = (low + high).double()
        centred.append(ranks - ranks.mean(dim=-1, keepdim=True))
    one, two = centred
    return (one * two).sum(dim=-1) / (one.square().sum(dim=-1) * two.square().sum(dim=-1)).sqrt()
