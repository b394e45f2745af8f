"""What frozen parts give for each sample, computed once and read in every epoch.

Stages 2 and 3 learn from vectors of concepts and from evidence, which frozen parts compute. So each sample goes
through these parts once: `FeatureCache` keeps the outputs in a `TensorStore`, and `CachedInputs` gives them to the
loop, batch by batch.

In fp32, losses are the same to the last bit with and without the cache, because both ways run the same functions on
batches of one size. Libraries choose their algorithms by the shape of a batch, so the last bits of an image's
features depend on how many other images are in its batch, but (measured on a CPU, with 1 and 2 threads) not on which
ones, nor on its place among them. A batch that is smaller than the others is therefore filled up. This holds for
parts that look at each image by itself, on one kind of device, with the same number of threads, of processes and of
images per batch, and as long as `dtype` rounds nothing.
"""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.outputs import ConceptPart
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader, EpochPlan, RankBatch
from conceptcam.training.inputs import Images, Source, StepInput, rank_order
from conceptcam.training.stages import SplitForward, Stage

log = logging.getLogger(__name__)

Storage = Literal["auto", "off", "memory", "disk"]

LIMIT = 32_000_000_000
"""Bytes that may be kept by default."""

SMALL = 1_000_000_000
"""Bytes that a store of storage `"auto"` keeps in memory; a larger one moves to the disk."""


