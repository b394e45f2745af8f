"""What a data set gives: items, batches, and how the first become the second."""

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset

from conceptcam._checks import did_you_mean
from conceptcam.config import TaskKind
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.digests import digest, digest_files, digest_names

if TYPE_CHECKING:
    from conceptcam.data.image_cache import ImageCache


class ConceptItem(NamedTuple):
    """One image with what is known about it."""

    image: Tensor
    """(3, H, W): uint8, or float in [0, 1], as read; float, normalized, once preprocessed."""
    concepts: Tensor
    """(K,) labels in [0, 1]; NaN where nobody knows."""
    targets: Tensor
    """(T,) task labels in [0, 1]; NaN where nobody knows; T may be 0."""
    boxes: ConceptBoxes | None
    """Boxes drawn in this image; None if nobody drew, empty if there is none to draw."""
    name: str
    """What to call the image in messages: a file name or a number."""
    region: Tensor | None = None
    """(H, W) in [0, 1], 1 where findings can be, such as the lungs or the lesion; None if nobody drew it."""


class ConceptBatch(NamedTuple):
    """A stack of items."""

    images: Tensor
    """(B, 3, H, W), normalized."""
    concepts: Tensor
    """(B, K) labels in [0, 1]; NaN where nobody knows."""
    targets: Tensor
    """(B, T) task labels in [0, 1]; NaN where nobody knows."""
    boxes: ConceptBoxes | None = None
    """All boxes of the batch, or None if nobody drew in any of its images."""
    names: tuple[str, ...] = ()
    """What to call each image."""
    regions: Tensor | None = None
    """(B, 64, 64) in [0, 1], how much of each part of the image findings can be in: 1 everywhere where nobody drew it.
    None if nobody drew it in any image."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "ConceptBatch":
        """The same batch on another device."""
        parts = self.images, self.concepts, self.targets, self.boxes, self.regions
        moved = [None if part is None else part.to(device, non_blocking=non_blocking) for part in parts]
        return ConceptBatch._make([*moved[:-1], self.names, moved[-1]])

    def without_images(self) -> "ConceptBatch":
        """The same batch with images of no size, (B, 0): labels, boxes and names are small."""
        return self._replace(images=self.images.new_empty(len(self.images), 0))

    def select(self, rows: Sequence[int] | Tensor) -> "ConceptBatch":
        """Some rows in the order given, each at most once, with their names; boxes come image by image."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.concepts.device)
        boxes = self.boxes
        if boxes is not None:
            place = torch.full((len(self.concepts),), -1, device=boxes.image.device)
            place[index.to(place.device)] = torch.arange(len(index), device=place.device)
            image = place[boxes.image]
            order = torch.argsort(image, stable=True)
            order = order[image[order] >= 0]
            boxes = ConceptBoxes(boxes.xyxy[order], boxes.concept[order], image[order])
        return ConceptBatch(
            self.images[index.to(self.images.device)],
            self.concepts[index],
            self.targets[index],
            boxes,
            tuple(self.names[row] for row in index.tolist()) if self.names else (),
            None if self.regions is None else self.regions[index.to(self.regions.device)],
        )

    def split(self) -> "list[ConceptBatch]":
        """Each image as a batch of one."""
        return [self.select([row]) for row in range(len(self.concepts))]

    @classmethod
    def cat(cls, batches: "Sequence[ConceptBatch]") -> "ConceptBatch":
        """Several batches as one, in their order; boxes are None if they are in all of them."""
        count, drawn = 0, []
        for batch in batches:
            if batch.boxes is not None:
                drawn.append((batch.boxes.xyxy, batch.boxes.concept, batch.boxes.image + count))
            count += len(batch.concepts)
        names = tuple(name for batch in batches for name in batch.names)
        return cls(
            torch.cat([batch.images for batch in batches]),
            torch.cat([batch.concepts for batch in batches]),
            torch.cat([batch.targets for batch in batches]),
            ConceptBoxes(*map(torch.cat, zip(*drawn, strict=True))) if drawn else None,
            names if len(names) == count else (),
            _joined([batch.regions for batch in batches], [len(batch.concepts) for batch in batches]),
        )


torch.serialization.add_safe_globals([ConceptItem, ConceptBatch])  # `torch.load` reads them with `weights_only=True`

Batches = Iterable[ConceptBatch | Mapping[str, Any]]
"""What training and evaluation iterate over: batches of ours, or dicts as `as_batch` reads."""


