"""Losses for any training loop: each takes plain tensors, never a model."""

from conceptcam.losses.boxes import BBoxGuidedConceptLoss, box_localization_loss
from conceptcam.losses.class_weights import compute_class_weight, compute_pos_weight
from conceptcam.losses.classification import (
    AsymmetricLoss,
    FocalLoss,
    asymmetric_loss,
    class_balanced_loss,
    focal_loss,
    multiclass_loss,
    multilabel_loss,
)
from conceptcam.losses.prototypes import PrototypeContrastiveLoss, prototype_contrastive_loss, prototype_presence_loss

__all__ = [
    "AsymmetricLoss",
    "BBoxGuidedConceptLoss",
    "FocalLoss",
    "PrototypeContrastiveLoss",
    "asymmetric_loss",
    "box_localization_loss",
    "compute_class_weight",
    "class_balanced_loss",
    "focal_loss",
    "multiclass_loss",
    "multilabel_loss",
    "compute_pos_weight",
    "prototype_contrastive_loss",
    "prototype_presence_loss",
]
