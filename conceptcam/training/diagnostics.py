"""What a loop tells its reader, through the log; of several processes, the first one speaks."""

import logging
import math
from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from conceptcam.config import ConceptConfig
from conceptcam.training import distributed
from conceptcam.training.history import EpochResult
from conceptcam.training.stages import Stage

log = logging.getLogger(__name__)

OVERFITTING_GAP = 0.1
"""Validation minus training loss from which the loop warns of overfitting (the founding document's rule)."""


def tell_of_labels_never_seen(config: ConceptConfig, labels: Sequence[Tensor] | None, learned: Collection[str]) -> None:
    """Warn of labels that no training sample has: nothing can be learned of them.

    Args:
        config: Names the labels.
        labels: (N, K) concepts and (N, T) tasks of the training data; None if nobody knows them beforehand.
        learned: Which labels the stages learn from, `"concepts"` or `"targets"`.
    """
    if labels is None or not distributed.is_first():
        return
    kinds = (("concepts", "concepts", config.concepts), ("tasks", "targets", config.tasks))
    for (kind, label, names), columns in zip(kinds, labels, strict=True):
        if label not in learned or len(names) != columns.shape[1]:
            continue  # what augments samples may give them other labels
        absent = [name for name, column in zip(names, columns.T, strict=True) if not (column > 0).any()]
        if absent:
            log.warning("no training sample shows the %s %s: nothing can be learned of them", kind, absent)


def tell_of_unreached(stage: Stage, names: Iterable[str]) -> None:
    """Warn of parameters that the loss of a first batch does not depend on, and that several processes freeze."""
    names = list(names)
    if names and distributed.is_first():
        log.warning(
            "stage %s: its first batch's loss does not depend on %s, which therefore stay as they are throughout the "
            "stage; if other batches' losses do, train in one process",
            stage.name,
            ", ".join(names),
        )


def tell_of_early_stop(stage: Stage) -> None:
    """Log that a stage has waited long enough for a better epoch."""
    if distributed.is_first():
        log.info("stage %s stops early: no better score for %d epochs", stage.name, stage.patience)


def tell_of_resume(stage: Stage, epoch: int, batch: int) -> None:
    """Log where a killed run goes on."""
    if distributed.is_first():
        log.info("resumed at stage %s, epoch %d, batch %d", stage.name, epoch, batch)


def tell_of_undefined_score(stage: Stage, records: Sequence[EpochResult]) -> None:
    """Warn if validation data said nothing of which epoch of a stage is best."""
    if not all(math.isnan(record.score) for record in records) or not distributed.is_first():
        return
    if all(math.isnan(record.val_loss) for record in records):
        log.warning(
            "stage %s: no label it learns from is known on the validation data, so its last epoch was kept", stage.name
        )
    else:
        log.warning(
            "stage %s: its score is undefined on the validation data (does every label occur both ways?), so the "
            "epoch with the lowest validation loss was kept",
            stage.name,
        )


def tell_of_epoch(records: Sequence[EpochResult]) -> None:
    """Log the last of a stage's epochs, and warn the first time that the model looks overfitted.

    It does where validation loss is far above training loss and was lower before: a gap alone is also what the first
    epoch of any training leaves, whose training loss was taken while the weights moved.
    """
    now = records[-1]
    log.info(
        "%s epoch %d: loss %.4f, validation loss %.4f, score %.4f",
        now.stage,
        now.epoch,
        now.train_loss,
        now.val_loss,
        now.score,
    )
    if _overfitted(records) and not any(_overfitted(records[:end]) for end in range(1, len(records))):
        log.warning(
            "stage %s, epoch %d: validation loss %.3f is more than %.1f above training loss %.3f and was lower "
            "before; the model may be overfitting: stop earlier (`patience`), augment, or lower the learning rate",
            now.stage, now.epoch, now.val_loss, OVERFITTING_GAP, now.train_loss,
        )  # fmt: skip


def _overfitted(records: Sequence[EpochResult]) -> bool:
    now = records[-1]
    gap = now.val_loss - now.train_loss
    return gap > OVERFITTING_GAP and now.val_loss > min(record.val_loss for record in records)
