"""Checkpoints as others publish them, read safely and given the names this library uses."""

from conceptcam.hub.checkpoints.concept_models import SeedCheckpoint, read_concept_checkpoint
from conceptcam.hub.checkpoints.encoders import Encoder, fit_encoder, read_encoder
from conceptcam.hub.checkpoints.files import read_checkpoint

__all__ = [
    "Encoder",
    "SeedCheckpoint",
    "fit_encoder",
    "read_checkpoint",
    "read_concept_checkpoint",
    "read_encoder",
]
