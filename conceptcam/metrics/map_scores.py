"""What one map shows against one union of boxes: peaks, hits, energy and overlap, before any averaging.

A *pair* is an image and a concept with at least one box in it; the boxes of a pair are joined. Maps are
logits, upsampled bilinearly (`align_corners=False`) to the image. A pixel is inside a box if, along each
axis, its centre is or it holds the middle of the box; so no box is too small or too thin to have a pixel.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from conceptcam._checks import check_choice
from conceptcam.data.boxes import ConceptBoxes

Energy = Literal["sigmoid", "relu"]

IOU_THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""Probabilities at which IoU curves are taken."""

_CHUNK_PIXELS = 2**19  # pixels of all maps handled at a time: more are hardly faster, and take memory


class DrawnPairs(NamedTuple):
    """P pairs of image and concept: what the model says, and what was drawn."""

    image: Tensor
    """(P,) index of the image within the batch."""
    concept: Tensor
    """(P,) index of the concept."""
    grid_maps: Tensor
    """(P, h, w) logits as the model gives them."""
    grid_inside: Tensor
    """(P, h, w) bool, which cells are inside, by the rule for pixels."""
    maps: Tensor
    """(P, H, W) logits, upsampled."""
    inside: Tensor
    """(P, H, W) bool, which pixels are inside."""
    transposed: Tensor
    """(P, H, W) bool, the same for boxes whose x and y are exchanged."""


