"""Concept-bottleneck models for (medical) images: named findings, their places, and what they counted for."""

import importlib
from typing import TYPE_CHECKING

from conceptcam._version import __version__

if TYPE_CHECKING:
    from conceptcam.analysis.evaluation import Evaluation, evaluate, fit_thresholds
    from conceptcam.analysis.explanation import Explanation, explain
    from conceptcam.backbones import Backbone, BackboneOptions, create_backbone, list_backbones, register_backbone
    from conceptcam.config import ConceptConfig, TrainingRecord
    from conceptcam.data.batch import ConceptBatch, ConceptDataset, ConceptItem, collate
    from conceptcam.data.boxes import ConceptBoxes
    from conceptcam.data.coco import CocoDataset
    from conceptcam.data.labels import resolve_uncertain
    from conceptcam.data.phantom.dataset import PhantomDataset
    from conceptcam.hub.card import model_card
    from conceptcam.hub.zoo import list_architectures, list_models, model_info
    from conceptcam.losses import (
        BBoxGuidedConceptLoss,
        PrototypeContrastiveLoss,
        box_localization_loss,
        class_balanced_loss,
        compute_pos_weight,
        prototype_contrastive_loss,
    )
    from conceptcam.model.concept_model import ConceptModel, create_model
    from conceptcam.model.outputs import ConceptOutput, ConceptPart
    from conceptcam.model.pooling import create_pooling, list_poolings
    from conceptcam.model.predictions import Predictions
    from conceptcam.training.history import (
        CSVLogger,
        EpochResult,
        TensorBoardLogger,
        plot_learning_curves,
        read_history,
    )
    from conceptcam.training.presets import Preset, get_preset, list_presets
    from conceptcam.training.stages import Stage
    from conceptcam.training.trainer import Trainer

# Public name -> module that defines it. Resolved on first use (PEP 562), so that importing the package is
# instant and whoever only wants a loss does not wait for timm.
_PUBLIC: dict[str, str] = {
    "BBoxGuidedConceptLoss": "conceptcam.losses",
    "Backbone": "conceptcam.backbones",
    "BackboneOptions": "conceptcam.backbones",
    "CocoDataset": "conceptcam.data.coco",
    "ConceptBatch": "conceptcam.data.batch",
    "ConceptBoxes": "conceptcam.data.boxes",
    "ConceptConfig": "conceptcam.config",
    "ConceptDataset": "conceptcam.data.batch",
    "ConceptItem": "conceptcam.data.batch",
    "ConceptModel": "conceptcam.model.concept_model",
    "ConceptOutput": "conceptcam.model.outputs",
    "EpochResult": "conceptcam.training.history",
    "Evaluation": "conceptcam.analysis.evaluation",
    "Explanation": "conceptcam.analysis.explanation",
    "CSVLogger": "conceptcam.training.history",
    "TrainingRecord": "conceptcam.config",
    "PhantomDataset": "conceptcam.data.phantom.dataset",
    "Predictions": "conceptcam.model.predictions",
    "Preset": "conceptcam.training.presets",
    "PrototypeContrastiveLoss": "conceptcam.losses",
    "ConceptPart": "conceptcam.model.outputs",
    "Stage": "conceptcam.training.stages",
    "TensorBoardLogger": "conceptcam.training.history",
    "Trainer": "conceptcam.training.trainer",
    "box_localization_loss": "conceptcam.losses",
    "fit_thresholds": "conceptcam.analysis.evaluation",
    "class_balanced_loss": "conceptcam.losses",
    "collate": "conceptcam.data.batch",
    "create_backbone": "conceptcam.backbones",
    "create_model": "conceptcam.model.concept_model",
    "create_pooling": "conceptcam.model.pooling",
    "evaluate": "conceptcam.analysis.evaluation",
    "explain": "conceptcam.analysis.explanation",
    "plot_learning_curves": "conceptcam.training.history",
    "list_architectures": "conceptcam.hub.zoo",
    "list_backbones": "conceptcam.backbones",
    "list_models": "conceptcam.hub.zoo",
    "list_poolings": "conceptcam.model.pooling",
    "list_presets": "conceptcam.training.presets",
    "model_card": "conceptcam.hub.card",
    "model_info": "conceptcam.hub.zoo",
    "compute_pos_weight": "conceptcam.losses",
    "get_preset": "conceptcam.training.presets",
    "prototype_contrastive_loss": "conceptcam.losses",
    "read_history": "conceptcam.training.history",
    "register_backbone": "conceptcam.backbones",
    "resolve_uncertain": "conceptcam.data.labels",
}

__all__ = [
    "BBoxGuidedConceptLoss",
    "Backbone",
    "BackboneOptions",
    "CocoDataset",
    "ConceptBatch",
    "ConceptBoxes",
    "ConceptConfig",
    "ConceptDataset",
    "ConceptItem",
    "ConceptModel",
    "ConceptOutput",
    "EpochResult",
    "Evaluation",
    "Explanation",
    "CSVLogger",
    "TrainingRecord",
    "PhantomDataset",
    "Predictions",
    "Preset",
    "PrototypeContrastiveLoss",
    "ConceptPart",
    "Stage",
    "TensorBoardLogger",
    "Trainer",
    "box_localization_loss",
    "fit_thresholds",
    "class_balanced_loss",
    "collate",
    "create_backbone",
    "create_model",
    "create_pooling",
    "evaluate",
    "explain",
    "plot_learning_curves",
    "list_architectures",
    "list_backbones",
    "list_models",
    "list_poolings",
    "list_presets",
    "model_card",
    "model_info",
    "compute_pos_weight",
    "get_preset",
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
