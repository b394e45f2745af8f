"""Where concept maps look, per concept, with the controls that keep the figures honest.

`map_scores` defines a pair, its map, and which pixels are inside. Each pair has its own values. They are averaged over
the pairs of a concept, and then over concepts by `macro_average`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_choice, check_number
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.base import RowMetric
from conceptcam.metrics.map_scores import (
    IOU_THRESHOLDS,
    DrawnPairs,
    Energy,
    drawn_pairs,
    energy_in_box,
    find_peaks,
    hits,
    iou_curve,
    map_iou,
    random_peaks,
    relevance_rank,
    side_accuracy,
    widened,
)


class PairScores(NamedTuple):
    """Values of P pairs; each (P,), in float32 unless it says otherwise."""

    concept: Tensor
    """Index of the concept."""
    area: Tensor
    """Fraction of the image that is inside; also what `energy` would be for a constant map."""
    pointing: Tensor
    """1 if the map peaks inside, else 0."""
    pointing_grid: Tensor
    """The same on the model's own grid, which is coarser and so not comparable between grids."""
    energy: Tensor
    """Fraction of the map's mass that is inside."""
    iou: Tensor
    """Intersection over union of the inside and of where the map exceeds its threshold."""
    mirrored_pointing: Tensor
    """`pointing` in boxes mirrored left to right."""
    transposed_pointing: Tensor
    """`pointing` in boxes whose x and y are exchanged."""
    chance: Tensor
    """`pointing` of a pixel drawn at random: the area, or more with a tolerance."""
    random_pointing: Tensor
    """`pointing` of random maps, on average."""
    center_pointing: Tensor
    """`pointing` of a map that peaks in the middle of the image."""
    rank: Tensor
    """`relevance_rank`."""
    side: Tensor
    """`side_accuracy`; NaN for boxes on both sides of the middle."""
    iou_curve: Tensor
    """(P, J) `iou` at each of `IOU_THRESHOLDS`."""


_SINGLE = len(PairScores._fields) - 1  # all but the curve
_ROW_SIZE = _SINGLE + len(IOU_THRESHOLDS)


class LocalizationScores(NamedTuple):
    """Means over the pairs of each concept; each (K,), float64 on the CPU, NaN for a concept without boxes."""

    pointing: Tensor
    pointing_grid: Tensor
    energy: Tensor
    iou: Tensor
    mirrored_pointing: Tensor
    transposed_pointing: Tensor
    chance: Tensor
    random_pointing: Tensor
    center_pointing: Tensor
    rank: Tensor
    side: Tensor
    support: Tensor
    """How many pairs there are."""
    iou_curve: Tensor
    """(K, J) `iou` at each of `IOU_THRESHOLDS`."""
    pointing_by_size: Tensor
    """(K, 3) `pointing` in small, medium and large pairs."""
    random_by_size: Tensor
    """(K, 3) `random_pointing` in them."""
    support_by_size: Tensor
    """(K, 3) how many there are."""

    @property
    def mirror_gap(self) -> Tensor:
        """(K,) pointing less mirrored pointing.

        Below 0, the model looks at the wrong side; near 0 it may do so half of the time. A concept that
        sits on the midline has a gap near 0 by nature, so look at one-sided concepts first: headline
        pointing hides mirrored boxes.
        """
        return self.pointing - self.mirrored_pointing

    @property
    def transpose_gap(self) -> Tensor:
        """(K,) pointing less pointing in boxes whose x and y are exchanged."""
        return self.pointing - self.transposed_pointing


