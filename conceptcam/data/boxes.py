"""Bounding boxes of concepts, for a whole batch at once."""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import brief, check_choice

MaskRule = Literal["coverage", "center"]
BoxForm = Literal["xyxy", "xywh", "cxcywh"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class PairMasks(NamedTuple):
    """The P pairs of image and concept that have a box, and where on a grid their boxes are."""

    image: Tensor
    """(P,) index of the image within the batch."""
    concept: Tensor
    """(P,) index of the concept."""
    inside: Tensor
    """(P, h, w) in [0, 1], how much each cell belongs to the boxes of the pair."""
    drawn: Tensor
    """(P,) bool, all true but in code that `torch.compile` makes: there the pairs are all that there are."""


@dataclass(frozen=True, eq=False)
class ConceptBoxes:
    """N boxes drawn in a batch of images, stored flat.

    An image without boxes can mean two things. If somebody looked and found nothing to draw, its boxes are an
    empty `ConceptBoxes`. If nobody looked, they are None, wherever boxes are given per image.

    Attributes:
        xyxy: (N, 4) left, top, right, bottom, as fractions of the image width and height in [0, 1].
        concept: (N,) index of the concept each box marks.
        image: (N,) index, within the batch, of the image each box is in.

    Raises:
        ValueError: If the lengths or shapes differ, an index is negative, or a box is empty, not a
            number or leaves [0, 1].
    """

    xyxy: Tensor
    concept: Tensor
    image: Tensor
    # Kept as plain numbers, so that checking an index later needs no wait for the GPU.
    _highest: tuple[int, int] = field(default=(-1, -1), init=False, repr=False)
    _checked: tuple[int, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.xyxy.ndim != 2 or self.xyxy.shape[1] != 4 or not self.xyxy.is_floating_point():
            raise ValueError(f"`xyxy` must be floats of shape (N, 4), got {self.xyxy.dtype} {tuple(self.xyxy.shape)}")
        if not self.xyxy.shape[:1] == self.concept.shape == self.image.shape:
            raise ValueError(
                f"need one concept and one image per box, got {len(self.xyxy)} boxes with `concept` of shape "
                f"{tuple(self.concept.shape)} and `image` of shape {tuple(self.image.shape)}"
            )
        for name in ("concept", "image"):
            index: Tensor = getattr(self, name)
            if index.dtype not in _INTEGERS:
                raise ValueError(f"`{name}` must hold integer indices, got {index.dtype}")
            # A byte would overflow in index arithmetic, and torch takes a tensor of bytes for a mask.
            object.__setattr__(self, name, index.long())
        left, top, right, bottom = self.xyxy.unbind(1)
        valid = (left >= 0) & (top >= 0) & (right <= 1) & (bottom <= 1) & (left < right) & (top < bottom)
        if not valid.all():
            first = int((~valid).nonzero()[0])
            pixels = bool((self.xyxy[first].abs() > 1).any())
            advice = (
                "Divide pixel boxes by the image size first."
                if pixels
                else "To a box (x, y, width, height) add its x and y: (x, y, x + width, y + height)."
            )
            raise ValueError(
                f"box {first} is {self.xyxy[first].tolist()}; expected 0 <= left < right <= 1 and "
                f"0 <= top < bottom <= 1. {advice}"
            )
        if len(self):
            if min(self.concept.min(), self.image.min()) < 0:
                raise ValueError("a box has a negative concept or image index; count from 0")
            object.__setattr__(self, "_highest", (int(self.concept.max()), int(self.image.max())))
        object.__setattr__(self, "_checked", self._versions())

    def __len__(self) -> int:
        return len(self.xyxy)

    @classmethod
    def empty(cls) -> "ConceptBoxes":
        """No boxes: somebody looked and found nothing to draw."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(torch.zeros(0, 4), none, none)

    @classmethod
    def cat(cls, per_image: Sequence["ConceptBoxes | None"]) -> "ConceptBoxes":
        """Join the boxes of single images into the boxes of a batch, numbering the images in order.

        None, an image in which nobody drew, gives no boxes but keeps its number.
        """
        drawn = [(index, boxes) for index, boxes in enumerate(per_image) if boxes is not None] or [(0, cls.empty())]
        return cls(
            torch.cat([boxes.xyxy for _, boxes in drawn]),
            torch.cat([boxes.concept for _, boxes in drawn]),
            torch.cat([torch.full_like(boxes.image, index) for index, boxes in drawn]),
        )

    @classmethod
    def from_dicts(cls, per_image: "Sequence[ImageBoxes]") -> "ConceptBoxes":
        """Read boxes kept image by image.

        Args:
            per_image: For each image of the batch its boxes, or None: a list of dicts, a `ConceptBoxes`, or a target as
                torchvision has it. A box of a list is
                `{"concept_idx": 4, "bbox": [x0, y0, x1, y1]}` or
                `{"concept_idx": 4, "x_min": x0, "y_min": y0, "x_max": x1, "y_max": y1}`, in fractions
                of the image size. A target is `{"boxes": boxes, "labels": concepts}` with (N, 4) boxes, a
                `BoundingBoxes` in its pixels or a tensor in fractions, and (N,) concepts, counted from 0.

        Raises:
            ValueError: If boxes have none of these forms, or one is invalid.
        """
        if any(isinstance(one, ConceptBoxes | Mapping | Tensor) for one in per_image):
            return cls.cat([_of_image(one, image) for image, one in enumerate(per_image)])
        lists: Any = per_image
        rows = [(*_parse(box), image) for image, boxes in enumerate(lists) for box in boxes or ()]
        if not rows:
            return cls.empty()
        corners, concepts, images = zip(*rows, strict=True)
        return cls(torch.tensor(corners, dtype=torch.float32), torch.tensor(concepts), torch.tensor(images))

    @classmethod
    def from_pixels(
        cls,
        boxes: Tensor,
        concept: Sequence[int] | Tensor,
        size: tuple[int, int] | None = None,
        *,
        form: BoxForm = "xyxy",
    ) -> "ConceptBoxes":
        """The boxes of one image, given in its pixels.

        Args:
            boxes: (N, 4) numbers, or a `BoundingBoxes` of torchvision, which knows its form and the size of the image.
            concept: (N,) index of the concept of each box.
            size: (H, W) of the image in pixels.
            form: `"xyxy"`: left, top, right, bottom; `"xywh"`: left, top, width, height; `"cxcywh"`: centre, width,
                height.

        Raises:
            ValueError: If the size is missing, or a box is invalid or leaves the image.
        """
        if type(boxes).__name__ == "BoundingBoxes":  # torchvision takes seconds to import
            form, size = boxes.format.name.lower(), tuple(boxes.canvas_size)  # type: ignore[attr-defined]
        check_choice("form", form, BoxForm)
        if size is None:
            raise ValueError("boxes in pixels need the `size` (H, W) of their image")
        first, second = torch.as_tensor(boxes).as_subclass(Tensor).float().view(-1, 4).split(2, dim=1)
        if form == "cxcywh":
            first = first - second / 2
        corners = torch.cat([first, second if form == "xyxy" else first + second], dim=1)
        index = torch.as_tensor(concept, dtype=torch.long)
        return cls(corners / torch.tensor([size[1], size[0]] * 2), index, torch.zeros_like(index))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ConceptBoxes":
        """The same boxes on another device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "ConceptBoxes":
        """The same boxes in pinned memory; `DataLoader(pin_memory=True)` calls it."""
        return self._map(Tensor.pin_memory)

    def check_fits(self, num_images: int, num_concepts: int) -> None:
        """Refuse boxes of an image or a concept that is not there, or that have become invalid since they were made.

        Raises:
            ValueError: Naming the highest index found and the number there is, or the box.
        """
        if self._checked != self._versions():  # somebody has changed a tensor in place
            self.__post_init__()
        concept, image = self._highest
        if concept >= num_concepts:
            raise ValueError(f"a box has concept index {concept}, but there are {num_concepts} concepts")
        if image >= num_images:
            raise ValueError(f"a box has image index {image}, but the batch has {num_images} images")

    def pair_masks(self, shape: Sequence[int], rule: MaskRule = "coverage") -> PairMasks:
        """Where the boxes of each (image, concept) pair lie on a grid, one mask per pair.

        Boxes of one pair are joined, so two boxes of one concept never count as each other's outside.
        Where they overlap in a cell, the larger value is kept.

        Args:
            shape: (B, K, h, w), the shape of the concept maps to compare with.
            rule: `"coverage"`: the fraction of a cell's area that a box covers, so a box smaller than a
                cell still counts. `"center"`: 1 for each cell whose centre is in the box, and at least
                for the cell that holds the centre of the box.

        Raises:
            ValueError: If a box has an image or concept index outside the shape, or the rule is unknown.
        """
        images, concepts, height, width = shape
        compiling = torch.compiler.is_compiling()
        if not compiling:
            check_choice("rule", rule, MaskRule)
            self.check_fits(images, concepts)
        left, top, right, bottom = self.xyxy.unbind(1)
        along = _overlap if rule == "coverage" else _centers
        inside = along(top, bottom, height)[:, :, None] * along(left, right, width)[:, None, :]  # (n, h, w)
        own = self.image * concepts + self.concept
        if compiling:  # how many pairs have boxes depends on the data, which breaks a graph
            pair, member = torch.arange(images * concepts, device=own.device), own
            drawn = torch.zeros_like(pair, dtype=torch.bool).index_fill(0, own, True)
        else:
            pair, member = torch.unique(own, return_inverse=True)
            drawn = torch.ones_like(pair, dtype=torch.bool)
        where = member[:, None, None].expand_as(inside)
        joined = inside.new_zeros(len(pair), height, width).scatter_reduce(0, where, inside, reduce="amax")
        return PairMasks(pair // concepts, pair % concepts, joined, drawn)

    def coverage(self, shape: Sequence[int]) -> Tensor:
        """How much of each grid cell the boxes of each concept cover.

        Args:
            shape: (B, K, h, w), the shape of the concept maps to compare with.

        Returns:
            (B, K, h, w) in [0, 1]; all zeros where an image has no box of a concept.
        """
        pairs = self.pair_masks(shape)
        dense = pairs.inside.new_zeros(tuple(shape))
        dense[pairs.image, pairs.concept] = pairs.inside
        return dense

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ConceptBoxes":
        """Change each tensor without checking again what was checked when these boxes were made."""
        changed = copy.copy(self)
        for name in ("xyxy", "concept", "image"):
            object.__setattr__(changed, name, change(getattr(self, name)))
        same = self._checked == self._versions()
        object.__setattr__(changed, "_checked", changed._versions() if same else (-1,))
        return changed

    def _versions(self) -> tuple[int, ...]:
        """How often each tensor was changed in place, as torch counts it; empty where it does not."""
        tensors = (self.xyxy, self.concept, self.image)
        if torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            return ()
        return tuple(tensor._version for tensor in tensors)


torch.serialization.add_safe_globals([ConceptBoxes])  # `torch.load` reads them with `weights_only=True`

ImageBoxes = ConceptBoxes | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
"""The boxes of one image, as `ConceptBoxes.from_dicts` reads them."""

_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def _of_image(boxes: Any, image: int) -> ConceptBoxes | None:
    """The boxes of one image of a batch, in any of the forms that boxes come in."""
    if boxes is None or isinstance(boxes, ConceptBoxes):
        return boxes
    if isinstance(boxes, Tensor) or (isinstance(boxes, Mapping) and not {"boxes", "labels"} <= boxes.keys()):
        found = f"a tensor {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else f"a dict of {sorted(boxes)}"
        raise ValueError(
            f"the boxes of image {image} are {found}, which does not say of which concept each is; pass "
            "{'boxes': boxes, 'labels': concepts}, a `ConceptBoxes`, or a list of dicts such as "
            "{'concept_idx': 4, 'bbox': [x0, y0, x1, y1]}"
        )
    if not isinstance(boxes, Mapping):
        return ConceptBoxes.from_dicts([boxes])
    try:
        xyxy, concept = torch.as_tensor(boxes["boxes"]), torch.as_tensor(boxes["labels"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the boxes or labels of image {image} are no numbers: {brief(dict(boxes))}") from error
    if type(boxes["boxes"]).__name__ == "BoundingBoxes":  # torchvision takes seconds to import
        return ConceptBoxes.from_pixels(boxes["boxes"], concept)
    if not xyxy.numel():  # an empty list has no shape
        return ConceptBoxes.empty()
    return ConceptBoxes(xyxy, concept, torch.zeros_like(concept))


def _parse(box: Mapping[str, Any]) -> tuple[list[float], int]:
    """Corners and concept of a box given as a dict."""
    if not isinstance(box, Mapping):
        raise ValueError(
            f"boxes are a list of dicts per image, such as [[{{'concept_idx': 4, 'bbox': [x0, y0, x1, y1]}}], None]; "
            f"got {box!r} where a dict should be"
        )
    if "concept_idx" not in box:
        raise ValueError(f"a box needs 'concept_idx', got {dict(box)}")
    if unknown := box.keys() - {"concept_idx", "bbox", *_CORNERS}:
        raise ValueError(
            f"a box has entries that nothing reads, {sorted(map(str, unknown))}; leave them out of {dict(box)}"
        )
    if "bbox" in box and box.keys() & {*_CORNERS}:
        raise ValueError(f"a box says where it is twice, by 'bbox' and by 'x_min' and the like: {dict(box)}")
    corners = box["bbox"] if "bbox" in box else [box.get(key) for key in _CORNERS]
    if isinstance(box["concept_idx"], bool):
        raise ValueError(f"'concept_idx' must be an integer, got {box['concept_idx']!r} in {dict(box)}")
    try:
        left, top, right, bottom = map(float, corners)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"a box needs 'bbox' with 4 numbers or x_min, y_min, x_max and y_max, got {dict(box)}"
        ) from error
    try:
        return [left, top, right, bottom], operator.index(box["concept_idx"])
    except TypeError as error:
        raise ValueError(f"'concept_idx' must be an integer, got {box['concept_idx']!r} in {dict(box)}") from error


def _overlap(start: Tensor, stop: Tensor, cells: int) -> Tensor:
    """(N, cells) fraction of each of `cells` equal parts of [0, 1] that [start, stop] covers."""
    edges = torch.arange(cells + 1, device=start.device, dtype=start.dtype)
    # Positions are measured in cells, so that a box that ends on a cell's edge does so exactly.
    shared = torch.minimum(stop[:, None] * cells, edges[1:]) - torch.maximum(start[:, None] * cells, edges[:-1])
    return shared.clamp(min=0)


def _centers(start: Tensor, stop: Tensor, cells: int) -> Tensor:
    """(N, cells) 1 for each part whose centre is in [start, stop], and for the part of their middle."""
    part = torch.arange(cells, device=start.device)
    center = (part + 0.5) / cells
    middle = ((start + stop) / 2 * cells).long().clamp(max=cells - 1)
    within = (start[:, None] <= center) & (center <= stop[:, None])
    return (within | (part == middle[:, None])).to(start.dtype)
