"""What much simpler models score on the same images, so that a figure can be judged."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from conceptcam._display.text import text_table
from conceptcam._files import atomic_write
from conceptcam.config import TaskKind
from conceptcam.hub.weights import save_tensors
from conceptcam.losses.classification import class_balanced_loss
from conceptcam.metrics.classification import (
    balanced_accuracy,
    confusion_matrix,
    macro_average,
    per_label_metrics,
    task_scores,
    well_supported,
)
from conceptcam.model.linear_solver import LinearSolver

MAJORITY = "majority"
"""Says of each image what is most common in the training data."""

TRUE_CONCEPTS = "logistic regression on the true concepts"
"""What a bottleneck whose concepts were always right would give."""

POOLED_FEATURES = "logistic regression on pooled features"
"""The black box: reads the mean of the backbone's features, names no place and no concept for a task."""

LEAST_IMAGES = 30
"""Training images from which baselines say something."""

MOST_IMAGES = 2000
"""Training images that a run fits baselines on at most."""

_ROWS_TO_CHOOSE_BY = 300  # a penalty; folds of more would take minutes


class BaselineScores(NamedTuple):
    """Headline figures of one model; NaN where there is nothing to measure."""

    concept_auroc: float
    """Mean over the concepts that are `well_supported`."""
    task_auroc: float
    """Mean over the tasks that are."""
    balanced_accuracy: float
    """Of a multi-class task."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Simple models of the same training images; `fit_baselines` makes them.

    Attributes:
        task_kind: As in `ConceptConfig`.
        images: How many training images they were fitted on.
        parts: Tensors by name: `concept_means` (K,), `task_means` (T,), and `weight` (L, features) and `bias` (L,) of
            each logistic regression.
    """

    task_kind: TaskKind
    images: int
    parts: Mapping[str, Tensor]

    def score(self, features: Tensor, concepts: Tensor, targets: Tensor) -> dict[str, BaselineScores]:
        """Figures of each baseline by its name.

        Args:
            features: (N, C) as they were fitted on.
            concepts: (N, K) true labels, NaN where unknown.
            targets: (N, T) true task labels, NaN where unknown; (N, 0) if there are none.
        """
        count = len(features)
        features, known = features.double(), self._filled(concepts)
        concept_logits = {
            MAJORITY: self.parts["concept_means"].expand(count, -1),
            TRUE_CONCEPTS: None,
            POOLED_FEATURES: self._logits("pooled_concepts", features),
        }
        task_logits = {
            MAJORITY: self.parts["task_means"].expand(count, -1),
            TRUE_CONCEPTS: self._logits("true_concepts", known),
            POOLED_FEATURES: self._logits("pooled_tasks", features),
        }
        return {
            name: headline_scores(concept_logits[name], concepts, task_logits[name], targets, self.task_kind)
            for name in concept_logits
        }

    def black_box(self, features: Tensor) -> Tensor:
        """(N, T) task logits from features (N, C), without concepts."""
        return self._logits("pooled_tasks", features.double())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `load` reads.

        Raises:
            OSError: If it cannot be written.
        """
        about = json.dumps({"task_kind": self.task_kind, "images": self.images})
        with atomic_write(path) as scratch:
            save_tensors({name: part.contiguous() for name, part in self.parts.items()}, scratch, about=about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Baselines":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no file of baselines.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["about"])
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            return cls(task_kind=cast(TaskKind, facts["task_kind"]), images=int(facts["images"]), parts=parts)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no baselines of a run: {error}; train once more to have some") from error

    def _logits(self, name: str, evidence: Tensor) -> Tensor:
        return evidence @ self.parts[f"{name}.weight"].T + self.parts[f"{name}.bias"]

    def _filled(self, concepts: Tensor) -> Tensor:
        """Concept labels with their training mean where they are unknown."""
        return _fill(concepts.double(), self.parts["concept_means"])


def fit_baselines(features: Tensor, concepts: Tensor, targets: Tensor, *, kind: TaskKind) -> Baselines:
    """Fit the baselines on training data, in seconds.

    Each logistic regression weighs both sides of a label, or all classes, alike, and has an l2 penalty that
    cross-validation chooses. An unknown concept counts as its mean.

    Args:
        features: (N, C) mean-pooled features of a backbone that stays as it is.
        concepts: (N, K) labels in [0, 1], NaN where unknown.
        targets: (N, T) task labels, likewise; T may be 0.
        kind: As in `ConceptConfig`.

    Raises:
        ValueError: If there are fewer than two images.
        FloatingPointError: If the features are not finite.
    """
    means, task_means = _means(concepts), _means(targets)
    fitted = {
        "pooled_concepts": _regression(features, concepts, "multilabel"),
        "pooled_tasks": _regression(features, targets, kind),
        "true_concepts": _regression(_fill(concepts.double(), means), targets, kind),
    }
    parts = {"concept_means": means, "task_means": task_means}
    for name, (weight, bias) in fitted.items():
        parts |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return Baselines(task_kind=kind, images=len(features), parts=parts)


def headline_scores(
    concept_logits: Tensor | None, concepts: Tensor, task_logits: Tensor, targets: Tensor, kind: TaskKind
) -> BaselineScores:
    """The figures in which models are compared.

    Args:
        concept_logits: (N, K); None of a model that reads the true concepts.
        concepts: (N, K) labels, NaN where unknown.
        task_logits: (N, T).
        targets: (N, T) labels, NaN where unknown; (N, 0) gives NaN.
        kind: As in `ConceptConfig`.
    """
    nothing = float("nan")
    concept_auroc = task_auroc = accuracy = nothing
    if concept_logits is not None:
        scores = per_label_metrics(concept_logits, concepts)
        concept_auroc = float(macro_average(scores.auroc, well_supported(scores)))
    if targets.shape[1]:
        scores = task_scores(task_logits, targets, kind)
        task_auroc = float(macro_average(scores.auroc, well_supported(scores)))
        if kind == "multiclass":
            accuracy = float(balanced_accuracy(confusion_matrix(task_logits, targets)))
    return BaselineScores(concept_auroc, task_auroc, accuracy)


def comparison_lines(scores: Mapping[str, BaselineScores], title: str) -> list[str]:
    """The lines of a table of models and their figures; `-` stands for an undefined one.

    Args:
        scores: Of each model by its name.
        title: What stands above the names.
    """
    rows = [[title, "concept AUROC", "task AUROC", "balanced accuracy"]]
    rows += [[name, *("-" if one != one else f"{one:.3f}" for one in figures)] for name, figures in scores.items()]
    return text_table(rows, numbers=True)


def _regression(evidence: Tensor, labels: Tensor, kind: TaskKind) -> tuple[Tensor, Tensor]:
    """Weights (L, E) and bias (L,) of a logistic regression."""
    evidence = evidence.double()
    if not labels.shape[1]:
        return evidence.new_zeros(0, evidence.shape[1]), evidence.new_zeros(0)
    loss, evidence = class_balanced_loss("ratio", labels, kind=kind), evidence[..., None]
    few = spread_rows(len(evidence), _ROWS_TO_CHOOSE_BY)
    solver = LinearSolver(l2=None, steps=20).with_best_l2(evidence[few], labels[few], loss)
    # More rows need a smaller penalty of their mean loss.
    solver = dataclasses.replace(solver, l2=(solver.l2 or 0) * len(few) / len(evidence), steps=100)
    weight, bias = solver.solve(evidence, labels, loss)
    return weight[..., 0], bias


def spread_rows(count: int, most: int) -> list[int]:
    """Indices of so many of `count` rows at most, evenly spread, because rows may be sorted."""
    return [row * count // min(count, most) for row in range(min(count, most))]


def _means(labels: Tensor) -> Tensor:
    """(L,) mean of the known labels; 0 where none is known."""
    return labels.double().nanmean(dim=0).nan_to_num()


def _fill(labels: Tensor, means: Tensor) -> Tensor:
    return torch.where(labels.isnan(), means, labels)
