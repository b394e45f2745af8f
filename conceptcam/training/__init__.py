"""How a model learns: stages, the loop that runs them, and presets."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.training.presets import Preset as Preset, get_preset as get_preset, list_presets as list_presets
    from conceptcam.training.stages import Stage as Stage
    from conceptcam.training.trainer import Trainer as Trainer

__getattr__, __dir__ = hand_on(__name__)
