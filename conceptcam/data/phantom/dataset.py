"""Phantom images as a data set."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.phantom.cache import Request, cached, render
from conceptcam.data.phantom.concepts import PHANTOM_CONCEPTS, PHANTOM_DISEASES
from conceptcam.data.phantom.config import PhantomConfig


class PhantomDataset(ConceptDataset):
    """Phantom chest radiographs with their findings, diseases and boxes.

    Two data sets are disjoint if their seeds differ or their indices, `first` to `first + count - 1`, do.

    Args:
        count: How many images.
        seed: Which of endless series of images.
        config: What they are like; None takes the defaults of `PhantomConfig`.
        first: Index of the first one.
        cache_dir: Folder to keep the images in, one byte per pixel; None is `$CONCEPTCAM_CACHE` or, unset,
            `~/.cache/conceptcam`. False draws them afresh and keeps them in memory.
        progress: Whether to show a bar while images are drawn.

    Attributes:
        seed: As given.
        config: As given, or the defaults.
        first: As given.

    Raises:
        ValueError: If a number is negative.
    """

    concepts = PHANTOM_CONCEPTS
    tasks = PHANTOM_DISEASES

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        config: PhantomConfig | None = None,
        first: int = 0,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
        progress: bool = False,
    ) -> None:
        self.seed, self.first = seed, first
        self.config = config if config is not None else PhantomConfig()
        request = Request(config=self.config, seed=seed, first=first, count=count)
        processes = os.cpu_count() or 1
        if cache_dir is False:
            self._arrays = render(request, processes=processes, progress=progress)
        else:
            folder = Path(cache_dir) if cache_dir is not None else _default_folder()
            self._arrays = cached(request, folder, processes=processes, progress=progress)
        self.concept_labels = torch.from_numpy(self._arrays.concepts).float()
        self.task_labels = torch.from_numpy(self._arrays.diseases).float()

    @property
    def all_boxes(self) -> ConceptBoxes:
        """The boxes of all images, numbered as the images."""
        counts = np.diff(self._arrays.box_ends, prepend=0)
        image = np.repeat(np.arange(len(self)), counts)
        return ConceptBoxes(*map(torch.tensor, (self._arrays.boxes, self._arrays.box_concepts, image)))

    def load_item(self, index: int) -> ConceptItem:
        """The item as drawn: uint8, grey in all three channels; its boxes are never None."""
        arrays, index = self._arrays, range(len(self))[index]
        grey = torch.tensor(arrays.images[index])
        start = arrays.box_ends[index - 1] if index else 0
        own = slice(start, arrays.box_ends[index])
        boxes = ConceptBoxes(
            torch.tensor(arrays.boxes[own]),
            torch.tensor(arrays.box_concepts[own]),
            torch.zeros(len(arrays.boxes[own]), dtype=torch.long),
        )
        return ConceptItem(
            grey.repeat(3, 1, 1),
            self.concept_labels[index],
            self.task_labels[index],
            boxes,
            f"phantom-{self.seed}-{self.first + index}",
        )

    def __getstate__(self) -> dict[str, Any]:
        """What a loader's worker process gets: where the images are, rather than a copy of them all."""
        state = self.__dict__.copy()
        if isinstance(self._arrays.images, np.memmap):
            where = (self._arrays.images.filename, self._arrays.images.shape)
            state["_arrays"] = self._arrays._replace(images=np.zeros(0, np.uint8))
            state["_mapped"] = where
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapped = state.pop("_mapped", None)
        self.__dict__.update(state)
        if mapped is not None:
            filename, shape = mapped
            self._arrays = self._arrays._replace(images=np.memmap(filename, np.uint8, "r", shape=shape))


def _default_folder() -> Path:
    chosen = os.environ.get("CONCEPTCAM_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "conceptcam"


@dataclass(frozen=True, kw_only=True)
class PhantomData:
    """Three disjoint draws of the phantom."""

    train: PhantomDataset
    val: PhantomDataset
    test: PhantomDataset
    phantom_config: PhantomConfig


def phantom_data(
    count: int,
    *,
    val_count: int | None = None,
    test_count: int | None = None,
    size: int = 112,
    seed: int = 0,
    completeness: float = 0.0,
    progress: bool = False,
) -> PhantomData:
    """Drawn images to train on, to validate and to test.

    Args:
        count: Training images.
        val_count: Validation images; None is an eighth of `count`, and 200 at least.
        test_count: Test images; None is a fifth of `count`, and 300 at least.
        size: Side of the images in pixels.
        seed: Of the training images; validation and test images come from seeds of their own, so another
            `seed` draws all of them afresh.
        completeness: Of `PhantomConfig`: how much of the diseases is in the pixels only.
        progress: Whether to show a bar while drawing.
    """
    phantom_config = PhantomConfig(size=size, completeness=completeness)
    parts = [
        PhantomDataset(number, seed=3 * seed + part, config=phantom_config, progress=progress)
        for part, number in enumerate((count, val_count or max(200, count // 8), test_count or max(300, count // 5)))
    ]
    return PhantomData(train=parts[0], val=parts[1], test=parts[2], phantom_config=phantom_config)
