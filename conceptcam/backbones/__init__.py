"""Add an encoder: a module from images to a grid of features, by name."""

from conceptcam.backbones import small_cnn as _small_cnn  # noqa: F401  registers itself
from conceptcam.backbones.base import Backbone, BackboneOptions
from conceptcam.backbones.registry import (
    backbone_normalization,
    create_backbone,
    list_backbones,
    register_backbone,
    usual_feature_level,
)

__all__ = [
    "Backbone",
    "BackboneOptions",
    "create_backbone",
    "backbone_normalization",
    "list_backbones",
    "register_backbone",
    "usual_feature_level",
]
