"""How often concept maps peak at the border of the image, where letters, frames and dark corners are."""

from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_number
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.base import RowMetric


class BorderScores(NamedTuple):
    """Counts of each concept; each (K,), float64 on the CPU."""

    images: Tensor
    """How many images have the concept; 0 where the grid is too small to tell."""
    at_border: Tensor
    """In how many of them its map peaks at the border."""
    chance: Tensor
    """Fraction of the cells that count as border, the mean over these images; NaN if there are none."""


def border_ring(height: int, width: int) -> Tensor:
    """(height, width) bool: the outermost ring of a grid.

    It is one cell wide, and on grids of 28 cells or more along an axis a 14th of them, so that a finer grid does not
    make it thinner on the image.
    """
    down, across = max(1, height // 14), max(1, width // 14)
    ring = torch.ones(height, width, dtype=torch.bool)
    ring[down:-down, across:-across] = False
    return ring


def peaks_at_border(concept_maps: Tensor, boxes: ConceptBoxes | None = None) -> tuple[Tensor, Tensor]:
    """Which maps peak at the border of the image, and how often that would be so by chance.

    The border is the outermost ring of cells, of `border_ring`, without those that a box of the concept in this image
    touches: a finding may be at the border. A map peaks there if a cell of the border is higher than all others; one
    that is the same everywhere peaks nowhere.

    Args:
        concept_maps: (B, K, h, w) logits.
        boxes: Boxes of the batch; None if nobody drew any.

    Returns:
        (B, K) bool, and (B, K) the fraction of the cells that are border.

    Raises:
        ValueError: If a box has an index outside the maps.
    """
    border = border_ring(*concept_maps.shape[2:]).to(concept_maps.device).expand(concept_maps.shape)
    if boxes is not None:
        border = border & (boxes.to(concept_maps.device).coverage(concept_maps.shape) == 0)
    highest = concept_maps.masked_fill(~border, -torch.inf).amax(dim=(2, 3))
    others = concept_maps.masked_fill(border, -torch.inf).amax(dim=(2, 3))
    return highest > others, border.double().mean(dim=(2, 3))


class BorderMetrics(RowMetric):
    """`BorderScores` over all batches, of the images that have a concept.

    Where the ring is most of the grid, on 6 x 6 cells or fewer, a peak in it tells nothing, and no image counts.

    Args:
        num_concepts: K.
    """

    plotted = ("images", "at_border")

    def __init__(self, num_concepts: int) -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        self.num_concepts = num_concepts

    def update(self, concept_maps: Tensor, concepts: Tensor, boxes: ConceptBoxes | None = None) -> None:
        """Add a batch.

        Args:
            concept_maps: (B, K, h, w) logits.
            concepts: (B, K) labels in [0, 1], NaN where unknown; those above one half have the concept.
            boxes: Boxes of the batch; None if nobody drew any.

        Raises:
            ValueError: If a box has an index outside the maps, the maps are not of K concepts, or there are labels of
                another number of images or concepts.
        """
        if concept_maps.ndim != 4 or concept_maps.shape[1] != self.num_concepts:
            raise ValueError(f"concept maps must be (B, {self.num_concepts}, h, w), got {tuple(concept_maps.shape)}")
        if concepts.shape != concept_maps.shape[:2]:
            raise ValueError(
                f"labels must be {tuple(concept_maps.shape[:2])}, as the maps, got {tuple(concepts.shape)}"
            )
        self.keep(concept_maps.new_zeros(0, 3, dtype=torch.float64))
        if border_ring(*concept_maps.shape[2:]).double().mean() > 0.5:
            return
        at_border, chance = peaks_at_border(concept_maps.detach(), boxes)
        image, concept = (concepts > 0.5).nonzero().unbind(1)
        self.keep(torch.stack([concept.double(), at_border[image, concept].double(), chance[image, concept]], dim=1))

    def compute(self) -> BorderScores:
        """The counts of each concept."""
        concept, at_border, chance = self.kept(3).cpu().double().unbind(1)
        nothing = torch.zeros(self.num_concepts, dtype=torch.float64)
        images, peaks, chances = (
            nothing.index_add(0, concept.long(), values) for values in (torch.ones_like(chance), at_border, chance)
        )
        return BorderScores(images, peaks, chances / images)
