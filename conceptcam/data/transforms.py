"""What happens to an image between file and model: one preprocessing, and augmentation that moves boxes."""

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.batch import ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.image_cache import ImageReader
from conceptcam.data.images import load_image, resize_image

if TYPE_CHECKING:
    from torchvision.transforms import v2

LostBoxes = Literal["unknown", "keep"]


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into what the model takes.

    Training, evaluation, `explain` and the command line share it. The whole image is resized to the
    model's size and never cropped, so a finding at the border stays in view. Boxes are fractions of the
    image, so they need no change.

    Attributes:
        image_size: (H, W) in pixels.
        mean: Per-channel mean subtracted from images in [0, 1]: three numbers, or one for grey images. Then colours
            are turned into the grey of ITU-R BT.601.
        std: Per-channel standard deviation that images are divided by, as many.
        bit_depth: Bits that 16-bit images really use; see `load_image`. It belongs to the files, not to the model.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bit_depth: int | None = None
    _scale: Tensor = field(init=False, repr=False, compare=False)
    _shift: Tensor = field(init=False, repr=False, compare=False)
    _reader: ImageReader = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        channels = 1 if len(self.mean) == len(self.std) == 1 else 3
        for name, length in (("image_size", 2), ("mean", channels), ("std", channels)):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != length:
                raise ValueError(f"`{name}` needs {length} numbers, got {getattr(self, name)}")
        if not all(value > 0 for value in (*self.image_size, *self.std)):
            raise ValueError(
                f"`image_size` {self.image_size} and `std` {self.std} (--image-size, --std) must be above 0"
            )
        std = torch.tensor(self.std, device="cpu").view(-1, 1, 1)
        object.__setattr__(self, "_scale", 1 / std)
        object.__setattr__(self, "_reader", ImageReader(self.bit_depth))
        object.__setattr__(self, "_shift", torch.tensor(self.mean, device="cpu").view(-1, 1, 1) / std)

    def __call__(self, image: Any) -> Tensor:
        """Read, resize and normalize an image.

        Args:
            image: A path, a PIL image, or an array or tensor as `load_image` takes.

        Returns:
            (3, h, w) or (1, h, w) float32, (image - mean) / std; on the device of a tensor, else on the CPU.

        Raises:
            TypeError: If `image` is none of these.
            ValueError: If its shape, type or range cannot be those of an image as read.
        """
        if isinstance(image, str | PathLike):
            image = self._reader.read(image).image
        # Bytes of the right shape need no check, and keep their order in memory, on which the speed of resizing hangs.
        if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3):
            image = load_image(image, bit_depth=self.bit_depth)
        if len(self.mean) == 1:
            image = _to_grey(image)
        bytes_ = image.dtype == torch.uint8
        image = resize_image(image, self.image_size)
        scale = self._scale.to(image.device)
        return (image * (scale / 255 if bytes_ else scale)).sub_(self._shift.to(image.device)).float()

    def denormalize(self, image: Tensor) -> Tensor:
        """The picture that a preprocessed image shows.

        Args:
            image: (3, h, w) or (1, h, w) as this object returned it.

        Returns:
            (3, h, w) uint8.
        """
        unit = (image.detach() + self._shift.to(image.device)) / self._scale.to(image.device)
        return (unit * 255).round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


