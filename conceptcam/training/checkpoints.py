"""Checkpoints: all that a killed run needs to end with the same weights as a run that was not killed.

The weights are the same to the bit on the same machine, with the same versions and the same number of threads and
processes.

A checkpoint is one file, which is complete or not there. It holds tensors and plain values only, so it loads without
running code (`weights_only=True`). It carries checksums, as any file of `torch.save` does, and they are compared.
"""

import contextlib
import dataclasses
import logging
import os
import pickle
import signal
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conceptcam._files import atomic_write
from conceptcam.config import ConceptConfig
from conceptcam.training.history import EpochResult
from conceptcam.training.stages import Stage

log = logging.getLogger(__name__)

_PARTS = {
    **{"fingerprint": dict, "state": dict, "model": dict, "record": str, "random": list, "loaders": tuple},
    **{"optimizer": dict | None, "epoch_random": dict | None},
}
# What zipfile and torch raise over a damaged file.
_DAMAGED = (
    *(RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, LookupError, TypeError),
    *(ValueError, AttributeError, AssertionError, OverflowError, MemoryError, OSError),
)

_ASKING_TO_STOP = (signal.SIGINT, signal.SIGTERM)

FORMAT_VERSION = 2
"""Of what a checkpoint holds; conceptcam 0.1 wrote none."""


@dataclass
class LoopState:
    """How far a call of `Trainer.fit` has come."""

    stage: int = 0
    """Index of the stage; the number of stages at the end."""
    epoch: int = 1
    """Number of the epoch within the stage, from 1."""
    batches: int = 0
    """Batches of this epoch that have been learned from."""
    steps: int = 0
    """Steps of all stages' optimizers."""
    loss_total: float = 0.0
    """Sum of this epoch's losses, each times its samples."""
    loss_count: int = 0
    """Number of these samples."""
    seconds: float = 0.0
    """Time that this epoch has taken."""
    rate: float = 0.0
    """Highest learning rate at this epoch's start."""
    best_rank: tuple[float, float, int] | None = None
    """What the stage's best epoch is chosen by: score, negative validation loss, and the epoch if both are unknown."""
    best_epoch: int = 0
    """Number of the stage's best epoch; 0 if there is none yet."""
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """Weights at the end of the best epoch."""
    records: list[EpochResult] = field(default_factory=list)
    """Results of all epochs."""

    def __post_init__(self) -> None:
        self.records = [EpochResult(*record) for record in self.records]

    def start_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.epoch, self.batches, self.loss_total, self.loss_count, self.seconds = epoch, 0, 0.0, 0, 0.0

    def start_stage(self, stage: int) -> None:
        """Go to the first epoch of a stage, which has no best epoch yet."""
        self.start_epoch(1)
        self.stage, self.best_rank, self.best_epoch, self.best_weights = stage, None, 0, {}

    def mean_loss(self) -> float:
        """Mean loss of this epoch's samples so far."""
        return self.loss_total / self.loss_count

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values and tensors; `LoopState(**values)` makes an equal state of them."""
        return {**vars(self), "records": [tuple(record) for record in self.records]}


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints in a folder, which is made if it is not there. A `with` statement closes them at its end.

    Args:
        folder: Where they are; nothing else should be kept there.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._lock: int | None = None

    def open(self, *, resume: bool) -> dict[str, Any] | None:
        """Remove files that a killed run left half written, and give the newest checkpoint, if there is one.

        Those that are damaged are passed over with a warning, and called `.damaged` from then on.

        Raises:
            FileExistsError: If there is one and `resume` is off.
            BlockingIOError: If another process has them open.
            ValueError: If no checkpoint can be read, or the newest is of another format.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_folder()
        for left_by_a_killed_run in self.folder.glob(".checkpoint-*.part"):
            left_by_a_killed_run.unlink()
        paths = self.paths()
        if not paths:
            return None
        if not resume:
            raise FileExistsError(
                f"{self.folder} holds checkpoints of an earlier run, such as {paths[-1].name}; continue it with "
                "`fit(..., resume=True)`, or choose another `checkpoint_dir`"
            )
        for number, path in enumerate(reversed(paths)):
            if (content := _read(path)) is not None:
                for damaged in paths[len(paths) - number :]:
                    log.warning("the checkpoint %s is damaged; going on from the one before", damaged)
                    damaged.rename(damaged.with_suffix(".damaged"))
                return content
        raise ValueError(
            f"the checkpoint {paths[-1]} cannot be read, nor can one before: it is damaged, or holds more than tensors "
            "and plain values; begin anew in another folder"
        )

    def close(self) -> None:
        """Unlock the folder for other processes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __exit__(self, *error: object) -> None:
        self.close()

    def _lock_folder(self) -> None:
        """Lock the folder for other processes until this one closes it or ends, in whichever way."""
        if os.name != "posix":
            return
        import fcntl

        self.close()
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise BlockingIOError(
                f"another process is training with the checkpoints in {self.folder}; wait until it ends, or stop it"
            ) from error
        except OSError as error:  # some network file systems know no locks
            log.debug("%s cannot be locked: %s", self.folder, error)
        # Workers that load data are forks, and may outlive this process by seconds: they must not hold the lock then.
        mine = weakref.WeakMethod(self.close)
        os.register_at_fork(after_in_child=lambda: (mine() or _nothing)())

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"))

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint whole, then remove those that are too old.

        Raises:
            OSError: If it cannot be written; those before are as they were.
        """
        path = self.folder / f"checkpoint-{step:09d}.pt"
        try:
            with atomic_write(path, durable=True) as scratch:
                _write(content, scratch)
        except OSError as error:
            raise OSError(
                f"could not write the checkpoint {path}: {error}. Those before are as they were; make room, and resume"
            ) from error
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path


