"""Boxes around the connected parts of a map above each of many thresholds, for many maps at once.

From the highest threshold down, parts appear, grow and merge, and never part again. So each pair of neighbouring pixels
is looked at once, at the threshold at which both are above it, in place of labelling every thresholded map afresh.
"""

import torch
from torch import Tensor

_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # steps down and right to one of each two opposite neighbours


def best_overlaps(maps: Tensor, boxes: Tensor, pair: Tensor, levels: int) -> Tensor:
    """The best overlap of a drawn box with the box around a connected part of its map, at each threshold.

    Parts are connected through any of eight neighbours. Boxes are those of whole pixels, drawn ones by the rule of
    `map_scores`; overlap is intersection over union.

    Args:
        maps: (P, H, W) in [0, 1].
        boxes: (N, 4) left, top, right, bottom as fractions of the image.
        pair: (N,) which map each box belongs to.
        levels: How many thresholds: 0, 1 / levels, 2 / levels ..., below 1. A pixel belongs to a part if it is not
            below the threshold; at 0, the whole image is one part.

    Returns:
        (P, levels) float in [0, 1]; 0 where a map has no boxes.
    """
    count, height, width = maps.shape
    level = (maps * levels).long().clamp(0, levels - 1).flatten()
    first, second, meets = _edges(level.view(count, height, width))
    parts = _Parts(count, height, width, maps.device)
    target, valid = _pixel_boxes(boxes, pair, count, height, width)
    overlaps = maps.new_zeros(count, levels)
    by_level = torch.bincount(level, minlength=levels).tolist()
    by_edge = torch.bincount(meets, minlength=levels).tolist()
    pixels = level.argsort(descending=True, stable=True).split(by_level[::-1])
    edges = meets.argsort(descending=True, stable=True).split(by_edge[::-1])
    for step in range(levels):
        parts.grow(pixels[step], first[edges[step]], second[edges[step]])
        owner = parts.roots // (height * width)
        overlap = (_iou(parts.box[parts.roots], target[owner]) * valid[owner]).amax(dim=1)
        overlaps[:, levels - 1 - step].scatter_reduce_(0, owner, overlap, reduce="amax")
    return overlaps


class _Parts:
    """Connected parts, each known by one of its pixels, its root, with the box around it."""

    def __init__(self, count: int, height: int, width: int, device: torch.device) -> None:
        pixel = torch.arange(count * height * width, device=device)
        row, column = pixel // width % height, pixel % width
        self.parent = pixel
        self.box = torch.stack([column, row, column + 1, row + 1], dim=1)  # of roots; others are out of date
        self.roots = pixel[:0]

    def grow(self, new: Tensor, first: Tensor, second: Tensor) -> None:
        """Add pixels, and merge the parts of both ends of each edge."""
        touched = torch.cat([self._find(first), self._find(second)]).unique()
        while True:
            one, other = self._find(first), self._find(second)
            apart = one != other
            if not apart.any():
                break
            first, second, one, other = first[apart], second[apart], one[apart], other[apart]
            high, low = torch.maximum(one, other), torch.minimum(one, other)
            self.parent.scatter_reduce_(0, high, low, reduce="amin")
        root = self._find(touched)
        where = root[:, None].expand(-1, 2)
        self.box[:, :2].scatter_reduce_(0, where, self.box[touched, :2], reduce="amin")
        self.box[:, 2:].scatter_reduce_(0, where, self.box[touched, 2:], reduce="amax")
        alive = torch.cat([self.roots, new])
        self.roots = alive[self.parent[alive] == alive]

    def _find(self, pixel: Tensor) -> Tensor:
        root = self.parent[pixel]
        while True:
            above = self.parent[root]
            if torch.equal(above, root):
                break
            root = above
        self.parent[pixel] = root  # so that the next look is short
        return root


def _edges(level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends of each two neighbouring pixels, counted over all maps, and the level at which both are there."""
    height, width = level.shape[1:]
    pixel = torch.arange(level.numel(), device=level.device).view_as(level)
    ends: list[tuple[Tensor, Tensor]] = []
    for down, right in _NEIGHBOURS:
        columns = slice(max(0, -right), width - max(0, right)), slice(max(0, right), width + min(0, right))
        ends.append((pixel[:, : height - down, columns[0]].flatten(), pixel[:, down:, columns[1]].flatten()))
    first, second = (torch.cat(side) for side in zip(*ends, strict=True))
    flat = level.flatten()
    return first, second, torch.minimum(flat[first], flat[second])


def _pixel_boxes(boxes: Tensor, pair: Tensor, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(P, G, 4) the boxes of each map in whole pixels, and (P, G) which of them are there."""
    left, top, right, bottom = boxes.unbind(1)
    columns, rows = _extent(left, right, width), _extent(top, bottom, height)
    whole = torch.stack([columns[0], rows[0], columns[1], rows[1]], dim=1)
    order = pair.argsort(stable=True)
    pair, whole = pair[order], whole[order]
    each = torch.bincount(pair, minlength=count)
    place = torch.arange(len(pair), device=pair.device) - (each.cumsum(0) - each)[pair]
    target = whole.new_zeros(count, max(1, int(each.max()) if count else 1), 4)
    valid = torch.zeros(target.shape[:2], dtype=torch.bool, device=boxes.device)
    target[pair, place], valid[pair, place] = whole, True
    return target, valid


def _extent(start: Tensor, stop: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """(N,) first pixel of each stretch, and the one after its last: those with their centres in it, and its middle."""
    middle = ((start + stop) / 2 * pixels).long().clamp(max=pixels - 1)
    first = (start * pixels - 0.5).ceil().long()
    last = (stop * pixels - 0.5).floor().long()
    return torch.minimum(first, middle), torch.maximum(last, middle) + 1


def _iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """(L, G) overlap of boxes (L, 4) with their targets (L, G, 4)."""
    boxes = boxes[:, None]
    low, high = torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1).float()
    areas = [(some[..., 2:] - some[..., :2]).prod(dim=-1) for some in (boxes, targets)]
    return shared / (areas[0] + areas[1] - shared)
