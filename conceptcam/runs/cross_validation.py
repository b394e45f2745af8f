"""Cross-validation: how right a model is on images that it has not seen, where there are too few to set some aside."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conceptcam._display.text import text_table
from conceptcam._files import nan_to_null, write_json, write_text
from conceptcam.analysis import doubts
from conceptcam.analysis.baselines import POOLED_FEATURES, BaselineScores, comparison_lines
from conceptcam.analysis.fitting import calibration_fields
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.splits import ConceptSubset, load_split, make_folds, save_split, split_by_patient
from conceptcam.metrics.border import BorderScores
from conceptcam.metrics.classification import (
    LabelScores,
    balanced_accuracy,
    confusion_matrix,
    macro_average,
    per_label_metrics,
    task_scores,
    top_accuracy,
    well_supported,
)
from conceptcam.metrics.thresholds import best_thresholds, typical_probabilities
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.device import eval_mode
from conceptcam.model.predictions import Predictions, task_probabilities
from conceptcam.runs.folder import RunFolder
from conceptcam.runs.options import RunOptions, loader, make_plan
from conceptcam.runs.run import Echo, train_run

_UNKNOWN = {"mean": math.nan}
_INNER = {"train": 0.85, "val": 0.15}


class OutOfFold(NamedTuple):
    """What models said of images that they had not learned from, all folds together, and what is true."""

    concept_logits: Tensor
    """(N, K)."""
    concepts: Tensor
    """(N, K) labels, NaN where unknown."""
    task_logits: Tensor
    """(N, T)."""
    targets: Tensor
    """(N, T) labels, NaN where unknown."""
    fold: Tensor
    """(N,) fold of each image: the model that speaks of it learned from the others."""


class CrossValidation(NamedTuple):
    """What a cross-validation gives."""

    model: ConceptModel
    """Trained on all images, in eval mode; its record has the out-of-fold figures and thresholds."""
    predictions: Predictions
    """Of each image, by the model of the fold in which it was held out."""
    answers: OutOfFold
    """The same as logits, with the labels."""
    figures: dict[str, dict[str, float]]
    """Headline figure -> `pooled` over all images, and `mean` and `sd` over folds."""
    baselines: dict[str, BaselineScores]
    """Simpler models of each fold's training images -> mean over folds; empty where there were too few images."""
    warnings: tuple[str, ...] = ()
    """What a supervisor would doubt of the pooled predictions, a sentence each; also in the final model's `run.json`.
    Each fold's own are in its `run.json`."""


def cross_validate(
    config: ConceptConfig,
    dataset: ConceptDataset,
    folder: str | Path,
    options: RunOptions,
    *,
    folds: int,
    training_data: str,
    data: Mapping[str, Any] | None = None,
    augmentation: Callable[[ConceptItem], ConceptItem] | None = None,
    final: bool = True,
    echo: Echo = lambda line: None,
) -> CrossValidation:
    """Train a model per fold on the other folds, pool the predictions of held-out images, then train one on all images.

    Patients stay in one fold. A stage that learns in steps chooses its epoch on 15 % of its training images, which it
    does not learn from, in the final model too; a fold is never seen before it is predicted. The final model's
    thresholds and calibration are those that fit the out-of-fold predictions; no figure is of images that either was
    fitted to. Where no images are set aside, the model of a fold has neither.
    Writes `split.csv`, a run per fold in `fold-1`, ..., the final one in `final`, `predictions.csv`, `metrics.json`
    and `metrics.txt`. With `options.resume`, finished folds are read and the one that was cut off goes on.

    Args:
        config: What the model is; see `train_run`.
        dataset: All images.
        folder: Where to write.
        options: How to train.
        folds: How many, at least 2.
        training_data: What to call the data in the model's record.
        data: Where the data came from and how they were read; see `train_run`.
        augmentation: See `train_run`.
        final: Whether to train the model on all images; without it, the model is that of the last fold.
        echo: Is given lines for the reader.

    Raises:
        ValueError: If an option does not fit the data, there are fewer patients than folds, or a cross-validation to
            resume was begun with other folds.
        FileExistsError: If the folder holds one and `options.resume` is off.
    """
    folder = Path(folder)
    fold = _folds(dataset, folder / "split.csv", folds, options)
    training = _FoldTraining(config, dataset, options, training_data, data, augmentation, echo)
    answers, model = training.answer_unseen(fold, folder)
    figures = _figures(answers, model.config)
    if final:
        aside = ", of which 15 % are set aside to choose epochs by" if training.choose_epochs else ""
        echo(f"Training on all {len(dataset)} images{aside} ...")
        model = training.train(torch.arange(len(dataset)), folder / "final")
        _record(model, answers, figures, folds)
    predictions = Predictions(
        tuple(map(str, dataset.names)), model.config.concepts, model.config.tasks,
        answers.concept_logits.sigmoid(), task_probabilities(answers.task_logits, model.config),
    )  # fmt: skip
    measured = [json.loads(RunFolder(one).metrics.read_text(encoding="utf-8")) for one in _fold_folders(folder, folds)]
    baselines = _mean_baselines(measured)
    warnings = _doubts(answers, model.config, figures, baselines, measured)
    result = CrossValidation(model, predictions, answers, figures, baselines, warnings)
    _write(folder, result, final=final)
    return result


