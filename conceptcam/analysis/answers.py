"""What a model says of all images of some data, beside what is true."""

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam.config import ConceptConfig
from conceptcam.data.batch import Batches, ConceptBatch, as_batch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.novelty import unlikeness
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.predictions import Predictions

Observer = Callable[[ConceptBatch, ConceptOutput], None]
"""Looks at a batch and what a model says of it, and keeps what it needs."""


class Answers(NamedTuple):
    """What a model says of N images, and what is true; all on the CPU."""

    concept_logits: Tensor
    """(N, K)."""
    concepts: Tensor
    """(N, K) labels in [0, 1]; NaN where nobody knows."""
    task_logits: Tensor
    """(N, T)."""
    targets: Tensor
    """(N, T) task labels in [0, 1], NaN where nobody knows; or (N, 0) if the data have none."""
    features: Tensor
    """(N, C) mean of the backbone's features over all places."""
    evidence: Tensor
    """(N, K, M), or (N, 0, M) if it was not asked for."""
    unlikeness: Tensor
    """(N,) how unlike the training images each one is; NaN if the model cannot tell."""
    names: tuple[str, ...]
    """Of the images, or empty if the data do not name them."""


class EvaluatedImages(NamedTuple):
    """What was said of each of N images, in the model's order, and what is true."""

    names: tuple[str, ...]
    """Of the images; their numbers if the data do not name them."""
    concept_names: tuple[str, ...]
    concept_probabilities: Tensor
    """(N, K) float64, as `predict` reports them."""
    concepts: Tensor
    """(N, K) labels; NaN where nobody knows."""
    task_names: tuple[str, ...]
    """Empty if no task was taught or labelled."""
    task_probabilities: Tensor
    """(N, T) float64."""
    targets: Tensor
    """(N, T) labels; NaN where nobody knows."""
    unlikeness: Tensor
    """(N,); NaN if the model cannot tell."""

    def to_csv(self, path: str | PathLike[str], *, patients: Sequence[str] | None = None) -> None:
        """Write a row per image: its name, each true label, empty where unknown, each probability, and unlikeness.

        Args:
            path: The file to write.
            patients: (N) the patient of each image, for a column of its own.
        """
        known = (*self.concept_names, *(f"{name} (task)" for name in self.task_names))
        truths = torch.cat([self.concepts, self.targets], dim=1).T.tolist()
        labels = {
            f"true {name}": ["" if math.isnan(value) else f"{value:g}" for value in column]
            for name, column in zip(known, truths, strict=True)
        }
        told = None if bool(self.unlikeness.isnan().all()) else self.unlikeness
        table = Predictions(
            self.names, self.concept_names, self.task_names, self.concept_probabilities, self.task_probabilities, told
        )
        table.to_csv(path, more=({"patient": patients} if patients is not None else {}) | labels)


def label_check(config: ConceptConfig) -> Observer:
    """An observer that refuses the first batch whose labels are not those of a model.

    It raises a ValueError if a batch has labels of another number than the model has concepts, or tasks; batches
    without task labels are taken.
    """

    def check(batch: ConceptBatch, output: ConceptOutput) -> None:
        concepts, tasks = batch.concepts.shape[1], batch.targets.shape[1]
        if concepts != len(config.concepts):
            raise ValueError(f"the data has {concepts} concept labels, the model {len(config.concepts)} concepts")
        if config.tasks and tasks not in (0, len(config.tasks)):
            raise ValueError(f"the data has {tasks} task labels, the model {len(config.tasks)} tasks")

    return check


@torch.inference_mode()
def collect_answers(
    model: ConceptModel,
    batches: Batches,
    *,
    device: torch.device | str | None = None,
    evidence: bool = False,
    observers: Sequence[Observer] = (),
) -> Answers:
    """One pass of a model over data. The model is left as it is, its mode included.

    Args:
        model: Any.
        batches: As `Trainer.fit` takes; not shuffled or augmented.
        device: Where to run; None stays where the model is.
        evidence: Whether to keep evidence, which is many numbers.
        observers: Are called with each batch and what the model says of it, on the model's device.

    Raises:
        ValueError: If there are no batches.
    """
    rows: list[tuple[Tensor, ...]] = []
    names: tuple[str, ...] = ()
    # Iterating a `DataLoader` draws a number from the global generator, shuffled or not.
    with eval_mode(model, device) as where, torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(where)
            output = model(batch.images)
            for observe in observers:
                observe(batch, output)
            parts = (output.concept_logits, batch.concepts, output.task_logits, batch.targets)
            features = output.features.mean(dim=(-2, -1))
            kept = output.evidence if evidence else output.evidence[:, :0]
            strange = unlikeness(model.record, output.features)
            rows.append(tuple(part.cpu() for part in (*parts, features, kept, strange)))
            names += batch.names
    if not rows:
        raise ValueError("there are no batches to evaluate on")
    first, concepts, second, targets, pooled, kept, strange = map(torch.cat, zip(*rows, strict=True))
    named = names if len(names) == len(first) else ()
    return Answers(first, concepts, second, targets, pooled, kept, strange, named)
