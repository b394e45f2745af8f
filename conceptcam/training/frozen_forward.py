"""What the parts say that a stage has frozen, sample by sample, and which stages can go on from it."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam.data.batch import ConceptBatch
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.outputs import ConceptPart
from conceptcam.training.batches import take_rows
from conceptcam.training.stages import SplitForward, Stage


class Row(NamedTuple):
    """One sample."""

    sample: int
    """Its number."""
    truth: ConceptBatch
    """Itself, a batch of one without image."""
    said: Tensor
    """(1, K, C) vectors of concepts, or (1, K, M) evidence."""


class FrozenParts:
    """The parts of a model that do not learn in a stage.

    Args:
        model: On its device.
        forward: Of the stage that runs.
        device: Where to compute.
        autocast: Type of autocast; None computes in the type of the weights.
    """

    def __init__(
        self, model: ConceptModel, forward: SplitForward, device: torch.device, autocast: torch.dtype | None
    ) -> None:
        self._model, self._forward, self._device, self._autocast = model, forward, device, autocast

    def see(self, images: Tensor, size: int) -> Tensor:
        """Features (size, C, h, w) of some images, the last repeated; sizes decide over the last bits."""
        with self._still():
            # The layout in memory decides over algorithms too: here it is the one that is kept.
            seen = self._model.forward_concepts(fill(images.to(self._device, non_blocking=True), size))
            return seen.features.clone(memory_format=torch.contiguous_format)

    def say(self, features: Tensor, numbers: Sequence[int], truths: Sequence[ConceptBatch]) -> list[Row]:
        """What the learning parts will be told of each of the first few of some features.

        Args:
            features: (size, C, h, w).
            numbers: Of the samples that count, at most `size`.
            truths: What is true of each of them.
        """
        with self._still():
            maps = self._model.concept_head(features)
            seen = ConceptPart(features, maps, self._model.pool(maps))
            found = self._forward.frozen_half(self._model, seen)
        said = found[: len(numbers)].cpu()
        rows = []
        for number, truth, one in zip(numbers, truths, said.split(1), strict=True):
            rows.append(Row(int(number), truth, one.clone()))  # a part would keep the whole
        return rows

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """Nothing is learned, drawn or counted, also where the loop trains or evaluates."""
        training = [module for module in self._model.modules() if module.training]
        self._model.eval()
        autocast = torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)
        try:
            with torch.inference_mode(False), torch.no_grad(), autocast:
                yield
        finally:
            for module in training:
                module.training = True


def features_wanted(model: ConceptModel, later: Iterable[Stage]) -> bool:
    """Whether a later stage goes on from the features that the backbone gives now."""
    for stage in later:
        if "backbone" in stage.parts:
            return False
        if stage.split_forward(model) is not None:
            return True
    return False


def fill(rows: Tensor, size: int) -> Tensor:
    """Rows, the last one repeated until there are `size`."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def split(batch: ConceptBatch) -> list[ConceptBatch]:
    """Each sample of a batch as a batch of one, without its image."""
    bare = batch._replace(images=batch.images.new_empty(len(batch.images), 0)).to("cpu")
    return [take_rows(bare, [row]) for row in range(len(bare.concepts))]


def stack(samples: Sequence[ConceptBatch]) -> ConceptBatch:
    """Batches of one as one batch."""
    boxes = [sample.boxes for sample in samples]
    return ConceptBatch(
        torch.cat([sample.images for sample in samples]),
        torch.cat([sample.concepts for sample in samples]),
        torch.cat([sample.targets for sample in samples]),
        None if all(one is None for one in boxes) else ConceptBoxes.cat(boxes),
        tuple(name for sample in samples for name in sample.names),
    )
