"""How weights move: groups of parameters, the learning rate over a stage, and the steps of the optimizer."""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from conceptcam.model.concept_model import ConceptModel
from conceptcam.training import distributed
from conceptcam.training.inputs import Source, StageModule, StepInput
from conceptcam.training.options import TrainerOptions
from conceptcam.training.passes import compute_loss, finite_loss
from conceptcam.training.stages import Stage

log = distributed.main_process_logger(__name__)


def parameter_groups(model: ConceptModel, stage: Stage, frozen_names: Collection[str] = ()) -> list[dict[str, Any]]:
    """Freeze all that a stage does not teach, and group the rest for AdamW by rate and weight decay.

    Biases, norms, prototypes and what the backbone names, such as position embeddings, are not decayed: pulled
    towards 0 they would lose what they stand for, and prototypes that hardly ever win would die. With
    `stage.layer_decay`, a layer of the backbone learns at that times the rate of the layer behind it, and the last
    one at that times the part's rate, as in BEiT and MAE; other parts keep their rates.

    Args:
        model: Its parts are frozen or not, and put in training mode, as the stage says.
        stage: Names the parts that learn, and their rates.
        frozen_names: Parameters that stay as they are whatever the stage says, such as blocks you froze.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, in the order of the model's parameters; every parameter that
        learns is in exactly one.

    Raises:
        ValueError: If the stage names an unknown part, nothing learns, or the backbone's layers are not known.
    """
    stage.freeze(model)
    for name, parameter in model.named_parameters():
        if name in frozen_names:
            parameter.requires_grad_(False)
    model.train()  # again: a part may be frozen altogether only now
    rates = _layer_rates(model, stage)
    undecayed = model.no_weight_decay()
    groups: dict[tuple[str, float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.partition(".")[0]
            decays = parameter.ndim > 1 and not name.endswith("bias") and name not in undecayed
            key = (part, rates.get(name, stage.lr[part]), stage.weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError(f"stage {stage.name!r} has nothing to learn: all of {list(stage.parts)} was frozen beforehand")
    return [{"params": params, "lr": lr, "weight_decay": decay} for (_, lr, decay), params in groups.items()]


def _layer_rates(model: ConceptModel, stage: Stage) -> Mapping[str, float]:
    """Rates of the backbone's parameters by name, where they differ from layer to layer."""
    learning = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    if stage.layer_decay == 1 or not learning:
        return {}
    numbers = model.backbone.layer_ids()
    unknown = [name for name in learning if name not in numbers]
    if unknown:
        raise ValueError(
            f"stage {stage.name!r} has layer_decay={stage.layer_decay}, but its backbone, a "
            f"{type(model.backbone).__name__}, does not say which layer {unknown[0]!r} is in; "
            "leave `layer_decay` (--layer-decay) at 1"
        )
    depth = max(numbers.values()) + 1  # the heads are the layer behind the backbone's last
    return {
        f"backbone.{name}": stage.lr["backbone"] * stage.layer_decay ** (depth - numbers[name]) for name in learning
    }


def schedule(stage: Stage, optimizer: torch.optim.Optimizer, steps: int | None) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of a stage's learning rates, to be stepped after each step of the optimizer.

    Every step learns something: a warm-up starts above 0, and the cosine reaches 0 only after the last step. The
    state holds plain numbers; loaded into a schedule made with the same arguments, it continues with the same rates.

    Args:
        stage: Its `schedule` and `warmup`.
        optimizer: Its groups have their highest rates; see `parameter_groups`.
        steps: Steps of the optimizer in the whole stage; None, for batches without a length, if the rate is constant.

    Raises:
        ValueError: If `steps` is None and the schedule is cosine.
    """
    if stage.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if steps is None:
        raise ValueError(f"stage {stage.name!r} has a cosine schedule, so `train_batches` needs a length")
    if steps < 1:
        raise ValueError(f"stage {stage.name!r} has a cosine schedule over {steps} steps; it needs one at least")
    warmup = round(stage.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class StageOptimizer:
    """Moves the weights of one stage, step by step.

    Args:
        model: On its device; the stage freezes its other parts.
        stage: What learns how fast, and from which loss.
        source: Where its inputs come from.
        options: Precision, gradient norm, and whether to compile.
        frozen: Names of parameters that stay as they are whatever the stage says.
        steps: How many steps there will be; None if that is not known.
    """

    def __init__(
        self,
        model: ConceptModel,
        stage: Stage,
        source: Source,
        options: TrainerOptions,
        *,
        frozen: Collection[str] = (),
        steps: int | None = None,
    ) -> None:
        self._model, self._stage, self._divided = model, stage, source.divided
        self._precision, self._max_grad_norm = options.precision, options.max_grad_norm
        groups = parameter_groups(model, stage, frozen)
        self._learning = [parameter for group in groups for parameter in group["params"]]
        self._factor = distributed.world_size() if source.divided else 1
        self._module: nn.Module = StageModule(model, source.forward)
        if options.backend is not None:
            self._module.compile(backend=options.backend)
        self.optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(self._learning[0].device.type, enabled=self._precision == "fp16")
        self.scheduler = schedule(stage, self.optimizer, steps)

    @property
    def rate(self) -> float:
        """The highest learning rate now."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def step(self, step_inputs: Sequence[StepInput]) -> tuple[float, int]:
        """Learn from some batches at once; gives their mean loss, and the number of their samples.

        Each batch's loss counts as often as it has samples.

        Raises:
            FloatingPointError: If a loss is not finite, before any weight has moved.
        """
        if self._divided and isinstance(self._module, StageModule):
            self._freeze_unused(step_inputs[0])
            device = self._learning[0].device
            self._module = DistributedDataParallel(self._module, [device] if device.type == "cuda" else None)
        self.optimizer.zero_grad()
        samples = sum(len(step_input.batch.concepts) for step_input in step_inputs)
        total, module = 0.0, self._module
        for number, step_input in enumerate(step_inputs, start=1):
            waits = number < len(step_inputs)  # gradients stay in this process, because more will be added
            with (
                module.no_sync() if waits and isinstance(module, DistributedDataParallel) else contextlib.nullcontext()
            ):
                loss, _ = compute_loss(module, self._stage, step_input, self._precision)
                weight = len(step_input.batch.concepts) / samples
                total += finite_loss(loss, self._stage, step_input.batch) * weight
                self.scaler.scale(loss * (weight * self._factor)).backward()  # processes' gradients are averaged
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self._learning, self._max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return total, samples

    def _freeze_unused(self, step_input: StepInput) -> None:
        """Freeze parameters that the loss does not depend on: DDP would wait for their gradients forever.

        In one process they stay as they are too, because they have no gradient.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        devices = {parameter.device for parameter in self._learning if parameter.device.type == "cuda"}
        with torch.random.fork_rng(devices=list(devices)):
            loss, _ = compute_loss(self._module, self._stage, step_input, self._precision)
            loss.backward()
        for buffer, value in buffers:
            buffer.copy_(value)
        used = distributed.gather([parameter.grad is not None for parameter in self._learning])
        unused = set()
        for parameter, anywhere in zip(self._learning, map(any, zip(*used, strict=True)), strict=True):
            parameter.requires_grad_(anywhere)
            if not anywhere:
                unused.add(parameter)
        if unused:
            log.warning(
                "stage %s: its first batch's loss does not depend on %s, which therefore stay as they are throughout "
                "the stage; if other batches' losses do, train in one process",
                self._stage.name,
                ", ".join(name for name, one in self._model.named_parameters() if one in unused),
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep of it."""
        return {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for name in ("optimizer", "scheduler", "scaler"):
            getattr(self, name).load_state_dict(state[name])


@contextlib.contextmanager
def frozen_as_before(model: nn.Module) -> Iterator[None]:
    """Let stages freeze parts of a model; at the end it is in eval mode, and what was frozen before is frozen again."""
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter not in frozen)
        model.eval()


@contextlib.contextmanager
def checkpointing(backbone: nn.Module, stage: Stage, *, wanted: bool) -> Iterator[None]:
    """Let a backbone that learns compute its activations again in the backward pass, which saves memory.

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
            f"`gradient_checkpointing` (--gradient-checkpointing) is on, but a {type(backbone).__name__} cannot do it: "
            "no module in it has timm's `set_grad_checkpointing`"
        )
    flags = [(module, getattr(module, "grad_checkpointing", None)) for module in modules]
    switches[0].set_grad_checkpointing(True)
    try:
        yield
    finally:
        switches[0].set_grad_checkpointing(False)
        for module, value in flags:
            if isinstance(value, bool):
                module.grad_checkpointing = value
