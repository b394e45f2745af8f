"""What a model predicts for many images, as one table."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conceptcam._files import write_text
from conceptcam.config import ConceptConfig, TrainingRecord

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """A table of probabilities: a row per image, a column per concept and task.

    Attributes:
        names: (N) what each image is called: its path, or its number in the list if it came without a path.
        concepts: (K) concept names.
        tasks: (T) task names; empty if the model was taught no task.
        concept_probabilities: (N, K) in [0, 1].
        task_probabilities: (N, T) in [0, 1]; a row adds up to 1 if the tasks exclude each other.
    """

    names: tuple[str, ...]
    concepts: tuple[str, ...]
    tasks: tuple[str, ...]
    concept_probabilities: Tensor
    task_probabilities: Tensor
    unlikeness: Tensor | None = None
    """(N,) how far each image is from the training images: above 1 it is unlike them, and its row means little. None if
    the model's record does not say."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """The table as a pandas data frame, with the columns of `to_csv`.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("a data frame needs pandas: pip install pandas; `to_csv` works without it") from error
        return pandas.DataFrame(self._rows(), columns=self._columns())

    def to_csv(self, path: str | PathLike[str], *, more: Mapping[str, Sequence[str]] | None = None) -> None:
        """Write the table to a file, whole or not at all: `image`, then a column per concept and per task.

        A task with the name of a concept has " (task)" after its name. The last column, `unlikeness`, is there if the
        model can tell.

        Args:
            path: The file to write.
            more: Columns of N texts to write behind `image`, by their names, such as patients.
        """
        between = more or {}
        texts = list(zip(*between.values(), strict=True)) if between else [()] * len(self)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        image, *columns = self._columns()
        writer.writerow([image, *between, *columns])
        for (name, *values), more_texts in zip(self._rows(), texts, strict=True):
            writer.writerow([name, *more_texts, *(f"{value:.6g}" for value in values)])
        write_text(Path(path), text.getvalue())

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"Predictions of {len(self.concepts)} concepts and {len(self.tasks)} tasks in {len(self)} images"

    def _columns(self) -> list[str]:
        tasks = [f"{name} (task)" if name in self.concepts else name for name in self.tasks]
        return ["image", *self.concepts, *tasks, *([] if self.unlikeness is None else ["unlikeness"])]

    def _rows(self) -> list[list[Any]]:
        columns = [self.concept_probabilities, self.task_probabilities]
        if self.unlikeness is not None:
            columns.append(self.unlikeness.to(columns[0])[:, None])
        probabilities = torch.cat(columns, dim=1).tolist()
        return [[name, *values] for name, values in zip(self.names, probabilities, strict=True)]


def list_images(images: Any) -> list[Any]:
    """One image, or several in any order that can be walked through, as a list."""
    one = isinstance(images, str) or not isinstance(images, Iterable)
    if one or (isinstance(images, Tensor | np.ndarray) and images.ndim < 4):
        return [images]
    return list(images)


def image_names(images: Iterable[Any]) -> tuple[str, ...]:
    """The path of each image, or its number in the list if it came without a path."""
    return tuple(
        fspath(image) if isinstance(image, str | PathLike) else str(number) for number, image in enumerate(images)
    )


def check_finite(*answers: Tensor) -> None:
    """Refuse what a model says if it is not finite: NaN is above no threshold, and would be taken for "absent".

    Raises:
        FloatingPointError: If a number is not finite.
    """
    if not all(answer.isfinite().all() for answer in answers):
        raise FloatingPointError(
            "the model gives numbers that are not finite, so it says nothing about these images; if its weights are in "
            "half precision, load it with `dtype=torch.float32`, otherwise check how it was trained"
        )


def concept_probabilities(logits: Tensor, config: ConceptConfig, record: TrainingRecord | None = None) -> Tensor:
    """Concept logits (..., K) -> probabilities (..., K), calibrated if the record says how."""
    if record is None or not record.calibration:
        return logits.sigmoid()
    return _calibrated(logits, config.concepts, record.calibration).sigmoid()


def task_probabilities(logits: Tensor, config: ConceptConfig, record: TrainingRecord | None = None) -> Tensor:
    """Task logits (..., T) -> probabilities (..., T), calibrated if the record says how."""
    if record is not None and record.task_calibration:
        logits = _calibrated(logits, config.tasks, record.task_calibration)
    return logits.softmax(dim=-1) if config.task_kind == "multiclass" else logits.sigmoid()


def ranking_logits(logits: Tensor, config: ConceptConfig, record: TrainingRecord) -> Tensor:
    """Task logits (..., T) -> float64 logits that rank images as the probabilities which `predict` reports.

    Those of tasks that exclude each other are calibrated if the record says how: a temperature changes the order of
    images within a class, because the other classes count too. Calibration of other tasks changes no order.
    """
    logits = logits.double()
    if config.task_kind != "multiclass" or not record.task_calibration:
        return logits
    return _calibrated(logits, config.tasks, record.task_calibration)


def _calibrated(logits: Tensor, names: Sequence[str], pairs: Mapping[str, tuple[float, ...]]) -> Tensor:
    """Logits scaled by slope and intercept of their names; those without a pair stay."""
    from conceptcam.metrics.calibration import Scaling, scale_logits  # torchmetrics is slow to import

    rows = [pairs.get(name, (math.nan, math.nan)) for name in names]
    scaling = Scaling(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).unbind(1))
    return scale_logits(logits, scaling).to(logits.dtype)
