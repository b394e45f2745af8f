"""One fit: a model taken through its stages, epoch by epoch, from where a killed run was."""

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conceptcam.config import from_json, to_json
from conceptcam.data.labels import digest
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.training import distributed
from conceptcam.training.batches import Feed
from conceptcam.training.checkpoints import (
    Checkpoints,
    Progress,
    check_fingerprint,
    fingerprint,
    random_states,
    set_random_states,
)
from conceptcam.training.dataset_passes import gather_embeddings, solve_task_head
from conceptcam.training.diagnostics import (
    tell_of_early_stop,
    tell_of_epoch,
    tell_of_labels_never_seen,
    tell_of_resume,
    tell_of_undefined_score,
)
from conceptcam.training.feature_cache import FrozenOutputs
from conceptcam.training.history import EpochResult
from conceptcam.training.inputs import Source
from conceptcam.training.options import Settings
from conceptcam.training.stages import Stage
from conceptcam.training.step import AUTOCAST, Stepper, checkpointing, evaluate, no_batches


class Fit:
    """One call of `Trainer.fit`: the settings, what they are about, and how far it has come.

    Args:
        settings: How to train.
        model: On its device.
        stages: What it goes through.
        train: Data to learn from.
        val: Data to choose each stage's best epoch by.
        device: Where to train.
    """

    def __init__(
        self,
        settings: Settings,
        model: ConceptModel,
        stages: tuple[Stage, ...],
        train: Feed,
        val: Feed,
        device: torch.device,
    ) -> None:
        self.settings, self.model, self.stages, self.train, self.val = settings, model, stages, train, val
        self.device = device
        self.frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.progress = Progress()
        self.epoch_random: dict[str, Any] | None = None  # the random states that this epoch started from
        self.saved: dict[str, Any] = {}  # what is still to be taken from the checkpoint resumed from
        self.checkpoints: Checkpoints | None = None
        if settings.checkpoint_dir is not None:
            self.checkpoints = Checkpoints(Path(settings.checkpoint_dir).expanduser(), settings.keep_checkpoints)

    def run(self, *, resume: bool) -> list[EpochResult]:
        """Take the model through its stages; gives the records of all epochs. See `Trainer.fit`."""
        try:
            self._open(resume=resume)
            self._check_labels()
            with self.settings.frozen_outputs() as kept:
                while self.progress.stage < len(self.stages):
                    self._stage(self.stages[self.progress.stage], kept)
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name not in self.frozen)
            self.model.eval()
            if self.checkpoints is not None:
                self.checkpoints.close()
        return self._records()

    def _check_labels(self) -> None:
        """Refuse data without targets before the first step if a stage needs them; warn of labels never seen."""
        tasks, stages = self.model.config.tasks, self.stages[self.progress.stage :]
        deciding = [stage.name for stage in stages if stage.labels == ("targets",)]
        for name, feed in (("train_batches", self.train), ("val_batches", self.val)):
            if deciding and tasks and feed.labels is not None and not feed.labels[1].shape[1]:
                raise ValueError(
                    f"stage {deciding[0]!r} learns {list(tasks[:3])}, and `{name}` have no `targets`; add them, or "
                    "leave the model's tasks out"
                )
        if not self.progress.records:
            learned = {name for stage in stages for name in stage.labels}
            tell_of_labels_never_seen(self.model.config, self.train.labels, learned)

    def _stage(self, stage: Stage, kept: FrozenOutputs) -> None:
        progress = self.progress
        self.model.record = self.model.record.without(stage.parts)  # true from the first step on
        later, autocast = self.stages[progress.stage + 1 :], AUTOCAST[self.settings.precision]
        train, val = (
            kept.source(self.model, stage, feed, device=self.device, autocast=autocast, later=later)
            for feed in (self.train, self.val)
        )
        if stage.on_start is not None and "stepper" not in self.saved:
            found = gather_embeddings(
                self.model, self.train, train, device=self.device, precision=self.settings.precision
            )
            stage.on_start(self.model, *found)
            distributed.share_tensors(self.model.parameters())
        if stage.solver is not None:
            self._solve(stage, stage.solver, train, val)
        else:
            self._descend(stage, train, val)
        tell_of_undefined_score(stage, self._records()[1 - progress.epoch :])
        self.model.record = self.model.record.after(stage.name, stage.parts)
        progress.start_stage(progress.stage + 1)
        self._save(None)

    def _descend(self, stage: Stage, train: Source, val: Source) -> None:
        """Learn for some epochs; the best one's weights are kept."""
        progress, stepper = self.progress, self._stepper(stage, train)
        if "stepper" in self.saved:
            stepper.load_state_dict(self.saved.pop("stepper"))
        with checkpointing(self.model.backbone, stage, wanted=self.settings.gradient_checkpointing):
            while self._goes_on(stage):
                self._epoch(stage, stepper, train, val)
                if self._goes_on(stage):
                    self._save(stepper)  # otherwise what the stage ends with is saved
        if progress.epoch <= stage.epochs:
            tell_of_early_stop(stage)
        self.model.load_state_dict({**self.model.state_dict(), **progress.best_weights})

    def _solve(self, stage: Stage, solver: LinearSolver, train: Source, val: Source) -> None:
        """Give the task head its best weights at once; one record tells of it."""
        started = time.perf_counter()
        stage.freeze(self.model)
        train_loss = solve_task_head(self.model, stage, solver, self.train, train, frozen=self.frozen)
        judged = self._judged(stage, val)
        self.progress.rate = 0.0
        self._record(stage, train_loss, *judged, started=started, cached=train.cached)

    def _goes_on(self, stage: Stage) -> bool:
        """Whether there is another epoch of the stage."""
        waited = self.progress.epoch - 1 - self.progress.best_epoch
        return self.progress.epoch <= stage.epochs and (stage.patience is None or waited < stage.patience)

    def _epoch(self, stage: Stage, stepper: Stepper, train: Source, val: Source) -> None:
        progress = self.progress
        if not progress.batches:
            progress.rate = stepper.rate
        started = time.perf_counter() - progress.seconds
        with self._bar(f"{stage.name} {progress.epoch}/{stage.epochs}") as bar:
            self._learn(stepper, train, bar, started)
            distributed.share_tensors(self.model.buffers())  # batch norm has seen each process's own rows
            val_loss, score = self._judged(stage, val)
            train_loss = progress.mean_loss()
            bar.set_postfix(loss=f"{train_loss:.3f}", val=f"{val_loss:.3f}", score=f"{score:.3f}")
        self._record(stage, train_loss, val_loss, score, started=started, cached=train.cached)

    def _record(
        self, stage: Stage, train_loss: float, val_loss: float, score: float, *, started: float, cached: bool
    ) -> None:
        """Note an epoch that ends, its weights if they are the best so far, and tell of it."""
        progress = self.progress
        # An undefined or a tied score leaves the choice to the validation loss, and that to the last epoch.
        undefined = math.isnan(val_loss)
        rank = (
            -math.inf if math.isnan(score) else score,
            -math.inf if undefined else -val_loss,
            progress.epoch if undefined else 0,
        )
        best = progress.best_rank is None or rank > progress.best_rank
        if best:
            progress.best_rank, progress.best_epoch = rank, progress.epoch
            progress.best_weights = _copy_weights(self.model, stage)
        seconds = time.perf_counter() - started
        record = EpochResult(
            stage.name, progress.epoch, train_loss, val_loss, score, progress.rate, best, seconds, cached
        )
        progress.records.append(record)
        if distributed.is_first():
            tell_of_epoch(self._records()[-progress.epoch :])
            for callback in self.settings.callbacks:
                callback(self.model, record)
        progress.start_epoch(progress.epoch + 1)

    def _judged(self, stage: Stage, val: Source) -> tuple[float, float]:
        """Validation loss and score, the same in every process."""
        return distributed.share(
            evaluate(
                self.model, stage, val, self.val.draw(seed=0), device=self.device, precision=self.settings.precision
            )
        )

    def _learn(self, stepper: Stepper, train: Source, bar: Any, started: float) -> None:
        """Learn from what is left of an epoch."""
        progress, every = self.progress, self.settings.checkpoint_every
        resumed = self.saved.pop("epoch_random", None)
        if resumed is not None:  # the order of this epoch is drawn once more
            self._set_random(resumed)
        self.epoch_random = self._random()
        order = self.train.draw()
        works = train.load(order, progress.batches)
        if resumed is not None:
            set_random_states(self.saved.pop("random")[distributed.rank()], self.device)
        self.model.train()
        bar.update(progress.batches)
        while group := list(islice(works, self.settings.gradient_accumulation_steps)):
            loss, samples = stepper.step(group)
            progress.loss_total += loss * samples
            progress.loss_count += samples
            progress.batches += len(group)
            progress.steps += 1
            bar.set_postfix(loss=f"{progress.mean_loss():.3f}", refresh=False)
            bar.update(len(group))
            if every is not None and progress.steps % every == 0:
                progress.seconds = time.perf_counter() - started
                self._save(stepper)
        if not progress.loss_count:
            raise no_batches("train_batches")

    def _stepper(self, stage: Stage, train: Source) -> Stepper:
        length, settings = self.train.length, self.settings
        return Stepper(
            self.model,
            stage,
            frozen=self.frozen,
            steps=None if length is None else math.ceil(length / settings.gradient_accumulation_steps) * stage.epochs,
            precision=settings.precision,
            max_grad_norm=settings.max_grad_norm,
            forward=train.forward,
            divided=train.divided,
            backend=settings.backend,
        )

    def _open(self, *, resume: bool) -> None:
        """Take up what the newest checkpoint says, if there is one."""
        if self.checkpoints is None:
            return
        saved = distributed.share(self.checkpoints.open(resume=resume) if distributed.is_first() else None)
        if saved is None:
            return
        check_fingerprint(saved["fingerprint"], self._fingerprint())
        self.progress = Progress(**saved["progress"])
        self.model.load_state_dict(saved["model"])
        self.model.record = from_json(saved["record"])[1]
        self.train.set_random_state(saved["loaders"][0])
        self.val.set_random_state(saved["loaders"][1])
        set_random_states(saved["random"][distributed.rank()], self.device)
        # What belongs to a stage and an epoch is taken when they begin.
        kept = ("stepper", "epoch_random", "random") if self.progress.batches else ("stepper",)
        self.saved = {name: saved[name] for name in kept if saved[name] is not None}
        progress = self.progress
        if progress.stage < len(self.stages):
            tell_of_resume(self.stages[progress.stage], progress.epoch, progress.batches)

    def _save(self, stepper: Stepper | None) -> None:
        if self.checkpoints is None:
            return
        random_now = distributed.gather(random_states(self.device))
        if not distributed.is_first():
            return
        content = {
            "fingerprint": self._fingerprint(),
            "progress": self.progress.as_dict(),
            "model": self.model.state_dict(),
            "record": to_json(self.model.config, self.model.record),
            "stepper": None if stepper is None else stepper.state_dict(),
            "random": random_now,
            "loaders": (self.train.random_state(), self.val.random_state()),
            "epoch_random": self.epoch_random,
        }
        self.checkpoints.save(self.progress.steps, content)

    def _random(self) -> dict[str, Any]:
        return {"global": random_states(self.device), "loader": self.train.random_state()}

    def _set_random(self, states: dict[str, Any]) -> None:
        set_random_states(states["global"], self.device)
        self.train.set_random_state(states["loader"])

    def _fingerprint(self) -> dict[str, str]:
        return fingerprint(
            self.model.config,
            self.stages,
            batches=self.train.length,
            labels=["" if feed.labels is None else digest(*feed.labels) for feed in (self.train, self.val)],
            processes=distributed.world(),
            frozen=sorted(self.frozen),
            **self.settings.fixed,
        )

    def _records(self) -> list[EpochResult]:
        return [EpochResult(*record) for record in self.progress.records]

    def _bar(self, title: str) -> Any:
        from tqdm import tqdm

        shown = self.settings.progress_bar and distributed.is_first()
        return tqdm(total=self.train.length, desc=title, disable=not shown, leave=True, mininterval=0.5)


def _copy_weights(model: ConceptModel, stage: Stage) -> dict[str, Tensor]:
    """What epochs of a stage can change: the parameters of its parts, and buffers."""
    fixed = {
        name for name, _ in model.named_parameters(remove_duplicate=False) if name.partition(".")[0] not in stage.parts
    }
    return {key: value.detach().clone() for key, value in model.state_dict().items() if key not in fixed}