def pair_scores(
    pairs: DrawnPairs,
    control: Tensor,
    *,
    tolerance: float = 0.0,
    iou_threshold: float | Tensor = 0.5,
    energy: Energy = "sigmoid",
) -> PairScores:
    """All values of each pair.

    Args:
        pairs: From `drawn_pairs`.
        control: From `random_peaks`.
        tolerance: As in `pointing_game`; 0 for the grid.
        iou_threshold: As in `map_iou`, one for all or one per concept (K,).
        energy: As in `energy_in_box`.
    """
    maps, inside = pairs.maps, pairs.inside
    height, width = inside.shape[1:]
    peak, target = find_peaks(pairs.grid_maps, maps), widened(inside, tolerance)
    curve, area = iou_curve(maps, inside), _mean(inside)
    if isinstance(iou_threshold, float) and iou_threshold in IOU_THRESHOLDS:
        iou = curve[:, IOU_THRESHOLDS.index(iou_threshold)]
    else:
        each = torch.as_tensor(iou_threshold, device=maps.device)
        iou = map_iou(maps, inside, each[pairs.concept] if each.ndim else each)
    return PairScores(
        concept=pairs.concept,
        area=area,
        pointing=hits(target, peak),
        pointing_grid=hits(pairs.grid_inside, pairs.grid_maps.flatten(1).argmax(dim=1)),
        energy=energy_in_box(maps, inside, energy),
        iou=iou,
        mirrored_pointing=hits(target.flip(-1), peak),
        transposed_pointing=hits(widened(pairs.transposed, tolerance), peak),
        chance=area if target is inside else _mean(target),
        random_pointing=target.flatten(1)[:, control.to(target.device)].float().mean(dim=1),
        center_pointing=target[:, height // 2, width // 2].float(),
        rank=relevance_rank(maps, inside),
        side=side_accuracy(peak, inside),
        iou_curve=curve,
    )


def summarize(
    scores: PairScores, num_concepts: int, size_limits: tuple[float, float] = (0.01, 0.05)
) -> LocalizationScores:
    """Means per concept, in float64; a pair whose value is NaN is left out of that mean alone.

    Args:
        scores: Values of all pairs.
        num_concepts: K.
        size_limits: Fractions of the image from which on a pair is medium and large. The default parts, at
            224 pixels, at squares of 22 and 50 pixels: a nodule, an aortic enlargement, a large heart.
    """
    pairs = PairScores(*(part.cpu() for part in scores))
    size = torch.bucketize(pairs.area.contiguous(), torch.tensor(size_limits), right=True)

    group = pairs.concept * 3 + size
    names = set(LocalizationScores._fields) & set(PairScores._fields)
    means = {name: _group_means(getattr(pairs, name), pairs.concept, num_concepts) for name in names}
    pointing = torch.stack([pairs.pointing, pairs.random_pointing], dim=1)
    by_size = _group_means(pointing, group, num_concepts * 3).view(-1, 3, 2)
    return LocalizationScores(
        **means,
        support=torch.bincount(pairs.concept, minlength=num_concepts),
        pointing_by_size=by_size[..., 0],
        random_by_size=by_size[..., 1],
        support_by_size=torch.bincount(group, minlength=num_concepts * 3).view(-1, 3),
    )


def best_iou_thresholds(scores: LocalizationScores) -> Tensor:
    """(K,) threshold of the highest `iou` of each concept, NaN where undefined; choose it on validation data."""
    curve = scores.iou_curve
    best = torch.tensor(IOU_THRESHOLDS, dtype=curve.dtype)[curve.nan_to_num(-1).argmax(dim=1)]
    return best.masked_fill(curve.isnan().any(dim=1), torch.nan)


class LocalizationMetrics(RowMetric):
    """`LocalizationScores` over all batches; keeps numbers per pair, never maps.

    Args:
        num_concepts: K.
        tolerance: As in `pointing_game`.
        iou_threshold: As in `pair_scores`.
        energy: As in `energy_in_box`.
        size_limits: As in `summarize`.
        seed: Of the random maps; the same ones control every pair, so results do not depend on batches.
    """

    plotted = ("pointing", "random_pointing", "center_pointing", "energy", "iou")

    def __init__(
        self,
        num_concepts: int,
        *,
        tolerance: float = 0.0,
        iou_threshold: float | Tensor = 0.5,
        energy: Energy = "sigmoid",
        size_limits: tuple[float, float] = (0.01, 0.05),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("`num_concepts`", num_concepts, 1, whole=True)
        check_choice("energy", energy, Energy)
        self.num_concepts = num_concepts
        self.size_limits = size_limits
        self.seed = seed
        self._pair_scores = functools.partial(
            pair_scores, tolerance=tolerance, iou_threshold=iou_threshold, energy=energy
        )

    def update(self, concept_maps: Tensor, boxes: ConceptBoxes | None, image_size: Sequence[int]) -> None:
        """Add the pairs of a batch.

        Args:
            concept_maps: (B, K, h, w) logits.
            boxes: Boxes of the batch; None if nobody drew any, which adds nothing.
            image_size: (H, W) in pixels.

        Raises:
            ValueError: As `drawn_pairs`, or if the maps are not of K concepts.
        """
        if concept_maps.ndim != 4 or concept_maps.shape[1] != self.num_concepts:
            raise ValueError(f"concept maps must be (B, {self.num_concepts}, h, w), got {tuple(concept_maps.shape)}")
        self.keep(concept_maps.new_zeros(0, _ROW_SIZE, dtype=torch.float32))
        control = _control(tuple(concept_maps.shape[2:]), tuple(image_size), self.seed)
        for pairs in drawn_pairs(concept_maps, boxes or ConceptBoxes.empty(), image_size):
            scores = self._pair_scores(pairs, control)
            self.keep(torch.cat([part.float().view(len(part), -1) for part in scores], dim=1))

    def compute(self) -> LocalizationScores:
        """The scores of each concept."""
        rows = self.kept(_ROW_SIZE)
        concept, *values = rows[:, :_SINGLE].unbind(1)
        scores = PairScores._make((concept.long(), *values, rows[:, _SINGLE:]))
        return summarize(scores, self.num_concepts, self.size_limits)


@functools.lru_cache(maxsize=8)
def _control(grid: tuple[int, ...], image_size: tuple[int, ...], seed: int) -> Tensor:
    return random_peaks(grid, image_size, generator=torch.Generator().manual_seed(seed))


def _mean(inside: Tensor) -> Tensor:
    """(P,) fraction of the pixels (P, H, W) that is True."""
    return inside.sum(dim=(1, 2)).float() / inside[0].numel()


def _group_means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """(G, ...) mean of the defined values (P, ...) of each group, float64."""
    defined = ~values.isnan()
    nothing = torch.zeros(groups, *values.shape[1:], dtype=torch.float64)
    sums = nothing.index_add(0, group, torch.where(defined, values, 0).double())
    return sums / nothing.index_add(0, group, defined.double())
