"""How well maps find what was drawn: boxes at the best threshold, pixels at all thresholds, peaks per false alarm.

Everything is kept as counts, so that memory grows neither with the number of images nor with the size of their maps.
Pairs, and which pixels are inside, are those of `map_scores`. Maps may have any range; where a threshold counts for
all images alike, in `froc`, they must be comparable between images, as logits are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from conceptcam._checks import check_number
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.components import best_overlaps
from conceptcam.metrics.map_scores import drawn_pairs

OVERLAPS = (0.3, 0.5, 0.7)
"""Least intersection over union at which a box is found, of MaxBoxAccV2."""

FALSE_ALARMS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False alarms per image at which sensitivities are taken."""

_PIXEL_BINS = 1000
_LEVELS = 100  # thresholds of boxes
_LOGIT_LIMIT = 16.0
_LOGIT_BINS = 2048  # of 1/64 each


class DetectionScores(NamedTuple):
    """What the maps of each of K concepts find; float64 on the CPU, NaN for a concept without boxes."""

    max_box_accuracy: Tensor
    """(K,) MaxBoxAccV2 (Choe et al., 2022): mean of `box_accuracy`."""
    box_accuracy: Tensor
    """(K, 3) share of pairs of which a box is found with an overlap of `OVERLAPS` at least, at the threshold that is
    best for the concept, chosen on these very images."""
    box_chance: Tensor
    """(K,) `max_box_accuracy` of a constant map, which finds the whole image."""
    pixel_precision: Tensor
    """(K,) PxAP (Choe et al., 2022): area under precision over recall of the pixels of all pairs."""
    pixel_chance: Tensor
    """(K,) the same of a constant map: the share of pixels that are inside."""
    froc: Tensor
    """(K, 7) share of boxes with a peak at `FALSE_ALARMS` per image at most."""
    pairs: Tensor
    """(K,) how many pairs there are."""
    boxes: Tensor
    """(K,) how many boxes there are."""
    images: Tensor
    """(K,) how many images were looked at, with boxes or without, the same for all concepts."""

    @property
    def sensitivity(self) -> Tensor:
        """(K,) share of boxes with a peak, at one false alarm per image at most."""
        return self.froc[:, FALSE_ALARMS.index(1.0)]


