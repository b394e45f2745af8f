"""Checkpoints as others publish them, read safely and given the names this library uses."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.hub.checkpoints.concept_models import (
        SeedCheckpoint as SeedCheckpoint,
        read_concept_checkpoint as read_concept_checkpoint,
    )
    from conceptcam.hub.checkpoints.encoders import (
        Encoder as Encoder,
        fit_encoder as fit_encoder,
        read_encoder as read_encoder,
    )
    from conceptcam.hub.checkpoints.files import read_checkpoint as read_checkpoint

__getattr__, __dir__ = hand_on(__name__)
