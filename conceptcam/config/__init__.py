"""What a model is (`ConceptConfig`) and what it has been taught (`TrainingRecord`); together, `config.json`."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.config.concept_config import (
        Bottleneck as Bottleneck,
        ConceptConfig as ConceptConfig,
        PoolingOrder as PoolingOrder,
        ProjectorKind as ProjectorKind,
        TaskKind as TaskKind,
    )
    from conceptcam.config.config_file import from_json as from_json, to_json as to_json
    from conceptcam.config.training_record import TrainingRecord as TrainingRecord

__getattr__, __dir__ = hand_on(__name__)