def normalize_maps(maps: Tensor) -> Tensor:
    """Each map (P, H, W) stretched to [0, 1]; a constant one becomes 0, having no high place."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)


def pixel_counts(maps: Tensor, inside: Tensor, bins: int = _PIXEL_BINS) -> Tensor:
    """How many pixels of each pair have each value, outside and inside.

    Args:
        maps: (P, H, W) in [0, 1], as `normalize_maps` gives them.
        inside: (P, H, W) bool, from boxes or any other mask.
        bins: How many equal parts of [0, 1] there are.

    Returns:
        (P, 2, bins) int64: outside, inside; counts of several pairs add up.
    """
    level = (maps * bins).long().clamp(0, bins - 1)
    part = (2 * torch.arange(len(maps), device=maps.device)[:, None, None] + inside) * bins + level
    return torch.bincount(part.flatten(), minlength=len(maps) * 2 * bins).view(-1, 2, bins)


def pixel_average_precision(counts: Tensor) -> Tensor:
    """Area under precision over recall, Σ (gain in recall) x precision, of counts (..., 2, bins) of `pixel_counts`.

    Pixels in one bin tie. NaN where nothing is inside.
    """
    false, true = counts.double().flip(-1).unbind(-2)
    found, all_found = true.cumsum(-1), (true + false).cumsum(-1)
    precision = (found / all_found).nan_to_num()
    return (true * precision).sum(-1) / true.sum(-1)


class Peaks(NamedTuple):
    """The boxes of a batch with their highest peaks, N, and the peaks outside all boxes, A: false alarms."""

    concept_of_box: Tensor
    """(N,) concept of each box."""
    best: Tensor
    """(N,) highest peak in each box; -inf if there is none."""
    concept_of_alarm: Tensor
    """(A,) concept of each peak that is in no box of its image and concept."""
    alarm: Tensor
    """(A,) value of the map at that peak."""


def find_alarms(concept_maps: Tensor, boxes: ConceptBoxes) -> Peaks:
    """Hits and false alarms of the peaks of maps.

    A peak is a cell that none of its eight neighbours exceeds; of equal neighbours, the first is the peak. The lowest
    value of a map is no peak. A peak is in a box if its cell is, by the rule that `map_scores` has for pixels.

    Args:
        concept_maps: (B, K, h, w), comparable between images.
        boxes: Boxes of the batch, each counted on its own.

    Raises:
        ValueError: If a box has an index outside the maps.
    """
    images, concepts, height, width = concept_maps.shape
    maps = concept_maps.detach().float()
    boxes = boxes.to(maps.device)
    joined = boxes.pair_masks((images, concepts, height, width), "center")
    inside = torch.zeros(maps.shape, dtype=torch.bool, device=maps.device)
    inside[joined.image, joined.concept] = joined.inside > 0
    peaks = _peaks(maps)
    alarms = peaks & ~inside
    each = torch.arange(len(boxes), device=maps.device)
    alone = ConceptBoxes(boxes.xyxy, torch.zeros_like(each), each).pair_masks((len(each), 1, height, width), "center")
    own = (boxes.image, boxes.concept)
    best = maps[own].masked_fill(~(peaks[own] & (alone.inside > 0)), -torch.inf).flatten(1).amax(dim=1)
    return Peaks(boxes.concept, best, alarms.nonzero()[:, 1], maps[alarms])


class DetectionMetrics(Metric):
    """`DetectionScores` over all batches, from counts.

    Args:
        num_concepts: K.
    """

    is_differentiable = False
    full_state_update = False

    pixels: Tensor
    found: Tensor
    hits: Tensor
    alarms: Tensor
    pairs: Tensor
    boxes: Tensor
    images: Tensor

    def __init__(self, num_concepts: int) -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        self.num_concepts = num_concepts
        shapes = {
            "pixels": (num_concepts, 2, _PIXEL_BINS),
            "found": (num_concepts, len(OVERLAPS), _LEVELS),
            "hits": (num_concepts, _LOGIT_BINS),
            "alarms": (num_concepts, _LOGIT_BINS),
            "pairs": (num_concepts,),
            "boxes": (num_concepts,),
            "images": (),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        concept_maps: Tensor,
        boxes: ConceptBoxes | None,
        image_size: Sequence[int],
        masks: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            concept_maps: (B, K, h, w), or (B, K, H, W).
            boxes: Boxes of the batch; None if nobody drew any, which adds nothing.
            image_size: (H, W) in pixels.
            masks: (B, K, H, W) bool, which pixels are inside, where that is known better than by boxes: for
                `pixel_precision` of the pairs that have boxes.

        Raises:
            ValueError: As `drawn_pairs`, or if the maps are not of K concepts.
        """
        if concept_maps.ndim != 4 or concept_maps.shape[1] != self.num_concepts:
            raise ValueError(f"concept maps must be (B, {self.num_concepts}, h, w), got {tuple(concept_maps.shape)}")
        if boxes is None:
            return
        boxes = boxes.to(concept_maps.device)
        self.images += len(concept_maps)
        for pairs in drawn_pairs(concept_maps, boxes, image_size):
            maps = normalize_maps(pairs.maps)
            inside = pairs.inside if masks is None else masks[pairs.image, pairs.concept]
            overlaps = best_overlaps(maps, *_boxes_of(boxes, pairs.image, pairs.concept), _LEVELS)  # (P, levels)
            found = overlaps[:, None] >= torch.tensor(OVERLAPS, device=maps.device)[:, None] - 1e-6
            self.pixels.index_add_(0, pairs.concept, pixel_counts(maps, inside))
            self.found.index_add_(0, pairs.concept, found.long())
            self.pairs += torch.bincount(pairs.concept, minlength=self.num_concepts)
        peaks = find_alarms(concept_maps, boxes)
        there = peaks.best > -torch.inf
        self.hits += self._by_height(peaks.concept_of_box[there], peaks.best[there])
        self.alarms += self._by_height(peaks.concept_of_alarm, peaks.alarm)
        self.boxes += torch.bincount(peaks.concept_of_box, minlength=self.num_concepts)

    def compute(self) -> DetectionScores:
        """The scores of each concept."""
        pixels, found, hits, alarms = (
            part.cpu().double() for part in (self.pixels, self.found, self.hits, self.alarms)
        )
        pairs, boxes = self.pairs.cpu().double(), self.boxes.cpu().double()
        accuracy = found / pairs[:, None, None]
        each = accuracy.amax(dim=-1)
        inside = pixels[:, 1].sum(dim=-1)
        # From the highest peak down, how many boxes have one, and how many false alarms an image has.
        sensitivity = hits.flip(-1).cumsum(-1) / boxes[:, None]
        rate = alarms.flip(-1).cumsum(-1) / self.images.cpu()
        allowed = rate[:, None] <= torch.tensor(FALSE_ALARMS, dtype=torch.float64)[:, None]
        froc = torch.where(allowed, sensitivity[:, None], 0).amax(dim=-1)
        return DetectionScores(
            max_box_accuracy=each.mean(dim=-1),
            box_accuracy=each,
            box_chance=accuracy[..., 0].mean(dim=-1),
            pixel_precision=pixel_average_precision(pixels),
            pixel_chance=inside / pixels.sum(dim=(1, 2)),
            froc=froc.masked_fill(boxes[:, None] == 0, torch.nan),
            pairs=self.pairs.cpu(),
            boxes=self.boxes.cpu(),
            images=self.images.cpu().expand(self.num_concepts),
        )

    def _by_height(self, concept: Tensor, height: Tensor) -> Tensor:
        """(K, bins) how many peaks of each concept have each height."""
        step = ((height + _LOGIT_LIMIT) * (_LOGIT_BINS / 2 / _LOGIT_LIMIT)).long().clamp(0, _LOGIT_BINS - 1)
        size = self.num_concepts * _LOGIT_BINS
        return torch.bincount(concept * _LOGIT_BINS + step, minlength=size).view(-1, _LOGIT_BINS)


def _peaks(maps: Tensor) -> Tensor:
    """(B, K, h, w) bool, the cells above all eight neighbours; of equal ones, the first in reading order."""
    height, width = maps.shape[-2:]
    around = F.pad(maps, (1, 1, 1, 1), value=-torch.inf)
    peaks = maps > maps.amin(dim=(-2, -1), keepdim=True)
    for down in range(3):
        for right in range(3):
            neighbour = around[..., down : down + height, right : right + width]
            before = (down, right) < (1, 1)
            if (down, right) != (1, 1):
                peaks &= maps > neighbour if before else maps >= neighbour
    return peaks


def _boxes_of(boxes: ConceptBoxes, image: Tensor, concept: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes (N, 4) of some pairs (P,), and which pair each is of (N,)."""
    same = (boxes.image[:, None] == image) & (boxes.concept[:, None] == concept)  # (all boxes, P)
    box, pair = same.nonzero(as_tuple=True)
    return boxes.xyxy[box], pair
