"""Outputs of frozen parts, computed once for each sample and read in every epoch.

Stages 2 and 3 learn from what frozen parts compute: vectors of concepts, and evidence. `FeatureCache` keeps these
outputs in a `TensorStore`, and `CachedInputs` gives them to the loop, batch by batch.

In fp32, losses are the same to the last bit with and without the cache, because both ways run the same functions on
batches of one size: a smaller batch is filled up. (Libraries choose their algorithms by the shape of a batch, so the
last bits of an image's features depend on how many images are in its batch, but not on which ones: measured on a CPU,
with 1 and 2 threads.) This holds for parts that look at each image by itself, on one kind of device, with the same
number of threads, of processes and of images per batch, and as long as `dtype` rounds nothing.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.outputs import ConceptPart
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader, EpochPlan, RankBatch
from conceptcam.training.inputs import Images, Source, StepInput, rank_order
from conceptcam.training.stages import SplitForward, Stage
from conceptcam.training.tensor_store import Budget, CacheFull, Storage, TensorStore

log = logging.getLogger(__name__)

LIMIT = 32_000_000_000
"""Bytes that may be kept by default."""


class FeatureCache(contextlib.AbstractContextManager["FeatureCache"]):
    """Keeps the outputs of frozen parts for each sample until it is closed; use it in a `with` statement.

    If a later stage needs the backbone's features and there is room, they are kept too, so that the images of
    several stages are read once.

    Args:
        storage: Where to keep outputs: `"memory"`, `"disk"` (the folder for temporary files), `"auto"` (in memory if
            they are small) or `"off"` (nowhere). `"auto"` keeps only data that are known to be the same each time
            they are read; with `"memory"` and `"disk"` you say that they are, where the library cannot know.
        dtype: Floating-point type to store as, such as `torch.bfloat16`; None rounds nothing.
        limit: Bytes that may be kept in all; in several processes, by each.
        folder: For files; None is the system's folder for temporary files.

    Raises:
        ValueError: If an option is unknown or the folder does not exist.
    """

    def __init__(
        self,
        storage: Storage = "auto",
        *,
        dtype: torch.dtype | None = None,
        limit: int = LIMIT,
        folder: Path | None = None,
    ) -> None:
        check_choice("storage", storage, Storage)
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"cached outputs are stored as a floating-point type, not {dtype}")
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder to keep cached outputs in")
        self.storage, self.dtype, self.folder = storage, dtype, folder
        self.budget = Budget(limit)
        self._kept: dict[BatchLoader, _Kept] = {}

    def source(
        self,
        model: ConceptModel,
        stage: Stage,
        loader: BatchLoader,
        *,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
        later: Iterable[Stage] = (),
    ) -> Source:
        """The inputs of a stage: `CachedInputs` if frozen parts can run beforehand, otherwise images.

        Call it for each stage that a model goes through, in order: what a stage teaches makes older outputs wrong.

        Args:
            model: On its device.
            stage: The stage that starts.
            loader: Its data.
            device: Where to put the inputs.
            autocast: Type of autocast for the frozen parts; None computes in the type of the weights.
            later: The stages to come.
        """
        if loader not in self._kept:
            self._kept[loader] = _Kept(self._store(), self._store())
        kept, forward = self._kept[loader], stage.split_forward(model)
        # Outputs stay right if the last stage had the same frozen half, because nothing in it has learned since.
        if forward is None or forward.frozen_half is not kept.frozen_half:
            kept.outputs.close()
        if "backbone" in stage.parts:
            kept.features.close()
        kept.frozen_half = forward and forward.frozen_half
        if forward is None:
            return Images(loader, stage, torch.device(device))
        if reason := self._reason_against(loader):
            log.info("stage %s reads its images in each epoch: %s", stage.name, reason)
        kept.wants_features = not reason and any(one.split_forward(model) for one in later)
        return CachedInputs(model, stage, forward, loader, torch.device(device), autocast, kept, not reason)

    def close(self) -> None:
        """Free everything."""
        for kept in self._kept.values():
            kept.outputs.close()
            kept.features.close()
        self._kept.clear()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _store(self) -> TensorStore:
        return TensorStore(self.storage, self.budget, dtype=self.dtype, folder=self.folder)

    def _reason_against(self, loader: BatchLoader) -> str:
        if self.storage == "off":
            return "the feature cache is off"
        if loader.samples is None:
            return "only the iterable knows its order"
        if loader.repeatable is False:
            return "they are augmented"
        if loader.repeatable is None and self.storage == "auto":
            return "it is not known whether they are the same each time; storage 'memory' or 'disk' says that they are"
        return ""


@dataclass
class _Kept:
    """What is kept for the samples of one loader."""

    outputs: TensorStore
    """Of the frozen half of the stage that runs, for all samples."""
    features: TensorStore
    """Of the backbone, for the samples that this process has loaded."""
    labels: dict[int, ConceptBatch] = field(default_factory=dict)
    """Each sample as a batch of one, without its image."""
    frozen_half: Callable[..., Tensor] | None = None
    wants_features: bool = False

    def batch(self, samples: Iterable[int]) -> ConceptBatch:
        """The batch of some samples, without images."""
        return ConceptBatch.cat([self.labels[sample] for sample in samples])


@dataclass
class CachedInputs:
    """The inputs of a stage's learning half: outputs of its frozen half, cached if there is room.

    They are the same in every process: each process computes a part of them and receives the others' parts. The
    batches have no images, (B, 0). Make one with `FeatureCache.source`.
    """

    model: ConceptModel
    stage: Stage
    split: SplitForward
    loader: BatchLoader
    device: torch.device
    autocast: torch.dtype | None
    kept: _Kept
    cached: bool
    """Whether the outputs of frozen parts are kept."""
    batch_size: int = 0
    """Images that frozen parts are given at once; 0 before the first batch is known."""
    expected: int = 0
    """Samples that this process is about to load."""
    divided = False

    def __post_init__(self) -> None:
        self.forward = self.split.learning_half

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[StepInput]:
        """The inputs of each batch of a plan, from the batch numbered `start` on.

        What is not yet cached is computed first, for all of the plan.
        """
        if plan.batches and not self.batch_size:
            self.batch_size = math.ceil(max(map(len, plan.batches)) / distributed.world_size())
        if self.cached and plan.batches is not None:
            try:
                self._fill(plan.batches)
                return map(self._read, plan.batches[start:])
            except CacheFull as error:
                log.warning("stage %s reads its images in each epoch: %s", self.stage.name, error)
                self.cached = self.kept.wants_features = False
                self.kept.outputs.close()
                self.kept.features.close()
        return map(self._compute, self.loader.load(plan, start))

    def _read(self, samples: Sequence[int]) -> StepInput:
        """The input of a batch, as it is kept."""
        return self._step_input(self.kept.batch(samples)._replace(images=self.kept.outputs.read(samples)))

    def _compute(self, share: RankBatch) -> StepInput:
        """The input of a batch, computed by all processes together."""
        self.batch_size = self.batch_size or share.size
        parts = distributed.gather(self._run(share))
        whole = ConceptBatch.cat([part.batch for part in parts if part.own])
        return self._step_input(whole.select(rank_order(share.size, len(parts))))

    def _step_input(self, batch: ConceptBatch) -> StepInput:
        """The input of a batch with outputs in place of images."""
        batch = batch.to(self.device, non_blocking=True)
        bare = batch.without_images()
        return StepInput((batch.images, self.stage.concept_mask(bare)), bare, None)

    def _fill(self, batches: Sequence[Sequence[Any]]) -> None:
        """Keep the outputs of all samples of some batches, in every process.

        Raises:
            CacheFull: In every process, if they cannot be kept.
        """
        kept = self.kept
        samples = {sample for batch in batches for sample in batch}
        if other := [sample for sample in samples if not isinstance(sample, Integral)]:
            raise CacheFull(f"the sampler names samples by a {type(other[0]).__name__}, not by a whole number")
        missing = sorted(sample for sample in samples if sample not in kept.outputs)
        if not missing:
            return
        for share in self._shares(self._batches_once(batches, missing)):
            parts = distributed.gather(self._run(share))
            with _in_every_process():
                for part in parts:
                    kept.outputs.add(part.samples or (), part.batch.images)
                    kept.labels.update(zip(part.samples or (), part.batch.without_images().split(), strict=True))
        log.info(
            "stage %s: the outputs of frozen parts for %d samples are kept, %.3g MB of %s, and %.3g MB of features",
            self.stage.name, len(kept.outputs), kept.outputs.size / 1e6, kept.outputs.dtype, kept.features.size / 1e6,
        )  # fmt: skip

    def _batches_once(self, batches: Sequence[Sequence[int]], missing: Sequence[int]) -> Sequence[Sequence[int]]:
        """Batches of one size that name the missing samples once, in the same order for every stage."""
        if all(isinstance(batch, range) for batch in batches):
            return batches  # of a list, whose batches may differ in the size of their images
        size = self.batch_size * distributed.world_size()
        once = [missing[first : first + size] for first in range(0, len(missing), size)]
        if not self.kept.labels:
            with _in_every_process():  # two passes with different random numbers must give the same images
                first, again = (next(self.loader.load(EpochPlan(once[:1], seed))).batch.images for seed in (1, 2))
                if not torch.equal(first, again):
                    raise CacheFull("they differ each time they are read")
        return once

    def _shares(self, batches: Sequence[Sequence[int]]) -> Iterator[RankBatch]:
        """This process's rows of each batch; without images, if their features are kept."""
        own = [tuple(batch[distributed.rank() :: distributed.world_size()]) for batch in batches]
        self.expected = sum(map(len, own))
        if not all(sample in self.kept.features for samples in own for sample in samples):
            return self.loader.load(EpochPlan(batches, seed=0))
        return (
            RankBatch(self.kept.batch(samples or batch[:1]), samples, len(batch))
            for samples, batch in zip(own, batches, strict=True)
        )

    def _run(self, share: RankBatch) -> RankBatch:
        """This process's rows of a batch, with what the frozen half gives in place of images."""
        batch = share.batch.without_images().to("cpu").select(range(share.own))
        if not share.own:
            return share._replace(batch=batch)
        autocast = torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)
        with eval_mode(self.model), torch.inference_mode(False), torch.no_grad(), autocast:
            outputs = self._in_batches(self._outputs, self._features(share))
        return share._replace(batch=batch._replace(images=outputs.cpu()))

    def _features(self, share: RankBatch) -> Tensor:
        """Features of this process's rows of a batch: those that are kept, or computed ones, which are then kept."""
        kept, samples = self.kept, share.samples or ()
        if samples and all(sample in kept.features for sample in samples):
            return kept.features.read(samples)
        features = self._in_batches(self._see, share.batch.images)
        if kept.wants_features:
            try:
                if not len(kept.features):
                    kept.features.check_room(features[:1], self.expected)
                kept.features.add(samples, features.cpu())
            except CacheFull as error:
                log.warning("features are not kept, so a later stage reads the images once more: %s", error)
                kept.wants_features = False
                kept.features.close()
        return features

    def _see(self, images: Tensor) -> Tensor:
        # The layout in memory decides over last bits too: here it is the one that is stored.
        return self.model.forward_concepts(images).features.contiguous()

    def _outputs(self, features: Tensor) -> Tensor:
        maps = self.model.concept_head(features)
        return self.split.frozen_half(self.model, ConceptPart(features, maps, self.model.pool(maps)))

    def _in_batches(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """A function of rows, called with batches of one size: the size decides over the last bits."""
        found = []
        for piece in rows.split(self.batch_size):
            filling = piece[-1:].expand(self.batch_size - len(piece), *piece.shape[1:])
            found.append(function(torch.cat([piece, filling]).to(self.device, non_blocking=True))[: len(piece)])
        return torch.cat(found)


@contextlib.contextmanager
def _in_every_process() -> Iterator[None]:
    """Raise `CacheFull` in every process if it is raised in one of them."""
    reason = ""
    try:
        yield
    except CacheFull as error:
        reason = str(error)
    if reason := next(filter(None, distributed.gather(reason)), ""):
        raise CacheFull(reason)
