"""A training loop short enough to read, and to replace."""

import contextlib
import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from conceptcam.data.batch import Batches, ConceptBatch, as_batch
from conceptcam.model import ConceptModel
from conceptcam.stages import Stage

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]

OVERFITTING_GAP = 0.1
"""Validation minus training loss from which the loop warns of overfitting (the founding document's rule)."""


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


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a model through its stages on one device.

    Attributes:
        device: Where to train.
        precision: `"bf16"` and `"fp16"` run the forward pass in autocast; `"fp16"` needs a GPU and scales
            the loss.
        clip_norm: Gradients are scaled down to this norm.
        seed: Makes `fit` repeatable, whatever was random before it, and leaves the global random state
            as it was; None uses and advances the global random state.
        progress: Whether to show a bar with loss and score.
        on_epoch: Called with the model and each record as it is made: log, draw or stop (raise) here.
    """

    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    clip_norm: float = 1.0
    seed: int | None = None
    progress: bool = False
    on_epoch: Callable[[ConceptModel, EpochRecord], None] = lambda model, record: None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"unknown `precision` {self.precision!r}; known: {list(get_args(Precision))}")
        if self.precision == "fp16" and torch.device(self.device).type == "cpu":
            raise ValueError("`precision='fp16'` needs a GPU; use 'bf16' on a CPU")

    def fit(
        self, model: ConceptModel, stages: Iterable[Stage], train_batches: Batches, val_batches: Batches
    ) -> list[EpochRecord]:
        """Run the stages in order; each ends with the weights of its own best epoch.

        Parameters that do not require gradients beforehand, such as blocks you froze, stay as they are.
        Afterwards the model is in eval mode, its parameters require gradients as they did before, and its
        record names the stages it has been through.

        Args:
            model: What to train, in place.
            stages: What learns when; see `preset`.
            train_batches: Iterated once per epoch; a `DataLoader`, say, of `ConceptBatch`es or of dicts as
                `as_batch` reads.
            val_batches: The same for validation.

        Raises:
            ValueError: If a stage does not fit the model, or there are no batches.
            FloatingPointError: If a loss is not finite; the message names the samples.
        """
        model.to(self.device)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        records: list[EpochRecord] = []
        with _seeded(self.seed):
            try:
                for stage in stages:
                    model.record = model.record.without(stage.parts)  # true from the first step on
                    records += self._fit_stage(model, stage, frozen, train_batches, val_batches)
                    model.record = model.record.after(stage.name, stage.parts)
            finally:
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(name not in frozen)
                model.eval()
        return records

    def _fit_stage(
        self, model: ConceptModel, stage: Stage, frozen: set[str], train_batches: Batches, val_batches: Batches
    ) -> list[EpochRecord]:
        optimizer = torch.optim.AdamW(_learning(model, stage, frozen), weight_decay=stage.weight_decay)
        scaler = torch.amp.GradScaler(self._device_type, enabled=self.precision == "fp16")
        scheduler = _scheduler(stage, optimizer, train_batches)
        records: list[EpochRecord] = []
        best_rank, best_epoch, best_weights = (-math.inf, -math.inf), 0, _copy_weights(model)
        for epoch in range(1, stage.epochs + 1):
            title = f"{stage.name} {epoch}/{stage.epochs}"
            lr = max(group["lr"] for group in optimizer.param_groups)
            with self._bar(title, train_batches) as bar:
                train_loss = self._train_epoch(model, stage, optimizer, scaler, scheduler, bar)
                val_loss, score = self.evaluate(model, stage, val_batches)
                bar.set_postfix(loss=f"{train_loss:.3f}", val=f"{val_loss:.3f}", score=f"{score:.3f}")
            # An undefined or a tied score leaves the choice to the validation loss.
            rank = (-math.inf if math.isnan(score) else score, -val_loss)
            best = epoch == 1 or rank > best_rank
            if best:
                best_rank, best_epoch, best_weights = rank, epoch, _copy_weights(model)
            records.append(EpochRecord(stage.name, epoch, train_loss, val_loss, score, lr, best))
            _tell(records)
            self.on_epoch(model, records[-1])
            if stage.patience is not None and epoch - best_epoch >= stage.patience:
                log.info("stage %s stops early: no better score for %d epochs", stage.name, stage.patience)
                break
        model.load_state_dict(best_weights)
        if all(math.isnan(record.score) for record in records):
            log.warning(
                "stage %s: its score is undefined on the validation data (does every label occur both ways?), so the "
                "epoch with the lowest validation loss was kept",
                stage.name,
            )
        return records

    def _train_epoch(
        self,
        model: ConceptModel,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        bar: Any,
    ) -> float:
        model.train()
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        losses = _Mean()
        for given in bar:
            batch = as_batch(given).to(self.device, non_blocking=True)
            loss = self._loss(model, stage, batch)[0]
            losses.add(_finite(loss, stage, batch), len(batch.images))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(learning, self.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            bar.set_postfix(loss=f"{losses.value():.3f}", refresh=False)
        return losses.value()

    @torch.inference_mode()
    def evaluate(self, model: ConceptModel, stage: Stage, batches: Batches) -> tuple[float, float]:
        """The stage's loss and score on batches, in eval mode; a higher score is better.

        Raises:
            ValueError: If there are no batches.
        """
        model.eval()
        metric = stage.metric().to(self.device)
        losses = _Mean()
        for given in batches:
            batch = as_batch(given).to(self.device, non_blocking=True)
            loss, output = self._loss(model, stage, batch)
            losses.add(loss.item(), len(batch.images))
            metric.update(*stage.metric_inputs(output, batch))
        score = float(metric.compute()) if losses.count else math.nan
        return losses.value(), score if metric.higher_is_better else -score

    def _loss(self, model: ConceptModel, stage: Stage, batch: ConceptBatch) -> tuple[Tensor, Any]:
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(self._device_type, dtype, enabled=self.precision != "fp32"):
            given = (batch.images, stage.present(batch)) if stage.needs == "compare" else (batch.images,)
            output: Any = getattr(model, stage.needs)(*given)
        if self.precision != "fp32":  # losses and metrics need full precision, features are in neither
            fields = {name: value.float() for name, value in output._asdict().items() if name != "features"}
            output = output._replace(**fields)
        return stage.objective(output, batch), output

    def _bar(self, title: str, batches: Batches) -> Any:
        from tqdm import tqdm

        return tqdm(batches, desc=title, disable=not self.progress, leave=True, mininterval=0.5)

    @property
    def _device_type(self) -> str:
        return torch.device(self.device).type


def _learning(model: ConceptModel, stage: Stage, frozen: set[str]) -> list[dict[str, Any]]:
    """The stage's parameter groups, without what the user froze."""
    groups = stage.prepare(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    model.train()
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    if not any(group["params"] for group in groups):
        raise ValueError(f"stage {stage.name!r} has nothing to learn: all of {list(stage.parts)} was frozen beforehand")
    return [group for group in groups if group["params"]]


class _Mean:
    """A running mean, each value counted as often as it stands for samples."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float, count: int) -> None:
        self.total += value * count
        self.count += count

    def value(self) -> float:
        if not self.count:
            raise ValueError("there are no batches; is the data set smaller than one batch of a `drop_last` loader?")
        return self.total / self.count


def _finite(loss: Tensor, stage: Stage, batch: ConceptBatch) -> float:
    value = loss.item()
    if not math.isfinite(value):
        names = ", ".join(batch.names[:8]) or "not named"
        raise FloatingPointError(
            f"the loss of stage {stage.name!r} is {value}; its batch of {len(batch.images)} samples: {names}. "
            "Check these samples, or lower the learning rate."
        )
    return value


def _scheduler(
    stage: Stage, optimizer: torch.optim.Optimizer, batches: Batches
) -> torch.optim.lr_scheduler.LRScheduler:
    if stage.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if not isinstance(batches, Sized):
        raise ValueError(f"stage {stage.name!r} has a cosine schedule, so `train_batches` needs a length")
    steps = max(1, len(batches) * stage.epochs)
    warmup = max(1, round(0.05 * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _copy_weights(model: ConceptModel) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


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


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed torch, numpy and random, and put their states back afterwards."""
    if seed is None:
        yield
        return
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
