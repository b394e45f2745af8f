"""What a stage asks of all training data at once: vectors to place prototypes in, evidence to solve a head from."""

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.heads import TaskHead
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.model.outputs import TaskPart
from conceptcam.training import distributed
from conceptcam.training.batches import Feed, Order
from conceptcam.training.inputs import Source
from conceptcam.training.stages import PROTOTYPE_FORWARD, Stage, embed_vectors
from conceptcam.training.step import AUTOCAST, Precision, no_batches


@torch.no_grad()
def gather_embeddings(
    model: ConceptModel, feed: Feed, source: Source, *, device: torch.device, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Vectors (N, D) of all present concepts in the training data, in the prototypes' space; whose each is (N,).

    Raises:
        ValueError: If there are no batches.
    """
    model.eval()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    dtype, first = AUTOCAST[precision], 0
    whole = dataclasses.replace(PROTOTYPE_FORWARD, learning_half=embed_vectors)
    embed = whole if source.forward is PROTOTYPE_FORWARD else embed_vectors
    for work in source.load(_unspent_order(feed)):
        rows = torch.arange(len(work.batch.concepts))
        if work.own is not None:
            rows = rows[distributed.rank() :: distributed.world()]
        labels = work.batch.concepts[rows]
        asked = work.inputs[1][: len(labels)]
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            vectors = embed(model, *work.inputs)[: asked.sum()]
        present = labels[asked] > 0.5
        row, concept = asked.nonzero()[present].cpu().T
        found.append((vectors[present].float().cpu(), concept, first + rows[row]))
        first += len(work.batch.concepts)
    if not first:
        raise no_batches("train_batches")
    mine = tuple(torch.cat([one[part] for one in found]) for part in (0, 1, 2))
    parts = distributed.gather(mine) if source.divided else [mine]
    vectors, concept, sample = (torch.cat([part[i] for part in parts]) for i in (0, 1, 2))
    back = torch.argsort(sample, stable=True)  # as one process would have met them
    return vectors[back], concept[back]


@torch.no_grad()
def solve_task_head(
    model: ConceptModel, stage: Stage, solver: LinearSolver, feed: Feed, source: Source, *, frozen: Collection[str]
) -> float:
    """Give the task head its best weights; returns their loss on the training data.

    Raises:
        ValueError: If there are no batches, or the task head is not linear or is frozen.
    """
    head = model.task_head
    if not isinstance(head, TaskHead) or {"task_head.weight", "task_head.bias"} & set(frozen):
        raise ValueError(f"stage {stage.name!r} solves for the weights of a `TaskHead` that is not frozen")
    works = list(source.load(_unspent_order(feed)))
    if not works:
        raise no_batches("train_batches")
    evidence = torch.cat([work.inputs[0] for work in works]).float()
    concepts = torch.cat([work.batch.concepts for work in works])
    targets = torch.cat([work.batch.targets for work in works])

    def loss(task_logits: Tensor, truth: Tensor) -> Tensor:
        copies = len(truth) // len(targets)
        images = evidence.new_empty(len(truth), 0)
        everything = ConceptBatch(images, concepts.repeat(copies, 1), truth, None, ())
        return stage.loss_fn(TaskPart(evidence.to(task_logits).repeat(copies, 1, 1), task_logits), everything)

    weight, bias = solver.solve(evidence, targets, loss)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    distributed.share_tensors(model.parameters())
    return loss(head(evidence), targets).item()


def _unspent_order(feed: Feed) -> Order:
    """An order of the training data, for which no random number is used up."""
    drawn = feed.random_state()
    with torch.random.fork_rng(devices=[]):  # the order of the first epoch is yet to be drawn
        order = feed.draw(seed=0)
    feed.set_random_state(drawn)
    return order
