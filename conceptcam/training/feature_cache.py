"""What frozen parts say, computed once.

Stages 2 and 3 learn from vectors of concepts and from evidence, which parts say that no longer learn. So a sample
goes through those parts once, and later epochs read what they said: `FrozenOutputs` keeps it, a `FrozenSource` gives
it to the loop, batch by batch.

Losses in fp32 are the same to the last bit whether or not anything is kept, because both ways run the same methods
on batches of one size. Libraries choose their algorithms by the shape of a batch, so what ResNet-50 or ViT-B/16 says
of an image depends, in the last bits, on how many others are with it, but (measured on a CPU, with 1 and 2 threads)
not on which they are, nor on its place among them. A batch that is smaller than the feed's is therefore filled up.
This holds for parts that look at each image by itself, on one kind of device, with one number of threads, of
processes and of images per batch, and as long as `dtype` rounds nothing.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training import distributed
from conceptcam.training.batches import Feed, Order, Share, take_rows
from conceptcam.training.frozen_forward import FrozenParts, Row, features_wanted, fill, split, stack
from conceptcam.training.inputs import Images, Source, Work
from conceptcam.training.row_store import Budget, NoRoom, Table
from conceptcam.training.stages import SplitForward, Stage

log = logging.getLogger(__name__)

Storage = Literal["auto", "off", "memory", "disk"]

LIMIT = 32_000_000_000
"""Bytes that may be kept if nobody says otherwise."""


class FrozenOutputs:
    """Keeps what frozen parts said of each sample for as long as it holds; use it in a `with` statement.

    The first stage that can also keeps the features of each sample, if a later one goes on from them and there is
    room, so that the images of several stages are read once.

    Args:
        storage: Where to keep it: `"memory"`, `"disk"` (the folder for temporary files), `"auto"` (in memory if it
            is small) or `"off"` (nowhere). `"auto"` keeps only what is known to be the same each time it is read;
            `"memory"` and `"disk"` also say that this is so of data of which nobody knows it.
        dtype: Floating-point type to store as, such as `torch.bfloat16`; None rounds nothing.
        limit: Bytes that may be kept in all; in several processes, by each.
        folder: For what is on disk; None is the system's for temporary files.

    Raises:
        ValueError: If an option is unknown or the folder is not there.
    """

    def __init__(
        self,
        storage: Storage = "auto",
        *,
        dtype: torch.dtype | None = None,
        limit: int = LIMIT,
        folder: Path | None = None,
    ) -> None:
        if storage not in get_args(Storage):
            raise ValueError(f"unknown `storage` {storage!r}; known: {list(get_args(Storage))}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"frozen outputs are stored as a floating-point type, not {dtype}")
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder to keep frozen outputs in")
        self.storage, self.dtype, self.folder = storage, dtype, folder
        self._budget = Budget(limit)
        self._shelves: dict[Feed, _Shelf] = {}

    def source(
        self,
        model: ConceptModel,
        stage: Stage,
        feed: Feed,
        *,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
        later: Iterable[Stage] = (),
    ) -> Source:
        """Where a stage's work comes from: a `FrozenSource` if frozen parts can do theirs beforehand, else images.

        Ask for each stage that a model goes through, because what a stage teaches makes what was kept before untrue.

        Args:
            model: On its device.
            stage: The one that begins.
            feed: Its data.
            device: Where to put the work.
            autocast: Type of autocast for the frozen parts; None computes in the type of the weights.
            later: The stages to come.
        """
        shelf = self._shelves.setdefault(feed, _Shelf())
        forward = stage.split_forward(model)
        if forward is None or shelf.said_by is not forward.frozen_half:
            shelf.drop_said()
        if "backbone" in stage.parts:
            shelf.drop_features()
        if forward is None:
            return Images(feed, stage, torch.device(device))
        reason = "" if self.storage == "off" else self._reason_against(feed)
        if reason:
            log.info("stage %s reads its images in each epoch: %s", stage.name, reason)
        elif self.storage != "off":
            # What the last stage was told still holds if this one asks for the same: what it rests on did not learn.
            shelf.said = self._table() if shelf.said is None else shelf.said
            shelf.said_by = forward.frozen_half
            if shelf.features is None and features_wanted(model, later):
                shelf.features = self._table()
        return FrozenSource(model, stage, forward, feed, torch.device(device), autocast, shelf)

    def close(self) -> None:
        """Free everything."""
        for shelf in self._shelves.values():
            shelf.drop_said()
            shelf.drop_features()
        self._shelves.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _table(self) -> Table:
        assert self.storage != "off"
        return Table(self.storage, self._budget, dtype=self.dtype, folder=self.folder)

    def _reason_against(self, feed: Feed) -> str:
        if feed.samples is None:
            return "only the iterable knows its order"
        if feed.repeatable is False:
            return "they are augmented"
        if feed.repeatable is None and self.storage == "auto":
            return "nobody knows whether they are the same each time; storage 'memory' or 'disk' says that they are"
        return ""


class FrozenSource:
    """A stage's work as a stage's learning parts see it, behind the frozen ones.

    It is the same in every process: each computes its share of what frozen parts say, and is told the others'. The
    batches it gives have no images, (B, 0), and boxes only None if nobody drew in any image that frozen parts saw
    together. Make one with `FrozenOutputs.source`.
    """

    divided = False

    def __init__(
        self,
        model: ConceptModel,
        stage: Stage,
        forward: SplitForward,
        feed: Feed,
        device: torch.device,
        autocast: torch.dtype | None,
        shelf: "_Shelf",
    ) -> None:
        self._stage, self._feed, self._device, self._shelf = stage, feed, device, shelf
        self._parts = FrozenParts(model, forward, device, autocast)
        self.forward = forward.learning_half
        self._size = 0  # of the batches that frozen parts are given
        self.cached = shelf.said is not None
        """Whether what frozen parts say is kept."""

    def load(self, order: Order, start: int = 0) -> Iterator[Work]:
        """The work of each batch of an order, from the batch numbered `start` on.

        What frozen parts have not yet said of a sample is computed first, for all of the order.
        """
        if order.batches and not self._size:
            self._size = -(-max(map(len, order.batches)) // distributed.world())
        said = self._shelf.said
        if said is None or order.batches is None:
            return self._compute(self._feed.load(order, start))
        try:
            self._complete(order, said)
        except NoRoom as error:
            log.warning("stage %s reads its images in each epoch: %s", self._stage.name, error)
            self.cached = False
            self._shelf.drop_said()
            self._shelf.drop_features()
            return self._compute(self._feed.load(order, start))
        return self._read(order.batches[start:], said)

    def _read(self, batches: Sequence[Sequence[int]], said: Table) -> Iterator[Work]:
        for batch in batches:
            yield self._work([self._shelf.truths[sample] for sample in batch], said.read(batch))

    def _compute(self, shares: Iterator[Share]) -> Iterator[Work]:
        for share in shares:
            self._size = self._size or share.size
            parts = distributed.gather(self._look(share))
            rows = [parts[place % len(parts)][place // len(parts)] for place in range(share.size)]
            yield self._work([row.truth for row in rows], torch.cat([row.said for row in rows]))

    def _work(self, truths: Sequence[ConceptBatch], said: Tensor) -> Work:
        batch = stack(truths).to(self._device, non_blocking=True)
        said = said.to(self._device, non_blocking=True)
        return Work((said, self._stage.concept_mask(batch)), batch, None)

    def _complete(self, order: Order, said: Table) -> None:
        """Keep what frozen parts say of all samples of an order, in every process.

        Raises:
            NoRoom: In every process, if it cannot be kept.
        """
        assert order.batches is not None
        samples = {sample for batch in order.batches for sample in batch}
        if strange := [sample for sample in samples if not isinstance(sample, Integral)]:
            raise NoRoom(f"the sampler names samples by a {type(strange[0]).__name__}, not by a whole number")
        missing = sorted(sample for sample in samples if sample not in said)
        if not missing:
            return
        reason = ""
        for mine in self._look_at(self._pass(order, missing)):
            parts = distributed.gather((mine, reason))
            if reason := next((why for _, why in parts if why), ""):
                break  # in every process
            rows = {row.sample: row for rows, _ in parts for row in rows if row.sample not in said}
            self._shelf.truths.update((sample, row.truth) for sample, row in rows.items())
            try:
                said.add((sample, row.said) for sample, row in rows.items())
            except NoRoom as error:
                reason = str(error)
        if reason := next((why for why in distributed.gather(reason) if why), ""):
            raise NoRoom(reason)
        log.info(
            "stage %s: what frozen parts say of %d samples is kept, %.3g MB of %s, and %.3g MB of features",
            self._stage.name,
            len(said),
            said.size / 1e6,
            said.dtype,
            self._shelf.features.size / 1e6 if self._shelf.features is not None else 0.0,
        )

    def _pass(self, order: Order, missing: Sequence[int]) -> Order:
        """An order that names the missing samples once, in batches of one size."""
        assert order.batches is not None
        if all(isinstance(batch, range) for batch in order.batches):
            return order  # a list of batches can only be read as it is
        size = self._size * distributed.world()
        once = Order([missing[first : first + size] for first in range(0, len(missing), size)], seed=0)
        if not self._shelf.checked:
            # Two passes, whose random numbers differ, must not.
            first, again = (
                list(self._feed.load(Order(once.batches and once.batches[:1], seed)))[0].batch.images for seed in (1, 2)
            )
            if not all(distributed.gather(torch.equal(first, again))):
                raise NoRoom("they differ each time they are read")
            self._shelf.checked = True
        return once

    def _look_at(self, order: Order) -> Iterator[list[Row]]:
        """What frozen parts say of this process's share of each batch."""
        assert order.batches is not None
        owned = [batch[distributed.rank() :: distributed.world()] for batch in order.batches]
        features = self._shelf.features
        ready = features is not None and all(sample in features for own in owned for sample in own)
        if all(distributed.gather(ready)):
            for own in owned:
                yield self._look_again(own)
        else:
            self._shelf.awaited = sum(map(len, owned))
            for share in self._feed.load(order):
                yield self._look(share)

    def _look(self, share: Share) -> list[Row]:
        """Show this process's rows of a batch to the frozen parts."""
        batch = take_rows(share.batch, range(share.own))
        truths = split(batch)
        numbers = range(share.own) if share.samples is None else share.samples
        rows: list[Row] = []
        for first in range(0, share.own, self._size):
            piece = batch.images[first : first + self._size]
            features = self._parts.see(piece, self._size)
            some = slice(first, first + len(piece))
            self._keep_features(numbers[some], features)
            rows += self._parts.say(features, numbers[some], truths[some])
        return rows

    def _look_again(self, numbers: Sequence[int]) -> list[Row]:
        """Let the frozen parts go on from features that were kept."""
        assert self._shelf.features is not None
        rows: list[Row] = []
        for first in range(0, len(numbers), self._size):
            some = numbers[first : first + self._size]
            features = fill(self._shelf.features.read(some), self._size).to(self._device)
            rows += self._parts.say(features, some, [self._shelf.truths[number] for number in some])
        return rows

    def _keep_features(self, numbers: Sequence[int], features: Tensor) -> None:
        """Keep features for later stages; where there is no room for all of them, those stages read images again."""
        table = self._shelf.features
        if table is None:
            return
        rows = features[: len(numbers)].cpu().split(1)
        try:
            if not len(table):
                table.check_room(rows[0], self._shelf.awaited)
            table.add((int(number), one) for number, one in zip(numbers, rows, strict=True) if int(number) not in table)
        except NoRoom as error:
            log.warning("features are not kept, so a later stage reads the images once more: %s", error)
            self._shelf.drop_features()


class _Shelf:
    """What is kept of the samples of one feed."""

    def __init__(self) -> None:
        self.truths: dict[int, ConceptBatch] = {}
        self.said: Table | None = None  # of the stage that runs
        self.said_by: Callable[..., Tensor] | None = None  # the frozen half of that stage
        self.features: Table | None = None  # of this process's share
        self.awaited = 0  # samples whose features are to come
        self.checked = False  # whether samples have been seen to be the same each time

    def drop_said(self) -> None:
        if self.said is not None:
            self.said.close()
        self.said = self.said_by = None

    def drop_features(self) -> None:
        if self.features is not None:
            self.features.close()
            self.features = None
