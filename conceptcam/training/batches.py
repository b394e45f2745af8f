"""Batches in an order that is known before any of them is loaded.

Because the order is known, a pass over the data can start in its middle, be divided among processes, or be read from
a cache, and is still the same pass. The random numbers of an item, for its augmentation, follow from its place in the
order. So they do not depend on the number of loader workers or processes, nor on what else draws random numbers.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import accumulate, groupby, islice, pairwise
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    get_worker_info,
)

from conceptcam._checks import shorten
from conceptcam.data.batch import Batches, ConceptBatch, ConceptDataset, as_batch
from conceptcam.data.digests import digest
from conceptcam.training.distributed import broadcast
from conceptcam.training.seeding import seeded


class EpochPlan(NamedTuple):
    """What one pass over the data will read, and in which order."""

    batches: Sequence[Sequence[Any]] | None
    """The samples of each batch, by the number (or key) that the data set has for them; None if only an iterable
    knows them."""
    seed: int
    """Start of the random numbers of the pass; each item has a seed of its own from there on."""


class RankBatch(NamedTuple):
    """The part of a batch that one process loads."""

    batch: ConceptBatch
    """The rows of this process. A process without a sample in the batch has one row, which does not count."""
    samples: tuple[Any, ...] | None
    """The samples of the rows, as the plan names them; empty if no row counts, None if the plan names none."""
    size: int
    """Number of samples in the whole batch."""

    @property
    def own(self) -> int:
        """How many of this process's rows count."""
        return self.size if self.samples is None else len(self.samples)


