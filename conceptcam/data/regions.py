"""Regions in which findings can be, such as lungs or a lesion: one mask per image, from a folder, for any data set."""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from conceptcam._checks import shorten
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.digests import digest_files
from conceptcam.data.image_cache import ImageCache
from conceptcam.data.images import decode_file, image_size, sample_mask
from conceptcam.data.text_column import TextColumn
from conceptcam.data.wrapped import WrappedDataset


class WithRegions(WrappedDataset):
    """A data set whose images have regions, read from a folder of masks.

    The mask of the image `a/7.jpg` is the image `7` or `a/7` in the folder, with any ending: white inside, black
    outside, and of the image's proportions. An image without a mask has no region: its maps may show anything anywhere.

    Args:
        dataset: Where images and labels come from; its augmentation and preprocessing are taken over, once.
        folder: The masks.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If two masks are of one image, or no image has one.
    """

    def __init__(self, dataset: ConceptDataset, folder: str | PathLike[str]) -> None:
        super().__init__(dataset)
        place = Path(folder)
        if not place.is_dir():
            raise NotADirectoryError(f"{place} is not a folder of masks")
        found: dict[str, Path] = {}
        for path in sorted(path for path in place.rglob("*") if path.is_file() and path.name[0] != "."):
            key = str(path.relative_to(place).with_suffix(""))
            if key in found:
                raise ValueError(f"{place} has two masks for one image: {found[key].name} and {path.name}")
            found[key] = path
        masks = [found.get(str(Path(name).with_suffix(""))) or found.get(Path(name).stem) for name in self.names]
        if not any(masks):
            raise ValueError(
                f"{place} has no mask for any of the {len(self)} images, whose names are {shorten(self.names)}; "
                "a mask has the name of its image"
            )
        # As bytes, which loader processes share.
        self._masks = TextColumn(["" if mask is None else str(mask) for mask in masks])
        count = sum(mask is not None for mask in masks)
        self.notes = [*dataset.notes, f"{count} of {len(self)} images have a region in {place}."]

    def digests(self) -> dict[str, str]:
        """As of the data set, and of samples of the masks."""
        return {**self.dataset.digests(), "regions": digest_files(Path(mask) for mask in self._masks if mask)}

    def cache_images(self, cache: ImageCache | None) -> None:
        """Read images and masks through a cache from now on; None ends that.

        A mask is kept at the cache's size. Its edges may then lie up to a pixel of that size elsewhere.
        """
        self.dataset.cache_images(cache)

    def load_item(self, index: int) -> ConceptItem:
        """The item as the data set gives it, with its region.

        Raises:
            ValueError: If a mask cannot be read, or has other proportions than its image.
        """
        item, file = self.dataset.load_item(index), self._masks[index]
        if not file:
            return item
        mask, cache = Path(file), self.image_cache
        if cache is None or self.folder is None:
            return item._replace(region=_read(mask, item.name, _size(item.image), _size(item.image)))
        place, size = self.folder / self.dataset.names[index], cache.image_size
        kept = cache.keep(
            mask, f"mask of {place}", lambda: _read(mask, item.name, image_size(place)[::-1], size).expand(3, -1, -1)
        )
        return item._replace(region=kept.image[0])


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def _read(path: Path, name: str, drawn_on: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(h, w) uint8 in {0, 1}: whether the mask is brighter than half of its range.

    Args:
        path: The mask.
        name: What to call its image.
        drawn_on: (H, W) of the image in its file.
        size: (h, w) wanted.
    """
    mask = decode_file(path)[0]
    half = 0.5 if mask.is_floating_point() else (127 if mask.dtype.itemsize == 1 else 32767)
    height, width = drawn_on
    if abs(mask.shape[0] * width - mask.shape[1] * height) > max(mask.shape[0], mask.shape[1], height, width):
        raise ValueError(
            f"the mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels and the image {name!r} {width} x "
            f"{height}: their proportions differ"
        )
    return sample_mask(mask > half, size).to(torch.uint8)
