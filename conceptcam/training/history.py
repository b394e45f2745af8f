"""The result of each epoch of training, and where it is kept: in a CSV file or a TensorBoard log."""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conceptcam._files import atomic_write, named_in_errors

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
    """Whether it read outputs of frozen parts from the feature cache, in place of images."""


class CSVLogger:
    """Keeps a CSV file of all epochs; one of a `Trainer`'s `callbacks`.

    A row is added as its epoch ends, in one write, so a killed run leaves a row of every epoch that it finished.
    Nothing is written before the first epoch ends. Of several processes, only the one that calls it writes.

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
            with named_in_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(record)
            return
        before = read_history(self.path) if self.resume and self.path.exists() else []
        # Of an epoch that is trained again, the last row goes, and all rows behind it.
        places = [i for i, old in enumerate(before) if (old.stage, old.epoch) == (record.stage, record.epoch)]
        rows = before[: places[-1]] if places else before
        write_history(self.path, [*rows, record])
        self._begun = True


def write_history(path: str | Path, records: Sequence[EpochResult]) -> None:
    """Write the results of epochs as `CSVLogger` does, all at once, in place of what is there.

    Raises:
        OSError: If the file cannot be written.
    """
    with atomic_write(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([EpochResult._fields, *records])


def read_history(path: str | Path) -> list[EpochResult]:
    """The results in a file that `CSVLogger` wrote, equal to those it was given.

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


class TensorBoardLogger:
    """Writes each epoch to TensorBoard; one of a `Trainer`'s `callbacks`. Run `tensorboard --logdir folder` to see it.

    Each stage is a run of its own, in a folder with its name; its steps are epochs. An epoch that is trained again,
    after a resume or in a second training into the same folder, replaces itself and all epochs behind it.

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
