"""The options of a run, what they mean for given data, and which of them must stay the same when it resumes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch.utils.data import DataLoader

from conceptcam.config import ConceptConfig, ProjectorKind
from conceptcam.data.batch import ConceptBatch, ConceptDataset
from conceptcam.data.image_cache import LIMIT as IMAGE_CACHE_LIMIT
from conceptcam.losses.class_weights import WeightStrategy, compute_class_weight, compute_pos_weight
from conceptcam.losses.classification import Strategy, class_balanced_loss
from conceptcam.training.decisions import decide
from conceptcam.training.options import TrainerOptions, option
from conceptcam.training.precision import Precision
from conceptcam.training.presets import get_preset, list_presets
from conceptcam.training.stages import Stage

MAY_CHANGE = {
    "": (
        *("device", "gradient_checkpointing", "feature_cache", "feature_cache_limit", "tensorboard", "num_workers"),
        "image_cache_limit",
        *("keep_checkpoints", "checkpoint_every", "finished", "conceptcam", "torch", "format_version"),
    ),
    # The labels count: a cluster may copy data to a new place for each start.
    "data": ("folder", "images", "training_data"),
}
"""Entries of `run.json` that may differ when a run resumes, because they do not decide what is learned."""

# Left out of `run.json`.
_UNSAVED = ("resume", "progress_bar", "callbacks", "checkpoint_dir")

_NOT_CONVEX = ("focal", "asymmetric")
"""Losses for which there is no solving."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainerOptions):
    """How a run trains; it adds to the options of `Trainer` what to begin with, how long, and on which batches.

    `resume` goes on with a run that was killed, to the same weights as if it had never stopped; the options that
    decide what is learned must be the same. In a folder without a run, one begins. `callbacks` are called besides
    the run's own, and the run chooses `checkpoint_dir`.
    """

    preset: str = option("recommended", "training preset", choices=list_presets())
    epochs: Mapping[str, int] = dataclasses.field(
        default_factory=dict,
        metadata={
            "help": "epochs of the stages concepts, prototypes and task; the preset's where none are given",
            "metavar": "STAGE=N",
        },
    )
    batch_size: int = option(32, "images per batch", at_least=1, metavar="N")
    pretrained: bool = option(False, "start the backbone from its published weights, which are downloaded")
    weights: str | Path | None = option(
        None, "start the backbone from a checkpoint: a file, or organization/name on the Hub", metavar="FILE"
    )
    freeze_backbone: bool | None = option(
        None,
        "whether the heads learn alone; without it, the preset recommended freezes a backbone with trained weights "
        "below 1,000 images, and the others never do",
        yes_no=True,
    )
    pooling: str | None = option(None, "how a map becomes a concept's logit; without it, the preset decides")
    pooling_param: float | None = option(
        None, "of pooling topk, how many places or which fraction of them; of lse, its sharpness", metavar="F"
    )
    projector: ProjectorKind | None = option(
        None, "into the prototypes' space; without it, the preset decides", choices=get_args(ProjectorKind)
    )
    prototypes_per_concept: int | None = option(
        None, "prototypes of each concept; without it, the preset decides", at_least=1, metavar="N"
    )
    layer_decay: float = option(
        1.0, "each layer of the backbone learns at this times the rate of the layer behind it", metavar="F"
    )
    imbalance: Strategy | None = option(
        None,
        "what to do about rare labels; without it ratio, but none for the preset paper",
        choices=get_args(Strategy),
    )
    solve_task: bool | None = option(
        None, "whether to solve for the weights of the task head at once; without it, the preset decides", yes_no=True
    )
    corrections: bool | None = option(
        None,
        "whether the task head also learns from rows with true concepts, so that it profits from corrections; without "
        "it, the preset decides: recommended does",
        yes_no=True,
    )
    num_workers: int = option(0, "processes that load images", at_least=0, metavar="N")
    image_cache: str | Path | None = option(
        None, "folder to keep decoded images in, at the model's size, so that each file is decoded once", metavar="DIR"
    )
    image_cache_limit: float = option(IMAGE_CACHE_LIMIT / 1e9, "GB that the image cache may take", flag=False)
    seed: int = option(0, "seed of everything random", metavar="N")
    precision: Precision | Literal["auto"] = option(  # type: ignore[assignment]  # wider than Trainer's on purpose
        "auto", "number format; auto takes bf16 where a trial is faster in it", choices=("auto", *get_args(Precision))
    )
    tensorboard: bool = option(False, "also log epochs for TensorBoard, into the folder")
    resume: bool = option(False, "go on with the run in the folder; begin it if there is none")


def trainer_options(options: RunOptions, **changes: Any) -> dict[str, Any]:
    """The options of a run that are also options of `Trainer`, some of them changed."""
    return {one.name: getattr(options, one.name) for one in fields(TrainerOptions)} | changes


