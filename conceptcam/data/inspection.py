"""What is wrong with a data set, before it costs training time: labels, files, boxes, duplicates, patients."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from conceptcam._checks import shorten
from conceptcam._display.text import text_table
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.faults import Fault
from conceptcam.data.label_counts import (
    FEW_PIXELS,
    BoxSizes,
    LabelCount,
    LabelPair,
    count_labels,
    count_pairs,
    measure_boxes,
    rare_label_remarks,
)
from conceptcam.data.splits import shared_patients

# Sides of the thumbnails that are compared. A copy that was resized or compressed anew correlates above the limit.
_THUMBNAIL = 32
_NEAR = 0.99
# An image is a negative if it is as unlike the mean of all as most images are like it.
_LIKE = 0.4
# Where at most this part of the images is of another kind, they are odd ones.
_ODD = 0.1
_SLIVER = 1 / 8
_SHOWN_PAIRS = 10
_BLOCK = 2000  # rows of the matrix of all pairs that are held at once


@dataclass(frozen=True)
class Inspection:
    """What a data set holds, and what is wrong with it.

    Attributes:
        images: How many images there are.
        patients: How many patients are known.
        labels: Counts of each label.
        notes: What the reader recognized.
        faults: What a person should look at.
        pairs: Labels that come together, those first that seldom come without each other.
        box_sizes: How large the boxes of each concept are.
        image_size: (H, W) in pixels that boxes are measured at.
        grid: (h, w) cells that boxes are measured in.
        remarks: Sentences about labels that few images have, or lack; no faults.
    """

    images: int
    patients: int
    labels: tuple[LabelCount, ...]
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]
    pairs: tuple[LabelPair, ...] = ()
    box_sizes: tuple[BoxSizes, ...] = ()
    image_size: tuple[int, int] = (224, 224)
    grid: tuple[int, int] = (14, 14)
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A report for a terminal."""
        titles = ["label", "kind", "present", "absent", "unknown", "prevalence", "boxes"]
        rows = [[one.name, one.kind, *map(str, one[2:5]), one.prevalence, str(one.boxes)] for one in self.labels]
        count = f"{self.images} images" + (f" of {self.patients} patients" if self.patients else "")
        faults = [f"{fault.kind}: {fault.text}" for fault in self.faults] or ["No faults were found."]
        labels = text_table([titles, *rows], numbers=True)
        remarks = ["", *(f"Remark: {remark}." for remark in self.remarks)] if self.remarks else []
        return [count, *self.notes, "", *labels, *remarks, *self._pair_lines(), *self._box_lines(), "", *faults]

    def _pair_lines(self) -> list[str]:
        if not self.pairs:
            return []
        shown = self.pairs[:_SHOWN_PAIRS]
        titles = ["together", "images", "with either", "overlap"]
        rows = [
            [f"{one.first} + {one.second}", str(one.both), str(one.both + one.first_alone + one.second_alone),
             f"{one.overlap:.1%}"]
            for one in shown
        ]  # fmt: skip
        more = len(self.pairs) - len(shown)
        rest = [f"{more} other pairs overlap less; as JSON all are written."] if more else []
        return ["", *text_table([titles, *rows], numbers=True), *rest]

    def _box_lines(self) -> list[str]:
        if not self.box_sizes:
            return []
        size, grid = (" x ".join(map(str, one)) for one in (self.image_size, self.grid))
        titles = [f"boxes at {size} pixels, {grid} cells", "boxes", "width", "height", "cells", "under a cell",
                  f"under {FEW_PIXELS:g} pixels"]  # fmt: skip
        rows = [
            [one.name, str(one.boxes), f"{one.width:.1f}", f"{one.height:.1f}", f"{one.cells:.1f}",
             str(one.under_cell), str(one.few_pixels)]
            for one in self.box_sizes
        ]  # fmt: skip
        return ["", *text_table([titles, *rows], numbers=True), "Width, height and cells are medians."]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "images": self.images,
            "patients": self.patients,
            "labels": [one._asdict() for one in self.labels],
            "notes": list(self.notes),
            "faults": [fault._asdict() for fault in self.faults],
            "pairs": [{**pair._asdict(), "overlap": pair.overlap} for pair in self.pairs],
            "box_sizes": [one._asdict() for one in self.box_sizes],
            "image_size": list(self.image_size),
            "grid": list(self.grid),
            "remarks": list(self.remarks),
        }


