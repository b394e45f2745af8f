"""Whether prototypes tell concepts apart, and whether all of them are put to use.

As in the prototype losses, the vector of a concept counts as much as its label: a soft one in part, an absent or
unknown one not at all.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam._checks import check_number
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.base import FractionMetric, RowMetric


class PrototypeHealth(NamedTuple):
    """How the M prototypes of each of K concepts share the work; each (K,), float64 on the CPU."""

    alive: Tensor
    """Fraction of the prototypes that were nearest at least once; NaN for a concept never present."""
    top_share: Tensor
    """Fraction of the present images that went to the busiest prototype: 1/M is even, 1 is collapse."""
    closest_cosine: Tensor
    """Highest cosine between two prototypes of the concept: 1 is a duplicate; NaN if M is 1."""
    usage_entropy: Tensor
    """How evenly the present images go to the prototypes: 1 is evenly, 0 all to one; NaN if M is 1."""


def prototype_accuracy(vector_similarity: Tensor, labels: Tensor) -> Tensor:
    """Fraction of present concepts whose vector is nearer to a prototype of its own than to any other.

    A tie is no success, or prototypes that have all collapsed into one would score.

    Args:
        vector_similarity: (B, K, K, M), similarity of concept k's vector with prototype m of concept j,
            indexed [b, k, j, m].
        labels: (B, K) in [0, 1], by which concepts are weighted; NaN is unknown.

    Returns:
        A float64 scalar; NaN if no concept is present.

    Raises:
        ValueError: If the shapes do not fit.
    """
    right, weight = _assigned_right(vector_similarity, labels)
    return (right * weight).sum() / weight.sum()


def prototype_usage(vector_similarity: Tensor, labels: Tensor) -> Tensor:
    """How often each prototype is the nearest of its concept, where the concept is present.

    Counts of several batches add up. They are whole numbers unless labels are soft.

    Args:
        vector_similarity: (B, K, K, M), as in `prototype_accuracy`.
        labels: (B, K), as in `prototype_accuracy`.

    Returns:
        (K, M) float64.

    Raises:
        ValueError: If the shapes do not fit.
    """
    _check(vector_similarity, labels)
    own = vector_similarity.detach().diagonal(dim1=1, dim2=2)  # (B, M, K)
    nearest = F.one_hot(own.argmax(dim=1), own.shape[1])  # (B, K, M)
    return (nearest * torch.where(labels > 0, labels, 0).double()[..., None]).sum(dim=0)


def prototype_health(prototypes: Tensor, usage: Tensor) -> PrototypeHealth:
    """Signs of dead and of duplicate prototypes.

    Args:
        prototypes: (K, M, D), of any length.
        usage: (K, M) from `prototype_usage`, over as much data as there is.
    """
    prototypes, usage = prototypes.detach().double().cpu(), usage.double().cpu()
    never = usage.sum(dim=1) == 0
    directions = F.normalize(prototypes, dim=-1)
    cosine = directions @ directions.mT  # (K, M, M)
    itself = torch.eye(prototypes.shape[1], dtype=torch.bool)
    closest = cosine.masked_fill(itself, -torch.inf).amax(dim=(1, 2))
    fractions = usage / usage.sum(dim=1, keepdim=True)
    most = torch.tensor(float(usage.shape[1]), dtype=torch.float64).log()  # 0 of a single prototype, which gives NaN
    return PrototypeHealth(
        (usage > 0).double().mean(dim=1).masked_fill(never, torch.nan),
        usage.amax(dim=1) / usage.sum(dim=1),
        closest.masked_fill(closest == -torch.inf, torch.nan),
        torch.special.entr(fractions).sum(dim=1) / most,
    )


def prototype_purity(similarity: Tensor, inside: Tensor, *, top: int = 10) -> Tensor:
    """Of the images that most resemble a prototype, the fraction in which the place that does lies in its boxes.

    PIP-Net's purity (Nauta et al., 2023), with the boxes of a concept for the annotated part. A prototype that looks
    at a marker or at an image's edge has a low one.

    Args:
        similarity: (N, K, M) highest similarity in each image; 0 is none, and does not count.
        inside: (N, K, M) bool, whether the place of the highest one lies in a box of concept k.
        top: How many images to look at for each prototype.

    Returns:
        (K, M) float64; NaN for a prototype that no image resembles.
    """
    similarity, inside = similarity.detach().double().cpu(), inside.double().cpu()
    values, rows = similarity.topk(min(top, len(similarity)), dim=0)
    counts = values > 0
    return (inside.gather(0, rows) * counts).sum(dim=0) / counts.sum(dim=0)


class PrototypePurity(RowMetric):
    """`prototype_purity` over all batches.

    Args:
        top: As in `prototype_purity`.
    """

    higher_is_better = True

    def __init__(self, *, top: int = 10) -> None:
        super().__init__()
        check_number("`top`", top, 1, whole=True)
        self.top = top

    def update(self, similarity_maps: Tensor, boxes: ConceptBoxes | None) -> None:
        """Add similarity maps (B, K, M, h, w), and the boxes of their images; None if nobody drew, which adds nothing.

        Raises:
            ValueError: If a box has an index outside the maps.
        """
        images, concepts, prototypes, height, width = similarity_maps.shape
        best, place = similarity_maps.detach().flatten(3).max(dim=-1)
        rows = torch.stack([best, torch.zeros_like(best)], dim=-1)
        if boxes is not None:
            pairs = boxes.to(best.device).pair_masks((images, concepts, height, width), "center")
            masks = best.new_zeros(images, concepts, height * width)
            masks[pairs.image, pairs.concept] = pairs.inside.flatten(1).to(best)
            rows[..., 1] = masks.gather(2, place)
        self.keep(rows if boxes is not None else rows[:0])

    def compute(self) -> Tensor:
        """(K, M) the purity of each prototype; NaN where no image resembles it."""
        similarity, inside = self.kept(0, 0, 2).unbind(-1)
        return prototype_purity(similarity, inside > 0, top=self.top)


class PrototypeAccuracy(FractionMetric):
    """`prototype_accuracy` over all batches."""

    def update(self, vector_similarity: Tensor, labels: Tensor) -> None:
        """Add similarities (B, K, K, M) and labels (B, K) in [0, 1], NaN where unknown."""
        self.count(*_assigned_right(vector_similarity, labels))


def _assigned_right(vector_similarity: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(P,) bool and (P,) float64 weight, for each image and concept that is present at all."""
    _check(vector_similarity, labels)
    nearest = vector_similarity.detach().amax(dim=-1)  # (B, K, K)
    own = torch.eye(nearest.shape[1], dtype=torch.bool, device=nearest.device)
    of_others = nearest.masked_fill(own, -torch.inf).amax(dim=-1)
    present = labels > 0  # not of unknown ones
    return (nearest.diagonal(dim1=1, dim2=2) > of_others)[present], labels[present].double()


def _check(vector_similarity: Tensor, labels: Tensor) -> None:
    shape = tuple(vector_similarity.shape)
    if len(shape) != 4 or shape[:2] != tuple(labels.shape) or shape[1] != shape[2] or shape[3] == 0:
        raise ValueError(
            f"need similarities (B, K, K, M), M above 0, and labels (B, K); got {shape} and "
            f"{tuple(labels.shape)}. A 'concepts' bottleneck has no prototypes (M is 0) to score."
        )
