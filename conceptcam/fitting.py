"""One fit: a model taken through its stages, epoch by epoch, from where a killed run was."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from conceptcam import distributed
from conceptcam.config import from_json, to_json
from conceptcam.data.batch import ConceptBatch
from conceptcam.feed import Feed, Order
from conceptcam.frozen import LIMIT, FrozenOutputs, Storage
from conceptcam.heads import TaskHead
from conceptcam.history import EpochRecord
from conceptcam.model import ConceptModel
from conceptcam.outputs import Decided
from conceptcam.ranks import Caller, Source, Work
from conceptcam.resume import Checkpoints, Progress, check_fingerprint, fingerprint, random_states, set_random_states
from conceptcam.solving import LinearSolver
from conceptcam.stages import Stage
from conceptcam.steps import AUTOCAST, Precision, Stepper, checkpointing, measure

log = logging.getLogger(__name__)

OVERFITTING_GAP = 0.1
"""Validation minus training loss from which the loop warns of overfitting (the founding document's rule)."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train; `Trainer`, which adds what to do with it, says what each field means."""

    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    clip_norm: float = 1.0
    seed: int | None = None
    progress: bool = False
    on_epoch: Callable[[ConceptModel, EpochRecord], None] = lambda model, record: None
    accumulate: int = 1
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    compile: bool | str = False
    gradient_checkpointing: bool = False
    cache: Storage = "auto"
    cache_limit: float = LIMIT / 1e9
    cache_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"unknown `precision` {self.precision!r}; known: {list(get_args(Precision))}")
        if self.precision == "fp16" and torch.device(self.device).type == "cpu":
            raise ValueError("`precision='fp16'` needs a GPU; use 'bf16' on a CPU")
        for name in ("accumulate", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        if self.checkpoint_every is not None and self.checkpoint_dir is None:
            raise ValueError("`checkpoint_every` needs a `checkpoint_dir` to write to")
        self.frozen_outputs().close()  # refuses unknown options

    def frozen_outputs(self) -> FrozenOutputs:
        """What keeps the outputs of frozen parts, for one fit."""
        return FrozenOutputs(self.cache, dtype=self.cache_dtype, limit=round(self.cache_limit * 1e9))


# Options that what is learned follows from.
_FIXED = ("seed", "precision", "clip_norm", "accumulate", "compile", "cache_dtype")


_LABELS = ("concepts", "targets")


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

    def run(self, *, resume: bool) -> list[EpochRecord]:
        """Take the model through its stages; gives the records of all epochs. See `Trainer.fit`."""
        self._open(resume=resume)
        _tell_of_labels_never_seen(self.model, self.train)
        try:
            with self.settings.frozen_outputs() as kept:
                while self.progress.stage < len(self.stages):
                    self._stage(self.stages[self.progress.stage], kept)
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name not in self.frozen)
            self.model.eval()
        return self._records()

    def _stage(self, stage: Stage, kept: FrozenOutputs) -> None:
        progress = self.progress
        self.model.record = self.model.record.without(stage.parts)  # true from the first step on
        later, autocast = self.stages[progress.stage + 1 :], AUTOCAST[self.settings.precision]
        train, val = (
            kept.source(self.model, stage, feed, device=self.device, autocast=autocast, later=later)
            for feed in (self.train, self.val)
        )
        if stage.begin is not None and "stepper" not in self.saved:
            stage.begin(self.model, *self._embeddings(stage, train))
            distributed.share_tensors(self.model.parameters())
        if stage.solver is not None:
            self._solve(stage, stage.solver, train, val)
        else:
            self._descend(stage, train, val)
        _tell_if_undefined(stage, self._records()[1 - progress.epoch :])
        self.model.record = self.model.record.after(stage.name, stage.parts)
        progress.start_stage(progress.stage + 1)
        self._save(None)

    def _descend(self, stage: Stage, train: Source, val: Source) -> None:
        """Learn for some epochs; the best one's weights are kept."""
        progress, stepper = self.progress, self._stepper(stage, divided=train.divided)
        if "stepper" in self.saved:
            stepper.load_state_dict(self.saved.pop("stepper"))
        with checkpointing(self.model.backbone, stage, wanted=self.settings.gradient_checkpointing):
            while self._goes_on(stage):
                self._epoch(stage, stepper, train, val)
                if self._goes_on(stage):
                    self._save(stepper)  # otherwise what the stage ends with is saved
        if progress.epoch <= stage.epochs:
            log.info("stage %s stops early: no better score for %d epochs", stage.name, stage.patience)
        self.model.load_state_dict({**self.model.state_dict(), **progress.best_weights})

    @torch.no_grad()
    def _solve(self, stage: Stage, solver: LinearSolver, train: Source, val: Source) -> None:
        """Give the task head its best weights at once; one record tells of it."""
        head, started = self.model.task_head, time.perf_counter()
        if not isinstance(head, TaskHead) or {"task_head.weight", "task_head.bias"} & self.frozen:
            raise ValueError(f"stage {stage.name!r} solves for the weights of a `TaskHead` that is not frozen")
        stage.prepare(self.model)
        works = list(train.load(self._order()))
        if not works:
            raise no_batches("train_batches")
        evidence = torch.cat([work.inputs[0] for work in works]).float()
        concepts, targets = (torch.cat([getattr(work.batch, name) for work in works]) for name in _LABELS)
        batch = ConceptBatch(evidence.new_empty(len(evidence), 0), concepts, targets, None, ())

        def loss(task_logits: Tensor, truth: Tensor) -> Tensor:
            copies = len(truth) // len(targets)
            repeated = evidence.to(task_logits).repeat(copies, 1, 1)
            return stage.objective(
                Decided(repeated, task_logits),
                batch._replace(
                    images=batch.images.repeat(copies, 1), concepts=concepts.repeat(copies, 1), targets=truth
                ),
            )

        weight, bias = solver.solve(evidence, targets, loss)
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        distributed.share_tensors(self.model.parameters())
        train_loss = loss(self.model.decide_from(evidence).task_logits, targets).item()
        judged = distributed.share(self._evaluate(stage, val.load(self.val.draw(seed=0))))
        self.progress.rate = 0.0
        self._record(stage, train_loss, *judged, started=started, cached=train.cached)

    def _order(self) -> Order:
        """An order of the training data, for which no random number is used up."""
        drawn = self.train.random_state()
        with torch.random.fork_rng(devices=[]):  # the order of the first epoch is yet to be drawn
            order = self.train.draw(seed=0)
        self.train.set_random_state(drawn)
        return order

    @torch.no_grad()
    def _embeddings(self, stage: Stage, train: Source) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) of all present concepts in the training data, in the prototypes' space; whose each is (N,)."""
        order = self._order()
        self.model.eval()
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        dtype, first = AUTOCAST[self.settings.precision], 0
        for work in train.load(order):
            rows = torch.arange(len(work.batch.concepts))
            if work.own is not None:
                rows = rows[distributed.rank() :: distributed.world()]
            labels = work.batch.concepts[rows]
            asked = work.inputs[1][: len(labels)]
            embed = getattr(self.model, work.method.replace("compare", "embed"))
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                vectors = embed(*work.inputs)[: asked.sum()]
            present = labels[asked] > 0.5
            row, concept = asked.nonzero()[present].cpu().T
            found.append((vectors[present].float().cpu(), concept, first + rows[row]))
            first += len(work.batch.concepts)
        if not first:
            raise no_batches("train_batches")
        mine = tuple(torch.cat([one[part] for one in found]) for part in (0, 1, 2))
        parts = distributed.gather(mine) if train.divided else [mine]
        vectors, concept, sample = (torch.cat([part[i] for part in parts]) for i in (0, 1, 2))
        back = torch.argsort(sample, stable=True)  # as one process would have met them
        return vectors[back], concept[back]

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
            works = val.load(self.val.draw(seed=0))
            val_loss, score = distributed.share(self._evaluate(stage, works))
            train_loss = progress.mean_loss()
            bar.set_postfix(loss=f"{train_loss:.3f}", val=f"{val_loss:.3f}", score=f"{score:.3f}")
        self._record(stage, train_loss, val_loss, score, started=started, cached=train.cached)

    def _record(
        self, stage: Stage, train_loss: float, val_loss: float, score: float, *, started: float, cached: bool
    ) -> None:
        """Note an epoch that ends, its weights if they are the best so far, and tell of it."""
        progress = self.progress
        # An undefined or a tied score leaves the choice to the validation loss.
        rank = (-math.inf if math.isnan(score) else score, -val_loss)
        best = progress.best_rank is None or rank > progress.best_rank
        if best:
            progress.best_rank, progress.best_epoch = rank, progress.epoch
            progress.best_weights = _copy_weights(self.model, stage)
        seconds = time.perf_counter() - started
        record = EpochRecord(
            stage.name, progress.epoch, train_loss, val_loss, score, progress.rate, best, seconds, cached
        )
        progress.records.append(record)
        if distributed.is_first():
            _tell(self._records()[-progress.epoch :])
            self.settings.on_epoch(self.model, record)
        progress.start_epoch(progress.epoch + 1)

    def _evaluate(self, stage: Stage, works: Iterable[Work]) -> tuple[float, float]:
        return evaluate(self.model, stage, works, device=self.device, precision=self.settings.precision)

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
        while group := list(islice(works, self.settings.accumulate)):
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

    def _stepper(self, stage: Stage, *, divided: bool) -> Stepper:
        length, settings = self.train.length, self.settings
        return Stepper(
            self.model,
            stage,
            frozen=self.frozen,
            steps=None if length is None else math.ceil(length / settings.accumulate) * stage.epochs,
            precision=settings.precision,
            clip_norm=settings.clip_norm,
            divided=divided,
            backend="inductor" if settings.compile is True else settings.compile or None,
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
        log.info(
            "resumed at stage %d, epoch %d, batch %d",
            self.progress.stage + 1,
            self.progress.epoch,
            self.progress.batches,
        )

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
        settings = self.settings
        return fingerprint(
            self.model.config,
            self.stages,
            batches=self.train.length,
            labels=[_digest(feed.labels) for feed in (self.train, self.val)],
            processes=distributed.world(),
            frozen=sorted(self.frozen),
            **{name: getattr(settings, name) for name in _FIXED},
        )

    def _records(self) -> list[EpochRecord]:
        return [EpochRecord(*record) for record in self.progress.records]

    def _bar(self, title: str) -> Any:
        from tqdm import tqdm

        shown = self.settings.progress and distributed.is_first()
        return tqdm(total=self.train.length, desc=title, disable=not shown, leave=True, mininterval=0.5)


def _digest(labels: Sequence[Tensor] | None) -> str:
    """SHA-256 of labels, by which data are known again; empty if nobody knows them beforehand."""
    if labels is None:
        return ""
    return hashlib.sha256(b"".join(part.detach().cpu().float().numpy().tobytes() for part in labels)).hexdigest()


@torch.inference_mode()
def evaluate(
    model: ConceptModel, stage: Stage, works: Iterable[Work], *, device: torch.device, precision: Precision
) -> tuple[float, float]:
    """A stage's loss and score on batches, in eval mode; a higher score is better.

    Raises:
        ValueError: If there are no batches.
    """
    from torchmetrics import Metric  # slow to import, and loaded by what makes a metric anyway

    model.eval()
    metric = stage.metric().to(device)
    for part in metric.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = lambda: False  # every process is given the whole batches
    total, count, caller = 0.0, 0, Caller(model)
    for work in works:
        loss, output = measure(caller, stage, work, precision)
        samples = len(work.batch.concepts)
        total, count = total + loss.item() * samples, count + samples
        metric.update(*stage.metric_inputs(output, work.batch))
    if not count:
        raise no_batches("val_batches")
    score = float(metric.compute())
    return total / count, score if metric.higher_is_better else -score


def no_batches(name: str) -> ValueError:
    """What to raise where there is nothing to learn from, or to judge by."""
    return ValueError(
        f"there are no batches in `{name}`; is the data set smaller than one batch of a `drop_last` loader, or an "
        "iterator used up?"
    )


def _tell_of_labels_never_seen(model: ConceptModel, train: Feed) -> None:
    """Warn of labels that no training sample has: nothing can be learned of them."""
    if train.labels is None or not distributed.is_first():
        return
    named = zip(("concepts", "tasks"), (model.config.concepts, model.config.tasks), train.labels, strict=True)
    for kind, names, labels in named:
        absent = [name for name, column in zip(names, labels.T, strict=False) if not (column > 0).any()]
        if absent:
            log.warning("no training sample shows the %s %s: nothing can be learned of them", kind, absent)


def _tell_if_undefined(stage: Stage, records: list[EpochRecord]) -> None:
    if all(math.isnan(record.score) for record in records) and distributed.is_first():
        log.warning(
            "stage %s: its score is undefined on the validation data (does every label occur both ways?), so the "
            "epoch with the lowest validation loss was kept",
            stage.name,
        )


def _copy_weights(model: ConceptModel, stage: Stage) -> dict[str, Tensor]:
    """What epochs of a stage can change: the parameters of its parts, and buffers."""
    fixed = {
        name for name, _ in model.named_parameters(remove_duplicate=False) if name.partition(".")[0] not in stage.parts
    }
    return {key: value.detach().clone() for key, value in model.state_dict().items() if key not in fixed}


def _tell(records: list[EpochRecord]) -> None:
    """Log an epoch, and warn the first time validation loss is far above training loss."""
    now = records[-1]
    log.info(
        "%s epoch %d: loss %.4f, validation loss %.4f, score %.4f",
        now.stage,
        now.epoch,
        now.train_loss,
        now.val_loss,
        now.score,
    )
    gaps = [record.val_loss - record.train_loss > OVERFITTING_GAP for record in records]
    if gaps[-1] and not any(gaps[:-1]):
        log.warning(
            "stage %s, epoch %d: validation loss %.3f is more than %.1f above training loss %.3f; the model may "
            "be overfitting: stop earlier (`patience`), augment, or lower the learning rate",
            now.stage, now.epoch, now.val_loss, OVERFITTING_GAP, now.train_loss,
        )  # fmt: skip
