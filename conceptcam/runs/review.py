"""A trained model judged: beside simpler models, and with what a supervisor would doubt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam.analysis import doubts
from conceptcam.analysis.answers import Answers, collect_answers
from conceptcam.analysis.baselines import (
    LEAST_IMAGES,
    MOST_IMAGES,
    POOLED_FEATURES,
    Baselines,
    fit_baselines,
    spread_rows,
)
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.intervention import correction_doubts_of
from conceptcam.config import TaskKind
from conceptcam.data.batch import ConceptDataset
from conceptcam.data.splits import ConceptSubset
from conceptcam.losses.classification import class_balanced_loss
from conceptcam.metrics.classification import LabelScores, per_label_metrics, task_scores
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.model.predictions import ranking_logits, task_probabilities
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions, loader, loss_strategies
from conceptcam.runs.reports import measure
from conceptcam.training.history import read_history


class Review(NamedTuple):
    """How a trained model did."""

    evaluation: Evaluation
    """With baselines, if there are at least 30 training images."""
    warnings: tuple[str, ...]
    """A sentence for each doubt."""


def review(
    model: ConceptModel,
    train: ConceptDataset,
    val: ConceptDataset,
    test: ConceptDataset,
    run: RunFolder,
    options: RunOptions,
    *,
    sided_concepts: Sequence[str] = (),
) -> Review:
    """Measure a model beside baselines of its training images, and say what a supervisor would doubt.

    One pass over at most 2,000 training images, evenly spread, gives features for the baselines and figures to compare
    with. Writes `metrics.json`, `metrics.txt` and `baselines.safetensors`.

    Args:
        model: After its last stage.
        train: What it learned from.
        val: What chose its epochs and thresholds.
        test: What to measure it on; may be `val`.
        run: Where to write; its history is read.
        options: How the model was trained.
        sided_concepts: See `evaluate`.
    """
    part = ConceptSubset(train, spread_rows(len(train), MOST_IMAGES))
    part.augmentation = None
    training = collect_answers(model, loader(part, options), device=options.device)
    baselines = _fit_baselines(training, model.config.task_kind, run)
    evaluation = measure(model, test, run, options, sided_concepts=sided_concepts, baselines=baselines)
    found = [
        *_doubts_of_learning(model, training, evaluation, run, options),
        *_doubts_of_labels(model, train, val),
        *_doubts_beside_pooled_features(evaluation),
        *doubts.flat_concept_doubts(evaluation.per_image.concept_names, evaluation.per_image.concept_probabilities),
        *doubts.border_doubts(evaluation.concepts, evaluation.border),
        *(correction_doubts_of(model.config, model.record) if model.config.tasks else ()),
        *doubts.average_doubts("concept", evaluation.concepts, evaluation.concept_scores),
        *doubts.average_doubts("task", evaluation.tasks, evaluation.task_scores),
    ]
    return Review(evaluation, tuple(found))


def _fit_baselines(training: Answers, kind: TaskKind, run: RunFolder) -> Baselines | None:
    if len(training.features) < LEAST_IMAGES:
        return None
    baselines = fit_baselines(training.features, training.concepts, training.targets, kind=kind)
    baselines.save(run.baselines)
    return baselines


def _doubts_of_learning(
    model: ConceptModel, training: Answers, evaluation: Evaluation, run: RunFolder, options: RunOptions
) -> list[str]:
    """What figures of training, and of the measured images, make doubtful."""
    kind, strategies = model.config.task_kind, loss_strategies(options)
    losses: dict[str, list[float]] = {}
    for result in read_history(run.history):
        losses.setdefault(result.stage, []).append(result.train_loss)
    if "embedding" in losses:
        losses.pop("prototypes", None)  # begins where that ended
    found = doubts.stalled_stage_doubts(losses)
    stalled = {stage for stage, epochs in losses.items() if doubts.stalled_stage_doubts({stage: epochs})}
    order = [model.config.concepts.index(name) for name in evaluation.concepts]
    if "concepts" not in stalled:
        pair = _losses(training.concept_logits, training.concepts, "multilabel", strategies["concepts"])
        found += doubts.constant_answer_doubts("concepts", *pair)
    scores = LabelScores(*(part[order] for part in per_label_metrics(training.concept_logits, training.concepts)))
    found += doubts.overfitting_doubts("concepts", scores, evaluation.concept_scores)
    if not evaluation.tasks or not training.targets.shape[1]:
        return found
    if "task" not in stalled:
        pair = _losses(training.task_logits, training.targets, kind, strategies["tasks"])
        found += doubts.constant_answer_doubts("tasks", *pair)
    scores = task_scores(ranking_logits(training.task_logits, model.config, model.record), training.targets, kind)
    found += doubts.overfitting_doubts("tasks", scores, evaluation.task_scores)
    return found + _one_answer(model, training, evaluation)


def _one_answer(model: ConceptModel, training: Answers, evaluation: Evaluation) -> list[str]:
    kind = model.config.task_kind
    if kind == "multiclass":
        images = evaluation.confusion.sum()
        called, true = (evaluation.confusion.sum(dim=side) / images for side in (0, 1))
        return doubts.one_answer_doubts(evaluation.tasks, called, true, kind)
    unknown = training.targets.isnan()
    probabilities = task_probabilities(training.task_logits, model.config, model.record)
    called = (probabilities > 0.5).double().masked_fill(unknown, torch.nan).nanmean(dim=0)
    return doubts.one_answer_doubts(evaluation.tasks, called, training.targets.nanmean(dim=0), kind, "training")


def _doubts_beside_pooled_features(evaluation: Evaluation) -> list[str]:
    """Whether a plain model knows more from the same features."""
    if POOLED_FEATURES not in evaluation.baselines:
        return []
    pooled, own = evaluation.baselines[POOLED_FEATURES], evaluation.summary()
    pairs = (("concepts", own["concept_auroc"], pooled.concept_auroc), ("tasks", own["task_auroc"], pooled.task_auroc))
    return [doubt for pair in pairs for doubt in doubts.below_baseline_doubts(*pair)]


def _losses(logits: Tensor, labels: Tensor, kind: TaskKind, strategy: str) -> tuple[float, float]:
    """The loss of logits (N, L), and that of the best logits that are the same for all images."""
    loss = class_balanced_loss(strategy, labels, kind=kind)  # type: ignore[arg-type]
    nothing = logits.new_zeros(len(logits), 1, 1, dtype=torch.float64)
    if len(nothing) < 2:
        return float("nan"), float("nan")
    _, constant = LinearSolver(steps=50).solve(nothing, labels, loss)
    return loss(logits.double(), labels.double()).item(), loss(constant.expand(logits.shape), labels.double()).item()


def _doubts_of_labels(model: ConceptModel, train: ConceptDataset, val: ConceptDataset) -> list[str]:
    """What numbers of labels make doubtful."""
    config, found = model.config, list[str]()
    for part, data in (("training", train), ("validation", val)):
        found += doubts.one_sided_doubts("concept", config.concepts, data.concept_labels, part)
        if data.task_labels.shape[1] == len(config.tasks):
            found += doubts.one_sided_doubts("task", config.tasks, data.task_labels, part)
    if config.bottleneck == "prototypes":
        found += doubts.prototype_doubts(config.concepts, train.concept_labels, config.prototypes_per_concept)
    if not model.record.thresholds:
        return found
    few = doubts.choice_doubts(len(val))
    return found + (few or doubts.threshold_doubts(config.concepts, val.concept_labels))