def _nothing() -> None:
    """Called in place of a method of an object that is gone."""


@contextlib.contextmanager
def stop_held_back(*, wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Within it, the first SIGINT or SIGTERM is only noted; gives what says whether one was.

    At its end the signal comes as it would have come at first. A second signal is not held back. Only the main
    thread can hold signals back; in others nothing happens.

    Args:
        wanted: Whether to hold them back.
    """
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []
    # A handler that Python did not set is None, and cannot be set again; what is ignored asks nobody to stop.
    before = {one: signal.getsignal(one) for one in _ASKING_TO_STOP}
    before = {one: handler for one, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def put_back() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def note(number: int, frame: object) -> None:
        noted.append(number)
        put_back()

    for one in before:
        signal.signal(one, note)
    try:
        yield lambda: bool(noted)
    finally:
        put_back()
    if noted:
        signal.raise_signal(noted[0])


def fingerprint(config: ConceptConfig, stages: Sequence[Stage], **more: Any) -> dict[str, str]:
    """Everything that must be the same when a run resumes: values by names that a message can show."""
    found = {f"config.{name}": value for name, value in dataclasses.asdict(config).items()}
    found["stages"] = [stage.name for stage in stages]
    for stage in stages:
        for one in dataclasses.fields(stage):
            value = getattr(stage, one.name)
            if not callable(value):  # functions have no lasting name
                found[f"stage {stage.name!r}: {one.name}"] = dict(value) if isinstance(value, Mapping) else value
    return {name: str(value) for name, value in {**found, **more}.items()}


def check_fingerprint(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that a run resumes with the settings that it began with.

    Raises:
        ValueError: If a setting differs; the message names it.
    """
    different = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if different:
        told = "; ".join(
            f"{name} was {then.get(name, 'not there')[:80]} and is {now.get(name, 'not there')[:80]}"
            for name in different[:4]
        )
        raise ValueError(
            f"cannot resume what was begun otherwise: {told}. Set it as it was, or choose another `checkpoint_dir`"
        )


def _read(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None if it is damaged.

    Raises:
        ValueError: If it is of another format.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return None
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED:
        return None
    if isinstance(content, dict) and content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"the checkpoint {path} was written by another version of conceptcam, such as 0.1; finish the run "
            "with that version, or start a new one in another folder"
        )
    whole = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in _PARTS.items())
    return content if whole else None


def _write(content: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
    except RuntimeError as error:
        # Where a write fails, torch's own writer goes on to complain of its position in the file.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