class BatchLoader:
    """Batches as a user gives them, read in an order that is planned beforehand.

    The order can be planned for a list of batches, and for a `DataLoader` that draws its batches from a sampler. Any
    other iterable is read as it comes. In several processes, the batches are those of all processes together: each
    process loads every n-th sample of a batch.

    Args:
        batches: A `DataLoader`, a list or any other iterable of `ConceptBatch`es or dicts as `as_batch` reads.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        ValueError: If there are several processes and the batches cannot be divided among them.
    """

    def __init__(self, batches: Batches, *, rank: int = 0, world: int = 1) -> None:
        self._rank, self._world = rank, world
        self._given = _loader_of_rows(batches) if isinstance(batches, list | tuple) and batches else batches
        # A list that is filled anew for each pass, because a loader with persistent workers keeps its batch sampler.
        self._keys: list[list[tuple[Any, int]]] = []
        self._planned = _planned_loader(self._given, self._keys) if _draws_from_sampler(self._given) else None
        if world > 1 and self.length != 0:
            self._check_divisible()

    @property
    def length(self) -> int | None:
        """Batches per pass; None if that is not known."""
        try:
            return len(self._given)  # type: ignore[arg-type]
        except TypeError:  # also of a `DataLoader`, whose data set may not know its length
            return None

    @property
    def samples(self) -> range | None:
        """All samples that a plan can name; None if they are not known."""
        return range(len(self._dataset)) if isinstance(self._dataset, Sized) else None

    @property
    def repeatable(self) -> bool | None:
        """Whether a sample is the same each time it is read; None if only the user knows."""
        return _repeats(self._dataset)

    @property
    def labels(self) -> tuple[Tensor, Tensor] | None:
        """Labels of all samples, (N, K) and (N, T), where they are known without loading an image."""
        dataset = self._dataset
        return (dataset.concept_labels, dataset.task_labels) if isinstance(dataset, ConceptDataset | _Rows) else None

    def digests(self) -> dict[str, str]:
        """SHA-256 of each thing that is learned from, as far as it is known without loading an image."""
        dataset = self._dataset
        return dataset.digests() if isinstance(dataset, ConceptDataset | _Rows) else {}

    @property
    def _dataset(self) -> Any:
        return self._given.dataset if _draws_from_sampler(self._given) else None

    def draw(self, seed: int | None = None) -> EpochPlan:
        """Plan the next pass; in several processes, all get the plan of the first one.

        Args:
            seed: Of the random numbers of items; None draws it from torch's global generator.
        """
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        if not _draws_from_sampler(self._given):
            return EpochPlan(None, seed)
        batches: Any = self._given.batch_sampler
        if not isinstance(self._given.dataset, _Rows):  # whose batches are ranges already
            batches = [tuple(batch) for batch in batches]
        return broadcast(EpochPlan(batches, seed))

    def load(self, plan: EpochPlan, start: int = 0) -> Iterator[RankBatch]:
        """Load this process's rows of each batch of a plan.

        Args:
            plan: As drawn, or any other that names samples of these data.
            start: How many batches to leave out at the beginning. If the plan names no samples, they are read and
                thrown away, before this returns.
        """
        if self._planned is None or plan.batches is None:
            batches = iter(self._given)
            for _ in islice(batches, start):
                pass
            return (RankBatch(batch, None, len(batch.images)) for batch in map(as_batch, batches))
        seed = plan.seed + sum(map(len, plan.batches[:start]))
        self._keys.clear()
        for samples in plan.batches[start:]:
            rows = range(self._rank, len(samples), self._world) or range(1)
            self._keys.append([(samples[row], seed + row) for row in rows])
            seed += len(samples)
        self._planned.generator.manual_seed(plan.seed)
        own = ((tuple(samples[self._rank :: self._world]), len(samples)) for samples in plan.batches[start:])
        return (RankBatch(as_batch(batch), *one) for batch, one in zip(self._planned, own, strict=True))

    def random_state(self) -> list[Tensor]:
        """States of the generators that the user gave to the loader."""
        return [generator.get_state() for generator in self._generators()]

    def set_random_state(self, states: Sequence[Tensor]) -> None:
        """Set what `random_state` gave."""
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def _generators(self) -> list[torch.Generator]:
        sampler = getattr(self._given, "batch_sampler", None)
        holders = (self._given, getattr(self._given, "sampler", None), sampler, getattr(sampler, "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return list(dict.fromkeys(one for one in found if isinstance(one, torch.Generator)))

    def _check_divisible(self) -> None:
        if self._planned is None:
            raise ValueError(
                f"a {type(self._given).__name__} cannot be divided among {self._world} processes; give a list of "
                "batches, or a `DataLoader` of a data set whose items are read by number"
            )
        if isinstance(getattr(self._given, "sampler", None), DistributedSampler):
            raise ValueError(
                "the loader has a `DistributedSampler`; leave it out, each batch is divided among the processes here"
            )


def _draws_from_sampler(batches: Batches) -> TypeGuard[DataLoader]:
    """Whether batches come from a `DataLoader` whose sampler knows the order beforehand."""
    return (
        isinstance(batches, DataLoader)
        and type(batches).__iter__ is DataLoader.__iter__  # a subclass may have an order of its own
        and not isinstance(batches.dataset, IterableDataset)
        and batches.batch_sampler is not None
    )


def _repeats(dataset: Any) -> bool | None:
    """Whether a data set gives the same item each time; None if that is not known."""
    if isinstance(dataset, Subset):
        return _repeats(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        known = [_repeats(part) for part in dataset.datasets]
        return False if False in known else None if None in known else True
    if isinstance(dataset, ConceptDataset):
        return dataset.augmentation is None
    return True if isinstance(dataset, _Rows) else None


class _Rows(Dataset[tuple[ConceptBatch, int]]):
    """The rows of a list of batches, one after the other; each item is a batch and the number of a row in it."""

    def __init__(self, batches: Sequence[ConceptBatch]) -> None:
        self.concept_labels = torch.cat([batch.concepts for batch in batches])
        self.task_labels = torch.cat([batch.targets for batch in batches])
        self._places = [(batch, row) for batch in batches for row in range(len(batch.concepts))]
        self._batches = batches

    def digests(self) -> dict[str, str]:
        """SHA-256 of labels, boxes, and some of the numbers of each batch of images."""
        boxes = [batch.boxes for batch in self._batches if batch.boxes is not None]
        images = [batch.images.flatten() for batch in self._batches]
        return {
            "labels": digest(self.concept_labels, self.task_labels),
            "boxes": digest(*(part for one in boxes for part in (one.xyxy, one.concept, one.image))),
            "images": digest(*(numbers[:: max(1, len(numbers) // 4096)] for numbers in images)),
        }

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> tuple[ConceptBatch, int]:
        return self._places[number]


def _join_rows(places: Sequence[tuple[ConceptBatch, int]]) -> ConceptBatch:
    """The batch of some rows; nothing is copied if they are a whole batch of the list."""
    parts = []
    for _, group in groupby(places, key=lambda place: id(place[0])):
        batches, rows = zip(*group, strict=True)
        whole = rows == tuple(range(len(batches[0].concepts)))
        parts.append(batches[0] if whole else batches[0].select(rows))
    return parts[0] if len(parts) == 1 else ConceptBatch.cat(parts)


def _loader_of_rows(given: Batches) -> DataLoader[Any]:
    """A loader that gives the batches of a list, by the numbers of their rows."""
    batches = [as_batch(batch) for batch in given]
    for what in ("concepts", "targets"):
        widths = {getattr(batch, what).shape[1:] for batch in batches}
        if len(widths) > 1:
            raise ValueError(
                f"batches differ in the shape of their `{what}`: {shorten(map(str, map(tuple, widths)))} behind the "
                "number of images; each label needs its column in all of them"
            )
    ends = accumulate((len(batch.concepts) for batch in batches), initial=0)
    numbers = [range(*pair) for pair in pairwise(ends)]
    return DataLoader(_Rows(batches), batch_sampler=numbers, collate_fn=_join_rows)  # type: ignore[arg-type]


def _planned_loader(given: DataLoader, keys: list[list[tuple[Any, int]]]) -> DataLoader:
    """A loader of the same data, workers and collation that reads the batches in `keys`: pairs of sample and seed."""
    return DataLoader(
        _Seeded(given.dataset),
        batch_sampler=keys,
        num_workers=given.num_workers,
        collate_fn=given.collate_fn,
        pin_memory=given.pin_memory,
        timeout=given.timeout,
        worker_init_fn=_StartWorker(given.worker_init_fn),
        multiprocessing_context=given.multiprocessing_context,
        generator=torch.Generator(),
        prefetch_factor=given.prefetch_factor,
        persistent_workers=given.persistent_workers,
    )


class _Seeded(Dataset[Any]):
    """A data set whose items are read with random numbers of their own; keys are pairs of sample and seed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[Any, int]) -> Any:
        sample, seed = key
        with seeded(None if isinstance(self.dataset, _Rows) else seed):  # rows that are there draw no random numbers
            return self.dataset[sample]


class _StartWorker:
    """Shows a worker the data set as the user gave it, then calls the user's own function for new workers."""

    def __init__(self, user_function: Callable[[int], None] | None) -> None:
        self._user_function = user_function

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        # The user's function looks for the data set there; torch has made the record read-only.
        object.__setattr__(info, "dataset", info.dataset.dataset)  # type: ignore[attr-defined]
        if self._user_function is not None:
            self._user_function(worker)