@dataclass(frozen=True)
class _FoldTraining:
    """How every model of a cross-validation is trained: alike, each from images of its own."""

    config: ConceptConfig
    dataset: ConceptDataset
    options: RunOptions
    training_data: str
    data: Mapping[str, Any] | None
    augmentation: Callable[[ConceptItem], ConceptItem] | None
    echo: Echo

    @property
    def choose_epochs(self) -> bool:
        """Whether some of a model's images are set aside, because a stage learns in steps and chooses its epoch."""
        stages = make_plan(self.options, self.config, self.dataset).stages
        return any(stage.solver is None for stage in stages)

    def answer_unseen(self, fold: Tensor, folder: Path) -> tuple[OutOfFold, ConceptModel]:
        """Train a model per fold on the images of the others; gives what each says of its own fold, and the last one.

        Args:
            fold: (N,) fold of each image.
            folder: Gets a run per fold.
        """
        said: list[tuple[Tensor, Tensor, Tensor]] = []
        for number in range(count := int(fold.max()) + 1):
            held_out = (fold == number).nonzero()[:, 0]
            self.echo(f"Fold {number + 1} of {count}: {len(held_out)} images are held out ...")
            test = ConceptSubset(self.dataset, held_out)
            model = self.train((fold != number).nonzero()[:, 0], folder / f"fold-{number + 1}", test)
            said.append((held_out, *_ask(model, test, self.options)))
        rows, concept_logits, task_logits = (torch.cat(parts) for parts in zip(*said, strict=True))
        order, labels = torch.argsort(rows), (self.dataset.concept_labels, self.dataset.task_labels)
        return OutOfFold(concept_logits[order], labels[0], task_logits[order], labels[1], fold), model

    def train(self, rows: Tensor, place: Path, test: ConceptDataset | None = None) -> ConceptModel:
        """A model of some images: a run of its own, measured on `test`, or where there is none on what is set aside."""
        learned, val = ConceptSubset(self.dataset, rows), test
        if self.choose_epochs or test is None:
            labels = _all_labels(self.dataset)[rows]
            part = split_by_patient(labels, learned.patients, fractions=_INNER, seed=self.options.seed)
            inner = {name: rows[[one == name for one in part]] for name in _INNER}
            val = ConceptSubset(self.dataset, inner["val"])
            learned = ConceptSubset(self.dataset, inner["train"]) if self.choose_epochs else learned
        assert val is not None
        return train_run(
            self.config, learned, val, place, self.options, training_data=self.training_data, data=self.data,
            drawn=(), augmentation=self.augmentation, test=test, fitted=val is not test, echo=self.echo,
            measured_on=f"{len(test or val)} images that were held out",
        ).model  # fmt: skip


def _all_labels(dataset: ConceptDataset) -> Tensor:
    """(N, K + T) labels of concepts and tasks, by which images are divided evenly."""
    return torch.cat([dataset.concept_labels, dataset.task_labels], dim=1)


def _folds(dataset: ConceptDataset, path: Path, count: int, options: RunOptions) -> Tensor:
    """(N,) fold of each image: those of the cross-validation to resume, or new ones, which are written."""
    names = list(map(str, dataset.names))
    if path.exists():
        if not options.resume:
            raise FileExistsError(
                f"{path.parent} holds a cross-validation; resume it with `resume=True` (--resume), or choose another "
                "folder"
            )
        fold = torch.tensor([int(part) - 1 for part in load_split(path, names)])
        if int(fold.max()) + 1 != count:
            raise ValueError(f"{path} divides the images into {int(fold.max()) + 1} folds, not {count}")
        return fold
    fold = make_folds(_all_labels(dataset), count, dataset.patients, seed=options.seed)
    save_split(path, names, fold + 1)
    return fold


