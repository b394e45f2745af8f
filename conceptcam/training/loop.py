"""The training loop: a model goes through its stages, epoch by epoch, from where a killed run stopped.

One optimizer step is `optimizer.StageOptimizer.step`; the forward pass, the loss and the validation are in `passes.py`;
stages that are solved for at once are in `solvers.py`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conceptcam._display.progress import progress_bar
from conceptcam.config import from_json, to_json
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.corrections import TypicalEvidence, record_corrections
from conceptcam.training import distributed
from conceptcam.training.batches import BatchLoader
from conceptcam.training.checkpoints import (
    FORMAT_VERSION,
    Checkpoints,
    LoopState,
    check_fingerprint,
    fingerprint,
    stop_held_back,
)
from conceptcam.training.feature_cache import FeatureCache
from conceptcam.training.history import EpochResult
from conceptcam.training.inputs import CorrectedInputs, Source, StepInput
from conceptcam.training.optimizer import StageOptimizer, checkpointing, frozen_as_before, parameter_groups
from conceptcam.training.options import TrainerOptions
from conceptcam.training.passes import collect_typical, collect_vectors, no_batches, plan_without_drawing, validate
from conceptcam.training.precision import AUTOCAST
from conceptcam.training.seeding import random_states, set_random_states
from conceptcam.training.solvers import solve_stage
from conceptcam.training.stages import Stage

log = distributed.main_process_logger(__name__)

OVERFITTING_GAP = 0.1
"""Validation minus training loss above which the loop warns of overfitting (the original document's rule)."""


@dataclass
class TrainingLoop:
    """One call of `Trainer.fit`.

    Attributes:
        options: How to train.
        model: On its device.
        stages: What it goes through.
        train: Data to learn from.
        val: Data to choose each stage's best epoch by.
        device: Where to train.
    """

    options: TrainerOptions
    model: ConceptModel
    stages: tuple[Stage, ...]
    train: BatchLoader
    val: BatchLoader
    device: torch.device

    def __post_init__(self) -> None:
        folder = self.options.checkpoint_dir
        self.frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        self.state = LoopState()
        self.epoch_random: dict[str, Any] | None = None  # the random states that this epoch started from
        self.saved: dict[str, Any] = {}  # what is still to be taken from the checkpoint resumed from
        self.lost: RuntimeError | None = None  # of processes that load data and died of a signal
        self.digests: dict[str, str] = {}  # of the data, by what of them
        self.typical: tuple[Tensor, ...] | None = None  # evidence, in a stage that learns from corrections
        self.checkpoints: Checkpoints | None = None
        if folder is not None:
            self.checkpoints = Checkpoints(Path(folder).expanduser(), self.options.keep_checkpoints)

    def run(self, *, resume: bool) -> list[EpochResult]:
        """Take the model through its stages; returns the results of all epochs. See `Trainer.fit`."""
        with frozen_as_before(self.model), self.checkpoints or contextlib.nullcontext():
            self._resume(wanted=resume)
            self._check_labels()
            with self.options.frozen_outputs() as cache:
                while self.state.stage < len(self.stages):
                    self._run_stage(self.stages[self.state.stage], cache)
        return self.state.records

    def _run_stage(self, stage: Stage, cache: FeatureCache) -> None:
        self.model.record = self.model.record.without(stage.parts)  # true from the first step on
        later, autocast = self.stages[self.state.stage + 1 :], AUTOCAST[self.options.precision]
        train, val = (
            cache.source(self.model, stage, loader, device=self.device, autocast=autocast, later=later)
            for loader in (self.train, self.val)
        )
        if stage.on_start is not None and "optimizer" not in self.saved:
            vectors, concept = collect_vectors(self.model, self.train, train, precision=self.options.precision)
            stage.on_start(self.model, vectors, concept)
            distributed.broadcast_tensors(self.model.parameters())
        if stage.solver is not None:
            self._solve(stage, train, val)
        else:
            self._run_epochs(stage, self._corrected(train) if stage.corrections else train, val)
        self._warn_of_undefined_score(stage, self.state.records[1 - self.state.epoch :])
        self.model.record = self.model.record.after(stage.name, stage.parts)
        if self.typical is not None:
            typical, self.typical = TypicalEvidence(*self.typical), None
            self.model.record = record_corrections(self.model.record, self.model.config.concepts, typical)
        self.state.start_stage(self.state.stage + 1)
        self._save(None)

    def _corrected(self, train: Source) -> Source:
        """The training data of a task stage with corrected concepts in part of the rows."""
        # Augmented or shuffled data would give others when the run resumes, so checkpoints keep what was typical.
        self.typical = self.saved.pop("typical", None) or collect_typical(train, plan_without_drawing(self.train))
        return CorrectedInputs(train, TypicalEvidence(*self.typical))

    def _solve(self, stage: Stage, train: Source, val: Source) -> None:
        """Give a stage's parts their best weights at once, as one epoch."""
        started = time.perf_counter()
        parameter_groups(self.model, stage, self.frozen)  # freezes all that the stage does not teach
        self.saved.pop("typical", None)  # it is found anew
        train_loss, self.typical = solve_stage(self.model, stage, self.train, train)
        self.state.rate = 0.0
        self._end_epoch(stage, train_loss, *self._validate(stage, val), started=started, cached=train.cached)

    def _run_epochs(self, stage: Stage, train: Source, val: Source) -> None:
        """Learn for some epochs, then take the best epoch's weights."""
        length, group = self.train.length, self.options.gradient_accumulation_steps
        steps = None if length is None else math.ceil(length / group) * stage.epochs
        optimizer = StageOptimizer(self.model, stage, train, self.options, frozen=self.frozen, steps=steps)
        if "optimizer" in self.saved:
            optimizer.load_state_dict(self.saved.pop("optimizer"))
        with checkpointing(self.model.backbone, stage, wanted=self.options.gradient_checkpointing):
            while self._continues(stage):
                self._run_epoch(stage, optimizer, train, val)
                if self._continues(stage):
                    self._save(optimizer)  # after the last epoch the stage's best weights are saved instead
        if self.state.epoch <= stage.epochs:
            log.info("stage %s stops early: no better score for %d epochs", stage.name, stage.patience)
        self.model.load_state_dict({**self.model.state_dict(), **self.state.best_weights})

    def _continues(self, stage: Stage) -> bool:
        """Whether there is another epoch of the stage."""
        waited = self.state.epoch - 1 - self.state.best_epoch
        return self.state.epoch <= stage.epochs and (stage.patience is None or waited < stage.patience)

    def _run_epoch(self, stage: Stage, optimizer: StageOptimizer, train: Source, val: Source) -> None:
        if not self.state.batches:
            self.state.rate = optimizer.rate
        started = time.perf_counter() - self.state.seconds
        with self._bar(f"{stage.name} {self.state.epoch}/{stage.epochs}") as bar:
            self._learn(optimizer, train, bar, started)
            distributed.broadcast_tensors(self.model.buffers())  # batch norm has seen each process's own rows
            val_loss, score = self._validate(stage, val)
            train_loss = self.state.mean_loss()
            bar.set_postfix(loss=f"{train_loss:.3f}", val=f"{val_loss:.3f}", score=f"{score:.3f}")
        self._end_epoch(stage, train_loss, val_loss, score, started=started, cached=train.cached)

    def _learn(self, optimizer: StageOptimizer, train: Source, bar: Any, started: float) -> None:
        """Learn from the rest of an epoch."""
        state = self.state
        resumed = self.saved.pop("epoch_random", None)
        if resumed is not None:  # the plan of this epoch is drawn once more
            set_random_states(resumed["global"], self.device)
            self.train.set_random_state(resumed["loader"])
        self.epoch_random = {"global": random_states(self.device), "loader": self.train.random_state()}
        step_inputs = train.load(self.train.draw(), state.batches)
        if resumed is not None:
            set_random_states(self.saved.pop("random")[distributed.rank()], self.device)
        self.model.train()
        bar.update(state.batches)
        ends = False
        while not ends:  # a signal whose handler returns lets training go on
            with stop_held_back(wanted=self.checkpoints is not None) as asked:
                ends = self._steps(optimizer, step_inputs, bar, started, asked)
            if self.lost is not None:  # and nobody stops, so that the rest of the epoch would be left out
                raise self.lost
        if not state.loss_count:
            raise no_batches("train_batches")

    def _steps(
        self,
        optimizer: StageOptimizer,
        step_inputs: Iterator[StepInput],
        bar: Any,
        started: float,
        asked: Callable[[], bool],
    ) -> bool:
        """Learn until the epoch ends, or a signal asks to stop, over which a checkpoint is written.

        Returns:
            Whether the epoch is at its end.
        """
        state, every = self.state, self.options.checkpoint_every
        group, stops = self._next(step_inputs, asked)
        while group:
            loss, samples = optimizer.step(group)
            state.loss_total += loss * samples
            state.loss_count += samples
            state.batches += len(group)
            state.steps += 1
            bar.set_postfix(loss=f"{state.mean_loss():.3f}", refresh=False)
            bar.update(len(group))
            if every is not None and state.steps % every == 0:
                self._save(optimizer, since=started)
            if stops:
                break
            group, stops = self._next(step_inputs, asked)
        if stops and state.batches:
            self._save(optimizer, since=started)
        return not group

    def _next(self, step_inputs: Iterator[StepInput], asked: Callable[[], bool]) -> tuple[list[StepInput], bool]:
        """The batches of the next step, and whether to stop behind it because a signal asks to.

        Processes get a signal at different steps, and agree on one to stop at. There are no batches if the processes
        that load data died of the signal.
        """
        wanted = 0
        try:
            group = list(islice(step_inputs, self.options.gradient_accumulation_steps))
        except RuntimeError as error:
            if not asked():
                raise
            group, wanted, self.lost = [], 2, error
        if self.checkpoints is not None:
            wanted = distributed.highest(max(wanted, int(asked())))
        return [] if wanted == 2 else group, wanted > 0

    def _validate(self, stage: Stage, val: Source) -> tuple[float, float]:
        """Validation loss and score, the same in every process."""
        plan = self.val.draw(seed=0)
        return distributed.broadcast(validate(self.model, stage, val, plan, precision=self.options.precision))

    def _end_epoch(
        self, stage: Stage, train_loss: float, val_loss: float, score: float, *, started: float, cached: bool
    ) -> None:
        """Note an epoch's result, and its weights if they are the best so far; log it and call the callbacks."""
        state, undefined = self.state, math.isnan(val_loss)
        before = state.records[len(state.records) - min(state.epoch, stage.score_epochs) + 1 :]
        steady = math.fsum([*(one.score for one in before), score]) / (len(before) + 1)
        # An undefined or a tied score leaves the choice to the validation loss; an undefined loss to the last epoch.
        rank = (
            -math.inf if math.isnan(steady) else steady,
            -math.inf if undefined else -val_loss,
            state.epoch if undefined else 0,
        )
        best = state.best_rank is None or rank > state.best_rank
        if best:
            state.best_rank, state.best_epoch = rank, state.epoch
            state.best_weights = _copy_weights(self.model, stage)
        seconds = time.perf_counter() - started
        result = EpochResult(stage.name, state.epoch, train_loss, val_loss, score, state.rate, best, seconds, cached)
        state.records.append(result)
        _log_epoch(state.records[-state.epoch :])
        for callback in self.options.callbacks if distributed.is_main_process() else ():
            callback(self.model, result)
        state.start_epoch(state.epoch + 1)

    def _resume(self, *, wanted: bool) -> None:
        """Continue from the newest checkpoint, if there is one."""
        if self.checkpoints is None:
            return
        self.digests = distributed.broadcast(self._digests() if distributed.is_main_process() else {})
        saved = distributed.broadcast(self.checkpoints.open(resume=wanted) if distributed.is_main_process() else None)
        if saved is None:
            return
        check_fingerprint(saved["fingerprint"], self._fingerprint())
        self.state = LoopState(**saved["state"])
        self.model.load_state_dict(saved["model"])
        self.model.record = from_json(saved["record"])[1]
        self.train.set_random_state(saved["loaders"][0])
        self.val.set_random_state(saved["loaders"][1])
        set_random_states(saved["random"][distributed.rank()], self.device)
        # What belongs to a stage and an epoch is taken when they begin.
        names = ("optimizer", "typical", "epoch_random", "random") if self.state.batches else ("optimizer", "typical")
        self.saved = {name: saved[name] for name in names if saved.get(name) is not None}
        if self.state.stage < len(self.stages):
            stage = self.stages[self.state.stage].name
            log.info("resumed at stage %s, epoch %d, batch %d", stage, self.state.epoch, self.state.batches)

    def _save(self, optimizer: StageOptimizer | None, *, since: float | None = None) -> None:
        """Write a checkpoint; within an epoch, with the time that the epoch has taken since it began."""
        if self.checkpoints is None:
            return
        if since is not None:
            self.state.seconds = time.perf_counter() - since
        random_now = distributed.gather(random_states(self.device))
        if not distributed.is_main_process():
            return
        content = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self._fingerprint(),
            "state": self.state.as_dict(),
            "model": self.model.state_dict(),
            "record": to_json(self.model.config, self.model.record),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "random": random_now,
            "loaders": (self.train.random_state(), self.val.random_state()),
            "epoch_random": self.epoch_random,
            "typical": None if self.typical is None else tuple(self.typical),
        }
        self.checkpoints.save(self.state.steps, content)

    def _digests(self) -> dict[str, str]:
        parts = {"train": self.train.digests(), "val": self.val.digests()}
        return {f"{part} {what}": value for part, found in parts.items() for what, value in found.items()}

    def _fingerprint(self) -> dict[str, str]:
        return fingerprint(
            self.model.config,
            self.stages,
            batches=self.train.length,
            **self.digests,
            processes=distributed.world_size(),
            frozen=sorted(self.frozen),
            **self.options.fixed,
        )

    def _bar(self, title: str) -> Any:
        shown = self.options.progress_bar and distributed.is_main_process()
        return progress_bar(shown=shown, total=self.train.length, desc=title, leave=True, mininterval=0.5)

    def _check_labels(self) -> None:
        """Refuse data without targets if a stage needs them; warn of labels that no training sample has."""
        config, stages = self.model.config, self.stages[self.state.stage :]
        needing = [stage.name for stage in stages if stage.labels == ("targets",)]
        for name, loader in (("train_batches", self.train), ("val_batches", self.val)):
            if needing and config.tasks and loader.labels is not None and not loader.labels[1].shape[1]:
                raise ValueError(
                    f"stage {needing[0]!r} learns {list(config.tasks[:3])}, and `{name}` have no `targets`; add them, "
                    "or leave the model's tasks out"
                )
        if self.state.records or self.train.labels is None:
            return
        learned = {label for stage in stages for label in stage.labels}
        rows = (("concepts", "concepts", config.concepts), ("tasks", "targets", config.tasks))
        for (kind, label, names), columns in zip(rows, self.train.labels, strict=True):
            if label not in learned or len(names) != columns.shape[1]:
                continue  # what augments samples may give them other labels
            absent = [name for name, column in zip(names, columns.T, strict=True) if not (column > 0).any()]
            if absent:
                log.warning("no training sample shows the %s %s: nothing can be learned of them", kind, absent)

    def _warn_of_undefined_score(self, stage: Stage, results: Sequence[EpochResult]) -> None:
        """Warn if validation data could not tell which epoch of a stage is best."""
        if not all(math.isnan(result.score) for result in results):
            return
        if all(math.isnan(result.val_loss) for result in results):
            reason = "no label it learns from is known on the validation data, so its last epoch was kept"
        else:
            reason = (
                "its score is undefined on the validation data (does every label occur both ways?), so the epoch with "
                "the lowest validation loss was kept"
            )
        log.warning("stage %s: %s", stage.name, reason)


