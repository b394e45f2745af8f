"""Named ways to build and to teach a model: the original document's, the paper's, and what measured best."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn

from conceptcam._checks import did_you_mean
from conceptcam.config import ConceptConfig
from conceptcam.hub.architectures import CSR_FIELDS
from conceptcam.losses.boxes import BBoxGuidedConceptLoss
from conceptcam.losses.prototypes import PrototypeContrastiveLoss
from conceptcam.model.concept_solver import ConceptSolver
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.training.prototype_init import PrototypePlacement
from conceptcam.training.stages import (
    Loss,
    PrototypeLoss,
    Schedule,
    Stage,
    clustered_prototype_stages,
    concept_stage,
    placed_prototype_stage,
    prototype_stage,
    task_stage,
)

EPOCHS = {"concepts": 20, "prototypes": 10, "task": 20}
"""Of each stage, where nobody chooses."""


class Rates(NamedTuple):
    """Learning rates of a preset."""

    scratch: float
    """Of a backbone with random weights."""
    pretrained: float
    """Of a backbone with trained weights."""
    head: float
    """Of the concept head and the pooling."""
    prototypes: float
    """Of the projector and the prototypes."""
    task: float
    """Of the task head."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named way to build and to teach a model.

    Attributes:
        config: Fields of `ConceptConfig` that this preset sets.
        rates: Learning rates.
        make_concept_loss: Makes the loss of stage 1 of the classification loss that `stages` is given, or of `"bce"`.
        prototype_loss: Of stage 2. None takes `recommended_prototype_loss` of `stages.py`, in two rows, between which
            prototypes are put at the centres of clusters. A loss given here is learned from in one row, from random
            prototypes. Prototypes that are placed (`placement` of `stages`) learn from no loss.
        schedule: Of the learning rates.
        corrections: Whether the task head also learns from corrected concepts; see `Stage`.
        uses_losses: Whether `concept_loss` and `task_loss` of `stages` are used; otherwise the losses are plain.
        adapts: Whether `decide` may change config and stages by the number of images.
    """

    config: Mapping[str, Any]
    rates: Rates
    make_concept_loss: Callable[[Loss | Literal["bce"]], nn.Module]
    prototype_loss: PrototypeLoss | None = None
    schedule: Schedule = "constant"
    corrections: bool = False
    uses_losses: bool = True
    adapts: bool = False

    def apply_to(self, config: ConceptConfig) -> ConceptConfig:
        """The config with this preset's fields."""
        return dataclasses.replace(config, **self.config)

    def stages(
        self,
        config: ConceptConfig,
        *,
        concept_loss: Loss | None = None,
        task_loss: Loss | None = None,
        epochs: Mapping[str, int] | None = None,
        backbone_pretrained: bool = False,
        freeze_backbone: bool = False,
        layer_decay: float = 1.0,
        score_epochs: int = 1,
        concept_solver: ConceptSolver | None = None,
        placement: PrototypePlacement | None = None,
        task_solver: LinearSolver | None = None,
        corrections: bool | None = None,
    ) -> tuple[Stage, ...]:
        """Concepts, then prototypes, then the task; each stage freezes what the stages before it have taught.

        Args:
            config: What the model is; without tasks there is no third stage, without prototypes no second one.
            concept_loss: Of concept logits and labels, such as
                `class_balanced_loss("ratio", train.concept_labels)`; None is plain binary cross-entropy.
            task_loss: Of task logits and targets, such as
                `class_balanced_loss("ratio", train.task_labels, kind=config.task_kind)`; None is plain
                cross-entropy, of each task or, for multi-class tasks, of all of them. The `paper` preset uses neither.
            epochs: Epochs of `"concepts"`, `"prototypes"` and `"task"`; what is not named keeps 20, 10 and 20.
            backbone_pretrained: Whether the backbone starts from trained weights and should move slowly.
            freeze_backbone: Whether it should not move at all. Nothing is decided here by the number of images; a run
                asks `conceptcam.training.decisions.decide` for that.
            layer_decay: Of the first stage; see `Stage`.
            score_epochs: Likewise.
            concept_solver: Finds the weights of the concept head at once, on a frozen backbone.
            placement: Finds projector and prototypes at once.
            task_solver: Finds the weights of the task head at once; the third stage then has one epoch.
            corrections: Whether the task head also learns from rows with true concepts, so that it profits from
                corrections; None does as the preset does. See `conceptcam.model.corrections`.

        Raises:
            ValueError: If `epochs` names an unknown stage, or the third one although its weights are solved for, or
                the concept head is to be solved for on a backbone that learns.
        """
        counts = _epochs_of(epochs or {}, task_is_solved=task_solver is not None)
        if concept_solver is not None and not freeze_backbone:
            raise ValueError(
                "a `concept_solver` needs features that stay the same: set `freeze_backbone` (--freeze-backbone)"
            )
        if not self.uses_losses:
            concept_loss = task_loss = None
        heads = {"concept_head": self.rates.head, "pool": self.rates.head}
        backbone = {"backbone": self.rates.pretrained if backbone_pretrained else self.rates.scratch}
        concepts = concept_stage(
            self.make_concept_loss(concept_loss or "bce"), lr=heads if freeze_backbone else backbone | heads,
            schedule=self.schedule, layer_decay=layer_decay, score_epochs=score_epochs,
            solver=concept_solver, epochs=1 if concept_solver else counts["concepts"],
        )  # fmt: skip
        rows = [concepts, *self._prototype_stages(config, placement, counts["prototypes"])]
        if config.tasks:
            task = task_stage(
                config, task_loss, lr={"task_head": self.rates.task}, schedule=self.schedule,
                solver=task_solver, epochs=1 if task_solver else counts["task"],
                corrections=self.corrections if corrections is None else corrections,
            )  # fmt: skip
            rows.append(task)
        return tuple(rows)

    def _prototype_stages(
        self, config: ConceptConfig, placement: PrototypePlacement | None, epochs: int
    ) -> Sequence[Stage]:
        """Stage 2: prototypes are placed, or learn from the preset's loss, or from the recommended one in two rows."""
        if config.bottleneck != "prototypes":
            return []
        if placement is not None:
            return [placed_prototype_stage(placement)]
        lr = self.rates.prototypes
        if self.prototype_loss is None:
            return clustered_prototype_stages(config, lr=lr, epochs=epochs, schedule=self.schedule)
        both = {"projector": lr, "prototypes": lr}
        return [prototype_stage(self.prototype_loss, lr=both, epochs=epochs, schedule=self.schedule)]


