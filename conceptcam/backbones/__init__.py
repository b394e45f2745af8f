"""Backbones: images in, feature grids out."""

from conceptcam.backbones import small_cnn as _small_cnn  # noqa: F401  registers itself
from conceptcam.backbones.base import Backbone, BackboneRequest
from conceptcam.backbones.registry import create_backbone, expected_normalization, list_backbones, register_backbone

__all__ = [
    "Backbone",
    "BackboneRequest",
    "create_backbone",
    "expected_normalization",
    "list_backbones",
    "register_backbone",
]
