"""Two models side by side on the same images: the figures of each, and how far their difference could be luck."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conceptcam._display.text import text_table
from conceptcam._files import nan_to_null
from conceptcam.analysis.doubts import difference_doubts
from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.evaluation_table import cell
from conceptcam.metrics.classification import per_label_metrics, well_supported
from conceptcam.metrics.intervals import Interval, label_intervals


class ComparedLabels(NamedTuple):
    """Figures of two models for L labels that both know, and the difference of the first from the second."""

    names: tuple[str, ...]
    first: Tensor
    """(L, 2) AUROC and average precision of the first model."""
    second: Tensor
    """(L, 2) those of the second."""
    auroc: Interval
    """(L,) the difference in AUROC with its 95 % interval."""
    average_precision: Interval
    macro_auroc: Interval
    """The difference of the macro means, a scalar, over labels with five positives and negatives, or all."""
    macro_average_precision: Interval
    doubts: tuple[str, ...] = ()
    """A sentence about labels with fewer than five positives or negatives, if there are any."""


class Comparison(NamedTuple):
    """What `compare` gives."""

    images: int
    concepts: ComparedLabels
    tasks: ComparedLabels | None
    """None if the models have no task in common."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an undefined figure is None."""
        parts = {"concepts": self.concepts} | ({"tasks": self.tasks} if self.tasks else {})
        figures = {what: _rows(one) for what, one in parts.items()}
        doubts = [sentence for one in parts.values() for sentence in one.doubts]
        return nan_to_null({"images": self.images, **figures, "doubts": doubts})

    def table(self) -> str:
        """The figures as text, with what is to be doubted; a difference whose interval holds 0 could be luck."""
        lines = [f"{self.images} images; A - B with its 95 % interval, paired, of images or patients drawn anew", ""]
        for title, one in (("concept", self.concepts), ("task", self.tasks)):
            if one is not None:
                lines += [*_table(title, one), *one.doubts, ""]
        return "\n".join(lines)


def compare(
    first: Evaluation, second: Evaluation, *, patients: Sequence[str] | None = None, draws: int = 1000
) -> Comparison:
    """Compare two models by what `evaluate` gave of each on the same images.

    Both are compared on the concepts and tasks that they have in common, by name. Differences are paired: the same
    draws of images serve both, so a difference can be certain though each figure is not.

    Args:
        first: Of the one model.
        second: Of the other one, on the same images in the same order.
        patients: As in `evaluate`.
        draws: As there, at least 1.

    Raises:
        ValueError: If the images or labels differ, or no concept is in common.
    """
    groups = None if patients is None else [name or number for number, name in enumerate(patients)]
    if first.images != second.images:
        raise ValueError(
            f"the models were evaluated on {first.images} and on {second.images} images; compare on the same"
        )
    concepts = _compared(first, second, "concept", groups, draws)
    if concepts is None:
        raise ValueError("the models have no concept in common, so there is nothing to compare")
    return Comparison(first.images, concepts, _compared(first, second, "task", groups, draws))


def _compared(
    first: Evaluation, second: Evaluation, kind: str, groups: Sequence[Any] | None, draws: int
) -> ComparedLabels | None:
    sides = [_side(one, kind) for one in (first, second)]
    names = tuple(name for name in sides[0][0] if name in sides[1][0])
    if not names:
        return None
    (scores, labels), (others, other_labels) = (
        (said[:, index], true[:, index])
        for known, said, true in sides
        for index in [[known.index(name) for name in names]]
    )
    if not torch.equal(labels.nan_to_num(-1), other_labels.nan_to_num(-1)):
        raise ValueError(f"the labels of the {kind}s differ, so the models were evaluated on other images")
    found = per_label_metrics(scores, labels)
    counted = well_supported(found)
    each = label_intervals(scores, labels, minus=others, groups=groups, draws=draws)
    macro = label_intervals(
        scores[:, counted], labels[:, counted], minus=others[:, counted], groups=groups, draws=draws
    )
    own, other = (
        torch.stack([one.auroc, one.average_precision], dim=1) for one in (found, per_label_metrics(others, labels))
    )
    intervals = each.auroc, each.average_precision, macro.macro_auroc, macro.macro_average_precision
    return ComparedLabels(names, own, other, *intervals, tuple(difference_doubts(kind, names, found)))


def _side(one: Evaluation, kind: str) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names, probabilities and labels of the concepts or the tasks."""
    rows = one.per_image
    if kind == "concept":
        return rows.concept_names, rows.concept_probabilities, rows.concepts
    return rows.task_names, rows.task_probabilities, rows.targets


def _rows(one: ComparedLabels) -> dict[str, Any]:
    """Name -> figures of both and their difference."""
    found: dict[str, Any] = {}
    for i, name in enumerate(one.names):
        found[name] = {
            title: {
                "first": float(one.first[i, k]), "second": float(one.second[i, k]),
                "difference": float(of.value[i]), "interval": [float(of.low[i]), float(of.high[i])],
            }
            for k, (title, of) in enumerate((("auroc", one.auroc), ("average_precision", one.average_precision)))
        }  # fmt: skip
    means = (("auroc", one.macro_auroc), ("average_precision", one.macro_average_precision))
    found["macro mean"] = {
        title: {"difference": float(of.value), "interval": [float(of.low), float(of.high)]} for title, of in means
    }
    return found


def _table(title: str, one: ComparedLabels) -> list[str]:
    rows = [[title, "AUROC A", "AUROC B", "A - B", "from", "to", "AP A", "AP B", "A - B", "from", "to"]]
    for i, name in enumerate(one.names):
        row = [name]
        for k, of in enumerate((one.auroc, one.average_precision)):
            row += [
                cell(float(value)) for value in (one.first[i, k], one.second[i, k], of.value[i], of.low[i], of.high[i])
            ]
        rows.append(row)
    means = [[cell(float(value)) for value in of] for of in (one.macro_auroc, one.macro_average_precision)]
    rows.append(["macro mean", "", "", *means[0], "", "", *means[1]])
    return text_table(rows, numbers=True)
