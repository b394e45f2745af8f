"""What labels and boxes amount to: how often each label is there, which come together, and how large boxes are."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FEW_PIXELS = 3.0
"""Side in pixels at the model's size under which nothing of a finding is left to be seen."""

FEW_IMAGES = 5
"""With fewer images that have a label, or that lack it, each of them decides much of every figure."""


class LabelCount(NamedTuple):
    """How often a label is present, absent and unknown."""

    name: str
    kind: str
    """`"concept"` or `"task"`."""
    present: int
    """Labels of 0.5 or more."""
    absent: int
    unknown: int
    boxes: int
    """Boxes drawn of it."""

    @property
    def prevalence(self) -> str:
        """How often it is present where it is known, in percent; a dash if it never is."""
        return percent(self.present, self.present + self.absent)


class LabelPair(NamedTuple):
    """How often two labels are present in one image, among images in which both are known."""

    first: str
    second: str
    both: int
    """Images with both."""
    first_alone: int
    second_alone: int
    neither: int

    @property
    def overlap(self) -> float:
        """Images with both over images with at least one of the two."""
        return self.both / max(1, self.both + self.first_alone + self.second_alone)


class BoxSizes(NamedTuple):
    """How large the boxes of a concept are, at the size and on the grid of a model."""

    name: str
    boxes: int
    width: float
    """Median in pixels at the model's size."""
    height: float
    cells: float
    """Median area in cells of the grid."""
    under_cell: int
    """Boxes of less than a cell's area."""
    few_pixels: int
    """Boxes with a side under `FEW_PIXELS`."""


def count_labels(names: Sequence[tuple[str, str]], labels: Tensor, boxes: Sequence[int]) -> tuple[LabelCount, ...]:
    """Counts of each label.

    Args:
        names: (L,) name and kind of each label.
        labels: (N, L) in [0, 1], NaN where unknown.
        boxes: (L,) how many boxes there are of each.
    """
    return tuple(
        LabelCount(name, kind, int((one >= 0.5).sum()), int((one < 0.5).sum()), int(one.isnan().sum()), drawn)
        for (name, kind), one, drawn in zip(names, labels.T, boxes, strict=True)
    )


def rare_label_remarks(
    names: Sequence[str], labels: Tensor, parts: Sequence[Hashable] | None = None
) -> tuple[str, ...]:
    """A sentence for each label, and side of it, that fewer than five images have, of all or of a part of them.

    A label that all images lack, or have, is a fault and not named here. A part in which it is unknown is left out.

    Args:
        names: (L,) names.
        labels: (N, L) in [0, 1], NaN where unknown.
        parts: (N,) part of each image; None if nothing divides them.
    """
    found = []
    each = () if parts is None else parts
    within = {part: torch.tensor([one == part for one in each]) for part in dict.fromkeys(each)}
    for name, one in zip(names, labels.T, strict=True):
        for word, has in (("present", one >= 0.5), ("absent", one < 0.5)):
            if where := _rare_places(has, ~one.isnan(), within):
                few = f"fewer than {FEW_IMAGES} are too few to learn from, and to measure by"
                found.append(f"{name!r} is {word} in {where}; {few}")
    return tuple(found)


def _rare_places(has: Tensor, known: Tensor, within: Mapping[Hashable, Tensor]) -> str:
    """Where fewer than five images are of a kind (N,): in all of them, or in which parts; empty if nowhere.

    Args:
        has: (N,) bool, whether an image is of that kind.
        known: (N,) bool, whether that is known.
        within: Part -> (N,) bool, its images; empty if nothing divides them.
    """
    total = int(has.sum())
    if total < FEW_IMAGES:
        return _images(total) if total else ""
    rare = []
    for part, own in within.items():
        if (count := int((has & own).sum())) < FEW_IMAGES and (known & own).any():
            rare.append(f"{_images(count)} of {part!r}")
    return " and ".join(rare)


def _images(count: int) -> str:
    return f"{count or 'no'} image{'s' * (count > 1)}"


def count_pairs(names: Sequence[str], labels: Tensor) -> tuple[LabelPair, ...]:
    """Each pair of labels that come together at least once, those first that seldom come without each other.

    Args:
        names: (L,) names.
        labels: (N, L) in [0, 1], NaN where unknown.
    """
    present, absent = (labels >= 0.5).double(), (labels < 0.5).double()
    both, alone, neither = present.T @ present, present.T @ absent, absent.T @ absent
    rows, columns = torch.triu_indices(len(names), len(names), offset=1).tolist()
    pairs = [
        LabelPair(
            names[i], names[j], *(int(one) for one in (both[i, j], alone[i, j], alone[j, i], neither[i, j]))
        )
        for i, j in zip(rows, columns, strict=True)
    ]  # fmt: skip
    return tuple(sorted((pair for pair in pairs if pair.both), key=lambda pair: (-pair.overlap, -pair.both)))


def measure_boxes(
    names: Sequence[str], xyxy: Tensor, concept: Tensor, image_size: tuple[int, int], grid: tuple[int, int]
) -> tuple[BoxSizes, ...]:
    """Sizes of the boxes of each concept that has any.

    Args:
        names: (K,) concepts.
        xyxy: (n, 4) boxes as fractions.
        concept: (n,) what each shows.
        image_size: (H, W) in pixels that the model takes.
        grid: (h, w) cells of its maps.
    """
    sides = (xyxy[:, 2:] - xyxy[:, :2]).double()
    pixels = sides * torch.tensor([image_size[1], image_size[0]])
    cells = sides.prod(dim=1) * (grid[0] * grid[1])
    found = []
    for number, name in enumerate(names):
        own = concept == number
        if own.any():
            width, height = pixels[own].median(dim=0).values.tolist()
            few = int((pixels[own].amin(dim=1) < FEW_PIXELS).sum())
            area, under = float(cells[own].median()), int((cells[own] < 1).sum())
            found.append(BoxSizes(name, int(own.sum()), width, height, area, under, few))
    return tuple(found)


def percent(part: int, whole: int) -> str:
    """A part in percent; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
