"""Whether a model's tasks rest on what its concepts say, or on what their scores carry besides.

The first thing to look at is the hard-soft gap: what the tasks lose as each score is replaced by what is typical of the
answer that it stands for. A large gap means that the tasks read more from scores than yes and no. Some of that is
right, since a score near a threshold is honest about its doubt; `measure_leakage` tells more.
"""

import math
from typing import NamedTuple

import torch

from conceptcam.analysis.answers import Answers, collect_answers
from conceptcam.analysis.baselines import Baselines
from conceptcam.analysis.intervention_curves import answered_evidence, task_figures
from conceptcam.data.batch import Batches
from conceptcam.metrics.classification import task_scores
from conceptcam.metrics.leakage import LeakageMetrics, LeakageScores, completeness
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.predictions import ranking_logits
from conceptcam.model.taught import check_taught


class HardSoftFigures(NamedTuple):
    """Macro AUROC of the tasks, from three kinds of evidence; NaN if no task has both sides."""

    soft: float
    """As the model has it."""
    hard: float
    """Each concept as it is called, present or absent, by the thresholds in the record."""
    true: float
    """Each concept as it truly is; unknown ones as the model has them."""

    @property
    def gap(self) -> float:
        """Soft less hard: above 0, the tasks read more from scores than yes and no (Havasi et al., 2022)."""
        return self.soft - self.hard


def hard_soft_figures(model: ConceptModel, batches: Batches) -> HardSoftFigures:
    """What the tasks lose if scores can say only yes and no, and what they gain if these are right.

    Args:
        model: A model that was taught a task, whose record has typical scores; see `fit_thresholds`.
        batches: As `evaluate` takes.

    Raises:
        ValueError: If the model was never taught its tasks, the record lacks typical scores, or there are no batches.
    """
    return figures_of_answers(model, _collect(model, batches))


@torch.no_grad()
def figures_of_answers(model: ConceptModel, answers: Answers) -> HardSoftFigures:
    """`hard_soft_figures` of what `collect_answers(..., evidence=True)` gave.

    Raises:
        ValueError: As `hard_soft_figures`.
    """
    chosen = [model.record.thresholds.get(name, math.nan) for name in model.config.concepts]
    thresholds = torch.tensor(chosen).nan_to_num(0.5)
    called = (answers.concept_logits.sigmoid() > thresholds).to(answers.evidence)
    hard, true = (answered_evidence(model, answers.evidence, told) for told in (called, answers.concepts))
    kinds = (answers.evidence, hard, true)
    return HardSoftFigures(*(float(task_figures(model, evidence, answers.targets)[0]) for evidence in kinds))


def task_completeness(model: ConceptModel, batches: Batches, baselines: Baselines) -> dict[str, float]:
    """How much of what a black box gains over chance, in AUROC, comes through the concepts (Yeh et al., 2020), by task.

    Args:
        model: A model that was taught a task.
        batches: As `evaluate` takes, not the data that the baselines were fitted on.
        baselines: Simpler models of the same backbone's features, one of which is the black box; see `fit_baselines`.

    Returns:
        Task -> 1 if nothing is lost, 0 if the concepts tell nothing; NaN where the black box is no better than chance.

    Raises:
        ValueError: If the model was never taught its tasks, or there are no batches.
    """
    answers = _collect(model, batches)
    kind = model.config.task_kind
    through = task_scores(ranking_logits(answers.task_logits, model.config, model.record), answers.targets, kind).auroc
    full = task_scores(baselines.black_box(answers.features), answers.targets, kind).auroc
    return dict(zip(model.config.tasks, completeness(through, full).tolist(), strict=True))


def measure_leakage(model: ConceptModel, batches: Batches, *, most_rows: int = 1000) -> LeakageScores:
    """What the evidence of each concept carries beyond the concept, for tasks and for other concepts.

    Args:
        model: A model that was taught a task.
        batches: As `evaluate` takes.
        most_rows: As in `LeakageMetrics`.

    Raises:
        ValueError: If the model was never taught its tasks, or there are no batches.
    """
    return leakage_of_answers(_collect(model, batches), most_rows=most_rows)


def leakage_of_answers(answers: Answers, *, most_rows: int = 1000) -> LeakageScores:
    """`measure_leakage` of what `collect_answers(..., evidence=True)` gave."""
    _, concepts, each = answers.evidence.shape
    metric = LeakageMetrics(concepts, answers.targets.shape[1], per_concept=each, most_rows=most_rows)
    metric.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
    metric.update(answers.evidence, answers.concepts, answers.targets)
    return metric.compute()


def _collect(model: ConceptModel, batches: Batches) -> Answers:
    check_taught(model.config, model.record, task=next(iter(model.config.tasks), "any"))
    return collect_answers(model, batches, evidence=True)