class FeatureCache:
    """Keeps what frozen parts give for each sample until it is closed; use it in a `with` statement.

    The first stage that can also keeps the features of each sample, if a later stage needs them and there is room,
    so that the images of several stages are read once.

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
        self._entries: dict[BatchLoader, _CacheEntry] = {}

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
        entry, forward = self._entries.setdefault(loader, _CacheEntry()), stage.split_forward(model)
        # Outputs stay right if the last stage had the same frozen half, because nothing in it has learned since.
        if forward is None or entry.frozen_half is not forward.frozen_half:
            entry.drop_outputs()
        if "backbone" in stage.parts:
            entry.drop_features()
        if forward is None:
            return Images(loader, stage, torch.device(device))
        if self.storage != "off":
            if reason := self._reason_against(loader):
                log.info("stage %s reads its images in each epoch: %s", stage.name, reason)
            else:
                entry.outputs, entry.frozen_half = entry.outputs or self._store(), forward.frozen_half
                if entry.features is None and _needs_features(model, later):
                    entry.features = self._store()
        return CachedInputs(model, stage, forward, loader, torch.device(device), autocast, entry)

    def close(self) -> None:
        """Free everything."""
        for entry in self._entries.values():
            entry.drop_outputs()
            entry.drop_features()
        self._entries.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _store(self) -> "TensorStore":
        assert self.storage != "off"
        return TensorStore(self.storage, self.budget, dtype=self.dtype, folder=self.folder)

    def _reason_against(self, loader: BatchLoader) -> str:
        if loader.samples is None:
            return "only the iterable knows its order"
        if loader.repeatable is False:
            return "they are augmented"
        if loader.repeatable is None and self.storage == "auto":
            return "it is not known whether they are the same each time; storage 'memory' or 'disk' says that they are"
        return ""


def _needs_features(model: ConceptModel, later: Iterable[Stage]) -> bool:
    """Whether a later stage can start from the features that the backbone gives now."""
    for stage in later:
        if "backbone" in stage.parts:
            return False
        if stage.split_forward(model) is not None:
            return True
    return False


class _Rows(NamedTuple):
    """What the frozen half gives for some samples of this process."""

    samples: tuple[int, ...]
    batch: ConceptBatch
    """Without images."""
    outputs: Tensor


class CachedInputs:
    """The inputs of a stage's learning half: outputs of its frozen half, cached if there is room.

    They are the same in every process: each computes a part of them and receives the others'. The batches have no
    images, (B, 0). Make one with `FeatureCache.source`.
    """

    divided = False

    def __init__(
        self,
        model: ConceptModel,
        stage: Stage,
        forward: SplitForward,
        loader: BatchLoader,
        device: torch.device,
        autocast: torch.dtype | None,
        entry: "_CacheEntry",
    ) -> None:
        self._model, self._stage, self._loader, self._device, self._entry = model, stage, loader, device, entry
        self._frozen_half, self._autocast = forward.frozen_half, autocast
        self.forward = forward.learning_half
        self._size = 0  # of the batches that frozen parts are given
        self.cached = entry.outputs is not None
        """Whether the outputs of frozen parts are kept."""

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[StepInput]:
        """The inputs of each batch of a plan, from the batch numbered `start` on.

        What is not yet cached is computed first, for all of the plan.
        """
        if plan.batches and not self._size:
            self._size = -(-max(map(len, plan.batches)) // distributed.world_size())
        if self._entry.outputs is not None and plan.batches is not None:
            try:
                self._fill(plan, self._entry.outputs)
                return map(self._read, plan.batches[start:])
            except CacheFull as error:
                log.warning("stage %s reads its images in each epoch: %s", self._stage.name, error)
                self.cached = False
                self._entry.drop_outputs()
                self._entry.drop_features()
        return map(self._compute, self._loader.load(plan, start))

    def _read(self, samples: Sequence[int]) -> StepInput:
        assert self._entry.outputs is not None
        batch = ConceptBatch.cat([self._entry.batches[sample] for sample in samples])
        return self._step_input(batch, self._entry.outputs.read(samples))

    def _compute(self, share: RankBatch) -> StepInput:
        self._size = self._size or share.size
        parts = distributed.gather(self._run(share))
        order = rank_order(share.size, len(parts))
        batch = ConceptBatch.cat([part.batch for part in parts]).select(order)
        return self._step_input(batch, torch.cat([part.outputs for part in parts])[order])

    def _step_input(self, batch: ConceptBatch, outputs: Tensor) -> StepInput:
        batch, outputs = batch.to(self._device, non_blocking=True), outputs.to(self._device, non_blocking=True)
        return StepInput((outputs, self._stage.concept_mask(batch)), batch, None)

    def _fill(self, plan: EpochPlan, outputs: "TensorStore") -> None:
        """Cache the outputs of all samples of a plan, in every process.

        Raises:
            CacheFull: In every process, if they cannot be kept.
        """
        assert plan.batches is not None
        samples = {sample for batch in plan.batches for sample in batch}
        if other := [sample for sample in samples if not isinstance(sample, Integral)]:
            raise CacheFull(f"the sampler names samples by a {type(other[0]).__name__}, not by a whole number")
        missing = sorted(sample for sample in samples if sample not in outputs)
        if not missing:
            return
        reason = ""
        for mine in self._run_all(self._pass_over(plan, missing)):
            parts = distributed.gather((mine, reason))
            if reason := next((why for _, why in parts if why), ""):
                break  # in every process
            try:
                for rows, _ in parts:
                    self._entry.add(rows)
            except CacheFull as error:
                reason = str(error)
        if reason := next((why for why in distributed.gather(reason) if why), ""):
            raise CacheFull(reason)
        features = self._entry.features.size / 1e6 if self._entry.features is not None else 0.0
        log.info(
            "stage %s: the outputs of frozen parts for %d samples are kept, %.3g MB of %s, and %.3g MB of features",
            self._stage.name, len(outputs), outputs.size / 1e6, outputs.dtype, features,
        )  # fmt: skip

    def _pass_over(self, plan: EpochPlan, missing: Sequence[int]) -> EpochPlan:
        """A plan that names the missing samples once, in batches of one size."""
        assert plan.batches is not None
        if all(isinstance(batch, range) for batch in plan.batches):
            return plan  # a list of batches can only be read as it is
        size = self._size * distributed.world_size()
        once = [missing[first : first + size] for first in range(0, len(missing), size)]
        if not self._entry.checked:
            # Two passes with different random numbers must give the same images.
            first, again = (next(self._loader.load(EpochPlan(once[:1], seed))).batch.images for seed in (1, 2))
            if not all(distributed.gather(torch.equal(first, again))):
                raise CacheFull("they differ each time they are read")
            self._entry.checked = True
        return EpochPlan(once, seed=0)

    def _run_all(self, plan: EpochPlan) -> Iterator[_Rows]:
        """What the frozen half gives for this process's part of each batch."""
        assert plan.batches is not None
        features, entry = self._entry.features, self._entry
        owned = [tuple(batch[distributed.rank() :: distributed.world_size()]) for batch in plan.batches]
        ready = features is not None and all(sample in features for own in owned for sample in own)
        if not all(distributed.gather(ready)):
            entry.expected = sum(map(len, owned))
            yield from map(self._run, self._loader.load(plan))
            return
        assert features is not None
        for own in owned:
            pieces = [own[first : first + self._size] for first in range(0, len(own), self._size)]
            kept = [self._outputs(_pad(features.read(piece), self._size))[: len(piece)] for piece in pieces]
            if own:
                yield _Rows(own, ConceptBatch.cat([entry.batches[sample] for sample in own]), torch.cat(kept))
            else:
                yield _nothing_of(entry)

    def _run(self, share: RankBatch) -> _Rows:
        """Run the frozen half on this process's rows of a batch."""
        batch = share.batch
        bare = batch._replace(images=batch.images.new_empty(len(batch.images), 0)).to("cpu").select(range(share.own))
        samples = tuple(range(share.own)) if share.samples is None else tuple(map(_plain, share.samples))
        outputs = []
        for first in range(0, max(1, share.own), self._size):
            images = batch.images[first : min(first + self._size, max(1, share.own))]
            features = self._features(_pad(images, self._size))
            count = min(len(images), share.own - first)
            self._entry.add_features(samples[first : first + count], features[:count])
            outputs.append(self._outputs(features)[:count])
        return _Rows(samples, bare, torch.cat(outputs))

    def _features(self, images: Tensor) -> Tensor:
        with self._frozen():
            part = self._model.forward_concepts(images.to(self._device, non_blocking=True))
            # The layout in memory decides over algorithms too: here it is the one that is stored.
            return part.features.clone(memory_format=torch.contiguous_format)

    def _outputs(self, features: Tensor) -> Tensor:
        with self._frozen():
            features = features.to(self._device)
            maps = self._model.concept_head(features)
            return self._frozen_half(self._model, ConceptPart(features, maps, self._model.pool(maps))).cpu()

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """Eval mode without gradients, also while the loop trains; modes are set back afterwards."""
        training = [module for module in self._model.modules() if module.training]
        self._model.eval()
        autocast = torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)
        try:
            with torch.inference_mode(False), torch.no_grad(), autocast:
                yield
        finally:
            for module in training:
                module.training = True


