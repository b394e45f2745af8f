"""How the figures of an evaluation are named, averaged and written as text."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from conceptcam._display.text import text_table
from conceptcam.metrics.calibration import CalibrationScores
from conceptcam.metrics.classification import LabelScores, macro_average, well_supported
from conceptcam.metrics.intervals import Interval
from conceptcam.metrics.localization import LocalizationScores

if TYPE_CHECKING:
    import pandas

SIZES = ("small", "medium", "large")
_COUNTS = ("pos", "neg", "boxes")
_RARE = ("AUROC", "AP", "F1@.5", "F1")  # mean little where few images have, or lack, a label

# Title of a column -> the field it shows.
SCORES = {"pos": "positives", "neg": "negatives", "AUROC": "auroc", "AP": "average_precision", "F1@.5": "f1"}
CALIBRATION = {"ECE": "ece", "Brier": "brier"}
PLACES = {
    "boxes": "support", "point": "pointing", "random": "random_pointing", "centre": "center_pointing",
    "mirror": "mirror_gap", "transp": "transpose_gap", "side": "side", "energy": "energy", "rank": "rank", "IoU": "iou",
    "area": "chance",
}  # fmt: skip

# Headline figure -> the column whose macro mean it is.
HEADLINES = {
    "concept_auroc": "AUROC", "concept_ap": "AP", "concept_f1": "F1@.5", "concept_f1_chosen": "F1",
    "concept_ece": "ECE", "concept_brier": "Brier",
    "pointing": "point", "pointing_random_map": "random", "pointing_center_prior": "centre", "pointing_chance": "area",
    "mirror_gap": "mirror", "side_accuracy": "side", "energy_in_box": "energy", "relevance_rank": "rank",
    "box_area": "area", "iou": "IoU",
}  # fmt: skip
SIDED_HEADLINES = {"sided_pointing": "point", "sided_mirror_gap": "mirror", "sided_transpose_gap": "transp"}
TASK_HEADLINES = {
    "task_auroc": "AUROC", "task_ap": "AP", "task_f1": "F1@.5", "task_ece": "ECE", "task_brier": "Brier",
}  # fmt: skip


def columns_of(
    scores: LabelScores | LocalizationScores | CalibrationScores, titles: Mapping[str, str]
) -> dict[str, Tensor]:
    """The fields of scores that titles name, by the titles."""
    return {title: getattr(scores, name) for title, name in titles.items()}


def by_name(names: Sequence[str], columns: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Columns (n,) as a row per name."""
    return {name: {title: values[i].item() for title, values in columns.items()} for i, name in enumerate(names)}


def column_means(columns: Mapping[str, Tensor], scores: LabelScores) -> dict[str, Tensor]:
    """Macro mean of each column; those of AUROC, AP and F1 over labels with enough of both sides."""
    counted = well_supported(scores)
    return {
        title: macro_average(values.double(), counted if title in _RARE else None) for title, values in columns.items()
    }


def table_lines(
    title: str, names: Sequence[str], columns: Mapping[str, Tensor], averaged: LabelScores | None = None
) -> list[str]:
    """The lines of a table, with a row of macro means if the scores of its labels are given.

    A column in which nothing is defined, or no box is counted, is left out, but for AUROC, AP and F1 at .5, of which a
    reader wants to know that they are undefined.
    """
    columns = {name: values for name, values in columns.items() if _says_something(name, values)}
    rows = [[title, *columns]]
    for name, figures in by_name(names, columns).items():
        rows.append([name, *(cell(value, count=column in _COUNTS) for column, value in figures.items())])
    if averaged is not None:
        means = column_means(columns, averaged).items()
        rows.append(["macro mean", *(cell(math.nan if column in _COUNTS else float(mean)) for column, mean in means)])
    return text_table(rows, numbers=True)


def _says_something(title: str, values: Tensor) -> bool:
    if title == "boxes":
        return bool((values > 0).any())
    return title in SCORES or not bool(values.isnan().all())


def interval_lines(intervals: Mapping[str, Interval]) -> list[str]:
    """Headline figures with their 95 % intervals."""
    if not intervals:
        return []
    rows = [
        f"{name:<16} {cell(float(one.value))} ({cell(float(one.low))} to {cell(float(one.high))})"
        for name, one in intervals.items()
    ]
    return ["95 % intervals of macro means, by drawing images or patients anew:", *rows]


def confusion_lines(tasks: Sequence[str], confusion: Tensor, accuracy: float, balanced_accuracy: float) -> list[str]:
    """Accuracy of a multi-class task, and which class is taken for which."""
    called = [f"{name}?" for name in tasks]
    rows = [
        [name, *(cell(value, count=True) for value in row)] for name, row in zip(tasks, confusion.tolist(), strict=True)
    ]
    line = f"accuracy {cell(accuracy)}, balanced accuracy {cell(balanced_accuracy)}"
    return [line, "", *text_table([["true, and called", *called], *rows], numbers=True)]


def cell(value: float, *, count: bool = False) -> str:
    """A figure as text; `-` for an undefined one."""
    if math.isnan(value):
        return "-"
    # Soft labels are counted in part, and counts of them have a fraction.
    return f"{value:.1f}".removesuffix(".0") if count else f"{value:.3f}"


def data_frame(parts: Mapping[str, tuple[Sequence[str], Mapping[str, Tensor]]]) -> "pandas.DataFrame":
    """Kind of label -> names and columns, as one data frame: a row per name, and its kind beside it.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("a data frame needs pandas: pip install pandas; `as_dict` works without it") from error
    frames = []
    for kind, (names, columns) in parts.items():
        values = {title: column.double().tolist() for title, column in columns.items()}
        frames.append(pandas.DataFrame({"name": list(names), "kind": kind, **values}))
    return pandas.concat([frame for frame in frames if len(frame)], ignore_index=True)