def inspect_dataset(
    dataset: ConceptDataset,
    *,
    parts: Sequence[Hashable] | None = None,
    image_size: tuple[int, int] = (224, 224),
    grid: tuple[int, int] = (14, 14),
    read_images: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> Inspection:
    """Look for what is wrong with a data set.

    Labels without a present or an absent one, or the same as another. Patients or files on both sides of a split. Files
    that cannot be read, are constant, smaller than the model's input, black because they use a sliver of their range,
    of another bit depth than nearly all others, or negatives of what the others show. Images that are there twice,
    exactly or nearly, and whether their labels differ or they are on both sides of a split. Boxes that are too small to
    see. Besides, it counts which labels come together and how large boxes are at the size and on the grid of a model,
    and remarks which labels few images have, or lack.

    Args:
        dataset: What to look at; images are read as they are stored.
        parts: (N,) part of each image, such as of `split_by_patient`.
        image_size: (H, W) in pixels that the model will take.
        grid: (h, w) cells of the model's maps.
        read_images: Whether to read images; without, only labels and patients are looked at.
        progress: Called with how many images are done.
    """
    labels = torch.cat([dataset.concept_labels, dataset.task_labels], dim=1)
    faults = [*_label_faults(dataset, labels), *_sides_faults(dataset, parts)]
    boxes = dataset.all_boxes
    if read_images:
        found = _look(dataset, image_size, progress)
        faults += [*found.faults, *_duplicate_faults(dataset, labels, found, parts)]
        boxes = ConceptBoxes.cat(found.boxes) if boxes is None else boxes
    boxes = boxes or ConceptBoxes.empty()
    names = [(name, "concept") for name in dataset.concepts] + [(name, "task") for name in dataset.tasks]
    drawn = torch.bincount(boxes.concept, minlength=len(names)).tolist()
    return Inspection(
        len(dataset),
        len({patient for patient in dataset.patients or () if patient}),
        count_labels(names, labels, drawn),
        tuple(dataset.notes),
        tuple(faults),
        count_pairs([name for name, _ in names], labels),
        measure_boxes(dataset.concepts, boxes.xyxy, boxes.concept, image_size, grid),
        image_size,
        grid,
        rare_label_remarks([name for name, _ in names], labels, parts),
    )


def _label_faults(dataset: ConceptDataset, labels: Tensor) -> list[Fault]:
    names = (*dataset.concepts, *dataset.tasks)
    faults = []
    for name, one in zip(names, labels.T, strict=True):
        sides = {"present": int((one >= 0.5).sum()), "absent": int((one < 0.5).sum())}
        if lacking := [side for side, count in sides.items() if not count]:
            faults.append(
                Fault("one-sided label", f"{name!r} is {' and '.join(lacking)} in no image; nothing is learned")
            )
    columns: dict[bytes, list[str]] = {}
    for name, one in zip(names, labels.T, strict=True):
        if not one.isnan().all() and len(one.nan_to_num(-1).unique()) > 1:
            columns.setdefault(one.contiguous().numpy().tobytes(), []).append(name)
    twins = [same for same in columns.values() if len(same) > 1]
    return faults + [
        Fault("same labels", f"{', '.join(map(repr, same))} have the same label in each image") for same in twins
    ]


def _sides_faults(dataset: ConceptDataset, parts: Sequence[Hashable] | None) -> list[Fault]:
    """Files and patients that are in more than one part."""
    if parts is None:
        return []
    patients = [] if dataset.patients is None else shared_patients(dataset.patients, parts)
    return [
        Fault(f"{what} on both sides", f"{len(both)} {what}s are in more than one part: {shorten(map(repr, both))}")
        for what, both in (("image", _files_on_both_sides(dataset, parts)), ("patient", patients))
        if both
    ]


def _files_on_both_sides(dataset: ConceptDataset, parts: Sequence[Hashable] | None) -> list[Hashable]:
    """Names that are in more than one part; equal names are one file only where one folder holds all images."""
    return [] if parts is None or dataset.folder is None else shared_patients(dataset.names, parts)


class _Seen(NamedTuple):
    """What is kept of the images that could be read."""

    faults: list[Fault]
    boxes: list[ConceptBoxes | None]
    """Of each image."""
    rows: list[int]
    """Which images they are."""
    digests: list[bytes]
    thumbnails: Tensor
    """(n, P) standardized: the product of two is their correlation."""


class _Kinds:
    """Names of images by the kind of fault."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self.names.setdefault(kind, []).append(name)

    def faults(self) -> list[Fault]:
        return [
            Fault(kind, f"{len(names)} {_KINDS[kind]}: {shorten(names)}") for kind, names in self.names.items() if names
        ]


_KINDS = {
    "unreadable image": "images cannot be read",
    "constant image": "images have one value everywhere",
    "small image": "images are smaller than the model's input, to which they are enlarged",
    "dark image": "images use less than an eighth of their range and come out black; see `bit_depth` (--bit-depth)",
    "small box": f"boxes are under {FEW_PIXELS:g} pixels at the model's size",
    "odd bit depth": "images have another bit depth than the others",
    "negative image": "images look like negatives of the others",
}


def _look(dataset: ConceptDataset, image_size: tuple[int, int], progress: Callable[[int], None]) -> _Seen:
    """Read all images once."""
    kinds, boxes, deep = _Kinds(), list[ConceptBoxes | None](), []
    index, digests, thumbnails = [], [], []
    names = dataset.names
    for number in range(len(dataset)):
        progress(number)
        try:
            item = dataset.load_item(number)
        except (ValueError, OSError) as error:
            kinds.add("unreadable image", f"{names[number]!r} ({error})")
            continue
        _check_item(item, image_size, kinds)
        boxes.append(item.boxes)
        index.append(number)
        deep.append(item.image.is_floating_point())
        digests.append(_digest(item.image))
        thumbnails.append(_thumbnail(item.image))
    _find_odd([names[number] for number in index], deep, kinds)
    stacked = torch.stack(thumbnails) if thumbnails else torch.zeros(0, _THUMBNAIL**2)
    _find_negatives([names[number] for number in index], stacked, kinds)
    return _Seen(kinds.faults(), boxes, index, digests, stacked)


def _check_item(item: ConceptItem, image_size: tuple[int, int], kinds: _Kinds) -> None:
    (height, width), (low, high) = item.image.shape[1:], item.image.aminmax()
    if low == high:
        kinds.add("constant image", repr(item.name))
    elif item.image.is_floating_point() and high < _SLIVER:
        kinds.add("dark image", repr(item.name))
    if height < image_size[0] and width < image_size[1]:
        kinds.add("small image", f"{item.name!r} ({width} x {height})")
    if item.boxes is not None and len(item.boxes):
        sides = item.boxes.xyxy[:, 2:] - item.boxes.xyxy[:, :2]
        pixels = sides * torch.tensor([image_size[1], image_size[0]])
        for row in (pixels.amin(dim=1) < FEW_PIXELS).nonzero()[:, 0].tolist():
            size = " x ".join(f"{side:.1f}" for side in pixels[row].tolist())
            kinds.add("small box", f"{size} in {item.name!r}")


def _digest(image: Tensor) -> bytes:
    """The same for images that show the same pixels."""
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).digest()


def _thumbnail(image: Tensor) -> Tensor:
    """(P,) grey values of a small copy, of mean 0 and length 1; zeros of a constant image."""
    small = adaptive_avg_pool2d(image.float().mean(dim=0, keepdim=True), _THUMBNAIL).flatten()
    centered = small - small.mean()
    return normalize(centered, dim=0) if centered.abs().max() > 1e-6 * small.abs().max() else centered * 0


def _find_odd(names: Sequence[str], deep: Sequence[bool], kinds: _Kinds) -> None:
    few = sum(deep) <= len(deep) / 2
    odd = [repr(name) for name, one in zip(names, deep, strict=True) if one == few]
    if 0 < len(odd) <= _ODD * len(deep):
        for name in odd:
            kinds.add("odd bit depth", name)


def _find_negatives(names: Sequence[str], thumbnails: Tensor, kinds: _Kinds) -> None:
    """Images that are as unlike the mean as most images are like it."""
    likeness = thumbnails @ normalize(thumbnails.mean(dim=0), dim=0)
    if len(names) and likeness.median() > _LIKE:
        for row in (likeness < -_LIKE).nonzero()[:, 0].tolist():
            kinds.add("negative image", repr(names[row]))


def _duplicate_faults(
    dataset: ConceptDataset, labels: Tensor, seen: _Seen, parts: Sequence[Hashable] | None
) -> list[Fault]:
    """Images that are there twice, exactly or nearly."""
    pairs = {False: _near_pairs(seen), True: []}
    names, faults = dataset.names, []
    known = set(_files_on_both_sides(dataset, parts))  # which were reported as such
    for first, second in pairs[False]:
        if seen.digests[first] == seen.digests[second]:
            pairs[True].append((first, second))
    for exact, kind in ((True, "image twice"), (False, "nearly the same images")):
        own = [pair for pair in pairs[exact] if exact or pair not in pairs[True]]
        rows = [(seen.rows[first], seen.rows[second]) for first, second in own]
        rows = [(a, b) for a, b in rows if names[a] != names[b] or names[a] not in known]
        texts = [_describe(a, b, names, labels, parts) for a, b in rows]
        if texts:
            faults.append(Fault(kind, f"{len(texts)} pairs: {shorten(texts)}"))
    return faults


def _near_pairs(seen: _Seen) -> list[tuple[int, int]]:
    """Pairs of images that correlate like copies of one another."""
    found = []
    for start in range(0, len(seen.rows), _BLOCK):
        alike = seen.thumbnails[start : start + _BLOCK] @ seen.thumbnails.T
        for row, column in (alike > _NEAR).nonzero().tolist():
            if start + row < column:
                found.append((start + row, column))
    return found


def _describe(first: int, second: int, names: Sequence[str], labels: Tensor, parts: Sequence[Hashable] | None) -> str:
    same = torch.equal(labels[first].nan_to_num(-1), labels[second].nan_to_num(-1))
    more = ["with other labels"] if not same else []
    if parts is not None and parts[first] != parts[second]:
        more.append(f"in {parts[first]!r} and {parts[second]!r}")
    return f"{names[first]!r} and {names[second]!r}" + (f" ({', '.join(more)})" if more else "")