def collate(items: Sequence[ConceptItem]) -> ConceptBatch:
    """Stack items into a batch; pass it as a `DataLoader`'s `collate_fn`."""
    boxes = [item.boxes for item in items]
    return ConceptBatch(
        torch.stack([item.image for item in items]),
        torch.stack([item.concepts for item in items]),
        torch.stack([item.targets for item in items]),
        None if all(one is None for one in boxes) else ConceptBoxes.cat(boxes),
        tuple(item.name for item in items),
        _joined(
            [None if item.region is None else shrink_regions(item.region[None]) for item in items], [1] * len(items)
        ),
    )


_REGION_SIDE = 64


def shrink_regions(regions: Tensor) -> Tensor:
    """How much of each of 64 x 64 parts of an image is in a region: (B, H, W) in [0, 1] -> (B, 64, 64)."""
    return adaptive_avg_pool2d(regions[:, None].float(), _REGION_SIDE)[:, 0]


def _joined(regions: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """Regions of several parts of a batch as one, 1 everywhere where nobody drew one."""
    drawn = [one for one in regions if one is not None]
    if not drawn:
        return None
    everywhere = drawn[0].new_ones(_REGION_SIDE, _REGION_SIDE)
    return torch.cat([
        everywhere.expand(count, -1, -1) if one is None else one for one, count in zip(regions, counts, strict=True)
    ])  # fmt: skip


_KEYS = ("image", "concepts", "targets", "bboxes", "names", "regions")
_OTHER_NAMES = {"images": "image", "boxes": "bboxes"}  # as the fields of a `ConceptBatch` are called


def as_batch(batch: ConceptBatch | Mapping[str, Any]) -> ConceptBatch:
    """A batch from either form that training code uses.

    Args:
        batch: A `ConceptBatch`, or a dict with `image` or `images` (B, 3, H, W), `concepts` (B, K), optionally
            `targets` (B, T), as tensors or numpy arrays, and optionally `bboxes` or `boxes`, a list of dicts per image
            as `ConceptBoxes.from_dicts` reads, or a `ConceptBoxes`; and optionally `regions` (B, H, W) in [0, 1], 1
            where findings can be.

    Entries of other names are not read; one that is nearly of one of these names is taken for a slip.

    Raises:
        ValueError: If it is neither, such as a tuple; if a dict lacks `image` or `concepts`, has a slip or something
            else than numbers, or its parts differ in length.
    """
    if isinstance(batch, ConceptBatch):
        return batch
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"a batch must be a ConceptBatch or a dict, got a {type(batch).__name__}; a tuple does not say which part "
            "is which: write {'image': images, 'concepts': labels}"
        )
    for other, key in _OTHER_NAMES.items():
        if other in batch and key in batch:
            raise ValueError(f"a batch has both {key!r} and {other!r}, which are one entry; leave one of them out")
    batch = {_OTHER_NAMES.get(key, key): value for key, value in batch.items()}
    for key in set(batch) - set(_KEYS):
        if near := did_you_mean(str(key), _KEYS):
            raise ValueError(f"a batch has an entry {key!r}, which nothing reads{near}; entries are {list(_KEYS)}")
    if missing := [key for key in ("image", "concepts") if key not in batch]:
        raise ValueError(f"a batch needs 'image' and 'concepts'; {missing} is missing from {sorted(batch)}")
    images, concepts = _tensor(batch, "image"), _tensor(batch, "concepts").float()
    targets = _tensor(batch, "targets").float() if "targets" in batch else concepts.new_zeros(len(images), 0)
    boxes = batch.get("bboxes")
    if boxes is not None and not isinstance(boxes, ConceptBoxes):
        if len(boxes) != len(images):
            raise ValueError(f"'bboxes' needs one list per image: got {len(boxes)} for {len(images)} images")
        boxes = ConceptBoxes.from_dicts(boxes)
    if not len(images) == len(concepts) == len(targets):
        raise ValueError(f"batch parts differ in length: {len(images)}, {len(concepts)}, {len(targets)}")
    regions = shrink_regions(_tensor(batch, "regions")) if batch.get("regions") is not None else None
    if regions is not None and len(regions) != len(images):
        raise ValueError(f"'regions' needs one mask per image: got {len(regions)} for {len(images)} images")
    return ConceptBatch(images, concepts, targets, boxes, tuple(map(str, batch.get("names", ()))), regions)


def _tensor(batch: Mapping[str, Any], key: str) -> Tensor:
    """An entry of a batch as a tensor."""
    value = batch[key]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"{key!r} of a batch must be a tensor or numpy array, got a {type(value).__name__}; stack it")
    return value


