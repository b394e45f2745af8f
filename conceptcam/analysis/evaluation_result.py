"""What an evaluation says: every figure beside its controls, as a table, a dict and a file."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conceptcam._display.figures import new_figure
from conceptcam._display.text import html_text
from conceptcam._files import nan_to_null
from conceptcam.analysis.answers import EvaluatedImages
from conceptcam.analysis.baselines import BaselineScores, comparison_lines
from conceptcam.analysis.doubts import average_doubts
from conceptcam.analysis.evaluation_table import (
    CALIBRATION,
    HEADLINES,
    PLACES,
    SCORES,
    SIDED_HEADLINES,
    SIZES,
    TASK_HEADLINES,
    by_name,
    column_means,
    columns_of,
    confusion_lines,
    data_frame,
    interval_lines,
    table_lines,
)
from conceptcam.analysis.slow_measures import SlowFigures
from conceptcam.analysis.slow_table import slow_dict, slow_lines
from conceptcam.metrics.border import BorderScores
from conceptcam.metrics.calibration import CalibrationScores
from conceptcam.metrics.classification import LabelScores, macro_average, well_supported
from conceptcam.metrics.intervals import Interval
from conceptcam.metrics.localization import LocalizationScores

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SCHEMA_VERSION = 1
"""Of what `Evaluation.as_dict` gives and `metrics.json` holds."""

_SHORT = ("concept_auroc", "pointing", "task_auroc", "task_accuracy")  # what a line can show


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
            fraction of positives, it shows that positives were weighted; far below, that weights are wrong.
        calibration: Of each concept how far its probability, as `predict` reports it, is from what is true; each (K,).
        localization: Scores of each concept's map against its boxes; NaN for concepts without boxes.
        border: In how many of the images that have a concept its map peaks at the border; each (K,).
        tasks: Task names; empty if no task was taught or labelled.
        task_scores: Scores of each task; each (T,).
        task_calibration: As `calibration`, of each task; each (T,).
        task_accuracy: Top-1 accuracy of a multi-class task, else NaN.
        unlike: Fraction of the images that are unlike the training images; NaN if the model cannot tell.
        task_balanced_accuracy: Mean recall of the classes of a multi-class task, else NaN: 1 over their number for a
            model that gives one answer to all.
        confusion: (T, T) images of each class of a multi-class task, in rows, by the class they are called, in
            columns; else (0, 0).
        per_image: What was said of each image and what is true; `per_image.to_csv(path)` writes it.
        intervals: Headline figure -> itself and its 95 % bootstrap interval.
        baselines: Headline figures of simpler models on the same images by their name; empty if none were given.
        baseline_images: How many training images they were fitted on.
        slow: What takes much longer to measure; None if it was not asked for.
    """

    images: int
    concepts: tuple[str, ...]
    sided_concepts: tuple[str, ...]
    concept_scores: LabelScores
    chosen_f1: Tensor
    mean_probability: Tensor
    calibration: CalibrationScores
    localization: LocalizationScores
    border: BorderScores
    tasks: tuple[str, ...]
    task_scores: LabelScores
    task_calibration: CalibrationScores
    task_accuracy: float
    unlike: float
    task_balanced_accuracy: float
    confusion: Tensor
    per_image: EvaluatedImages
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    baselines: Mapping[str, BaselineScores] = field(default_factory=dict)
    baseline_images: int = 0
    slow: SlowFigures | None = None

    def summary(self) -> dict[str, float]:
        """Headline figures: macro averages over what is defined, and their controls.

        Averages of AUROC, AP and F1 leave out labels with fewer than five positives or negatives, unless all have so
        few; `left_out` names them.
        """
        concepts = self._concept_columns()
        sided = {title: values[: len(self.sided_concepts)] for title, values in concepts.items()}
        by_size = {f"pointing_{size}": values for size, values in zip(SIZES, self._by_size()["point"], strict=True)}
        parts = [
            (column_means(concepts, self.concept_scores), HEADLINES),
            ({title: macro_average(sided[title]) for title in SIDED_HEADLINES.values()}, SIDED_HEADLINES),
            (column_means(self._task_columns(), self.task_scores), TASK_HEADLINES),
        ]
        means = {name: of[title] for of, names in parts for name, title in names.items()}
        figures = {name: float(mean) for name, mean in (means | by_size).items()}
        accuracies = {"task_accuracy": self.task_accuracy, "task_balanced_accuracy": self.task_balanced_accuracy}
        return {"images": self.images, **figures, **accuracies, "unlike_images": self.unlike}

    def left_out(self) -> dict[str, list[str]]:
        """Names of the concepts, and of the tasks, that averages of AUROC, AP and F1 leave out, being too rare."""
        both = {"concepts": (self.concepts, self.concept_scores), "tasks": (self.tasks, self.task_scores)}
        return {
            kind: list(itertools.compress(names, (~well_supported(scores)).tolist()))
            for kind, (names, scores) in both.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an undefined figure is None."""
        undefined = self.concept_scores.auroc.isnan().tolist()
        content = {
            "schema_version": SCHEMA_VERSION,
            "images": self.images,
            "summary": self.summary(),
            "concepts": by_name(self.concepts, self._concept_columns()),
            "tasks": by_name(self.tasks, self._task_columns()),
            "border_peaks": by_name(self.concepts, self.border._asdict()),
            "intervals": {name: [float(one.low), float(one.high)] for name, one in self.intervals.items()},
            "without_auroc": list(itertools.compress(self.concepts, undefined)),
            "left_out": self.left_out(),
            "confusion": by_name(self.tasks, dict(zip(self.tasks, self.confusion.T, strict=True)))
            if len(self.confusion)
            else {},
            "baselines": {name: scores._asdict() for name, scores in self.baselines.items()},
            "baseline_images": self.baseline_images,
        }
        if self.slow is not None:
            content["slow"] = slow_dict(self.slow)
        return nan_to_null(content)

    def table(self) -> str:
        """The figures as text; `-` stands for an undefined one, `*` for a sided concept.

        Columns in which nothing is defined, such as those of boxes where there are none, are left out.

        `area` is the part of the image that is in boxes: what energy, rank and IoU are for a map that is the same
        everywhere.
        """
        lines = []
        if self.unlike > 0:
            lines += [
                f"{self.unlike:.1%} of the images are unlike those the model was trained on: figures mean little.",
                "",
            ]
        names = [f"{name} *" if name in self.sided_concepts else name for name in self.concepts]
        lines += [
            *table_lines("concept", names, self._concept_columns(), self.concept_scores),
            *average_doubts("concept", self.concepts, self.concept_scores),
        ]
        if bool((self.localization.support > 0).any()):
            lines += ["", *table_lines("box size", SIZES, self._by_size())]
        if self.tasks:
            columns = self._task_columns()
            lines += [
                "",
                *table_lines("task", self.tasks, columns, self.task_scores),
                *average_doubts("task", self.tasks, self.task_scores),
            ]
        if self.intervals:
            lines += ["", *interval_lines(self.intervals)]
        if len(self.confusion):
            accuracies = self.task_accuracy, self.task_balanced_accuracy
            lines += ["", *confusion_lines(self.tasks, self.confusion, *accuracies)]
        if self.baselines:
            summary = self.summary()
            own = BaselineScores(*(summary[name] for name in ("concept_auroc", "task_auroc", "task_balanced_accuracy")))
            title = f"fitted on {self.baseline_images} training images"
            lines += ["", *comparison_lines({**self.baselines, "this model": own}, title)]
        if self.slow is not None:
            lines += ["", *slow_lines(self.slow)]
        return "\n".join(lines) + "\n"

    def to_dataframe(self) -> "pandas.DataFrame":
        """The figures of `table` as a pandas data frame: a row per concept and per task, NaN where undefined.

        Raises:
            ImportError: If pandas is not installed.
        """
        concepts, tasks = (self.concepts, self._concept_columns()), (self.tasks, self._task_columns())
        return data_frame({"concept": concepts, "task": tasks})

    def plot(self) -> "Figure":
        """AUROC of each concept and task as bars, however few images have the label; half is what guessing reaches.

        Save the figure with `figure.savefig("auroc.png")`; pyplot does not know of it.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        names = [*self.concepts, *(f"{name} (task)" for name in self.tasks)]
        values = [*self.concept_scores.auroc.tolist(), *(self.task_scores.auroc.tolist() if self.tasks else ())]
        figure = new_figure("plot", width=7, height=1 + 0.25 * len(names), otherwise="`table`")
        axes = figure.subplots()
        colors = ["#56B4E9"] * len(self.concepts) + ["#D55E00"] * len(self.tasks)
        axes.barh(range(len(names)), values, color=colors)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.axvline(0.5, color="#333333", linestyle="--", linewidth=1)
        axes.set(xlim=(0, 1), xlabel=f"AUROC on {self.images} images")
        return figure

    def __repr__(self) -> str:
        """The headline figures that are defined; `table` has all."""
        known = {name: value for name, value in self.summary().items() if name in _SHORT and not math.isnan(value)}
        figures = ", ".join(f"{name} {value:.3f}" for name, value in known.items())
        counts = f"{len(self.concepts)} concepts and {len(self.tasks)} tasks on {self.images} images"
        return f"Evaluation of {counts}: {figures or 'nothing is defined'}"

    def _repr_html_(self) -> str:
        return html_text(self.table())

    def _concept_columns(self) -> dict[str, Tensor]:
        """(K,) figures of the concepts by the title of their column."""
        probabilities = {"F1": self.chosen_f1, "mean p": self.mean_probability}
        calibration = columns_of(self.calibration, CALIBRATION)
        return (
            columns_of(self.concept_scores, SCORES)
            | probabilities
            | calibration
            | columns_of(self.localization, PLACES)
        )

    def _task_columns(self) -> dict[str, Tensor]:
        """(T,) figures of the tasks by the title of their column."""
        return columns_of(self.task_scores, SCORES) | columns_of(self.task_calibration, CALIBRATION)

    def _by_size(self) -> dict[str, Tensor]:
        """(3,) figures of small, medium and large boxes by the title of their column."""
        place = self.localization
        means = {"point": place.pointing_by_size.nanmean(dim=0), "random": place.random_by_size.nanmean(dim=0)}
        return {"boxes": place.support_by_size.sum(dim=0), **means}
