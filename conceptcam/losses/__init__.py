"""Losses for any training loop: each takes plain tensors, never a model."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.losses.boxes import (
        BBoxGuidedConceptLoss as BBoxGuidedConceptLoss,
        box_localization_loss as box_localization_loss,
    )
    from conceptcam.losses.class_weights import (
        compute_class_weight as compute_class_weight,
        compute_pos_weight as compute_pos_weight,
    )
    from conceptcam.losses.classification import (
        AsymmetricLoss as AsymmetricLoss,
        FocalLoss as FocalLoss,
        asymmetric_loss as asymmetric_loss,
        class_balanced_loss as class_balanced_loss,
        focal_loss as focal_loss,
        multiclass_loss as multiclass_loss,
        multilabel_loss as multilabel_loss,
    )
    from conceptcam.losses.prototypes import (
        PrototypeContrastiveLoss as PrototypeContrastiveLoss,
        prototype_contrastive_loss as prototype_contrastive_loss,
        prototype_presence_loss as prototype_presence_loss,
    )
    from conceptcam.losses.regions import region_loss as region_loss

__getattr__, __dir__ = hand_on(__name__)