def _copy_weights(model: ConceptModel, stage: Stage) -> dict[str, Tensor]:
    """What epochs of a stage can change: the parameters of its parts, and buffers."""
    fixed = {
        name for name, _ in model.named_parameters(remove_duplicate=False) if name.partition(".")[0] not in stage.parts
    }
    return {key: value.detach().clone() for key, value in model.state_dict().items() if key not in fixed}


def _log_epoch(results: Sequence[EpochResult]) -> None:
    """Log the last of a stage's epochs, and warn the first time that the model looks overfitted.

    It does where validation loss is far above training loss and was lower before. The gap alone is not enough: after
    a first epoch it is there too, because its training loss was taken while the weights moved.
    """
    now = results[-1]
    log.info(
        "%s epoch %d: loss %.4f, validation loss %.4f, score %.4f",
        now.stage, now.epoch, now.train_loss, now.val_loss, now.score,
    )  # fmt: skip
    lowest = accumulate((result.val_loss for result in results), min)
    overfitted = [
        result.val_loss - result.train_loss > OVERFITTING_GAP and result.val_loss > low
        for result, low in zip(results, lowest, strict=True)
    ]
    if overfitted[-1] and not any(overfitted[:-1]):
        log.warning(
            "stage %s, epoch %d: validation loss %.3f is more than %.1f above training loss %.3f and was lower "
            "before; the model may be overfitting: stop earlier (`patience`), augment, or lower the learning rate",
            now.stage, now.epoch, now.val_loss, OVERFITTING_GAP, now.train_loss,
        )  # fmt: skip
