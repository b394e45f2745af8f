"""Whether maps look at a region that is known, such as a marker that a model should not decide by; and foreign maps.

A map may put hardly any of its mass on a marker and still have its highest place there, which is all that counts after
max pooling. So the share of peaks is measured beside the share of mass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from conceptcam._checks import check_choice, check_number
from conceptcam.metrics.map_scores import Energy, energy_in_box, find_peaks, hits, upsample

_EPS = 1e-6
_CHUNK_PIXELS = 2**20


class RegionScores(NamedTuple):
    """How far the maps of each of K concepts look at a region; float64 on the CPU, NaN if undefined."""

    peaks: Tensor
    """(K,) share of maps that are highest inside the region."""
    energy: Tensor
    """(K,) mean fraction of a map's mass inside the region."""
    area: Tensor
    """(K,) mean fraction of the image inside: what both would be by chance."""
    support: Tensor
    """(K,) how many maps there are."""


def map_logits(maps: Tensor, *, stretch: bool = True) -> Tensor:
    """Logits of any explanation's maps, so that all metrics of maps take them.

    Values below 0 count as 0, as Grad-CAM has it. What is left is the probability: `energy_in_box` then is the share of
    the map's own values inside.

    Args:
        maps: (B, K, h, w), (B, K, H, W) or any other shape that ends in a map, such as (B, H, W).
        stretch: Whether each map is divided by its highest value. Otherwise values must be in [0, 1], and stay
            comparable between images, as `DetectionScores.froc` needs them.

    Raises:
        ValueError: If a value is not finite, or above 1 without `stretch`.
    """
    found = maps.detach().float().clamp(min=0)
    if not maps.isfinite().all():
        raise ValueError("a map is infinite or NaN: the explanation or its input is broken")
    if stretch:
        found = found / found.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    elif found.numel() and found.max() > 1:
        raise ValueError(f"without `stretch`, maps must not exceed 1; found {float(found.max()):.4g}")
    return found.clamp(_EPS, 1 - _EPS).logit()


def region_scores(grid_maps: Tensor, regions: Tensor, *, energy: Energy = "sigmoid") -> tuple[Tensor, Tensor, Tensor]:
    """Peaks, energy and area of single maps.

    Args:
        grid_maps: (P, h, w) logits.
        regions: (P, H, W) bool, each with at least one pixel.
        energy: As in `energy_in_box`.

    Returns:
        (P,) 1 where the map is highest inside the region, else 0; (P,) fraction of its mass inside; (P,) fraction of
        the image inside.
    """
    maps = upsample(grid_maps, regions.shape[1:])
    at_peak = hits(regions, find_peaks(grid_maps, maps))
    return at_peak, energy_in_box(maps, regions, energy), regions.float().mean(dim=(1, 2))


class RegionMetrics(Metric):
    """`RegionScores` over all batches, from sums.

    Args:
        num_concepts: K.
        energy: As in `energy_in_box`.
    """

    is_differentiable = False
    full_state_update = False

    sums: Tensor
    counts: Tensor

    def __init__(self, num_concepts: int, *, energy: Energy = "sigmoid") -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        check_choice("energy", energy, Energy)
        self.num_concepts, self.energy = num_concepts, energy
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(num_concepts, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, concept_maps: Tensor, regions: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch; an image whose region is empty adds nothing.

        Args:
            concept_maps: (B, K, h, w) logits.
            regions: (B, H, W) bool, such as where the marker is.
            labels: (B, K); if given, only maps of concepts that are present, above .5, count.

        Raises:
            ValueError: If the shapes do not fit.
        """
        shape = tuple(concept_maps.shape)
        if len(shape) != 4 or shape[1] != self.num_concepts or regions.ndim != 3 or len(regions) != shape[0]:
            raise ValueError(
                f"need maps (B, {self.num_concepts}, h, w) and regions (B, H, W), got {shape} and "
                f"{tuple(regions.shape)}"
            )
        counted = regions.flatten(1).any(dim=1)[:, None].expand(shape[:2])
        if labels is not None:
            counted = counted & (labels.to(counted.device) > 0.5)
        images, concepts = counted.nonzero(as_tuple=True)
        some = max(1, _CHUNK_PIXELS // regions[0].numel()) if len(regions) else 1
        for image, concept in zip(images.split(some), concepts.split(some), strict=True):
            maps = concept_maps.detach()[image, concept].float()
            scores = torch.stack(region_scores(maps, regions[image], energy=self.energy), dim=1).to(self.sums)
            defined = ~scores.isnan()
            self.sums.index_add_(0, concept, scores.nan_to_num())
            self.counts.index_add_(0, concept, defined.to(self.counts))

    def compute(self) -> RegionScores:
        """The scores of each concept."""
        peaks, energy, area = (self.sums / self.counts).cpu().unbind(1)
        return RegionScores(peaks, energy, area, self.counts[:, 0].long().cpu())


def box_regions(boxes: Sequence[Sequence[float] | None], image_size: Sequence[int]) -> Tensor:
    """(B, H, W) bool, the pixels of a box for each image: left, top, right, bottom as fractions; None has no pixels."""
    height, width = image_size
    row, column = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    none = torch.zeros(height, width, dtype=torch.bool)
    regions = [none]  # so that an empty batch has a shape
    for box in boxes:
        if box is None:
            regions.append(none)
            continue
        left, top, right, bottom = box
        regions.append(((top <= row) & (row <= bottom))[:, None] & ((left <= column) & (column <= right)))
    return torch.stack(regions)[1:]