class BoxAwareTransform:
    """Wraps a torchvision v2 transform so that it changes items, and boxes move with the pixels.

    A box that the transform pushes partly out of the image is cut at the border; one that keeps less
    than `min_visible` of its area is dropped. Where every box of a concept is dropped, the finding may
    be out of sight, so the concept's label becomes unknown (NaN). Images in which nobody drew boxes
    (`boxes` None) are transformed, and keep their labels. Regions move too; what comes into view from outside the image
    is outside of them.

    Rotated boxes become the upright boxes around them, as everywhere in torchvision.

    Args:
        transform: Any transform of `torchvision.transforms.v2`, or a `Compose` of several.
        min_visible: Least part of its area that a box must keep in view, in [0, 1].
        lost_boxes: What becomes of the label of a concept that lost all its boxes: `"unknown"`, or
            `"keep"` where the label does not depend on seeing the finding.

    Raises:
        TypeError: If `transform` is not of torchvision's v2, and so would not move boxes.
        ValueError: If `min_visible` or `lost_boxes` is out of range.
    """

    def __init__(
        self,
        transform: "v2.Transform",
        *,
        min_visible: float = 0.25,
        lost_boxes: LostBoxes = "unknown",
    ) -> None:
        from torchvision.transforms import v2

        if not isinstance(transform, v2.Transform):
            kind = f"{type(transform).__module__}.{type(transform).__name__}"
            raise TypeError(f"expected a transform of torchvision.transforms.v2, got {kind}; only v2 moves boxes")
        if not 0 <= min_visible <= 1:
            raise ValueError(f"`min_visible` must be in [0, 1], got {min_visible}")
        check_choice("lost_boxes", lost_boxes, LostBoxes)
        self.transform = transform
        self.min_visible = min_visible
        self.lost_boxes = lost_boxes

    def __call__(self, item: ConceptItem) -> ConceptItem:
        """The item, transformed; its image keeps the type it had unless the transform changes it."""
        from torchvision import tv_tensors

        boxes = ConceptBoxes.empty() if item.boxes is None else item.boxes
        height, width = item.image.shape[1:]
        pixels = boxes.xyxy.float() * torch.tensor([width, height, width, height])
        # torchvision cuts `boxes` at each step, so a crop followed by padding stays right. `whole` is
        # never cut and says how large each box would be. The row numbers ride along as "labels",
        # because SanitizeBoundingBoxes removes rows.
        canvas: dict[str, Any] = {"format": "XYXY", "canvas_size": (height, width)}
        region = {} if item.region is None else {"region": tv_tensors.Mask(item.region[None])}
        moved = self.transform(
            {
                **region,
                "image": tv_tensors.Image(item.image),
                "boxes": tv_tensors.BoundingBoxes(pixels, **canvas),
                "whole": tv_tensors.BoundingBoxes(pixels.clone(), clamping_mode=None, **canvas),
                "labels": torch.arange(len(boxes)),
            }
        )
        image = moved["image"].as_subclass(Tensor)
        if region:
            item = item._replace(region=moved["region"][0].as_subclass(Tensor))
        if item.boxes is None:
            return item._replace(image=image)
        xyxy, seen = _in_view(moved["boxes"], moved["whole"], tuple(image.shape[1:]), self.min_visible)
        row = moved["labels"][seen]
        kept = ConceptBoxes(xyxy[seen], boxes.concept[row], boxes.image[row])
        concepts = item.concepts if self.lost_boxes == "keep" else _forget_lost(item.concepts, boxes, kept)
        return item._replace(image=image, boxes=kept, concepts=concepts)


def default_augmentation(image_size: tuple[int, int] | None = None) -> BoxAwareTransform:
    """A small jitter of place, size, angle and exposure that suits chest radiographs.

    Shifts by up to 4 % of the image, scales by 0.9 to 1.1, turns by up to 5 degrees, and changes
    brightness and contrast by up to 15 %. It never mirrors: chests have sides, and a mirrored heart is
    another diagnosis (dextrocardia).

    Args:
        image_size: (H, W) to resize to first, which makes the rest cheaper for large files; None leaves
            the size to `Preprocess`.
    """
    from torchvision.transforms import InterpolationMode, v2

    resize = [] if image_size is None else [v2.Resize(list(image_size), antialias=True)]
    shift = v2.RandomAffine(
        degrees=5, translate=(0.04, 0.04), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR
    )
    return BoxAwareTransform(v2.Compose([*resize, shift, v2.ColorJitter(brightness=0.15, contrast=0.15)]))


def _to_grey(image: Tensor) -> Tensor:
    """(3, H, W) -> (1, H, W) of the same type; what is grey already stays as it is, to the bit."""
    red, green, blue = image
    if torch.equal(red, green) and torch.equal(green, blue):
        return green[None]
    weights = torch.tensor([0.299, 0.587, 0.114], device=image.device).view(3, 1, 1)  # ITU-R BT.601
    grey = (image * weights).sum(dim=0, keepdim=True)
    return grey.round().to(torch.uint8) if image.dtype == torch.uint8 else grey


def _in_view(boxes: Tensor, whole: Tensor, size: tuple[int, int], min_visible: float) -> tuple[Tensor, Tensor]:
    """(N, 4) boxes cut at the border, as fractions, and (N,) which of them are seen well enough."""
    edge = torch.tensor([size[1], size[0]] * 2)
    cut = torch.minimum(boxes.as_subclass(Tensor).clamp(min=0), edge)
    fractions = cut / edge
    left, top, right, bottom = fractions.unbind(1)
    visible = _area(cut) / _area(whole.as_subclass(Tensor)).clamp(min=torch.finfo(torch.float32).tiny)
    return fractions, (visible >= min_visible) & (left < right) & (top < bottom)


def _area(xyxy: Tensor) -> Tensor:
    return (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])


def _forget_lost(concepts: Tensor, before: ConceptBoxes, after: ConceptBoxes) -> Tensor:
    """(K,) labels, with NaN for each concept that had boxes and has none left."""
    lost = torch.zeros(len(concepts), dtype=torch.bool)
    lost[before.concept] = True
    lost[after.concept] = False
    return concepts.masked_fill(lost, torch.nan)