def _pad(rows: Tensor, size: int) -> Tensor:
    """Rows, the last one repeated until there are `size`: the size of a batch decides over the last bits."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def _plain(sample: Any) -> Any:
    return int(sample) if isinstance(sample, Integral) else sample


def _nothing_of(entry: "_CacheEntry") -> _Rows:
    """No rows, of a process that has no sample of a batch."""
    assert entry.outputs is not None
    some = next(iter(entry.batches.values()))
    return _Rows((), some.select([]), torch.empty(0))


class _CacheEntry:
    """What is kept for the samples of one loader."""

    def __init__(self) -> None:
        self.batches: dict[int, ConceptBatch] = {}  # each sample as a batch of one, without its image
        self.outputs: TensorStore | None = None  # of the frozen half of the stage that runs
        self.frozen_half: Callable[..., Tensor] | None = None
        self.features: TensorStore | None = None  # of this process's samples
        self.expected = 0  # samples whose features are to come
        self.checked = False  # whether samples were found to be the same each time

    def add(self, rows: _Rows) -> None:
        """Keep what is new among the outputs of some samples.

        Raises:
            CacheFull: If there is no room.
        """
        assert self.outputs is not None
        new = {sample: row for row, sample in enumerate(rows.samples) if sample not in self.outputs}
        if new:
            self.batches.update(zip(new, rows.batch.select(list(new.values())).split(), strict=True))
            self.outputs.add(list(new), rows.outputs[list(new.values())])

    def add_features(self, samples: Sequence[int], features: Tensor) -> None:
        """Keep features for later stages; without room for all of them, those stages read images again."""
        store = self.features
        if store is None or not samples:
            return
        try:
            if not len(store):
                store.check_room(features[:1], self.expected)
            new = {sample: row for row, sample in enumerate(samples) if sample not in store}
            if new:
                store.add(list(new), features[list(new.values())].cpu())
        except CacheFull as error:
            log.warning("features are not kept, so a later stage reads the images once more: %s", error)
            self.drop_features()

    def drop_outputs(self) -> None:
        if self.outputs is not None:
            self.outputs.close()
        self.outputs = self.frozen_half = None

    def drop_features(self) -> None:
        if self.features is not None:
            self.features.close()
        self.features = None


class CacheFull(Exception):
    """There is no place for more rows; the message says why."""


class Budget:
    """How many bytes all stores together may take."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def check(self, count: int) -> None:
        """Refuse to take a number of bytes more.

        Raises:
            CacheFull: If they are more than the limit allows.
        """
        if self.used + count > self.limit:
            raise CacheFull(f"{(self.used + count) / 1e9:.3g} GB are wanted and {self.limit / 1e9:.3g} GB allowed")


