"""Whether a prototype means one thing: it shows the same part in all images, also under noise, and the tasks use it.

A part is what the boxes of a concept mark; Huang et al. (2023) have annotated points of birds' parts instead. A
prototype shows the parts in whose boxes the highest place of its similarity map lies.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from conceptcam._checks import check_number
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.faithfulness import rank_correlation


class PrototypePartScores(NamedTuple):
    """How much each of K x M prototypes means one part; float64 on the CPU, NaN where there are no such images."""

    share: Tensor
    """(K, M) in [0, 1]. For each part, take the images that have the concept and boxes of the part, and the fraction of
    them in which the prototype shows the part. This is the highest of these fractions."""
    part: Tensor
    """(K, M) which part that is, by the index of its concept; -1 where there is none."""
    stability: Tensor
    """(K, M) in [0, 1]. Take the images that have the concept and any box: this is the fraction of them in which the
    prototype shows the same parts under noise; NaN if no noisy maps were given."""
    support: Tensor
    """(K,) how many images of the concept there are."""

    def consistency(self, threshold: float = 0.8) -> float:
        """Fraction of the prototypes whose `share` is at least the threshold; .8 is that of Huang et al. (2023).

        Returns:
            In [0, 1]; NaN if no prototype has a `share`.
        """
        known = ~self.share.isnan()
        return float((self.share[known] >= threshold).double().mean())


def shown_parts(similarity_maps: Tensor, boxes: ConceptBoxes) -> Tensor:
    """In which concepts' boxes the highest place of each similarity map lies.

    Args:
        similarity_maps: (B, K, M, h, w).
        boxes: Boxes of the batch.

    Returns:
        (B, K, M, K) bool, the last axis counting parts.

    Raises:
        ValueError: If a box has an index outside the maps.
    """
    images, concepts, prototypes, height, width = similarity_maps.shape
    place = similarity_maps.detach().flatten(3).argmax(dim=-1).flatten(1)  # (B, K M)
    pairs = boxes.to(place.device).pair_masks((images, concepts, height, width), "center")
    inside = torch.zeros(images, concepts, height * width, dtype=torch.bool, device=place.device)
    inside[pairs.image, pairs.concept] = pairs.inside.flatten(1) > 0
    found = inside.gather(2, place[:, None].expand(-1, concepts, -1))  # (B, parts, K M)
    return found.transpose(1, 2).unflatten(1, (concepts, prototypes))


class PrototypeParts(Metric):
    """`PrototypePartScores` over all batches, from counts.

    Args:
        num_concepts: K.
        per_concept: M.
        min_images: In how many images of a concept a part must have boxes to be looked at.
    """

    is_differentiable = False
    full_state_update = False

    shown: Tensor
    seen: Tensor
    same: Tensor
    compared: Tensor
    images: Tensor

    def __init__(self, num_concepts: int, per_concept: int, *, min_images: int = 5) -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        check_number("`per_concept`", per_concept, 1, whole=True)
        check_number("`min_images`", min_images, 1, whole=True)
        self.min_images = min_images
        shapes = {
            "shown": (num_concepts, per_concept, num_concepts),
            "seen": (num_concepts, num_concepts),
            "same": (num_concepts, per_concept),
            "compared": (num_concepts,),
            "images": (num_concepts,),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, similarity_maps: Tensor, labels: Tensor, boxes: ConceptBoxes | None, noisy_maps: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            similarity_maps: (B, K, M, h, w).
            labels: (B, K); prototypes are looked at in images that have their concept, above .5.
            boxes: Boxes of the batch; None if nobody drew any, which adds nothing.
            noisy_maps: (B, K, M, h, w) of the same images with noise, such as `add_noise` adds.

        Raises:
            ValueError: If a box has an index outside the maps.
        """
        if boxes is None:
            return
        present = (labels > 0.5).to(similarity_maps.device)
        parts = shown_parts(similarity_maps, boxes)
        boxes = boxes.to(similarity_maps.device)
        has_boxes = torch.zeros_like(present)
        has_boxes[boxes.image, boxes.concept] = True
        here = (present[:, :, None] & has_boxes[:, None]).long()  # (B, K, parts)
        self.shown += (parts * here[:, :, None]).sum(dim=0)
        self.seen += here.sum(dim=0)
        self.images += present.sum(dim=0)
        if noisy_maps is not None:
            # Without boxes no part can be shown, with or without noise, which says nothing about the prototype.
            counted = present & has_boxes.any(dim=1, keepdim=True)
            same = (parts == shown_parts(noisy_maps, boxes)).all(dim=-1)
            self.same += (same & counted[..., None]).sum(dim=0)
            self.compared += counted.sum(dim=0)

    def compute(self) -> PrototypePartScores:
        """The scores of each prototype."""
        enough = self.seen >= self.min_images
        shares = (self.shown.double() / self.seen[:, None]).masked_fill(~enough[:, None], -1).cpu()
        share, part = shares.max(dim=-1)
        none = share < 0
        return PrototypePartScores(
            share=share.masked_fill(none, torch.nan),
            part=part.masked_fill(none, -1),
            stability=(self.same.double() / self.compared[:, None]).cpu(),
            support=self.images.cpu(),
        )


def add_noise(images: Tensor, *, std: float = 0.2, limit: float = 0.25, seed: int = 0) -> Tensor:
    """Images plus normal noise that is clipped at a limit, so small that a person hardly sees it.

    Args:
        images: (B, C, H, W), normalized.
        std: Standard deviation of the noise before it is clipped, in units of normalized images. This default and the
            next are those of Huang et al. (2023).
        limit: The noise is clipped to [-limit, limit].
        seed: Of the noise.
    """
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=random).mul(std).clamp(-limit, limit)
    return images + noise.to(images)


def prototype_reliance(evidence: Tensor, weight: Tensor) -> Tensor:
    """How much tasks rest on each prototype: how far their logits move, on average, if its evidence is made constant.

    Args:
        evidence: (N, K, M).
        weight: (T, K, M) of the linear task head.

    Returns:
        (K, M) float64, mean over images and tasks.
    """
    evidence, weight = evidence.detach().double().cpu(), weight.detach().double().cpu()
    return (evidence - evidence.mean(dim=0)).abs().mean(dim=0) * weight.abs().mean(dim=0)


def relevance_agreement(usage: Tensor, reliance: Tensor) -> float:
    """Rank correlation of how often prototypes are nearest with how much the tasks rest on them, over all prototypes.

    An atlas shows the prototypes that are nearest. Near 0, these are not the ones that decide.

    Args:
        usage: (K, M) from `prototype_usage`, over the same images.
        reliance: (K, M) from `prototype_reliance`.
    """
    return float(rank_correlation(usage.flatten().cpu(), reliance.flatten().cpu()))
