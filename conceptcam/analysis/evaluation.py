"""Whether to believe a model: every metric, measured beside its controls."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from conceptcam._checks import check_known, check_names, check_not_str
from conceptcam.analysis.answers import Answers, EvaluatedImages, collect_answers, label_check
from conceptcam.analysis.baselines import Baselines
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.slow_measures import measure_slow
from conceptcam.data.batch import Batches, ConceptBatch
from conceptcam.metrics.border import BorderMetrics, BorderScores
from conceptcam.metrics.calibration import calibration_scores
from conceptcam.metrics.classification import (
    balanced_accuracy,
    confusion_matrix,
    per_label_metrics,
    task_scores,
    top_accuracy,
    well_supported,
)
from conceptcam.metrics.intervals import Interval, label_intervals
from conceptcam.metrics.localization import LocalizationMetrics, LocalizationScores
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.novelty import can_tell
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.predictions import concept_probabilities, ranking_logits, task_probabilities
from conceptcam.model.taught import check_taught, tasks_taught


@torch.inference_mode()
def evaluate(
    model: ConceptModel,
    batches: Batches,
    *,
    sided_concepts: Sequence[str] = (),
    baselines: Baselines | None = None,
    device: torch.device | str | None = None,
    patients: Sequence[str] | None = None,
    draws: int = 1000,
    everything: bool = False,
    echo: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measure a model on batches, with every control, in one pass over the images, or three to measure everything.

    The model is left as it is, its mode included.

    Args:
        model: A model that was taught concepts; tasks are measured if it was taught them.
        batches: As `Trainer.fit` takes; not shuffled or augmented.
        sided_concepts: Names of concepts that have one place by nature.
        baselines: Simpler models of the model's training data, to be measured on the same images.
        device: Where to run; None stays where the model is.
        patients: The patient of each image, in order, whose images intervals draw together; an empty one is a patient
            of its own. None draws images.
        draws: How often images are drawn anew for intervals; 0 leaves intervals out.
        everything: Whether to measure also what takes much longer, as `evaluation.slow`: whether scores rest on what
            maps show, whether concepts leak, what corrections do, and whether prototypes mean one thing. To have the
            usual figures first, leave it out and call `measure_slow` afterwards.
        echo: As in `measure_slow`, if everything is measured.

    Raises:
        ValueError: If the model was never taught concepts, has no concept of a name given, there are no batches, a
            batch has labels of another number than the model has concepts or tasks, or everything is to be measured on
            an iterator, which gives its batches once.
    """
    check_taught(model.config, model.record)
    check_not_str("sided_concepts", sided_concepts)
    for name in sided_concepts:
        check_known("concept", name, model.config.concepts)
    check_names("sided_concepts", tuple(sided_concepts), at_least=0)
    localization, border = LocalizationMetrics(len(model.config.concepts)), BorderMetrics(len(model.config.concepts))
    for metric in (localization, border):
        metric.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
    if everything and isinstance(batches, Iterator):
        raise ValueError("to measure everything takes several passes; give a list or a `DataLoader`, not an iterator")

    def point(batch: ConceptBatch, output: ConceptOutput) -> None:
        drawn = None if batch.boxes is None else batch.boxes.to("cpu")
        localization.update(output.concept_maps.cpu(), drawn, model.config.image_size)
        border.update(output.concept_maps.cpu(), batch.concepts.cpu(), drawn)

    answers = collect_answers(model, batches, device=device, observers=[label_check(model.config), point])
    found = _score(model, answers, localization.compute(), border.compute(), tuple(sided_concepts))
    if draws:
        found = dataclasses.replace(found, intervals=_intervals(found, model, answers, patients, draws))
    if baselines is not None:
        scores = baselines.score(answers.features, answers.concepts, found.per_image.targets)
        found = dataclasses.replace(found, baselines=scores, baseline_images=baselines.images)
    if not everything:
        return found
    return dataclasses.replace(found, slow=measure_slow(model, batches, answers.concepts, device=device, echo=echo))


