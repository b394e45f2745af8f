"""How a run trains: its options, what they mean for given data, and which of them must stay as they were."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from conceptcam.config import ConceptConfig, TaskKind
from conceptcam.data.batch import ConceptBatch, ConceptDataset
from conceptcam.losses.classification import Strategy, class_balanced_loss
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.runs.folder import refuse_other
from conceptcam.training.feature_cache import Storage
from conceptcam.training.precision import Precision
from conceptcam.training.presets import get_preset

# What may be other than at its beginning when a run is resumed, because what is learned does not follow from it.
_FREE_OPTIONS = ("device", "gradient_checkpointing", "feature_cache", "tensorboard", "num_workers")
_FREE = {
    "": (*_FREE_OPTIONS, "finished", "conceptcam", "torch"),
    # It is the labels that count: a cluster may copy data to a new place for each start.
    "data": ("folder", "images", "training_data"),
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run trains.

    Attributes:
        preset: Name of the training preset.
        epochs: Epochs of each stage by name; stages not named keep the preset's.
        batch_size: Images per step.
        seed: Of everything random.
        device: Where to train.
        precision: As `Trainer`'s, or `"auto"`: bf16 where a trial step shows it to be faster than fp32.
        pretrained: Whether to download the backbone's published weights.
        weights: A file or a place on the Hub to start the backbone from; see `create_backbone`. One that starts from
            trained weights moves slowly.
        freeze_backbone: Whether it should not move at all.
        layer_decay: Each layer of a backbone that starts from trained weights learns at this times the rate of the
            layer behind it; see `Stage`.
        gradient_accumulation_steps: Batches per step.
        gradient_checkpointing: Whether to save memory by computing activations twice.
        compile: Whether to run training steps through `torch.compile`.
        feature_cache: Where stages keep what frozen parts say of each image; see `Trainer`.
        tensorboard: Whether to log epochs for TensorBoard too, into the run's folder.
        resume: Whether to go on with a run that was killed, in the same folder and with the same options, save those
            that what is learned does not follow from. In a folder without a run one begins, and of a finished run
            the model comes back: one script serves for a first start and for all others.
        imbalance: What to do about rare labels, of concepts and tasks; see `class_balanced_loss`. None is what the
            preset was made with: "ratio", save that multi-class tasks are not weighted, and nothing at all for
            `paper`, which takes no other choice.
        solve_task: Whether to solve for the task head's weights at once in place of descending; see `LinearSolver`.
            The stage `task` then has no number of epochs.
        num_workers: Processes that load data.
        progress_bar: Whether to show progress bars.
    """

    preset: str = "recommended"
    epochs: Mapping[str, int] = field(default_factory=dict)
    batch_size: int = 32
    seed: int = 0
    device: str = "cpu"
    precision: Precision | Literal["auto"] = "auto"
    pretrained: bool = False
    weights: str | Path | None = None
    freeze_backbone: bool = False
    layer_decay: float = 1.0
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    feature_cache: Storage = "auto"
    tensorboard: bool = False
    resume: bool = False
    imbalance: Strategy | None = None
    solve_task: bool = False
    num_workers: int = 0
    progress_bar: bool = False


def run_recipe(options: RunOptions, config: ConceptConfig, train: ConceptDataset) -> dict[str, Any]:
    """The options of `Preset.stages` that follow from the options of a run and its data.

    Raises:
        ValueError: If an option would do nothing, or contradicts another.
    """
    chosen = get_preset(options.preset)
    if options.imbalance not in (None, "none") and not chosen.uses_losses:
        raise ValueError(
            f"the preset {options.preset!r} leaves rare labels as they are, so imbalance {options.imbalance!r} would "
            "do nothing; leave it out or choose another preset"
        )
    if options.solve_task and not train.tasks:
        raise ValueError("the data have no task labels, so there is no task head to solve for: leave out `solve_task`")
    if options.solve_task and "task" in options.epochs:
        raise ValueError("`solve_task` solves for the task head at once: leave the epochs of 'task' out of `epochs`")
    if options.solve_task and options.imbalance in ("focal", "asymmetric"):
        raise ValueError(
            f"`solve_task` needs a convex loss, and imbalance {options.imbalance!r} is none: choose another, or descend"
        )
    kind, answers = config.task_kind, _answers(options, config.task_kind)
    return dict(
        concept_loss=class_balanced_loss(answers["concepts"], train.concept_labels),
        task_loss=class_balanced_loss(answers["tasks"], train.task_labels, kind=kind) if train.tasks else None,
        epochs=options.epochs,
        backbone_pretrained=options.pretrained or options.weights is not None,
        freeze_backbone=options.freeze_backbone,
        layer_decay=options.layer_decay,
        task_solver=LinearSolver() if options.solve_task else None,
    )


def told_of(options: RunOptions, task_kind: TaskKind) -> dict[str, Any]:
    """What `run.json` says of options, a choice about rare labels in full; `"auto"` precision is chosen later."""
    told = dataclasses.asdict(options)
    told["imbalance"] = _answers(options, task_kind)
    return {name: value for name, value in told.items() if name not in ("resume", "progress_bar")}


def refuse_changed(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a run with options that would teach something else than those it began with.

    Args:
        folder: Where it is.
        then: What its `run.json` says; empty if no run was begun, which refuses nothing.
        now: The same of now, or the part of it that is known.

    Raises:
        ValueError: Naming what differs.
    """
    chosen_then = ("precision",) if now.get("precision") == "auto" else ()
    if then:
        refuse_other(folder, then, now, free={**_FREE, "": (*_FREE[""], *chosen_then)})


def _answers(options: RunOptions, kind: TaskKind) -> dict[str, Strategy]:
    """What is done about rare labels of concepts and of tasks."""
    if options.imbalance is not None:
        return {"concepts": options.imbalance, "tasks": options.imbalance}
    usual: Strategy = "ratio" if get_preset(options.preset).uses_losses else "none"
    return {"concepts": usual, "tasks": usual if kind == "multilabel" else "none"}


def loader(dataset: ConceptDataset, options: RunOptions, *, shuffle: bool = False) -> DataLoader[ConceptBatch]:
    """Batches of a data set, as the options say."""
    on_gpu = torch.device(options.device).type == "cuda"
    return dataset.dataloader(options.batch_size, shuffle=shuffle, num_workers=options.num_workers, pin_memory=on_gpu)
