"""Batches in an order that is known before any of them is loaded.

So a pass can begin in its middle, be divided among processes, or be read from what was computed before, and it is
the same pass. An item's random numbers (of augmentation) follow from its place in the order alone: they are the
same with any number of loader workers and processes, and whatever else is random meanwhile.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
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

from conceptcam.data.batch import Batches, ConceptBatch, ConceptDataset, as_batch
from conceptcam.training.distributed import broadcast
from conceptcam.training.seeding import seeded


class EpochPlan(NamedTuple):
    """What one pass over the data will read, and in which order."""

    batches: Sequence[Sequence[Any]] | None
    """Each batch's samples, by the number (or key) that the data set knows them by; None if only the iterable knows."""
    seed: int
    """Where the random numbers of the pass's items start."""


class RankBatch(NamedTuple):
    """What one process is given of a batch."""

    batch: ConceptBatch
    """This process's rows; one row that is not counted, if this process has no sample of the batch."""
    samples: tuple[Any, ...] | None
    """The samples that its rows stand for, by the order's numbers; empty if for nobody, None if not known."""
    size: int
    """How many samples the whole batch has."""

    @property
    def own(self) -> int:
        """How many of this process's rows count."""
        return self.size if self.samples is None else len(self.samples)


class BatchLoader:
    """Batches as a user gives them, in an order that can be known.

    It can be known of a list of batches, and of a `DataLoader` that draws its batches from a sampler. In several
    processes the batches given are those of all of them together: each process loads every n-th sample.

    Args:
        batches: A `DataLoader`, a list or any other iterable of `ConceptBatch`es or dicts as `as_batch` reads.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        ValueError: If there are several processes and the batches cannot be divided among them.
    """

    def __init__(self, batches: Batches, *, rank: int = 0, world: int = 1) -> None:
        self._rank, self._world = rank, world
        self._given = batches
        self._list = [as_batch(batch) for batch in batches] if isinstance(batches, list | tuple) else None
        self._loader = _Items(batches) if _draws_from_sampler(batches) else None
        if world > 1:
            self._check_divisible()

    @property
    def length(self) -> int | None:
        """Batches per pass; None if nobody knows."""
        try:
            return len(self._given)  # type: ignore[arg-type]
        except TypeError:  # also of a `DataLoader`, whose data set may not know its length
            return None

    @property
    def samples(self) -> range | None:
        """All samples that an order may name; None if that is not known."""
        if self._list is not None:
            return range(sum(len(batch.concepts) for batch in self._list))
        dataset = self._loader and self._loader.dataset
        return range(len(dataset)) if isinstance(dataset, Sized) else None

    @property
    def repeatable(self) -> bool | None:
        """Whether a sample is the same each time it is read; None if only the user knows."""
        if self._list is not None:
            return True
        return None if self._loader is None else _repeats(self._loader.dataset)

    @property
    def labels(self) -> tuple[Tensor, Tensor] | None:
        """Labels of all samples, (N, K) and (N, T), where they are known without loading an image."""
        if self._list:
            return torch.cat([b.concepts for b in self._list]), torch.cat([b.targets for b in self._list])
        dataset = self._loader and self._loader.dataset
        return (dataset.concept_labels, dataset.task_labels) if isinstance(dataset, ConceptDataset) else None

    def draw(self, seed: int | None = None) -> EpochPlan:
        """Draw the order of the next pass; in several processes, the first one's.

        Args:
            seed: Of the random numbers of items; None draws it from torch's global generator.
        """
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        if self._list is not None:
            start, batches = 0, []
            for batch in self._list:
                batches.append(range(start, start + len(batch.concepts)))
                start += len(batch.concepts)
            return EpochPlan(batches, seed)
        if self._loader is not None:
            return broadcast(EpochPlan([tuple(batch) for batch in self._loader.batch_sampler], seed))
        return EpochPlan(None, seed)

    def load(self, order: EpochPlan, start: int = 0) -> Iterator[RankBatch]:
        """Load this process's share of each batch of an order.

        Args:
            order: As drawn, or any other that names samples of this feed. Of a list of batches it must be as drawn.
            start: How many batches to leave out at the beginning. If the order is not known they are read and
                thrown away, before this returns.
        """
        if order.batches is None:
            batches = iter(self._given)
            for _ in islice(batches, start):
                pass
            return (RankBatch(batch, None, len(batch.images)) for batch in map(as_batch, batches))
        rows = [range(self._rank, len(batch), self._world) for batch in order.batches[start:]]
        owned = [tuple(batch[row] for row in mine) for batch, mine in zip(order.batches[start:], rows, strict=True)]
        loaded: Iterator[ConceptBatch]
        if self._list is not None:
            loaded = (
                batch if self._world == 1 else batch.select(list(mine) or [0])
                for batch, mine in zip(self._list[start:], rows, strict=True)
            )
        else:
            assert self._loader is not None
            loaded = self._loader.load(order, start, [list(mine) or [0] for mine in rows])
        sizes = [len(batch) for batch in order.batches[start:]]
        return (RankBatch(*one) for one in zip(loaded, owned, sizes, strict=True))

    def random_state(self) -> list[Tensor]:
        """States of the generators that the loader was given for itself."""
        return [generator.get_state() for generator in self._generators()]

    def set_random_state(self, states: Sequence[Tensor]) -> None:
        """Set what `random_state` gave."""
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def _generators(self) -> list[torch.Generator]:
        found: dict[int, torch.Generator] = {}
        sampler = getattr(self._given, "batch_sampler", None)
        for holder in (self._given, getattr(self._given, "sampler", None), sampler, getattr(sampler, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
        return list(found.values())

    def _check_divisible(self) -> None:
        if self._list is None and self._loader is None:
            raise ValueError(
                f"a {type(self._given).__name__} cannot be divided among {self._world} processes; give a list of "
                "batches, or a `DataLoader` of a data set whose items are read by number"
            )
        sampler = getattr(self._given, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                "the loader has a `DistributedSampler`; leave it out, each batch is divided among the processes here"
            )


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
            f"batches, or find the sample it dies of with `num_workers=0`. The loader says: {error}"
        ) from error


class _Items:
    """Loads items of a data set in any order, with the workers and the collation of a given `DataLoader`."""

    def __init__(self, given: DataLoader) -> None:
        self.dataset = given.dataset
        self.batch_sampler: Any = given.batch_sampler
        # A list that is filled anew for each pass, because a loader with persistent workers keeps its batch sampler.
        self._next: list[list[tuple[Any, int]]] = []
        self._generator = torch.Generator()
        self._loader: DataLoader = DataLoader(
            _Seeded(given.dataset),
            batch_sampler=self._next,
            num_workers=given.num_workers,
            collate_fn=given.collate_fn,
            pin_memory=given.pin_memory,
            timeout=given.timeout,
            worker_init_fn=_StartWorker(given.worker_init_fn),
            multiprocessing_context=given.multiprocessing_context,
            generator=self._generator,
            prefetch_factor=given.prefetch_factor,
            persistent_workers=given.persistent_workers,
        )

    def load(self, order: EpochPlan, start: int, rows: Sequence[Sequence[int]]) -> Iterator[ConceptBatch]:
        """Load the given rows of each of the order's batches, from one of them on."""
        assert order.batches is not None
        place = order.seed + sum(len(batch) for batch in order.batches[:start])
        self._next.clear()
        for batch, mine in zip(order.batches[start:], rows, strict=True):
            self._next.append([(batch[row], place + row) for row in mine])
            place += len(batch)
        self._generator.manual_seed(order.seed)
        return map(as_batch, self._loader)


class _Seeded(Dataset[Any]):
    """A data set whose items are read with random numbers of their own; keys are pairs of number and seed."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[Any, int]) -> Any:
        number, seed = key
        with seeded(seed):
            return self.dataset[number]


class _StartWorker:
    """Shows a worker the data set as it was given, then does what the user wants done there."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        # The user's function looks for the data set there; torch has made the record read-only.
        object.__setattr__(info, "dataset", info.dataset.dataset)  # type: ignore[attr-defined]
        if self.then is not None:
            self.then(worker)


def _draws_from_sampler(batches: Batches) -> TypeGuard[DataLoader]:
    """Whether batches come from a `DataLoader` whose order its sampler knows beforehand."""
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
    return dataset.augmentation is None if isinstance(dataset, ConceptDataset) else None