@contextlib.contextmanager
def worker_deaths_told() -> Iterator[None]:
    """Tell in one sentence that a worker of a loader has died, whenever torch notices.

    Raises:
        RuntimeError: With that sentence.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", str(error), re.DOTALL):
            raise
        raise RuntimeError(
            "a worker of the data loader died, most often because memory ran out; use fewer workers or smaller "
            f"batches, or find the sample it dies of with `num_workers=0` (--num-workers 0). The loader says: {error}"
        ) from error


class ConceptDataset(Dataset[ConceptItem], ABC):
    """Images with concept labels, whatever they are read from.

    Attributes:
        concepts: Concept names, in the order of the labels.
        tasks: Task names; empty if there are none.
        concept_labels: (N, K) labels of every image, known without decoding any; NaN where unknown.
        task_labels: (N, T) task labels of every image.
        task_kind: As in `ConceptConfig`; the labels of a `"multiclass"` task sum to 1.
        folder: Where the images are that `names` names; None if they are no files of such names.
        patients: (N,) patient ids, empty where unknown; None if the reader knows of none.
        notes: What the reader recognized or left out, in sentences for whoever runs it.
        augmentation: Changes an item as read, boxes included, before it is preprocessed; None leaves it.
        preprocess: Turns an image as read into what the model wants, (3, H, W) normalized floats;
            usually `model.preprocess`. None gives items as read.
    """

    concepts: tuple[str, ...]
    tasks: tuple[str, ...]
    concept_labels: Tensor
    task_labels: Tensor
    task_kind: TaskKind = "multilabel"
    folder: Path | None = None
    patients: Sequence[str] | None = None
    notes: Sequence[str] = ()
    augmentation: Callable[[ConceptItem], ConceptItem] | None = None
    preprocess: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def load_item(self, index: int) -> ConceptItem:
        """The item as it is stored, neither augmented nor preprocessed."""

    @property
    def names(self) -> Sequence[str]:
        """(N,) what to call the images, as their items do; their numbers, unless the reader knows better."""
        return tuple(map(str, range(len(self))))

    @property
    def all_boxes(self) -> ConceptBoxes | None:
        """The boxes of all images, numbered as the images; None if they are known image by image alone."""
        return None

    @property
    def image_cache(self) -> "ImageCache | None":
        """The cache that images are read through, if they are; see `cache_images`."""
        return None

    def cache_images(self, cache: "ImageCache | None") -> None:
        """Read images through a cache from now on; None ends that.

        Raises:
            ValueError: If the images are not read from files by the readers of this package.
        """
        raise ValueError(
            f"the images of a {type(self).__name__} are not read by a reader that can keep them; where a reader of "
            "your own calls `load_image`, call `ImageCache.load`"
        )

    def digests(self) -> dict[str, str]:
        """SHA-256 of each thing that is learned from: labels, names, boxes and, by samples of them, image files.

        Boxes and files are missing where the reader knows them image by image alone.

        Raises:
            OSError: If an image file cannot be read.
        """
        found = {"labels": digest(self.concept_labels, self.task_labels), "names": digest_names(self.names)}
        if (boxes := self.all_boxes) is not None:
            found["boxes"] = digest(boxes.xyxy, boxes.concept, boxes.image)
        if self.folder is not None:
            found["files"] = digest_files(self.folder / name for name in self.names)
        return found

    def dataloader(
        self, batch_size: int = 32, *, shuffle: bool = False, num_workers: int = 0, pin_memory: bool = False
    ) -> DataLoader[ConceptBatch]:
        """A `DataLoader` of this data set.

        Args:
            batch_size: Images per batch; the last one may have fewer.
            shuffle: Whether to draw a new order for each pass; for training.
            num_workers: Processes that load data; 0 loads in this one. They start with the first pass and serve later
                ones too, so change the data set before it.
            pin_memory: Whether batches are put where a GPU copies them from faster.
        """
        return DataLoader(
            self,  # type: ignore[arg-type]  # collate turns items into a batch
            batch_size=batch_size,
            shuffle=shuffle,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,  # starting them costs time; Python 3.11 can hang in it, rarely
        )

    def __len__(self) -> int:
        return len(self.concept_labels)

    def __getitem__(self, index: int) -> ConceptItem:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        item = self.load_item(index % len(self))
        if self.augmentation is not None:
            item = self.augmentation(item)
        return item if self.preprocess is None else item._replace(image=self.preprocess(item.image))