def _ask(model: ConceptModel, dataset: ConceptDataset, options: RunOptions) -> tuple[Tensor, Tensor]:
    """Concept logits (n, K) and task logits (n, T) of all images."""
    dataset.preprocess = model.preprocess
    with eval_mode(model, options.device) as where, torch.inference_mode(), torch.random.fork_rng(devices=[]):
        outputs = [model(batch.images.to(where)) for batch in loader(dataset, options)]
    return (
        torch.cat([output.concept_logits.cpu() for output in outputs]).clone(),
        torch.cat([output.task_logits.cpu() for output in outputs]).clone(),
    )


def _figures(answers: OutOfFold, config: ConceptConfig) -> dict[str, dict[str, float]]:
    pooled = headline(answers, config)
    own = [
        headline(OutOfFold(*(part[answers.fold == number] for part in answers)), config)
        for number in answers.fold.unique()
    ]
    figures = {}
    for name, value in pooled.items():
        values = torch.tensor([one[name] for one in own]).double()
        values = values[~values.isnan()]
        spread = float(values.std()) if len(values) > 1 else math.nan
        figures[name] = {"pooled": value, "mean": float(values.mean()), "sd": spread}
    return figures


def _fold_folders(folder: Path, folds: int) -> list[Path]:
    return [folder / f"fold-{number + 1}" for number in range(folds)]


def _mean_baselines(measured: Sequence[Mapping[str, Any]]) -> dict[str, BaselineScores]:
    """Figures of each baseline, as the folds' own metrics have them, and their mean over folds."""
    found = [one.get("baselines") or {} for one in measured]
    names = [name for name in found[0] if all(name in one for one in found)]

    def mean(name: str, field: str) -> float:
        values = [math.nan if one[name][field] is None else one[name][field] for one in found]
        return float(torch.tensor(values, dtype=torch.float64).nanmean())

    return {name: BaselineScores(*(mean(name, field) for field in BaselineScores._fields)) for name in names}


def _doubts(
    answers: OutOfFold,
    config: ConceptConfig,
    figures: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, BaselineScores],
    measured: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    """What a supervisor would doubt of the pooled predictions; `measured` are the metrics of the folds."""
    found = []
    for kind, names, labels, scores in _parts(answers, config):
        found += doubts.one_sided_doubts(kind, names, labels, "measured")
        found += doubts.average_doubts(kind, names, scores)
    if config.bottleneck == "prototypes":
        found += doubts.prototype_doubts(config.concepts, answers.concepts, config.prototypes_per_concept)
    if config.tasks and config.task_kind == "multiclass":
        confusion = confusion_matrix(answers.task_logits, answers.targets)
        called, true = (confusion.sum(dim=side) / confusion.sum() for side in (0, 1))
        found += doubts.one_answer_doubts(config.tasks, called, true, "multiclass")
    found += doubts.flat_concept_doubts(config.concepts, answers.concept_logits.sigmoid())
    found += doubts.border_doubts(config.concepts, _pooled_border(measured, config.concepts))
    if POOLED_FEATURES in baselines:
        for what, name in (("concepts", "concept_auroc"), ("tasks", "task_auroc")):
            own = figures.get(name, _UNKNOWN)["mean"]
            found += doubts.below_baseline_doubts(what, own, getattr(baselines[POOLED_FEATURES], name))
    return tuple(found)


def _pooled_border(measured: Sequence[Mapping[str, Any]], concepts: Sequence[str]) -> BorderScores:
    """In how many images, of all folds, the maps of the concepts peak at the border."""
    known = [one["border_peaks"] for one in measured if "border_peaks" in one]  # folds of an older version have none

    def counts(name: str) -> Tensor:
        rows = [[one[concept][name] for concept in concepts] for one in known]
        numbers = [math.nan if value is None else value for row in rows for value in row]
        return torch.tensor(numbers, dtype=torch.float64).reshape(-1, len(concepts))

    images, peaks, chance = map(counts, BorderScores._fields)
    return BorderScores(images.sum(dim=0), peaks.sum(dim=0), (images * chance).nansum(dim=0) / images.sum(dim=0))


def _parts(answers: OutOfFold, config: ConceptConfig) -> list[tuple[str, Sequence[str], Tensor, LabelScores]]:
    """Concepts, and tasks if there are any: what they are, their names, labels and scores."""
    concepts = per_label_metrics(answers.concept_logits, answers.concepts)
    parts: list[tuple[str, Sequence[str], Tensor, LabelScores]]
    parts = [("concept", config.concepts, answers.concepts, concepts)]
    if config.tasks:
        tasks = task_scores(answers.task_logits, answers.targets, config.task_kind)
        parts.append(("task", config.tasks, answers.targets, tasks))
    return parts