def _score(
    model: ConceptModel,
    answers: Answers,
    place: LocalizationScores,
    border: BorderScores,
    sided_concepts: tuple[str, ...],
) -> Evaluation:
    """The figures of what a model said, without intervals and baselines."""
    config = model.config
    tasks = config.tasks if tasks_taught(config, model.record) and answers.targets.shape[1] else ()
    task_logits = ranking_logits(answers.task_logits, config, model.record)[:, : len(tasks)]
    targets, exclusive = answers.targets[:, : len(tasks)], bool(tasks) and config.task_kind == "multiclass"
    concepts = (*sided_concepts, *(name for name in config.concepts if name not in sided_concepts))
    order = [config.concepts.index(name) for name in concepts]
    logits, labels = answers.concept_logits[:, order], answers.concepts[:, order]
    said = concept_probabilities(answers.concept_logits.double(), config, model.record)
    said_of_tasks = task_probabilities(answers.task_logits.double(), config, model.record)[:, : len(tasks)]
    confusion = confusion_matrix(task_logits, targets) if exclusive else torch.zeros(0, 0, dtype=torch.float64)
    thresholds = torch.tensor([model.record.thresholds.get(name, math.nan) for name in concepts], dtype=torch.float64)
    return Evaluation(
        images=len(logits),
        concepts=concepts,
        sided_concepts=sided_concepts,
        concept_scores=per_label_metrics(logits, labels),
        chosen_f1=per_label_metrics(logits, labels, threshold=thresholds).f1,
        mean_probability=logits.double().sigmoid().masked_fill(labels.isnan(), torch.nan).nanmean(dim=0),
        calibration=calibration_scores(said[:, order], labels),
        localization=LocalizationScores(*(part[order] for part in place)),
        border=BorderScores(*(part[order] for part in border)),
        tasks=tasks,
        task_scores=task_scores(task_logits, targets, config.task_kind),
        task_calibration=calibration_scores(said_of_tasks, targets),
        task_accuracy=float(top_accuracy(task_logits, targets)) if exclusive else math.nan,
        unlike=float((answers.unlikeness > 1).double().mean()) if can_tell(model.record) else math.nan,
        task_balanced_accuracy=float(balanced_accuracy(confusion)),
        confusion=confusion,
        per_image=EvaluatedImages(
            answers.names or tuple(map(str, range(len(logits)))),
            config.concepts, said, answers.concepts, tasks, said_of_tasks, targets, answers.unlikeness,
        ),
    )  # fmt: skip


def _intervals(
    found: Evaluation, model: ConceptModel, answers: Answers, patients: Sequence[str] | None, draws: int
) -> dict[str, Interval]:
    """Intervals of the headline figures that can be had of the concepts and, if there are any, the tasks."""
    groups = None if patients is None else [name or number for number, name in enumerate(patients)]
    order = [model.config.concepts.index(name) for name in found.concepts]
    logits, labels = answers.concept_logits[:, order], answers.concepts[:, order]
    task_logits = ranking_logits(answers.task_logits, model.config, model.record)[:, : len(found.tasks)]
    targets = answers.targets[:, : len(found.tasks)]
    if len(found.confusion):  # as in `task_scores`: classes are ranked against the rest, and a row is known as a whole
        others = torch.eye(task_logits.shape[1], dtype=torch.bool)
        rest = task_logits[:, None, :].double().masked_fill(others, -torch.inf).logsumexp(dim=-1)
        targets = targets.masked_fill(targets.isnan().any(dim=1, keepdim=True), torch.nan)
        task_logits = task_logits - rest
    intervals: dict[str, Interval] = {}
    for what, scores, true in (("concept", logits, labels), ("task", task_logits, targets)):
        if true.shape[1]:
            counted = well_supported(per_label_metrics(scores, true))
            of = label_intervals(scores[:, counted], true[:, counted], groups=groups, draws=draws)
            intervals |= {f"{what}_auroc": of.macro_auroc, f"{what}_ap": of.macro_average_precision}
    return intervals