class RunPlan(NamedTuple):
    """What a run teaches which model."""

    config: ConceptConfig
    stages: tuple[Stage, ...]
    reason: str
    """What the preset decided and why, in a sentence; empty if it decided nothing."""


def make_plan(options: RunOptions, config: ConceptConfig, train: ConceptDataset) -> RunPlan:
    """The model and the stages, as the preset decides for these data and as the options say.

    Raises:
        ValueError: If an option would do nothing, or contradicts another.
    """
    _check_sense(options, config, train)
    preset, convex = get_preset(options.preset), options.imbalance not in _NOT_CONVEX
    names = ("pooling", "pooling_param", "projector", "prototypes_per_concept")
    decisions = decide(
        preset,
        config,
        images=len(train),
        batch_size=options.batch_size,
        backbone_pretrained=options.pretrained or options.weights is not None,
        freeze_backbone=options.freeze_backbone,
        solve_task=options.solve_task if convex else False,
        epochs=options.epochs,
        fields={name: value for name in names if (value := getattr(options, name)) is not None},
    )
    config, chosen = decisions.config, loss_strategies(options)
    stages = preset.stages(
        config,
        concept_loss=class_balanced_loss(chosen["concepts"], train.concept_labels),
        task_loss=class_balanced_loss(chosen["tasks"], train.task_labels, kind=config.task_kind)
        if train.tasks
        else None,
        layer_decay=options.layer_decay,
        corrections=options.corrections,
        **decisions.stage_options,
    )
    return RunPlan(config, stages, decisions.reason)


def _check_sense(options: RunOptions, config: ConceptConfig, train: ConceptDataset) -> None:
    """Refuse options that would do nothing, or contradict one another."""
    if options.imbalance not in (None, "none") and not get_preset(options.preset).uses_losses:
        raise ValueError(
            f"the preset {options.preset!r} leaves rare labels as they are, so imbalance {options.imbalance!r} would "
            "do nothing; leave it out or choose another preset"
        )
    if options.solve_task and not train.tasks:
        raise ValueError(
            "the data have no task labels, so there is no task head to solve for: leave out `solve_task` (--solve-task)"
        )
    if options.solve_task and "task" in options.epochs:
        raise ValueError(
            "`solve_task` (--solve-task) solves for the task head at once: leave the epochs of 'task' out of `epochs` "
            "(--epochs)"
        )
    if options.prototypes_per_concept is not None and config.bottleneck != "prototypes":
        raise ValueError(
            f"a {config.bottleneck!r} bottleneck has no prototypes, so `prototypes_per_concept` "
            "(--prototypes-per-concept) would do nothing: leave it out"
        )
    if options.solve_task and options.imbalance in _NOT_CONVEX:
        raise ValueError(
            f"`solve_task` (--solve-task) needs a convex loss, and imbalance {options.imbalance!r} is none: choose "
            "another, or descend"
        )


def options_to_dict(options: RunOptions) -> dict[str, Any]:
    """The options as `run.json` holds them; the choice about rare labels is written in full."""
    saved = {one.name: getattr(options, one.name) for one in fields(options) if one.name not in _UNSAVED}
    cached = True if options.image_cache is not None else None  # images of more than 8 bits are rounded; where is free
    return {**saved, "epochs": dict(options.epochs), "imbalance": loss_strategies(options), "image_cache": cached}


def loss_strategies(options: RunOptions) -> dict[str, Strategy]:
    """What is done about rare labels of concepts and of tasks."""
    if options.imbalance is not None:
        return {"concepts": options.imbalance, "tasks": options.imbalance}
    usual: Strategy = "ratio" if get_preset(options.preset).uses_losses else "none"
    return {"concepts": usual, "tasks": usual}


def class_weights(
    options: RunOptions, config: ConceptConfig, train: ConceptDataset
) -> tuple[dict[str, float], dict[str, float]]:
    """The weights of rare concepts and of rare tasks in training by name; empty if the loss has none."""
    chosen = loss_strategies(options)
    exclusive = config.task_kind == "multiclass"
    sides = (
        (chosen["concepts"], config.concepts, train.concept_labels, compute_pos_weight),
        (chosen["tasks"], config.tasks, train.task_labels, compute_class_weight if exclusive else compute_pos_weight),
    )
    concepts, tasks = (
        dict(zip(names, compute(labels, strategy=cast(WeightStrategy, strategy)).tolist(), strict=True))
        if names and strategy in get_args(WeightStrategy)
        else {}
        for strategy, names, labels, compute in sides
    )
    return concepts, tasks


def loader(dataset: ConceptDataset, options: RunOptions, *, shuffle: bool = False) -> DataLoader[ConceptBatch]:
    """Batches of a data set."""
    on_gpu = torch.device(options.device).type == "cuda"
    return dataset.dataloader(options.batch_size, shuffle=shuffle, num_workers=options.num_workers, pin_memory=on_gpu)
