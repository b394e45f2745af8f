"""Figures of an evaluation: probabilities and what is true, precision over recall, false alarms, corrections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conceptcam.analysis.evaluation_result import Evaluation
from conceptcam.analysis.slow_measures import WRONG, SlowFigures
from conceptcam.metrics.detection import FALSE_ALARMS, DetectionScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 10
_COLUMNS = 4


def evaluation_figures(evaluation: Evaluation) -> dict[str, "Figure"]:
    """Figures by their name: `reliability`, `precision-recall` and, of a multi-class task, `confusion`.

    With slow measures also `froc`, if there are boxes, and `interventions`, if tasks were taught; places are part of it
    if there are boxes. Labels that no known image has, or lacks, are left out.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    rows = evaluation.per_image
    tasks = [f"{name} (task)" for name in rows.task_names]
    names = [*rows.concept_names, *tasks]
    said = torch.cat([rows.concept_probabilities, rows.task_probabilities], dim=1)
    true = torch.cat([rows.concepts, rows.targets], dim=1)
    shown = [i for i in range(len(names)) if (true[:, i] > 0.5).any() and (true[:, i] < 0.5).any()]
    figures = {}
    if shown:
        panels = [(names[i], said[:, i][~true[:, i].isnan()], true[:, i][~true[:, i].isnan()]) for i in shown]
        figures["reliability"] = _panels(panels, _draw_reliability, "mean probability", "true fraction")
        figures["precision-recall"] = _panels(panels, _draw_precision, "recall", "precision")
    if len(evaluation.confusion):
        figures["confusion"] = _confusion(rows.task_names, evaluation.confusion)
    return figures if evaluation.slow is None else figures | _slow_figures(evaluation.slow)


def _slow_figures(slow: SlowFigures) -> dict[str, "Figure"]:
    figures = {}
    if not bool(slow.detection.froc.isnan().all()):
        figures["froc"] = _froc(slow.detection)
    if slow.interventions:
        figures["interventions"] = _interventions(slow)
    return figures


def _froc(detection: DetectionScores) -> "Figure":
    """Fraction of boxes found over false alarms: of each concept thin, their mean thick."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained", dpi=100)
    axes = figure.subplots()
    for one in detection.froc[~detection.froc.isnan().any(dim=1)]:
        axes.plot(FALSE_ALARMS, one.tolist(), color="#999999", linewidth=0.8)
    axes.plot(FALSE_ALARMS, detection.froc.nanmean(dim=0).tolist(), color="#0072B2", linewidth=2.5, label="mean")
    axes.set_xscale("log", base=2)
    axes.set(ylim=(-0.02, 1.02), xlabel="false alarms per image", ylabel="boxes with a peak")
    axes.legend()
    return figure


def _interventions(slow: SlowFigures) -> "Figure":
    """AUROC of the tasks over the number of corrected concepts by policy, and over the weight of places elsewhere."""
    from matplotlib.figure import Figure

    panels = 2 if slow.spatial else 1
    figure = Figure(figsize=(5 * panels, 4), layout="constrained", dpi=100)
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    for name, curve in slow.interventions.items():
        left.plot(curve.counts.tolist(), curve.auroc.tolist(), linestyle="--" if name == WRONG else "-", label=name)
    left.set(xlabel="corrected concepts")
    for right in others:
        for name, pointed in slow.spatial.items():
            right.plot(pointed.elsewhere.tolist(), pointed.auroc.tolist(), marker="o", label=f"{name} boxes")
        right.set(xlabel="weight of places outside the boxes")
        right.invert_xaxis()
    for axes in (left, *others):
        axes.set(ylabel="AUROC of the tasks")
        axes.legend(fontsize=8)
    return figure


def reliability_bins(said: Tensor, true: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Mean probability, true fraction and number of images in bins of equal width; empty bins are left out.

    Args:
        said: (N,) probabilities.
        true: (N,) labels in [0, 1], all known.
        bins: How many.
    """
    which = (said * bins).long().clamp(max=bins - 1)
    count = torch.bincount(which, minlength=bins).double()
    mean, fraction = (torch.bincount(which, weights=one.double(), minlength=bins) / count for one in (said, true))
    filled = count > 0
    return mean[filled], fraction[filled], count[filled]


def precision_recall(said: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision at each distinct probability, from the highest down; arguments as `reliability_bins`."""
    order = said.argsort(descending=True)
    found = true[order].double().cumsum(dim=0)
    last = torch.cat([said[order][1:] != said[order][:-1], torch.ones(1, dtype=torch.bool)])
    called = torch.arange(1, len(said) + 1, dtype=torch.float64)
    return (found / found[-1])[last], (found / called)[last]


def _draw_reliability(axes: Any, said: Tensor, true: Tensor) -> None:
    mean, fraction, count = reliability_bins(said, true)
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1)
    # The interval of Agresti and Coull (1998): a bin of one image says nothing, and shows it.
    center = (fraction * count + 2) / (count + 4)
    half = 1.96 * (center * (1 - center) / (count + 4)).sqrt()
    axes.vlines(mean, (center - half).clamp(min=0), (center + half).clamp(max=1), color="#0072B2", alpha=0.35)
    axes.scatter(mean, fraction, s=8 + 80 * (count / count.sum()).sqrt(), color="#0072B2")


def _draw_precision(axes: Any, said: Tensor, true: Tensor) -> None:
    recall, precision = precision_recall(said, true)
    axes.axhline(float(true.double().mean()), color="#999999", linestyle="--", linewidth=1)
    axes.plot(recall, precision, color="#D55E00", linewidth=1.5, drawstyle="steps-pre")


def _panels(panels: Sequence[tuple[str, Tensor, Tensor]], draw: Any, across: str, up: str) -> "Figure":
    from matplotlib.figure import Figure

    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(2.4 * _COLUMNS, 2.4 * rows + 0.4), layout="constrained", dpi=100)
    grid = list(figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True).flat)
    for axes, (name, said, true) in zip(grid[: len(panels)], panels, strict=True):
        draw(axes, said, true)
        axes.set_title(f"{name}, {int((true > 0.5).sum())} of {len(true)}", fontsize=8)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.tick_params(labelsize=7)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    figure.supxlabel(across, fontsize=9)
    figure.supylabel(up, fontsize=9)
    return figure


def _confusion(names: Sequence[str], confusion: Tensor) -> "Figure":
    from matplotlib.figure import Figure

    size = 1.5 + 0.7 * len(names)
    figure = Figure(figsize=(size + 0.5, size), layout="constrained", dpi=100)
    axes = figure.subplots()
    part = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(part.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, values in enumerate(confusion.tolist()):
        for column, value in enumerate(values):
            color = "white" if part[row, column] > 0.6 else "black"
            axes.text(column, row, f"{value:g}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="called", ylabel="true")
    return figure
