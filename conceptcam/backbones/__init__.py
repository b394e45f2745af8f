"""Backbones: images in, feature grids out."""

from conceptcam.backbones import small as _small  # noqa: F401  registers itself
from conceptcam.backbones.base import Backbone
from conceptcam.backbones.registry import (
    BackboneRequest,
    create_backbone,
    expected_normalization,
    list_backbones,
    register_backbone,
)

__all__ = [
    "Backbone",
    "BackboneRequest",
    "create_backbone",
    "expected_normalization",
    "list_backbones",
    "register_backbone",
]
