"""Concept-bottleneck models for (medical) images: named findings, their places, and what they counted for."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from conceptcam.backbones import Backbone, BackboneRequest, create_backbone, list_backbones, register_backbone
    from conceptcam.boxes import ConceptBoxes
    from conceptcam.card import model_card
    from conceptcam.config import ConceptConfig, ModelRecord
    from conceptcam.data.batch import ConceptBatch, ConceptDataset, ConceptItem, collate
    from conceptcam.data.coco import CocoDataset
    from conceptcam.data.phantom.dataset import PhantomDataset
    from conceptcam.evaluation import Evaluation, choose_thresholds, evaluate
    from conceptcam.explanation import Explanation, explain
    from conceptcam.history import EpochRecord, HistoryFile, TensorBoardLog, learning_curves, read_history
    from conceptcam.labels import resolve_uncertain
    from conceptcam.losses import (
        BBoxGuidedConceptLoss,
        PrototypeContrastiveLoss,
        box_localization_loss,
        classification_loss,
        positive_weight,
        prototype_contrastive_loss,
    )
    from conceptcam.model import ConceptModel
    from conceptcam.outputs import ConceptOutput, Seen
    from conceptcam.pooling import create_pooling, list_poolings
    from conceptcam.presets import Preset, Recipe, list_presets, preset
    from conceptcam.stages import Stage
    from conceptcam.trainer import Trainer
    from conceptcam.zoo import list_models, model_info

# Public name -> module that defines it. Resolved on first use (PEP 562), so that importing the package is
# instant and whoever only wants a loss does not wait for timm.
_PUBLIC: dict[str, str] = {
    "BBoxGuidedConceptLoss": "conceptcam.losses",
    "Backbone": "conceptcam.backbones",
    "BackboneRequest": "conceptcam.backbones",
    "CocoDataset": "conceptcam.data.coco",
    "ConceptBatch": "conceptcam.data.batch",
    "ConceptBoxes": "conceptcam.boxes",
    "ConceptConfig": "conceptcam.config",
    "ConceptDataset": "conceptcam.data.batch",
    "ConceptItem": "conceptcam.data.batch",
    "ConceptModel": "conceptcam.model",
    "ConceptOutput": "conceptcam.outputs",
    "EpochRecord": "conceptcam.history",
    "Evaluation": "conceptcam.evaluation",
    "Explanation": "conceptcam.explanation",
    "HistoryFile": "conceptcam.history",
    "ModelRecord": "conceptcam.config",
    "PhantomDataset": "conceptcam.data.phantom.dataset",
    "Preset": "conceptcam.presets",
    "PrototypeContrastiveLoss": "conceptcam.losses",
    "Recipe": "conceptcam.presets",
    "Seen": "conceptcam.outputs",
    "Stage": "conceptcam.stages",
    "TensorBoardLog": "conceptcam.history",
    "Trainer": "conceptcam.trainer",
    "box_localization_loss": "conceptcam.losses",
    "choose_thresholds": "conceptcam.evaluation",
    "classification_loss": "conceptcam.losses",
    "collate": "conceptcam.data.batch",
    "create_backbone": "conceptcam.backbones",
    "create_pooling": "conceptcam.pooling",
    "evaluate": "conceptcam.evaluation",
    "explain": "conceptcam.explanation",
    "learning_curves": "conceptcam.history",
    "list_backbones": "conceptcam.backbones",
    "list_models": "conceptcam.zoo",
    "list_poolings": "conceptcam.pooling",
    "list_presets": "conceptcam.presets",
    "model_card": "conceptcam.card",
    "model_info": "conceptcam.zoo",
    "positive_weight": "conceptcam.losses",
    "preset": "conceptcam.presets",
    "prototype_contrastive_loss": "conceptcam.losses",
    "read_history": "conceptcam.history",
    "register_backbone": "conceptcam.backbones",
    "resolve_uncertain": "conceptcam.labels",
}

__all__ = [
    "BBoxGuidedConceptLoss",
    "Backbone",
    "BackboneRequest",
    "CocoDataset",
    "ConceptBatch",
    "ConceptBoxes",
    "ConceptConfig",
    "ConceptDataset",
    "ConceptItem",
    "ConceptModel",
    "ConceptOutput",
    "EpochRecord",
    "Evaluation",
    "Explanation",
    "HistoryFile",
    "ModelRecord",
    "PhantomDataset",
    "Preset",
    "PrototypeContrastiveLoss",
    "Recipe",
    "Seen",
    "Stage",
    "TensorBoardLog",
    "Trainer",
    "box_localization_loss",
    "choose_thresholds",
    "classification_loss",
    "collate",
    "create_backbone",
    "create_pooling",
    "evaluate",
    "explain",
    "learning_curves",
    "list_backbones",
    "list_models",
    "list_poolings",
    "list_presets",
    "model_card",
    "model_info",
    "positive_weight",
    "preset",
    "prototype_contrastive_loss",
    "read_history",
    "register_backbone",
    "resolve_uncertain",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'conceptcam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
