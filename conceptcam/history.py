"""What happened in each epoch of training: as records, a table, a TensorBoard log, and curves."""

import csv
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)


class EpochRecord(NamedTuple):
    """What happened in one epoch of one stage."""

    stage: str
    """Name of the stage."""
    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the epoch's batches, while the weights moved."""
    val_loss: float
    """Mean over the validation batches, after the epoch."""
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


class HistoryFile:
    """Keeps a CSV file of all epochs; hand it to a `Trainer` as `on_epoch`.

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

    def __call__(self, model: object, record: EpochRecord) -> None:
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


def read_history(path: str | Path) -> list[EpochRecord]:
    """The records in a file that `HistoryFile` wrote, equal to those it was given.

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
    if not rows or tuple(rows[0]) != EpochRecord._fields:
        raise ValueError(
            f"{path} is not a table of epochs: its columns are {rows[0] if rows else []}, expected "
            f"{list(EpochRecord._fields)}"
        )
    return [_record(row, f"{path}, row {number}") for number, row in enumerate(rows[1:], start=1)]


def _record(row: Sequence[str], place: str) -> EpochRecord:
    try:
        stage, epoch, train_loss, val_loss, score, lr, best, seconds, cached = row
        return EpochRecord(
            stage, int(epoch), float(train_loss), float(val_loss), float(score), float(lr), _TRUTH[best],
            float(seconds), _TRUTH[cached],
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        raise ValueError(f"{place} is not an epoch: {row}") from error


_TRUTH = {"True": True, "False": False}


def _before(records: list[EpochRecord], record: EpochRecord) -> list[EpochRecord]:
    """Records up to, but without, an epoch; all of them if it is not among them."""
    places = [i for i, old in enumerate(records) if (old.stage, old.epoch) == (record.stage, record.epoch)]
    return records[: places[-1]] if places else records


def _write_history(path: Path, records: Sequence[EpochRecord]) -> None:
    """Write a whole table under another name first, so that the one that is there stays whole until it is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([EpochRecord._fields, *records])
    os.replace(scratch, path)
