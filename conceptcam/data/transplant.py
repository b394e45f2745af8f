"""Findings copied into images without any, so that nothing outside their boxes goes with them."""

import torch
from torch import Tensor

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.images import resize_image, sample_mask


class FindingTransplant:
    """Puts what the boxes of an image hold into an image without findings, and keeps the labels.

    What lies outside of all boxes, such as a letter on the film, the border of another scanner or a tube, then comes
    from images without findings, and so is as frequent with a finding as without: nothing can be learned from it. A
    copied patch fades into its new surroundings. Images without findings get such patches too, of another such image,
    in places where a third image has its boxes, so that the seams of patches say nothing either.

    It suits images that show the same part of the body in about the same place, and findings that boxes hold wholly.
    Give it to the training data as their `augmentation`; an item is left alone if nobody drew boxes in it, or if one of
    its concepts is present without a box. A region follows the pixels: it is the item's inside the boxes and that of
    the other image elsewhere, and None if either is. It uses torch's global random numbers, as transforms do.

    Args:
        dataset: Where images without findings come from: those whose concepts are all known to be absent.
        fade: Width of the seam as a fraction of the image's side.

    Raises:
        ValueError: If no image is without findings, or `fade` is not in [0, .5].
    """

    def __init__(self, dataset: ConceptDataset, *, fade: float = 0.04) -> None:
        if not 0 <= fade <= 0.5:
            raise ValueError(f"`fade` must be in [0, .5], got {fade}")
        self.dataset, self.fade = dataset, fade
        self.hosts = (dataset.concept_labels == 0).all(dim=1).nonzero()[:, 0].tolist()
        self.others = (dataset.concept_labels > 0).any(dim=1).nonzero()[:, 0].tolist()
        if not self.hosts:
            raise ValueError("no image is known to be without findings, so there is none to put findings into")

    def __call__(self, item: ConceptItem) -> ConceptItem:
        """The item on the background of another image; its labels, boxes and name stay."""
        if item.boxes is None or set((item.concepts > 0).nonzero()[:, 0].tolist()) - set(item.boxes.concept.tolist()):
            return item
        places = item.boxes.xyxy if len(item.boxes) else self._places()
        height, width = item.image.shape[1:]
        patches = soft_boxes(places, (height, width), self.fade)
        other = self.dataset.load_item(_pick(self.hosts))
        host, region = other.image, None
        if item.region is not None and other.region is not None:
            region = torch.where(patches >= 0.5, item.region, sample_mask(other.region, (height, width)))
        if item.image.is_floating_point() != host.is_floating_point():
            host = host / 255 if item.image.is_floating_point() else host * 255
        if host.shape[1:] != item.image.shape[1:]:
            host = resize_image(host.float(), (height, width))
        mixed = patches * item.image + (1 - patches) * host
        image = mixed if item.image.is_floating_point() else mixed.round().to(item.image.dtype)
        return item._replace(image=image, region=region)

    def _places(self) -> Tensor:
        """(N, 4) boxes of some image; N is 0 if no image has any."""
        boxes = self.dataset.load_item(_pick(self.others)).boxes if self.others else None
        return torch.zeros(0, 4) if boxes is None else boxes.xyxy


def soft_boxes(xyxy: Tensor, size: tuple[int, int], fade: float) -> Tensor:
    """How much each pixel belongs to any of some boxes.

    Args:
        xyxy: (N, 4) left, top, right and bottom, as fractions of the image.
        size: (H, W) in pixels.
        fade: Distance from a box, as a fraction of the image's side, at which the value has fallen from 1 to 0.

    Returns:
        (H, W) in [0, 1]: 1 where a pixel's centre is inside of a box.
    """
    if not len(xyxy):
        return torch.zeros(size)
    along = [_ramp(xyxy[:, axis], xyxy[:, axis + 2], length, fade) for axis, length in ((1, size[0]), (0, size[1]))]
    return (along[0][:, :, None] * along[1][:, None, :]).amax(dim=0)


def _ramp(low: Tensor, high: Tensor, length: int, fade: float) -> Tensor:
    """(N, length) how much each pixel of an axis belongs to each interval."""
    center = (torch.arange(length) + 0.5) / length
    inside = torch.minimum(center - low[:, None], high[:, None] - center)  # below 0 outside
    return (1 + inside / fade).clamp(0, 1) if fade else (inside >= 0).float()


def _pick(choices: list[int]) -> int:
    return choices[int(torch.randint(len(choices), ()))]
