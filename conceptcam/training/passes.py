"""Passes over batches: the loss of one, the validation of a stage, and what a stage needs of all training data."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import TypicalEvidence, typical_evidence_of
from conceptcam.training.batches import BatchLoader, EpochPlan
from conceptcam.training.inputs import Source, StageModule, StepInput, whole_output
from conceptcam.training.precision import AUTOCAST, Precision
from conceptcam.training.stages import PROTOTYPE_FORWARD, Stage, embed_vectors


def compute_output(module: Callable[..., Any], step_input: StepInput, precision: Precision) -> Any:
    """The output of a forward pass for a whole batch, whichever process has its rows."""
    dtype = AUTOCAST[precision]
    with torch.autocast(step_input.batch.concepts.device.type, dtype, enabled=dtype is not None):
        output = module(*step_input.inputs)
    if dtype is not None:  # losses and metrics need full precision, features are in neither
        fields = {name: value.float() for name, value in output._asdict().items() if name != "features"}
        output = output._replace(**fields)
    return whole_output(output, step_input)


def compute_loss(module: nn.Module, stage: Stage, step_input: StepInput, precision: Precision) -> tuple[Tensor, Any]:
    """A stage's loss of a whole batch, a scalar, and the output that it was computed from."""
    output = compute_output(module, step_input, precision)
    return stage.loss_fn(output, step_input.batch), output


def finite_loss(loss: Tensor, stage: Stage, batch: ConceptBatch) -> float:
    """The loss as a number.

    Raises:
        FloatingPointError: If it is not finite; the message names the samples.
    """
    value = loss.item()
    if not math.isfinite(value):
        names = ", ".join(batch.names[:8]) or "not named"
        raise FloatingPointError(
            f"the loss of stage {stage.name!r} is {value}; its batch of {len(batch.concepts)} samples: {names}. "
            "Check these samples, or lower the learning rate."
        )
    return value


@torch.inference_mode()
def validate(
    model: ConceptModel, stage: Stage, source: Source, plan: EpochPlan, *, precision: Precision
) -> tuple[float, float]:
    """A stage's loss and score on batches, in eval mode; a higher score is better, and each is NaN if undefined.

    Raises:
        ValueError: If there are no batches.
        FloatingPointError: If a batch's loss is not finite.
    """
    from torchmetrics import Metric  # slow to import, and loaded by what makes a metric anyway

    model.eval()
    metric = stage.metric().to(model.task_head.weight.device)
    for part in metric.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = lambda: False  # every process is given the whole batches
    total, count, known, module = 0.0, 0, False, StageModule(model, source.forward)
    for step_input in source.load(plan):
        batch = step_input.batch
        loss, output = compute_loss(module, stage, step_input, precision)
        total, count = total + finite_loss(loss, stage, batch) * len(batch.concepts), count + len(batch.concepts)
        known = known or stage.any_label_known(batch)
        metric.update(*stage.metric_inputs(output, batch))
    if not count:
        raise no_batches("val_batches")
    score = float(metric.compute())
    # Losses are 0 where no label is known; that tells nothing about the model.
    return total / count if known or total else math.nan, score if metric.higher_is_better else -score


def no_batches(name: str) -> ValueError:
    """The error for data without batches."""
    return ValueError(
        f"there are no batches in `{name}`; is the data set smaller than one batch of a `drop_last` loader, or an "
        "iterator used up?"
    )


class _ConceptVectors(NamedTuple):
    vectors: Tensor
    """(B, K, D), projected; zeros where the concept mask is false."""


@torch.no_grad()
def collect_vectors(
    model: ConceptModel, loader: BatchLoader, source: Source, *, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Projected vectors (N, D) of all present concepts in the training data, and the index (N,) of their concepts.

    Args:
        model: On its device.
        loader: The training data.
        source: Inputs of a stage whose forward pass is `PROTOTYPE_FORWARD`.
        precision: Of the forward pass.

    Raises:
        ValueError: If there are no batches.
    """

    def embed(model: ConceptModel, vectors: Tensor, concept_mask: Tensor) -> _ConceptVectors:
        embedded = embed_vectors(model, vectors, concept_mask)
        whole = embedded.new_zeros(*concept_mask.shape, embedded.shape[-1])
        return _ConceptVectors(whole.index_put((concept_mask,), embedded))

    model.eval()
    learning_half_alone = source.forward is not PROTOTYPE_FORWARD
    forward = embed if learning_half_alone else dataclasses.replace(PROTOTYPE_FORWARD, learning_half=embed)
    vectors, concepts = [], []
    for step_input in source.load(plan_without_drawing(loader)):
        present = step_input.batch.concepts > 0.5
        output = compute_output(functools.partial(forward, model), step_input, precision)
        vectors.append(output.vectors[present].float().cpu())
        concepts.append(present.nonzero()[:, 1].cpu())
    if not vectors:
        raise no_batches("train_batches")
    return torch.cat(vectors), torch.cat(concepts)


@torch.no_grad()
def collect_typical(source: Source, plan: EpochPlan) -> TypicalEvidence:
    """What is typical of each concept in the evidence that a task stage's source gives.

    Args:
        source: Inputs of a stage whose forward pass is `TASK_FORWARD`.
        plan: Of all training data.

    Raises:
        ValueError: If there are no batches.
    """
    rows = [(one.inputs[0].float().cpu(), one.batch.concepts.cpu()) for one in source.load(plan)]
    if not rows:
        raise no_batches("train_batches")
    return typical_evidence_of(*map(torch.cat, zip(*rows, strict=True)))


def plan_without_drawing(loader: BatchLoader) -> EpochPlan:
    """A plan of the training data that uses up no random number: the first epoch's plan is yet to be drawn."""
    drawn = loader.random_state()
    with torch.random.fork_rng(devices=[]):
        plan = loader.draw(seed=0)
    loader.set_random_state(drawn)
    return plan
