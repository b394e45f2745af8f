"""Losses. Each takes plain tensors, so it fits any training loop."""

from conceptcam.losses.boxes import BBoxGuidedConceptLoss, box_localization_loss
from conceptcam.losses.class_weights import class_weight, positive_weight
from conceptcam.losses.classification import (
    AsymmetricLoss,
    FocalLoss,
    asymmetric_loss,
    classification_loss,
    focal_loss,
    multiclass_loss,
    multilabel_loss,
)
from conceptcam.losses.prototypes import (
    PrototypeContrastiveLoss,
    prototype_contrastive_loss,
    prototype_presence_loss,
)

__all__ = [
    "AsymmetricLoss",
    "BBoxGuidedConceptLoss",
    "FocalLoss",
    "PrototypeContrastiveLoss",
    "asymmetric_loss",
    "box_localization_loss",
    "class_weight",
    "classification_loss",
    "focal_loss",
    "multiclass_loss",
    "multilabel_loss",
    "positive_weight",
    "prototype_contrastive_loss",
    "prototype_presence_loss",
]