def drawn_pairs(concept_maps: Tensor, boxes: ConceptBoxes, image_size: Sequence[int]) -> Iterator[DrawnPairs]:
    """The pairs of a batch, some at a time, so that memory stays small.

    Args:
        concept_maps: (B, K, h, w) logits.
        boxes: Boxes of the batch.
        image_size: (H, W) in pixels.

    Raises:
        ValueError: If a box has an index outside the maps, or the map of a pair is not finite.
    """
    if not len(boxes.xyxy):
        return
    images, concepts, *grid = concept_maps.shape
    height, width = image_size
    boxes = boxes.to(concept_maps.device)
    boxes.check_fits(images, concepts)
    pair_of_box = boxes.image * concepts + boxes.concept
    for pairs in pair_of_box.unique().split(max(1, _CHUNK_PIXELS // (height * width))):
        some = (pair_of_box >= pairs[:1]) & (pair_of_box <= pairs[-1:])
        drawn = ConceptBoxes(boxes.xyxy[some], boxes.concept[some], boxes.image[some])
        image, concept = pairs // concepts, pairs % concepts
        grid_maps = concept_maps.detach()[image, concept].float()
        if not grid_maps.isfinite().all():
            raise ValueError("a concept map is infinite or NaN: the model or its input is broken")
        inside = drawn.pair_masks((images, concepts, height, width), "center").inside.bool()
        transposed = inside.mT  # pixels and boxes exchange x and y alike
        if height != width:
            swapped = ConceptBoxes(drawn.xyxy[:, [1, 0, 3, 2]], drawn.concept, drawn.image)
            transposed = swapped.pair_masks((images, concepts, height, width), "center").inside.bool()
        yield DrawnPairs(
            image,
            concept,
            grid_maps,
            drawn.pair_masks((images, concepts, *grid), "center").inside.bool(),
            upsample(grid_maps, image_size),
            inside,
            transposed,
        )


def upsample(maps: Tensor, image_size: Sequence[int]) -> Tensor:
    """(P, H, W) maps from (P, h, w), bilinearly, cell centres where they belong (`align_corners=False`)."""
    return F.interpolate(maps[:, None], size=tuple(image_size), mode="bilinear", align_corners=False)[:, 0]


def find_peaks(grid_maps: Tensor, maps: Tensor) -> Tensor:
    """The highest pixel of each upsampled map; of equal ones, the nearest to the centre of the highest cell.

    Ties are the rule: bilinear upsampling is flat over the outer half of a border cell. The first of equal
    pixels would put a peak in a left cell on the image's edge, and one in a right cell at the cell's centre.

    Args:
        grid_maps: (P, h, w), finite.
        maps: (P, H, W), the same from `upsample`.

    Returns:
        (P,) pixels, counted in reading order.
    """
    if not len(maps):
        return torch.zeros(0, dtype=torch.long, device=maps.device)
    height, width = maps.shape[1:]
    cell = grid_maps.flatten(1).argmax(dim=1)
    rows, columns = grid_maps.shape[1:]
    down = ((cell // columns + 0.5) * (height / rows))[:, None] - (_steps(maps, height) + 0.5)  # (P, H)
    across = ((cell % columns + 0.5) * (width / columns))[:, None] - (_steps(maps, width) + 0.5)  # (P, W)
    rounding = 1e-6 * grid_maps.abs().amax(dim=(1, 2))
    highest = maps >= (maps.amax(dim=(1, 2)) - rounding)[:, None, None]
    pair, row, column = highest.nonzero().unbind(1)
    distance = down[pair, row] ** 2 + across[pair, column] ** 2
    nearest = (
        distance == distance.new_zeros(len(maps)).scatter_reduce(0, pair, distance, "amin", include_self=False)[pair]
    )
    pixel, pair = (row * width + column)[nearest], pair[nearest]
    return pixel.new_zeros(len(maps)).scatter_reduce(0, pair, pixel, "amin", include_self=False)


def pointing_game(peaks: Tensor, inside: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """1 for each map that peaks inside, else 0 (Zhang et al., 2018).

    Args:
        peaks: (P,) from `find_peaks`.
        inside: (P, H, W) bool, from boxes or any other mask.
        tolerance: A peak also counts if it is nearer than this many pixels to a pixel inside; the
            original game takes 15. 0, the default, asks for the peak itself to be inside.

    Returns:
        (P,) float.
    """
    return hits(widened(inside, tolerance), peaks)


def energy_in_box(maps: Tensor, inside: Tensor, energy: Energy = "sigmoid") -> Tensor:
    """Fraction of each map's mass that is inside (Wang et al., 2020).

    Args:
        maps: (P, H, W) logits.
        inside: (P, H, W) bool.
        energy: What mass is: `"sigmoid"`, the probability, which a bias or scale of the logits cannot
            empty; or `"relu"`, the logit where it is positive, as published.

    Returns:
        (P,) in [0, 1]; NaN where a map has no mass.

    Raises:
        ValueError: If `energy` is unknown.
    """
    check_choice("energy", energy, Energy)
    mass = maps.sigmoid() if energy == "sigmoid" else maps.relu()
    return torch.where(inside, mass, 0).sum(dim=(1, 2)) / mass.sum(dim=(1, 2))


def relevance_rank(maps: Tensor, inside: Tensor) -> Tensor:
    """Of the highest pixels, as many as are inside, the fraction that is inside (Arras et al., 2022).

    Unlike `energy_in_box`, its companion there, it does not depend on how logits become mass. A constant map scores the
    area of the inside, since of pixels that tie each counts alike.

    Args:
        maps: (P, H, W) logits.
        inside: (P, H, W) bool, with at least one pixel each.

    Returns:
        (P,) in [0, 1], float.
    """
    ranks = []
    for values, truth in zip(maps.flatten(1), inside.flatten(1), strict=True):
        size = int(truth.sum())
        cut = values.kthvalue(len(values) - size + 1).values  # the lowest that is still among them
        above, ties = values > cut, values == cut
        among_ties = (size - above.sum()) / ties.sum()
        ranks.append(((above & truth).sum() + (ties & truth).sum() * among_ties) / size)
    return torch.stack(ranks).float() if ranks else maps.new_zeros(0)


def side_accuracy(peaks: Tensor, inside: Tensor) -> Tensor:
    """1 where a map peaks in the half of the image that holds the inside, left or right, else 0.

    Args:
        peaks: (P,) from `find_peaks`.
        inside: (P, H, W) bool.

    Returns:
        (P,) float; NaN where the inside is on both sides of the middle. Chance is one half.
    """
    width = inside.shape[2]
    columns = inside.bool().view(torch.uint8).amax(dim=1) > 0  # `any` takes four times as long
    left, right = columns[:, : width // 2].any(dim=1), columns[:, (width + 1) // 2 :].any(dim=1)
    column = peaks % width
    here = torch.where(right, column >= (width + 1) // 2, column < width // 2)
    return here.float().masked_fill(left == right, torch.nan)


def map_iou(maps: Tensor, inside: Tensor, threshold: float | Tensor = 0.5) -> Tensor:
    """Intersection over union of the inside and of where the map's probability exceeds a threshold.

    Args:
        maps: (P, H, W) logits.
        inside: (P, H, W) bool.
        threshold: Probability, one for all or (P,).

    Returns:
        (P,) in [0, 1]; NaN where both are empty or the threshold is NaN.
    """
    cut = torch.as_tensor(threshold, device=maps.device).to(maps.dtype).logit().expand(len(maps))
    found = maps > cut[:, None, None]
    shared = (found & inside).sum(dim=(1, 2))
    return (shared / (found | inside).sum(dim=(1, 2))).masked_fill(cut.isnan(), torch.nan)


def iou_curve(maps: Tensor, inside: Tensor) -> Tensor:
    """(P, J) `map_iou` at each of `IOU_THRESHOLDS`, in one pass over the pixels."""
    bins = len(IOU_THRESHOLDS) + 1
    first = 2 * bins * torch.arange(len(maps), device=maps.device, dtype=torch.int32)
    bin_ = _levels(maps).add_(inside, alpha=bins).add_(first[:, None, None])
    counts = torch.bincount(bin_.flatten(), minlength=2 * bins * len(maps))
    outside, within = counts.view(-1, 2, bins).flip(-1).cumsum(-1).flip(-1)[..., 1:].unbind(1)
    return within / (inside.sum(dim=(1, 2))[:, None] + outside)


def _levels(maps: Tensor) -> Tensor:
    """How many of `IOU_THRESHOLDS` each pixel exceeds, int32, in a fifth of the time of a search among them.

    They lie evenly, so a probability says which one is nearest, and comparing with that one's logit settles it.
    """
    cuts = torch.tensor(IOU_THRESHOLDS, device=maps.device, dtype=maps.dtype).logit()
    nearest = maps.sigmoid().mul_(len(cuts) + 1).round_().int()
    cut = F.pad(cuts, (1, 1), value=torch.inf).index_select(0, nearest.flatten()).view_as(maps)
    return nearest.sub_(1).add_(maps > cut).clamp_(min=0)


def random_peaks(
    grid: Sequence[int], image_size: Sequence[int], *, generator: torch.Generator, draws: int = 1000
) -> Tensor:
    """Where random maps peak: the control that every figure of pointing needs.

    Args:
        grid: (h, w) of the maps, whose cells are drawn independently.
        image_size: (H, W) in pixels, to which they are upsampled.
        generator: Where randomness comes from, on the CPU.
        draws: How many maps; 1000 leave a standard error of .01 at most per pair.

    Returns:
        (draws,) pixels, counted in reading order.
    """
    maps = torch.randn(draws, *grid, generator=generator)
    height, width = image_size
    chunks = maps.split(max(1, _CHUNK_PIXELS // (height * width)))
    return torch.cat([find_peaks(chunk, upsample(chunk, image_size)) for chunk in chunks])


def hits(inside: Tensor, pixel: Tensor) -> Tensor:
    """(P,) 1 where the pixel (P,) of a pair is inside (P, H, W), else 0."""
    return inside.flatten(1).gather(1, pixel[:, None])[:, 0].float()


def widened(inside: Tensor, tolerance: float) -> Tensor:
    """`inside` and every pixel nearer to it than the tolerance, so that looking one up plays the game."""
    reach = math.ceil(tolerance) - 1
    if reach < 1:
        return inside
    steps = torch.arange(-reach, reach + 1, device=inside.device)
    disc = (steps[:, None] ** 2 + steps**2 < tolerance**2).float()
    return F.conv2d(inside[:, None].float(), disc[None, None], padding=reach)[:, 0] > 0.5


def _steps(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=like.device, dtype=like.dtype)
