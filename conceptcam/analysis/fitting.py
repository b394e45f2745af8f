"""What a model's record learns after training: thresholds, calibration, and how training images look."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conceptcam.analysis.answers import collect_answers
from conceptcam.analysis.intervention import correction_doubts_of
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import Batches, as_batch
from conceptcam.metrics.calibration import Scaling, ScalingMethod, fit_scaling
from conceptcam.metrics.novelty import feature_distance, fit_feature_statistics
from conceptcam.metrics.thresholds import best_thresholds, thresholds_at, typical_probabilities
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import typical_evidence_of
from conceptcam.model.device import eval_mode
from conceptcam.model.novelty import pack_statistics, unlike_threshold, unpack_statistics
from conceptcam.model.taught import check_taught, tasks_taught


@torch.inference_mode()
def fit_thresholds(
    model: ConceptModel,
    batches: Batches,
    *,
    thresholds_source: str,
    sensitivity: float | None = None,
    specificity: float | None = None,
) -> tuple[str, ...]:
    """Choose on validation data from which probability a concept is called present, into the model's record.

    The threshold of each concept is that of the highest F1, or the one that reaches a target. The median probabilities
    of present and of absent concepts are recorded beside it and, if prototypes were taught, the median evidence of each
    prototype: what an `Intervention` takes for "present" and "absent". So call it after the last stage too. Evidence
    with which the task head was taught corrections stays as it is, because the head knows no other.

    Args:
        model: A model that was taught concepts.
        batches: Validation data, never the data that figures are reported on.
        thresholds_source: What to call that data in the record.
        sensitivity: As in `conceptcam.metrics.thresholds_at`; None takes the highest F1, unless `specificity` is given.
        specificity: The same.

    Returns:
        A sentence about the concepts of which corrections may change nothing or go the wrong way; see
        `conceptcam.analysis.doubts.correction_doubts`. Empty if there is none, or no task to correct.
    """
    check_taught(model.config, model.record)
    answers = collect_answers(model, batches, evidence=True)
    logits, labels = answers.concept_logits, answers.concepts
    present, absent = typical_probabilities(logits, labels)
    if sensitivity is None and specificity is None:
        thresholds = best_thresholds(logits, labels)
    else:
        thresholds = thresholds_at(logits, labels, sensitivity=sensitivity, specificity=specificity)

    def by_name(values: Tensor) -> dict[str, Any]:
        return dict(zip(model.config.concepts, values.tolist(), strict=True))

    evidence: dict[str, Any] = {}
    if not model.record.evidence_source:
        if model.config.bottleneck == "concepts":  # the typical probabilities are the evidence
            evidence = {"evidence_present": {}, "evidence_absent": {}}
        elif "prototypes" in model.record.stages:
            evidence = typical_evidence_of(answers.evidence, labels).as_fields(model.config.concepts)
    model.record = dataclasses.replace(
        model.record,
        thresholds=by_name(thresholds),
        typical_present=by_name(present),
        typical_absent=by_name(absent),
        **evidence,
        thresholds_source=thresholds_source,
    )
    return tuple(correction_doubts_of(model.config, model.record)) if model.config.tasks else ()


@torch.inference_mode()
def fit_calibration(
    model: ConceptModel, batches: Batches, *, calibration_source: str, method: ScalingMethod = "platt"
) -> None:
    """Fit on validation data what makes probabilities of concepts and tasks come true, into the model's record.

    Class weights of training make probabilities too high, so that rare concepts are learned at all. `predict`,
    `explain` and the calibration figures of `evaluate` then report corrected probabilities. Logits and contributions
    stay.

    Args:
        model: A model that was taught concepts.
        batches: Validation data, never the data that figures are reported on.
        calibration_source: What to call that data in the record.
        method: As in `conceptcam.metrics.fit_scaling`. Tasks that exclude each other have one temperature.

    Raises:
        ValueError: If the model was never taught concepts, or there are no batches.
    """
    check_taught(model.config, model.record)
    config, with_tasks = model.config, tasks_taught(model.config, model.record)
    rows: list[tuple[Tensor, ...]] = []
    with eval_mode(model) as where, torch.random.fork_rng(devices=[]):  # a `DataLoader` draws a number
        for given in batches:
            batch = as_batch(given).to(where)
            part = model.forward_concepts(batch.images)
            logits = model.forward_task(part).task_logits if with_tasks else batch.targets[:, :0]
            rows.append(tuple(one.cpu() for one in (part.concept_logits, batch.concepts, logits, batch.targets)))
    if not rows:
        raise ValueError("there are no batches to fit a calibration on")
    of_concepts, of_tasks = calibration_fields(config, *map(torch.cat, zip(*rows, strict=True)), method=method)
    model.record = dataclasses.replace(
        model.record, calibration=of_concepts, task_calibration=of_tasks, calibration_source=calibration_source
    )


def calibration_fields(
    config: ConceptConfig,
    concept_logits: Tensor,
    concepts: Tensor,
    task_logits: Tensor,
    targets: Tensor,
    *,
    method: ScalingMethod = "platt",
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """The fields `calibration` and `task_calibration` of a record, fitted on logits and labels (N, K) and (N, T).

    Without task logits or targets, T = 0, tasks are not calibrated.
    """
    tasks = {}
    if task_logits.shape[1] and targets.shape[1]:
        tasks = _pairs(config.tasks, fit_scaling(task_logits, targets, method=method, kind=config.task_kind))
    return _pairs(config.concepts, fit_scaling(concept_logits, concepts, method=method)), tasks


@torch.inference_mode()
def fit_novelty(model: ConceptModel, train: Batches, val: Batches, *, images: int = 2000) -> None:
    """Keep in the model's record what it takes to say that an image is unlike the training images.

    `explain`, `predict` and `evaluate` then give a number for each image, and say so where it is above 1: the distance
    of the pooled features from those of training images (see `conceptcam.metrics.novelty`), in units of the distance
    that 99.9 % of the validation images stay below, or all of them if there are fewer than 1,000.

    Args:
        model: A model whose backbone stays as it is from now on.
        train: Training data as they are, not augmented; better in random order.
        val: Validation data.
        images: How many training images to look at, at most.

    Raises:
        ValueError: If there are fewer than 8 training images, or no validation images.
    """
    features = [_pooled_features(model, train, images), _pooled_features(model, val, None)]
    if not len(features[1]):
        raise ValueError("there are no validation batches to choose a distance on")
    packed = pack_statistics(fit_feature_statistics(features[0]))
    distances = feature_distance(features[1], unpack_statistics(packed, features[1].shape[1]))
    unlike_from, source = unlike_threshold(distances)
    model.record = dataclasses.replace(
        model.record, feature_statistics=packed, unlike_from=unlike_from, unlike_source=source
    )


def _pooled_features(model: ConceptModel, batches: Batches, most: int | None) -> Tensor:
    """(N, C) features of images, averaged over places; of as many batches as hold enough images."""
    rows: list[Tensor] = [torch.empty(0, model.backbone.out_channels)]
    with eval_mode(model) as where, torch.random.fork_rng(devices=[]):
        for given in batches:
            if most is not None and sum(map(len, rows)) >= most:
                break
            rows.append(model.backbone(as_batch(given).to(where).images).float().mean(dim=(-2, -1)).cpu())
    return torch.cat(rows)[:most]


def _pairs(names: Sequence[str], scaling: Scaling) -> dict[str, tuple[float, ...]]:
    """Name -> slope and intercept, of those that could be fitted."""
    rows = torch.stack(tuple(scaling), dim=1).tolist()
    return {name: tuple(row) for name, row in zip(names, rows, strict=True) if not math.isnan(row[0])}
