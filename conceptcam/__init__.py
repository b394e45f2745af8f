"""Concept-bottleneck models for (medical) images: named findings, their places, and what they counted for."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam._version import __version__ as __version__
    from conceptcam.analysis.evaluation import evaluate as evaluate
    from conceptcam.analysis.evaluation_result import Evaluation as Evaluation
    from conceptcam.analysis.explanation import Explanation as Explanation, explain as explain
    from conceptcam.analysis.export import export_model as export_model
    from conceptcam.analysis.fitting import (
        fit_calibration as fit_calibration,
        fit_novelty as fit_novelty,
        fit_thresholds as fit_thresholds,
    )
    from conceptcam.analysis.intervention import Intervention as Intervention
    from conceptcam.analysis.intervention_result import intervene as intervene
    from conceptcam.analysis.learning_curves import plot_learning_curves as plot_learning_curves
    from conceptcam.backbones import (
        Backbone as Backbone,
        BackboneOptions as BackboneOptions,
        create_backbone as create_backbone,
        list_backbones as list_backbones,
        register_backbone as register_backbone,
    )
    from conceptcam.config.concept_config import ConceptConfig as ConceptConfig
    from conceptcam.config.training_record import TrainingRecord as TrainingRecord
    from conceptcam.data.batch import (
        ConceptBatch as ConceptBatch,
        ConceptDataset as ConceptDataset,
        ConceptItem as ConceptItem,
        collate as collate,
    )
    from conceptcam.data.boxes import ConceptBoxes as ConceptBoxes
    from conceptcam.data.coco import CocoDataset as CocoDataset
    from conceptcam.data.images import load_image as load_image
    from conceptcam.data.labels import resolve_uncertain as resolve_uncertain
    from conceptcam.data.phantom.dataset import PhantomDataset as PhantomDataset
    from conceptcam.data.table import TableDataset as TableDataset
    from conceptcam.data.transforms import (
        BoxAwareTransform as BoxAwareTransform,
        default_augmentation as default_augmentation,
    )
    from conceptcam.hub.card import model_card as model_card
    from conceptcam.hub.zoo import (
        list_architectures as list_architectures,
        list_models as list_models,
        model_info as model_info,
    )
    from conceptcam.losses import (
        BBoxGuidedConceptLoss as BBoxGuidedConceptLoss,
        PrototypeContrastiveLoss as PrototypeContrastiveLoss,
        box_localization_loss as box_localization_loss,
        class_balanced_loss as class_balanced_loss,
        compute_pos_weight as compute_pos_weight,
        prototype_contrastive_loss as prototype_contrastive_loss,
    )
    from conceptcam.model.concept_model import ConceptModel as ConceptModel, create_model as create_model
    from conceptcam.model.outputs import ConceptOutput as ConceptOutput, ConceptPart as ConceptPart
    from conceptcam.model.pooling import create_pooling as create_pooling, list_poolings as list_poolings
    from conceptcam.model.predictions import Predictions as Predictions
    from conceptcam.model.view import ModelView as ModelView
    from conceptcam.training.history import (
        CSVLogger as CSVLogger,
        EpochResult as EpochResult,
        TensorBoardLogger as TensorBoardLogger,
        read_history as read_history,
    )
    from conceptcam.training.presets import Preset as Preset, get_preset as get_preset, list_presets as list_presets
    from conceptcam.training.stages import Stage as Stage
    from conceptcam.training.trainer import Trainer as Trainer

__getattr__, __dir__ = hand_on(__name__)
