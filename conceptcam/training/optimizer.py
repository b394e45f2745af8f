"""How fast each parameter learns: groups for an optimizer, and the rate's course over a stage."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from conceptcam.model.concept_model import ConceptModel
from conceptcam.training.stages import Stage


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
    undecayed = {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    groups: dict[tuple[str, float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.partition(".")[0]
            decays = parameter.ndim > 1 and not name.endswith("bias") and part != "prototypes" and name not in undecayed
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
            f"{type(model.backbone).__name__}, does not say in `layer_ids()` which layer {unknown[0]!r} is in; "
            "set `layer_decay=1`"
        )
    depth = max(numbers.values()) + 1  # the heads are the layer behind the backbone's last
    return {
        f"backbone.{name}": stage.lr["backbone"] * stage.layer_decay ** (depth - numbers[name]) for name in learning
    }


def schedule(stage: Stage, optimizer: torch.optim.Optimizer, steps: int | None) -> torch.optim.lr_scheduler.LRScheduler:
    """The course of a stage's learning rates, to be stepped after each step of the optimizer.

    Every step learns something: a warm-up begins above 0, and the cosine reaches 0 only after the last step. The
    state holds plain numbers; loaded into a schedule made with the same arguments, it goes on with the same rates.

    Args:
        stage: Its `schedule` and `warmup`.
        optimizer: Its groups have their highest rates; see `parameter_groups`.
        steps: Steps of the optimizer in the whole stage; None, for batches without a length, if the rate is constant.

    Raises:
        ValueError: If a cosine schedule is not told how many steps there are.
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
