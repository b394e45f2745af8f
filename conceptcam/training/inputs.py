"""One batch, divided among processes: each computes its own rows, and all see the loss of the whole batch.

A loss that each process took of its own rows would weigh boxes, known labels and present concepts by where they
happen to lie. So the small tensors that an objective reads are gathered, and every process evaluates it on the whole
batch, through its own rows alone. The sum of the processes' gradients is then the gradient of one process, for any
objective.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conceptcam.data.batch import ConceptBatch
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training import distributed
from conceptcam.training.batches import Feed, Order, Share, take_rows
from conceptcam.training.stages import SplitForward, Stage


class Work(NamedTuple):
    """What one evaluation of a stage's objective needs."""

    inputs: tuple[Tensor, ...]
    """What the forward pass is called with, after the model: this process's rows."""
    batch: ConceptBatch
    """What is true of the whole batch."""
    own: int | None
    """How many of this process's rows count; None if every process has the whole batch."""


class Source(Protocol):
    """Where the work of a stage comes from."""

    forward: Callable[..., Any]
    """What to call with the model and each work's inputs."""
    cached: bool
    """Whether frozen parts have done theirs before."""
    divided: bool
    """Whether each process is given its own rows, so that gradients must be added up."""

    def load(self, order: Order, start: int = 0) -> Iterator[Work]:
        """The work of each batch of an order, in several processes this one's, from the batch numbered `start` on.

        What a feed reads and throws away for it is read before this returns: a resumed epoch sets random states next.
        """


class Images:
    """A stage's work from images, which a feed loads."""

    cached = False

    def __init__(self, feed: Feed, stage: Stage, device: torch.device) -> None:
        self._feed, self._stage, self._device = feed, stage, device
        self.forward = stage.forward
        self.divided = distributed.world() > 1

    def load(self, order: Order, start: int = 0) -> Iterator[Work]:
        """The work of each batch of an order, in several processes this one's, from the batch numbered `start` on."""
        return map(self._work, self._feed.load(order, start))

    def _work(self, share: Share) -> Work:
        if distributed.world() == 1:
            batch = share.batch.to(self._device, non_blocking=True)
            return Work(self._inputs(batch), batch, None)
        truth = _gather_truth(share).to(self._device, non_blocking=True)
        mine = share.batch.to(self._device, non_blocking=True)
        return Work(self._inputs(mine), truth, share.own)

    def _inputs(self, batch: ConceptBatch) -> tuple[Tensor, ...]:
        if isinstance(self.forward, SplitForward):
            return batch.images, self._stage.concept_mask(batch)
        return (batch.images,)


def whole_output(output: Any, work: Work) -> Any:
    """What all processes' models said about a batch, in the batch's order; gradients go to this process's rows.

    Features are by far the largest part and are not sent: they come out with no channels.
    """
    if work.own is None:
        return output
    size, world, mine = len(work.batch.concepts), distributed.world(), distributed.rank()
    counts = [len(range(rank, size, world)) for rank in range(world)]
    fields = {}
    for name, value in output._asdict().items():
        if name == "features":
            fields[name] = value.new_zeros(size, 0, *value.shape[2:])
            continue
        parts = distributed.gather_rows(value[: work.own], counts)
        parts[mine] = value[: work.own]
        fields[name] = torch.cat(parts)[_back(size, world).to(value.device)]
    return output._replace(**fields)


class Caller(nn.Module):
    """A model with what a stage computes as its forward pass, as `DistributedDataParallel` and `torch.compile` want."""

    def __init__(self, model: ConceptModel, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self._forward = model, forward

    def forward(self, *inputs: Tensor) -> Any:
        """What the stage computes."""
        return self._forward(self.model, *inputs)


def replicate(caller: Caller) -> nn.Module:
    """The same, which adds up gradients over all processes."""
    device = next(caller.parameters()).device
    return DistributedDataParallel(caller, device_ids=[device] if device.type == "cuda" else None)


def unsynced(caller: nn.Module) -> contextlib.AbstractContextManager[None]:
    """A while in which gradients stay in this process, because more are to be added."""
    return caller.no_sync() if isinstance(caller, DistributedDataParallel) else contextlib.nullcontext()


def _back(size: int, world: int) -> Tensor:
    """(size,) where each sample of a batch is among the rows of all processes, one process after the other."""
    return torch.argsort(torch.cat([torch.arange(rank, size, world) for rank in range(world)]))


def _gather_truth(share: Share) -> ConceptBatch:
    """What is true of the whole batch, in its order, without its images."""
    mine = share.batch._replace(images=share.batch.images[:, :0])
    mine = take_rows(mine.to("cpu"), range(share.own)) if share.own < len(mine.concepts) else mine.to("cpu")
    parts = distributed.gather(mine)
    back = _back(share.size, len(parts))
    return ConceptBatch(
        torch.cat([part.images for part in parts])[back],
        torch.cat([part.concepts for part in parts])[back],
        torch.cat([part.targets for part in parts])[back],
        _join_boxes([part.boxes for part in parts]),
        _join_names([part.names for part in parts], back.tolist()),
    )


def _join_boxes(parts: list[ConceptBoxes | None]) -> ConceptBoxes | None:
    """The boxes of all processes' rows as boxes of the whole batch, image by image."""
    drawn = [(rank, boxes) for rank, boxes in enumerate(parts) if boxes is not None]
    if not drawn:
        return None
    image = torch.cat([boxes.image * len(parts) + rank for rank, boxes in drawn])
    order = torch.argsort(image, stable=True)
    return ConceptBoxes(
        torch.cat([boxes.xyxy for _, boxes in drawn])[order],
        torch.cat([boxes.concept for _, boxes in drawn])[order],
        image[order],
    )


def _join_names(parts: list[tuple[str, ...]], back: list[int]) -> tuple[str, ...]:
    names = [name for part in parts for name in part]
    return tuple(names[place] for place in back) if len(names) == len(back) else ()
