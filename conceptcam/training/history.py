"""What happened in each epoch of training: as records, a table, a TensorBoard log, and curves."""

import csv
import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)


class EpochResult(NamedTuple):
    """What happened in one epoch of one stage."""

    stage: str
    """Name of the stage."""
    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the epoch's batches, while the weights moved."""
    val_loss: float
    """Mean over the validation batches, after the epoch; NaN if none of their labels is known."""
    score: float
    """The stage's metric on validation data, higher is better; NaN if undefined."""
    lr: float
    """Highest learning rate at the epoch's start."""
    best: bool
    """Whether this is the stage's best epoch so far."""
    seconds: float
    """How long the epoch took, validation included."""
    cached: bool
    """Whether it read what frozen parts had said before, in place of images."""


class CSVLogger:
    """Keeps a CSV file of all epochs; hand it to a `Trainer` as `callbacks`.

    A row is added as its epoch ends, in one write, so a killed run leaves every epoch that was finished. Nothing is
    written before the first epoch ends. Of several processes, only the one that calls it writes.

    Args:
        path: Where to write; the folder is made if it is not there.
        resume: Whether to continue the table that is there, if any, for `fit(resume=True)`. Rows of epochs that
            are trained again are replaced. Otherwise the table starts anew.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.resume = resume
        self._begun = False

    def __call__(self, model: object, record: EpochResult) -> None:
        """Add a row.

        Raises:
            ValueError: If the table to continue is not one of epochs.
            OSError: If it cannot be written.
        """
        if self._begun:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(record)
            return
        before = read_history(self.path) if self.resume and self.path.exists() else []
        _write_history(self.path, [*_before(before, record), record])
        self._begun = True


def read_history(path: str | Path) -> list[EpochResult]:
    """The records in a file that `CSVLogger` wrote, equal to those it was given.

    A last row that was cut short, when the machine failed while it was written, is left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a table of epochs; the message says where.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        text = file.read()
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows and not text.endswith("\n"):
        log.warning("%s ends within a row, which is left out", path)
        rows.pop()
    if not rows or tuple(rows[0]) != EpochResult._fields:
        raise ValueError(
            f"{path} is not a table of epochs: its columns are {rows[0] if rows else []}, expected "
            f"{list(EpochResult._fields)}"
        )
    return [_record(row, f"{path}, row {number}") for number, row in enumerate(rows[1:], start=1)]


def _record(row: Sequence[str], place: str) -> EpochResult:
    try:
        return EpochResult(*(read(text) for read, text in zip(_READERS, row, strict=True)))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{place} is not an epoch: {row}") from error


_truth = {"True": True, "False": False}.__getitem__
_READERS: tuple[Callable[[str], Any], ...] = (str, int, float, float, float, float, _truth, float, _truth)


def _before(records: list[EpochResult], record: EpochResult) -> list[EpochResult]:
    """Records up to, but without, an epoch; all of them if it is not among them."""
    places = [i for i, old in enumerate(records) if (old.stage, old.epoch) == (record.stage, record.epoch)]
    return records[: places[-1]] if places else records


def _write_history(path: Path, records: Sequence[EpochResult]) -> None:
    """Write a whole table under another name first, so that the one that is there stays whole until it is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([EpochResult._fields, *records])
    os.replace(scratch, path)


class TensorBoardLogger:
    """Writes each epoch to TensorBoard; hand it to a `Trainer` as `callbacks`, and run `tensorboard --logdir folder`.

    Each stage is a run of its own, a folder named after it, whose steps are epochs. An epoch that is trained again,
    after a resume or in a second training into the same folder, takes the place of what was there from it on.

    Args:
        folder: Where to write; made when the first epoch ends.

    Raises:
        ImportError: If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "`TensorBoardLogger` needs TensorBoard, which is not installed: pip install 'conceptcam[tensorboard]'"
            ) from error
        self.folder = Path(folder)
        self._create = SummaryWriter
        self._stage: str | None = None
        self._writer: SummaryWriter | None = None

    def __call__(self, model: object, record: EpochResult) -> None:
        """Write an epoch, so that it is on the disk when this returns."""
        if self._writer is None or record.stage != self._stage:
            self.close()
            self._stage = record.stage
            self._writer = self._create(str(self.folder / record.stage), purge_step=record.epoch)
        for tag, value in (
            ("loss/training", record.train_loss),
            ("loss/validation", record.val_loss),
            ("score", record.score),
            ("learning rate", record.lr),
            ("seconds", record.seconds),
        ):
            self._writer.add_scalar(tag, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the files; an epoch that comes later opens them again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def plot_learning_curves(records: Iterable[EpochResult]) -> "Figure":
    """Curves of every stage, a row each: losses, score and learning rate over epochs; the best epoch is marked.

    Undefined values leave gaps. Save it with `figure.savefig("curves.png")`; it is no part of pyplot's state.

    Args:
        records: What `Trainer.fit` returns or `read_history` reads.

    Raises:
        ValueError: If there are no records.
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`plot_learning_curves` needs matplotlib, which is not installed: pip install 'conceptcam[viz]'"
        ) from error
    stages = [(name, list(epochs)) for name, epochs in groupby(records, key=lambda record: record.stage)]
    if not stages:
        raise ValueError("there are no records to draw; `Trainer.fit` returns them, `read_history` reads them")
    figure = Figure(figsize=(12, 2.9 * len(stages)), layout="constrained")
    for row, (name, epochs) in zip(figure.subplots(len(stages), 3, squeeze=False), stages, strict=True):
        _draw_stage(list(row), name, epochs)
    return figure


def _draw_stage(row: Sequence["Axes"], name: str, records: Sequence[EpochResult]) -> None:
    from matplotlib.ticker import MaxNLocator

    losses, scores, rates = row
    epochs = [record.epoch for record in records]
    losses.plot(epochs, [record.train_loss for record in records], ".-", label="training", color=_TRAINING)
    losses.plot(epochs, [record.val_loss for record in records], ".-", label="validation", color=_VALIDATION)
    scores.plot(epochs, [record.score for record in records], ".-", label="score", color=_VALIDATION)
    rates.plot(epochs, [record.lr for record in records], ".-", label="learning rate", color=_RATE)
    best = max((record.epoch for record in records if record.best), default=None)
    for axes, title in zip(row, ("loss", "validation score", "highest learning rate"), strict=True):
        if best is not None:
            axes.axvline(best, label=f"best epoch: {best}", color=_BEST, linestyle="--", linewidth=1, zorder=0)
        axes.set_title(f"{name}: {title}")
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    if all(math.isnan(record.score) for record in records):
        scores.text(0.5, 0.5, "undefined", transform=scores.transAxes, ha="center", va="center")
    losses.legend()
    rates.set_ylim(bottom=0)


# Told apart with every common colour blindness, and by their lightness in print.
_TRAINING, _VALIDATION, _RATE, _BEST = "#56B4E9", "#D55E00", "#333333", "#009E73"
