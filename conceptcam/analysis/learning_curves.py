"""Curves of a training: losses, score and learning rate over epochs."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from conceptcam._display.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct with every common colour blindness, and by their lightness in print.
_TRAINING, _VALIDATION, _RATE, _BEST = "#56B4E9", "#D55E00", "#333333", "#009E73"


def plot_learning_curves(results: Iterable[Any]) -> "Figure":
    """Draw the curves of every stage in a row: losses, score and learning rate over epochs; the best epoch is marked.

    A stage of one epoch, such as one whose weights were solved for, has no curve and is left out. Undefined
    values leave gaps. Save the figure with `figure.savefig("curves.png")`; pyplot does not know of it.

    Args:
        results: An `EpochResult` of each epoch, as `Trainer.fit` returns and `read_history` reads them.

    Raises:
        ValueError: If no stage has two epochs.
        ImportError: If matplotlib is not installed.
    """
    every = [(name, list(epochs)) for name, epochs in groupby(results, key=lambda result: result.stage)]
    if not every:
        raise ValueError("there are no records to draw; `Trainer.fit` returns them, `read_history` reads them")
    stages = [(name, epochs) for name, epochs in every if has_curve(epochs)]
    if not stages:
        raise ValueError(f"there are no curves to draw: each of the stages {[name for name, _ in every]} has one epoch")
    figure = new_figure("plot_learning_curves", width=12, height=2.9 * len(stages))
    for row, (name, epochs) in zip(figure.subplots(len(stages), 3, squeeze=False), stages, strict=True):
        _draw_stage(list(row), name, epochs)
    return figure


def has_curve(results: Iterable[Any]) -> bool:
    """Whether a stage has more than one epoch."""
    return any(len(list(epochs)) > 1 for _, epochs in groupby(results, key=lambda result: result.stage))


def _draw_stage(row: Sequence["Axes"], name: str, results: Sequence[Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    losses, scores, rates = row
    epochs = [result.epoch for result in results]
    losses.plot(epochs, [result.train_loss for result in results], ".-", label="training", color=_TRAINING)
    losses.plot(epochs, [result.val_loss for result in results], ".-", label="validation", color=_VALIDATION)
    scores.plot(epochs, [result.score for result in results], ".-", label="score", color=_VALIDATION)
    rates.plot(epochs, [result.lr for result in results], ".-", label="learning rate", color=_RATE)
    best = max((result.epoch for result in results if result.best), default=None)
    for axes, title in zip(row, ("loss", "validation score", "highest learning rate"), strict=True):
        if best is not None:
            axes.axvline(best, label=f"best epoch: {best}", color=_BEST, linestyle="--", linewidth=1, zorder=0)
        axes.set_title(f"{name}: {title}")
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    if all(math.isnan(result.score) for result in results):
        scores.text(0.5, 0.5, "undefined", transform=scores.transAxes, ha="center", va="center")
    losses.legend()
    rates.set_ylim(bottom=0)