def headline(answers: OutOfFold, config: ConceptConfig) -> dict[str, float]:
    """The figures of some images: macro averages over what is defined, and for classes how many are right."""
    concepts = per_label_metrics(answers.concept_logits, answers.concepts)
    figures = {
        "concept_auroc": float(macro_average(concepts.auroc, well_supported(concepts))),
        "concept_ap": float(macro_average(concepts.average_precision, well_supported(concepts))),
    }
    if config.tasks:
        tasks = task_scores(answers.task_logits, answers.targets, config.task_kind)
        figures["task_auroc"] = float(macro_average(tasks.auroc, well_supported(tasks)))
    if config.tasks and config.task_kind == "multiclass":
        confusion = confusion_matrix(answers.task_logits, answers.targets)
        figures["task_accuracy"] = float(top_accuracy(answers.task_logits, answers.targets))
        figures["balanced_accuracy"] = float(balanced_accuracy(confusion))
    return figures


def _record(model: ConceptModel, answers: OutOfFold, figures: dict[str, dict[str, float]], folds: int) -> None:
    """Put thresholds, typical probabilities and figures of images not learned from into the final model's record."""
    logits, labels = answers.concept_logits, answers.concepts
    present, absent = typical_probabilities(logits, labels)

    def by_name(values: Tensor) -> dict[str, float]:
        return dict(zip(model.config.concepts, values.tolist(), strict=True))

    concepts, tasks = calibration_fields(model.config, *answers[:4])
    source = f"out of fold, {len(labels)} images in {folds} folds"
    model.record = dataclasses.replace(
        model.record,
        thresholds=by_name(best_thresholds(logits, labels)),
        typical_present=by_name(present),
        typical_absent=by_name(absent),
        thresholds_source=f"highest F1 {source}",
        calibration=concepts,
        task_calibration=tasks,
        calibration_source=f"platt {source}",
        metrics={name: values["pooled"] for name, values in figures.items()},
        measured_on=f"the same images {source}, by models that had not seen them",
    )


def table(result: CrossValidation) -> str:
    """The figures as text: headlines, each concept and task, and which class was taken for which."""
    rows: list[Sequence[Any]] = [["figure", "all images", "mean of folds", "sd"]]
    for name, values in result.figures.items():
        rows.append([name.replace("_", " "), *map(_cell, values.values())])
    lines, answers, config = [*text_table(rows, numbers=True)], result.answers, result.model.config
    if result.baselines:
        own = BaselineScores(*(result.figures.get(name, _UNKNOWN)["mean"] for name in BaselineScores._fields))
        lines += ["", *comparison_lines({**result.baselines, "this model": own}, "mean of folds")]
    for title, names, _, scores in _parts(answers, config):
        rows = [[title, "pos", "neg", "AUROC", "AP"]]
        for i, name in enumerate(names):
            counts = (f"{scores.positives[i]:g}", f"{scores.negatives[i]:g}")
            rows.append([name, *counts, _cell(float(scores.auroc[i])), _cell(float(scores.average_precision[i]))])
        lines += ["", *text_table(rows, numbers=True)]
    if config.tasks and config.task_kind == "multiclass":
        confusion = confusion_matrix(answers.task_logits, answers.targets).long().tolist()
        rows = [["is, called", *config.tasks]]
        rows += [[name, *map(str, row)] for name, row in zip(config.tasks, confusion, strict=True)]
        lines += ["", *text_table(rows, numbers=True)]
    return "\n".join(lines) + "\n"


def _write(folder: Path, result: CrossValidation, *, final: bool) -> None:
    """Write the out-of-fold figures beside the folds, and with the final model, whose own would be of its training."""
    result.predictions.to_csv(folder / "predictions.csv")
    places = [(folder / "metrics.json", folder / "metrics.txt")]
    if final:
        run = RunFolder(folder / "final")
        places.append((run.metrics, run.metrics_table))
        run.finish(result.warnings)  # in place of those of images that the model learned from
        result.model.save_pretrained(run.path)
    baselines = {name: scores._asdict() for name, scores in result.baselines.items()}
    for figures, text in places:
        write_json(figures, nan_to_null({"out_of_fold": result.figures, "baselines": baselines}))
        write_text(text, table(result))


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