def _epochs_of(chosen: Mapping[str, int], *, task_is_solved: bool) -> Mapping[str, int]:
    """Epochs of every stage, where some are chosen.

    Raises:
        ValueError: If an unknown stage is named, or the third one although its weights are solved for.
    """
    for name in chosen.keys() - EPOCHS.keys():
        raise ValueError(f"`epochs` names unknown stage {name!r}{did_you_mean(name, EPOCHS)}; stages: {list(EPOCHS)}")
    if task_is_solved and "task" in chosen:
        raise ValueError("with a `task_solver`, stage 'task' has no epochs to choose; leave it out of `epochs`")
    return {**EPOCHS, **chosen}


def list_presets() -> list[str]:
    """Names of the presets, the one to start with first."""
    return list(_PRESETS)


def get_preset(name: str = "recommended") -> Preset:
    """Look a preset up by name.

    `"recommended"`: what measured best, on a hundred real images and on the phantom;
    `conceptcam.training.decisions.decide` adapts it to the data. `"original"`: the project's original document
    literally. `"paper"`: CSR (Huy et al., CVPR 2025) as far as it is known.

    Raises:
        ValueError: If no preset has that name.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, _PRESETS)}; known: {list_presets()}")
    return _PRESETS[name]


# The original document's model and rates; the backbone moves at a hundredth of them if it is pretrained.
_ORIGINAL_MODEL = {
    "pooling": "max",
    "pooling_param": None,
    "projector": "mlp",
    "embed_dim": 128,
    "prototypes_per_concept": 5,
}
_ORIGINAL_RATES = Rates(scratch=1e-4, pretrained=1e-6, head=1e-4, prototypes=1e-4, task=1e-4)

_PRESETS: dict[str, Preset] = {
    "recommended": Preset(
        config=_ORIGINAL_MODEL,
        rates=Rates(scratch=3e-3, pretrained=1e-4, head=3e-3, prototypes=3e-4, task=3e-2),
        make_concept_loss=lambda loss: BBoxGuidedConceptLoss(classification=loss),
        schedule="cosine",
        corrections=True,
        adapts=True,
    ),
    # The original document to the letter: what it calls for, not what measured best.
    "original": Preset(
        config=_ORIGINAL_MODEL,
        rates=_ORIGINAL_RATES,
        make_concept_loss=lambda loss: BBoxGuidedConceptLoss(
            classification=loss, penalty="hinge", normalize="grid", mask="center"
        ),
        prototype_loss=PrototypeContrastiveLoss("infonce", temperature=0.1),
    ),
    # CSR: no boxes, no class weights; its learning rates and epochs are not known, so the original's are taken.
    "paper": Preset(
        config=CSR_FIELDS,
        rates=_ORIGINAL_RATES,
        make_concept_loss=lambda loss: BBoxGuidedConceptLoss(beta=0.0),
        prototype_loss=PrototypeContrastiveLoss(
            "softtriple", temperature=1 / 20, gamma=1000.0, margin=0.1, margin_sign="paper"
        ),
        uses_losses=False,
    ),
}
