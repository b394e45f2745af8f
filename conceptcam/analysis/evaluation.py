"""Whether to believe a model: every metric beside its controls, as a table, a dict and a file."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conceptcam._checks import check_known, check_names, check_not_str
from conceptcam._files import nan_to_null
from conceptcam.data.batch import Batches, as_batch
from conceptcam.metrics.classification import (
    LabelScores,
    best_thresholds,
    macro_average,
    per_label_metrics,
    task_scores,
    top_accuracy,
    typical_probabilities,
)
from conceptcam.metrics.localization import LocalizationMetrics, LocalizationScores
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.taught import check_taught, tasks_taught


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How right a model is on some data.

    Attributes:
        images: How many images there were.
        concepts: Concept names, sided concepts first.
        sided_concepts: Concepts that have one place by nature, such as one side: a model whose boxes were mirrored
            or transposed on the way gives itself away on these.
        concept_scores: Scores of each concept, F1 at probability 0.5; each (K,).
        chosen_f1: (K,) F1 at the thresholds in the model's record; NaN where there is none.
        mean_probability: (K,) mean predicted probability over the images with a known label. Far above the
            share of positives, it shows that positives were weighted; far below, that weights are wrong.
        localization: Scores of each concept's map against its boxes; NaN for concepts without boxes.
        tasks: Task names; empty if no task was taught or labelled.
        task_scores: Scores of each task; each (T,).
        task_accuracy: Top-1 accuracy of a multi-class task, else NaN.
    """

    images: int
    concepts: tuple[str, ...]
    sided_concepts: tuple[str, ...]
    concept_scores: LabelScores
    chosen_f1: Tensor
    mean_probability: Tensor
    localization: LocalizationScores
    tasks: tuple[str, ...]
    task_scores: LabelScores
    task_accuracy: float

    def summary(self) -> dict[str, float]:
        """Headline figures: macro averages over what is defined, and their controls."""
        place = self.localization
        return {
            "images": self.images,
            "concept_auroc": _mean(self.concept_scores.auroc),
            "concept_ap": _mean(self.concept_scores.average_precision),
            "concept_f1": _mean(self.concept_scores.f1),
            "concept_f1_chosen": _mean(self.chosen_f1),
            "pointing": _mean(place.pointing),
            "pointing_random_map": _mean(place.random_pointing),
            "pointing_center_prior": _mean(place.center_pointing),
            "pointing_chance": _mean(place.chance),
            "mirror_gap": _mean(place.mirror_gap),
            "sided_pointing": _mean(place.pointing[: len(self.sided_concepts)]),
            "sided_mirror_gap": _mean(place.mirror_gap[: len(self.sided_concepts)]),
            "sided_transpose_gap": _mean(place.transpose_gap[: len(self.sided_concepts)]),
            "energy_in_box": _mean(place.energy),
            "box_area": _mean(place.chance),
            "iou": _mean(place.iou),
            **{f"pointing_{size}": _mean(place.pointing_by_size[:, i]) for i, size in enumerate(_SIZES)},
            "task_auroc": _mean(self.task_scores.auroc),
            "task_ap": _mean(self.task_scores.average_precision),
            "task_f1": _mean(self.task_scores.f1),
            "task_accuracy": self.task_accuracy,
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an undefined figure is None."""
        rows = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in self._concept_rows()}
        tasks = {name: dict(zip(_TASK_COLUMNS, row, strict=True)) for name, row in self._task_rows()}
        skipped = [
            name
            for name, value in zip(self.concepts, self.concept_scores.auroc.tolist(), strict=True)
            if math.isnan(value)
        ]
        return nan_to_null({"summary": self.summary(), "concepts": rows, "tasks": tasks, "without_auroc": skipped})

    def table(self) -> str:
        """The figures as text; `-` stands for an undefined one, `*` for a sided concept.

        `area` is the share of the image in boxes: what energy and IoU are for a map that is the same everywhere.
        """
        star = {name: f"{name} *" if name in self.sided_concepts else name for name in self.concepts}
        rows = [(star[name], row) for name, row in self._concept_rows()]
        text = [_table("concept", _COLUMNS, rows, mean="macro mean")]
        place = self.localization
        sizes = [
            (
                size,
                [
                    int(place.support_by_size[:, i].sum()),
                    _mean(place.pointing_by_size[:, i]),
                    _mean(place.random_by_size[:, i]),
                ],
            )
            for i, size in enumerate(_SIZES)
        ]
        text.append(_table("box size", ("boxes", "point", "random"), sizes))
        if self.tasks:
            text.append(_table("task", _TASK_COLUMNS, self._task_rows(), mean="macro mean"))
        return "\n\n".join(text) + "\n"

    def _concept_rows(self) -> list[tuple[str, list[float]]]:
        scores, place = self.concept_scores, self.localization
        columns = [
            scores.positives, scores.negatives, scores.auroc, scores.average_precision, scores.f1, self.chosen_f1,
            self.mean_probability, place.support, place.pointing, place.random_pointing, place.center_pointing,
            place.mirror_gap, place.transpose_gap, place.energy, place.iou, place.chance,
        ]  # fmt: skip
        return _rows(self.concepts, columns)

    def _task_rows(self) -> list[tuple[str, list[float]]]:
        scores = self.task_scores
        return _rows(
            self.tasks, [scores.positives, scores.negatives, scores.auroc, scores.average_precision, scores.f1]
        )


_SIZES = ("small", "medium", "large")
_COLUMNS = (
    "pos", "neg", "AUROC", "AP", "F1@.5", "F1", "mean p",
    "boxes", "point", "random", "centre", "mirror", "transp", "energy", "IoU", "area",
)  # fmt: skip
_TASK_COLUMNS = ("pos", "neg", "AUROC", "AP", "F1@.5")


@torch.inference_mode()
def evaluate(
    model: ConceptModel,
    batches: Batches,
    *,
    sided_concepts: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> Evaluation:
    """Measure a model on batches, with every control.

    The model is left as it is, its mode included.

    Args:
        model: A model that was taught concepts; tasks are measured if it was taught them.
        batches: As `Trainer.fit` takes; not shuffled or augmented.
        sided_concepts: Names of concepts that have one place by nature.
        device: Where to run; None stays where the model is.

    Raises:
        ValueError: If the model was never taught concepts, has no concept of a name given, or there are no batches.
    """
    check_taught(model.config, model.record)
    names = model.config.concepts
    check_not_str("sided_concepts", sided_concepts)
    for name in sided_concepts:
        check_known("concept", name, names)
    check_names("sided_concepts", tuple(sided_concepts), at_least=0)
    answers = _ask(model, batches, device)
    order = [names.index(name) for name in sided_concepts] + [
        k for k, name in enumerate(names) if name not in sided_concepts
    ]
    logits, labels = answers.concept_logits[:, order], answers.concepts[:, order]
    thresholds = torch.tensor([model.record.thresholds.get(names[k], math.nan) for k in order], dtype=torch.float64)
    known = ~labels.isnan()
    if model.config.tasks and answers.targets.shape[1] not in (0, len(model.config.tasks)):
        raise ValueError(
            f"the data has {answers.targets.shape[1]} task labels, the model {len(model.config.tasks)} tasks"
        )
    with_tasks = tasks_taught(model.config, model.record) and answers.targets.shape[1] > 0
    kind = model.config.task_kind
    task_logits = answers.task_logits if with_tasks else answers.task_logits[:, :0]
    targets = answers.targets if with_tasks else answers.targets[:, :0]
    return Evaluation(
        images=len(logits),
        concepts=tuple(names[k] for k in order),
        sided_concepts=tuple(sided_concepts),
        concept_scores=per_label_metrics(logits, labels),
        chosen_f1=per_label_metrics(logits, labels, threshold=thresholds).f1,
        mean_probability=torch.where(known, logits.double().sigmoid(), torch.nan).nanmean(dim=0),
        localization=type(answers.localization)(*(part[order] for part in answers.localization)),
        tasks=model.config.tasks if with_tasks else (),
        task_scores=task_scores(task_logits, targets, kind),
        task_accuracy=float(top_accuracy(task_logits, targets)) if with_tasks and kind == "multiclass" else math.nan,
    )


@torch.inference_mode()
def fit_thresholds(model: ConceptModel, batches: Batches, *, thresholds_source: str) -> None:
    """Choose on validation data from which probability a concept is called present, into the model's record.

    The threshold of each concept is that of the highest F1. The median probabilities of present and of absent
    concepts are recorded beside it.

    Args:
        model: A model that was taught concepts.
        batches: Validation data, never the data that figures are reported on.
        thresholds_source: What to call that data in the record.
    """
    check_taught(model.config, model.record)
    answers = _ask(model, batches, None)
    logits, labels = answers.concept_logits, answers.concepts
    present, absent = typical_probabilities(logits, labels)

    def by_name(values: Tensor) -> dict[str, float]:
        return dict(zip(model.config.concepts, values.tolist(), strict=True))

    model.record = dataclasses.replace(
        model.record,
        thresholds=by_name(best_thresholds(logits, labels)),
        typical_present=by_name(present),
        typical_absent=by_name(absent),
        thresholds_source=thresholds_source,
    )


@dataclass(frozen=True)
class _Answers:
    """What a model said of all images, and what is true."""

    concept_logits: Tensor
    concepts: Tensor
    task_logits: Tensor
    targets: Tensor
    localization: LocalizationScores


def _ask(model: ConceptModel, batches: Batches, device: torch.device | str | None) -> _Answers:
    localization = LocalizationMetrics(len(model.config.concepts))
    localization.distributed_available_fn = lambda: False  # of several processes, each that asks has all images
    rows: list[tuple[Tensor, ...]] = []
    # Iterating a `DataLoader` draws a number from the global generator, shuffled or not.
    with eval_mode(model, device) as where, torch.random.fork_rng(devices=[]):
        for given in batches:
            batch = as_batch(given).to(where)
            output = model(batch.images)
            drawn = None if batch.boxes is None else batch.boxes.to("cpu")
            localization.update(output.concept_maps.cpu(), drawn, model.config.image_size)
            said = (output.concept_logits, batch.concepts, output.task_logits, batch.targets)
            rows.append(tuple(part.cpu() for part in said))
    if not rows:
        raise ValueError("there are no batches to evaluate on")
    concept_logits, concepts, task_logits, targets = (torch.cat(part) for part in zip(*rows, strict=True))
    return _Answers(concept_logits, concepts, task_logits, targets, localization.compute())


def _mean(values: Tensor) -> float:
    return float(macro_average(values)) if len(values) else math.nan


def _rows(names: Sequence[str], columns: Sequence[Tensor]) -> list[tuple[str, list[float]]]:
    return [(name, [column[i].item() for column in columns]) for i, name in enumerate(names)]


def _table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], mean: str = "") -> str:
    if mean:
        means = [
            _mean(torch.tensor(column, dtype=torch.float64)) for column in zip(*(row for _, row in rows), strict=True)
        ]
        rows = [
            *rows,
            (
                mean,
                [value if column not in _COUNTS else math.nan for column, value in zip(columns, means, strict=True)],
            ),
        ]
    width = max(len(name) for name, _ in [(title, ()), *rows])
    lines = [f"{title:<{width}}" + "".join(f"{column:>8}" for column in columns)]
    lines += [
        f"{name:<{width}}"
        + "".join(f"{_number(value, count=column in _COUNTS):>8}" for column, value in zip(columns, row, strict=True))
        for name, row in rows
    ]
    return "\n".join(lines)


_COUNTS = ("pos", "neg", "boxes")


def _number(value: float, *, count: bool) -> str:
    if math.isnan(value):
        return "-"
    # Soft labels are counted in part, and counts of them have a fraction.
    return f"{value:.1f}".removesuffix(".0") if count else f"{value:.3f}"
