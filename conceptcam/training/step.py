"""One step of training: what the model says, what that costs, and the weights moved once."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from conceptcam.data.batch import ConceptBatch
from conceptcam.model.concept_model import ConceptModel
from conceptcam.training import distributed
from conceptcam.training.batches import Order
from conceptcam.training.diagnostics import tell_of_unreached
from conceptcam.training.inputs import Caller, Source, Work, replicate, unsynced, whole_output
from conceptcam.training.optimizer import parameter_groups, schedule
from conceptcam.training.stages import PROTOTYPE_FORWARD, Stage

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What each precision runs forward passes in; None: the type of the weights."""


class Stepper:
    """What moves the weights of one stage, step by step.

    Args:
        model: On its device; its parts are frozen or not as the stage says.
        stage: What learns how fast, and from which objective.
        frozen: Names of parameters that stay as they are whatever the stage says.
        steps: How many steps there will be; None if nobody knows.
        precision: Of the forward pass.
        max_grad_norm: Gradients are scaled down to this norm.
        forward: Of the model and each work's inputs; see `Source`.
        divided: Whether each process computes its own rows of a batch.
        backend: Of `torch.compile`; None does not compile.
    """

    def __init__(
        self,
        model: ConceptModel,
        stage: Stage,
        *,
        frozen: Collection[str],
        steps: int | None,
        precision: Precision,
        max_grad_norm: float,
        forward: Callable[..., Any],
        divided: bool,
        backend: str | None,
    ) -> None:
        self._model, self._stage, self._precision, self._clip_norm = model, stage, precision, max_grad_norm
        groups = parameter_groups(model, stage, frozen)
        self._learning = [parameter for group in groups for parameter in group["params"]]
        self._factor = distributed.world() if divided else 1
        caller = Caller(model, forward)
        if backend is not None:
            caller.compile(backend=backend)
        self._caller: nn.Module = caller
        self._divided = divided
        self.optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(self._learning[0].device.type, enabled=precision == "fp16")
        self.scheduler = schedule(stage, self.optimizer, steps)

    @property
    def rate(self) -> float:
        """The highest learning rate there is now."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def step(self, works: Sequence[Work]) -> tuple[float, int]:
        """Learn from some batches at once; gives their loss, and how many samples it is the mean of.

        Each batch's loss counts as often as it has samples.

        Raises:
            FloatingPointError: If a loss is not finite, before any weight has moved.
        """
        if self._divided and isinstance(self._caller, Caller):
            self._freeze_unreached(works[0])
            self._caller = replicate(self._caller)
        self.optimizer.zero_grad()
        samples = sum(len(work.batch.concepts) for work in works)
        total = 0.0
        for number, work in enumerate(works, start=1):
            more = number < len(works)
            with unsynced(self._caller) if more else contextlib.nullcontext():
                loss, _ = measure(self._caller, self._stage, work, self._precision)
                share = len(work.batch.concepts) / samples
                total += _finite(loss, self._stage, work.batch) * share
                self.scaler.scale(loss * (share * self._factor)).backward()  # processes' gradients are averaged
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self._learning, self._clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return total, samples

    def _freeze_unreached(self, work: Work) -> None:
        """Freeze parameters that the loss does not depend on, for whose gradients replicas would wait forever.

        In one process they stay as they are too, because they have no gradient.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self._caller.buffers()]
        devices = {parameter.device for parameter in self._learning if parameter.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            loss, _ = measure(self._caller, self._stage, work, self._precision)
            loss.backward()
        for buffer, value in buffers:
            buffer.copy_(value)
        reached = distributed.gather([parameter.grad is not None for parameter in self._learning])
        unreached = set()
        for parameter, anywhere in zip(self._learning, map(any, zip(*reached, strict=True)), strict=True):
            parameter.requires_grad_(anywhere)
            if not anywhere:
                unreached.add(parameter)
        tell_of_unreached(self._stage, [name for name, one in self._model.named_parameters() if one in unreached])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep of it."""
        return {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in ("optimizer", "scheduler", "scaler"):
            getattr(self, name).load_state_dict(state[name])


def measure(caller: nn.Module, stage: Stage, work: Work, precision: Precision) -> tuple[Tensor, Any]:
    """A stage's loss of a whole batch, and what the model said about it."""
    dtype = AUTOCAST[precision]
    with torch.autocast(work.batch.concepts.device.type, dtype, enabled=dtype is not None):
        output: Any = caller(*work.inputs)
    if dtype is not None:  # losses and metrics need full precision, features are in neither
        fields = {name: value.float() for name, value in output._asdict().items() if name != "features"}
        output = output._replace(**fields)
    output = whole_output(output, work)
    return stage.loss_fn(output, work.batch), output


@torch.inference_mode()
def evaluate(
    model: ConceptModel, stage: Stage, source: Source, order: Order, *, device: torch.device, precision: Precision
) -> tuple[float, float]:
    """A stage's loss and score on batches, in eval mode; a higher score is better, and each is NaN if undefined.

    Raises:
        ValueError: If there are no batches.
        FloatingPointError: If a batch's loss is not finite.
    """
    from torchmetrics import Metric  # slow to import, and loaded by what makes a metric anyway

    model.eval()
    metric = stage.metric().to(device)
    for part in metric.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = lambda: False  # every process is given the whole batches
    total, count, known, caller = 0.0, 0, False, Caller(model, source.forward)
    for work in source.load(order):
        loss, output = measure(caller, stage, work, precision)
        samples = len(work.batch.concepts)
        total, count = total + _finite(loss, stage, work.batch) * samples, count + samples
        known = known or _is_known(stage, work.batch)
        metric.update(*stage.metric_inputs(output, work.batch))
    if not count:
        raise no_batches("val_batches")
    score = float(metric.compute())
    # Losses are 0 where no label is known, which says nothing of the model.
    loss_of_all = total / count if known or total else math.nan
    return loss_of_all, score if metric.higher_is_better else -score


def _is_known(stage: Stage, batch: ConceptBatch) -> bool:
    """Whether a batch has any label of the kind that a stage of this package learns from."""
    if stage.forward is PROTOTYPE_FORWARD:
        return bool(stage.concept_mask(batch).any())
    return any(bool((~getattr(batch, name).isnan()).any()) for name in stage.labels)


def no_batches(name: str) -> ValueError:
    """What to raise where there is nothing to learn from, or to judge by."""
    return ValueError(
        f"there are no batches in `{name}`; is the data set smaller than one batch of a `drop_last` loader, or an "
        "iterator used up?"
    )


@contextlib.contextmanager
def checkpointing(backbone: nn.Module, stage: Stage, *, wanted: bool) -> Iterator[None]:
    """Let a backbone that learns compute its activations again in the backward pass, for a while, to save memory.

    Raises:
        ValueError: If it cannot.
    """
    if not wanted or "backbone" not in stage.parts:
        yield
        return
    modules: list[Any] = list(backbone.modules())
    switches = [module for module in modules if callable(getattr(module, "set_grad_checkpointing", None))]
    if not switches:
        raise ValueError(
            f"`gradient_checkpointing` is on, but a {type(backbone).__name__} cannot do it: no module in it has "
            "timm's `set_grad_checkpointing`"
        )
    before = [(module, module.grad_checkpointing) for module in modules if _remembers(module)]
    switches[0].set_grad_checkpointing(True)
    try:
        yield
    finally:
        switches[0].set_grad_checkpointing(False)
        for module, value in before:
            module.grad_checkpointing = value


def _remembers(module: Any) -> bool:
    return isinstance(getattr(module, "grad_checkpointing", None), bool)


def _finite(loss: Tensor, stage: Stage, batch: ConceptBatch) -> float:
    value = loss.item()
    if not math.isfinite(value):
        names = ", ".join(batch.names[:8]) or "not named"
        raise FloatingPointError(
            f"the loss of stage {stage.name!r} is {value}; its batch of {len(batch.concepts)} samples: {names}. "
            "Check these samples, or lower the learning rate."
        )
    return value