class TensorStore:
    """One row for each of many numbers, all of one shape and type, in memory or in a file.

    The file has no name, so nothing is left of it however the process ends. It is read and not mapped into memory: a
    mapping would count as memory where that is limited, and a failing disk would kill the process where reading
    raises an error. The system keeps in free memory what was read or written lately.

    Args:
        where: `"memory"`, `"disk"`, or `"auto"`: in memory as long as it is small.
        budget: Counts the bytes of this and other stores.
        dtype: Floating-point type to store as; None stores rows as they are. They are read in the type they had.
        folder: Of the file; None is the system's folder for temporary files, which on some systems is memory itself.
    """

    def __init__(
        self,
        where: Literal["auto", "memory", "disk"],
        budget: Budget,
        *,
        dtype: torch.dtype | None = None,
        folder: Path | None = None,
    ) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._budget, self._stored_as, self._on_disk = budget, dtype, where == "disk"
        # A size of 0 never leaves memory.
        self._file: Any = tempfile.SpooledTemporaryFile(SMALL if where == "auto" else 0, dir=str(self._folder))  # noqa: SIM115
        if where == "disk":
            self._file.rollover()
        self._places: dict[int, int] = {}  # number -> first byte
        self._like = torch.empty(0)  # no rows, of the rows' shape and type
        self.size = 0
        """In bytes."""

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def dtype(self) -> torch.dtype:
        """Type that rows are stored as."""
        return self._narrow(self._like).dtype

    def check_room(self, row: Tensor, count: int) -> None:
        """Refuse a number of rows like this one, if they cannot all be kept.

        Raises:
            CacheFull: If the budget or the disk has no room for them.
        """
        wanted = count * self._narrow(row).nbytes
        self._budget.check(wanted)
        free = shutil.disk_usage(self._folder).free
        if (self._on_disk or wanted > SMALL) and wanted > free:
            raise CacheFull(f"{wanted / 1e9:.3g} GB are wanted, and {self._folder} has {free / 1e9:.3g} GB free")

    def add(self, numbers: Sequence[int], rows: Tensor) -> None:
        """Keep one row (n, ...) for each of n numbers.

        Raises:
            CacheFull: If the budget, the memory or the disk has no room for all of them; the store is of no use then.
        """
        narrow = self._narrow(rows).contiguous()
        self._budget.check(narrow.nbytes)
        try:
            self._file.seek(self.size)
            self._file.write(_raw(narrow))
            self._file.flush()
        except (OSError, MemoryError) as error:
            raise CacheFull(f"writing them failed: {error or 'out of memory'}") from error
        step = narrow.nbytes // len(numbers)
        self._places.update((number, self.size + step * row) for row, number in enumerate(numbers))
        self._like = rows[:0].cpu()
        self.size += narrow.nbytes
        self._budget.used += narrow.nbytes

    def read(self, numbers: Sequence[int]) -> Tensor:
        """The rows (n, ...) of n numbers, in their order.

        Raises:
            OSError: If the disk fails.
        """
        narrow = self._narrow(self._like)
        found = narrow.new_empty(len(numbers), *narrow.shape[1:])
        for row, number in zip(found, numbers, strict=True):
            target = _raw(row)
            self._file.seek(self._places[number])
            if self._file.readinto(target) != len(target):
                raise OSError("a temporary file has become shorter than what was written to it")
        return found.to(self._like.dtype)

    def close(self) -> None:
        """Free everything."""
        with contextlib.suppress(OSError):  # what a full disk has refused is tried once more, and not needed
            self._file.close()
        self._budget.used -= self.size
        self._places, self.size = {}, 0

    def _narrow(self, rows: Tensor) -> Tensor:
        return rows.to(self._stored_as) if self._stored_as is not None and rows.is_floating_point() else rows


def _raw(rows: Tensor) -> memoryview:
    return rows.flatten().view(torch.uint8).numpy().data
