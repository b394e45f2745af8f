"""What the preset `recommended` decides from the number of images and the backbone, and why."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from conceptcam.config import ConceptConfig
from conceptcam.model.concept_solver import ConceptSolver
from conceptcam.model.linear_solver import LinearSolver
from conceptcam.training.presets import EPOCHS, Preset
from conceptcam.training.prototype_init import PrototypePlacement

FEW_IMAGES = 1000
"""Training images below which a pretrained backbone stays frozen."""

MOST_TO_SOLVE = 20_000
"""Training images up to which a concept head on a frozen backbone is solved for; beyond, it learns in steps."""

_SCORE_EPOCHS = 5
_LEAST_STEPS = {"concepts": 800, "prototypes": 400, "task": 800}
_MOST_STEPS = 20_000
_MOST_EPOCHS = 60


class Decisions(NamedTuple):
    """How a model is built and taught."""

    config: ConceptConfig
    """With the fields of the preset, those decided, and those chosen."""
    stage_options: dict[str, Any]
    """Arguments of `Preset.stages`."""
    reason: str
    """What was decided and why, in a sentence; empty if the preset decides nothing."""


def decide(
    preset: Preset,
    config: ConceptConfig,
    *,
    images: int,
    batch_size: int = 32,
    backbone_pretrained: bool = False,
    freeze_backbone: bool | None = None,
    solve_task: bool | None = None,
    epochs: Mapping[str, int] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Decisions:
    """Decide what the user has not: from few images learn little, and find it at once; from many learn everything.

    With fewer than 1,000 training images a pretrained backbone stays frozen. On a frozen backbone, features are
    computed once, the concept head is solved for, a concept's logit is the mean of the highest tenth of its map, and
    with few images prototypes are placed in the space of standardized features. The task head is solved for.
    Otherwise stages last at least some hundred steps and at most 20,000, and with few images the epoch of the concept
    stage is chosen by the mean score of five. Presets that do not adapt decide nothing.

    Args:
        preset: Its fields and rates are the ground.
        config: Of the model.
        images: Training images.
        batch_size: Images per batch.
        backbone_pretrained: Whether the backbone starts from trained weights.
        freeze_backbone: Whether the backbone stays as it is; None decides.
        solve_task: Whether the task head is solved for; None decides.
        epochs: Epochs of stages; a stage named here learns in steps.
        fields: Fields of the config that are chosen, whatever the preset says.
    """
    given, chosen = dict(epochs or {}), dict(fields or {})
    options: dict[str, Any] = {"backbone_pretrained": backbone_pretrained, "freeze_backbone": bool(freeze_backbone)}
    if not preset.adapts:
        options |= {"epochs": given, "task_solver": LinearSolver() if solve_task else None}
        return Decisions(dataclasses.replace(preset.apply_to(config), **chosen), options, "")
    few = images < FEW_IMAGES
    frozen = freeze_backbone if freeze_backbone is not None else backbone_pretrained and few
    solve_concepts = frozen and "concepts" not in given and images <= MOST_TO_SOLVE
    decided: dict[str, Any] = {"pooling": "topk", "pooling_param": 0.1} if frozen and "pooling" not in chosen else {}
    place = frozen and few and "prototypes" not in given and config.bottleneck == "prototypes"
    if place and "projector" not in chosen:
        decided |= {"projector": "linear"}
    solve = bool(config.tasks) and "task" not in given and solve_task is not False
    steps = math.ceil(images / batch_size)
    options = {
        "backbone_pretrained": backbone_pretrained,
        "freeze_backbone": frozen,
        "score_epochs": _SCORE_EPOCHS if few else 1,
        "concept_solver": ConceptSolver() if solve_concepts else None,
        "placement": PrototypePlacement() if place else None,
        "task_solver": LinearSolver(l2=None) if solve else None,
        "epochs": {name: _epochs(name, steps) for name in EPOCHS if name != "task" or not solve} | given,
    }
    decides = frozen or "concepts" not in given
    reason = _reason(images, options, given, asked=freeze_backbone is not None) if decides else ""
    return Decisions(dataclasses.replace(preset.apply_to(config), **decided, **chosen), options, reason)


def _epochs(stage: str, steps: int) -> int:
    """Epochs of a stage, of so many steps each: neither too few steps to learn nor more than are of use."""
    enough = math.ceil(_LEAST_STEPS[stage] / steps)
    most = max(1, _MOST_STEPS // steps)
    return min(max(EPOCHS[stage], min(enough, _MOST_EPOCHS)), most)


def _reason(images: int, options: Mapping[str, Any], given: Mapping[str, int], *, asked: bool) -> str:
    steps = "learns in steps"
    if "concepts" in given:
        steps += ", because its epochs are chosen (without `epochs`, --epochs, it is solved for)"
    if options["freeze_backbone"] and asked:
        found = "is solved for at once" if options["concept_solver"] else steps
        return f"The backbone stays frozen, as asked, on {images} training images; the concept head {found}"
    if options["freeze_backbone"]:
        found = f"the concept head {'is solved for' if options['concept_solver'] else steps}"
        placed = ", prototypes are placed" if options["placement"] else ""
        return (
            f"{images} training images are few for a pretrained backbone, so it stays frozen: {found}{placed} "
            "(`freeze_backbone=False`, --no-freeze-backbone, fine-tunes it)"
        )
    start = "The pretrained backbone learns slowly" if options["backbone_pretrained"] else "The backbone learns"
    return f"{start} from {images} training images, for {options['epochs']['concepts']} epochs"
