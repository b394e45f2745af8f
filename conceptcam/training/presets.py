"""Named ways to build and to teach a model: the founding document's, the paper's, and what measured best."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from conceptcam._checks import did_you_mean
from conceptcam.config import ConceptConfig
from conceptcam.hub.architectures import CSR_FIELDS
from conceptcam.losses.boxes import BBoxGuidedConceptLoss
from conceptcam.losses.prototypes import PrototypeContrastiveLoss
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.training.stages import (
    Loss,
    PrototypeLoss,
    Stage,
    concept_stage,
    placed_prototype_stages,
    prototype_stage,
    task_stage,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named way to build and to teach a model.

    Attributes:
        config: Fields of `ConceptConfig` that this preset sets.
        stages: Makes the stages for a config.
        weighs: Whether it uses the losses of a recipe; one that does not has plain ones.
    """

    config: Mapping[str, Any]
    stages: Callable[[ConceptConfig, "Recipe"], tuple[Stage, ...]]
    weighs: bool = True

    def configure(self, config: ConceptConfig) -> ConceptConfig:
        """The config with this preset's fields."""
        return dataclasses.replace(config, **self.config)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a preset must be told about the data and the time there is.

    Attributes:
        concept_loss: Of concept logits and labels, such as
            `class_balanced_loss("ratio", train.concept_labels)`; None is plain binary cross-entropy.
        task_loss: Of task logits and targets, such as
            `class_balanced_loss("ratio", train.task_labels, kind=config.task_kind)`; None is plain cross-entropy,
            of each task or, for multi-class tasks, of all of them. The `paper` preset uses neither.
        epochs: Epochs of each stage, by its name; stages not named keep the preset's.
        backbone_pretrained: Whether the backbone starts from trained weights and should move slowly.
        freeze_backbone: Whether it should not move at all.
        layer_decay: Of the first stage; see `Stage`.
        task_solver: Finds the weights of the task head at once; the third stage then has no number of epochs.
    """

    concept_loss: Loss | None = None
    task_loss: Loss | None = None
    epochs: Mapping[str, int] = field(default_factory=dict)
    backbone_pretrained: bool = False
    freeze_backbone: bool = False
    layer_decay: float = 1.0
    task_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        if self.task_solver is not None and "task" in self.epochs:
            raise ValueError("a recipe with a `task_solver` has no epochs of 'task'; leave it out of `epochs`")


def list_presets() -> list[str]:
    """Names of the presets, the one to start with first."""
    return list(_PRESETS)


def preset(name: str = "recommended") -> Preset:
    """Look a preset up by name.

    `"recommended"`: what measured best on the phantom. `"seed"`: the project's founding document
    literally. `"paper"`: CSR (Huy et al., CVPR 2025) as far as it is known.

    Raises:
        ValueError: If no preset has that name.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, _PRESETS)}; known: {list_presets()}")
    return _PRESETS[name]


class _Rates(NamedTuple):
    """Learning rates of a preset."""

    scratch: float
    """Of a backbone with random weights."""
    tuning: float
    """Of a backbone with trained weights."""
    head: float
    prototypes: float
    task: float


_EPOCHS = {"concepts": 20, "prototypes": 10, "task": 20}


def _standard(
    concept_loss: Callable[[Recipe], nn.Module],
    prototype_loss: PrototypeLoss | None,
    lr: _Rates,
    *,
    weighs: bool = True,
    **options: Any,
) -> Callable[[ConceptConfig, Recipe], tuple[Stage, ...]]:
    """Concepts, then prototypes (placed, if no loss is given), then the task, each on what the last left fixed."""

    def stages(config: ConceptConfig, recipe: Recipe) -> tuple[Stage, ...]:
        for name in recipe.epochs.keys() - _EPOCHS.keys():
            raise ValueError(
                f"`epochs` names unknown stage {name!r}{did_you_mean(name, _EPOCHS)}; stages: {list(_EPOCHS)}"
            )
        times = {**_EPOCHS, **recipe.epochs}
        backbone_lr = lr.tuning if recipe.backbone_pretrained else lr.scratch
        rates = {"concept_head": lr.head, "pool": lr.head}
        if not recipe.freeze_backbone:
            rates = {"backbone": backbone_lr, **rates}
        first = {**options, "epochs": times["concepts"], "layer_decay": recipe.layer_decay}
        rows = [concept_stage(concept_loss(recipe), lr=rates, **first)]
        second = {**options, "epochs": times["prototypes"]}
        if config.bottleneck == "prototypes":
            if prototype_loss is None:
                rows += placed_prototype_stages(config, lr=lr.prototypes, **second)
            else:
                both = {"projector": lr.prototypes, "prototypes": lr.prototypes}
                rows.append(prototype_stage(prototype_loss, lr=both, **second))
        if config.tasks:
            task_loss = recipe.task_loss if weighs else None
            solver = recipe.task_solver
            third = {**options, "solver": solver, "epochs": 1 if solver else times["task"]}
            rows.append(task_stage(config, task_loss, lr={"task_head": lr.task}, **third))
        return tuple(rows)

    return stages


# The founding document's model and rates; the backbone moves at a hundredth of them if it is pretrained.
_SEED_MODEL = {
    "pooling": "max",
    "pooling_param": None,
    "projector": "mlp",
    "embed_dim": 128,
    "prototypes_per_concept": 5,
}
_SEED_RATES = _Rates(scratch=1e-4, tuning=1e-6, head=1e-4, prototypes=1e-4, task=1e-4)

_PRESETS: dict[str, Preset] = {
    "recommended": Preset(
        config=_SEED_MODEL,
        stages=_standard(
            lambda recipe: BBoxGuidedConceptLoss(classification=recipe.concept_loss or "bce"),
            None,
            _Rates(scratch=3e-3, tuning=1e-4, head=3e-3, prototypes=3e-4, task=3e-2),
            schedule="cosine",
        ),
    ),
    # The founding document to the letter: what it calls for, not what measured best.
    "seed": Preset(
        config=_SEED_MODEL,
        stages=_standard(
            lambda recipe: BBoxGuidedConceptLoss(
                classification=recipe.concept_loss or "bce", penalty="hinge", normalize="grid", mask="center"
            ),
            PrototypeContrastiveLoss("infonce", temperature=0.1),
            _SEED_RATES,
        ),
    ),
    # CSR: no boxes, no class weights; its learning rates and epochs are not known, so the seed's are taken.
    "paper": Preset(
        config=CSR_FIELDS,
        stages=_standard(
            lambda recipe: BBoxGuidedConceptLoss(beta=0.0),
            PrototypeContrastiveLoss("softtriple", temperature=1 / 20, gamma=1000.0, margin=0.1, margin_sign="paper"),
            _SEED_RATES,
            weighs=False,
        ),
        weighs=False,
    ),
}
