"""What is computed: image -> features -> concepts -> prototypes -> task."""

from typing import TYPE_CHECKING

from conceptcam._lazy import hand_on

if TYPE_CHECKING:
    from conceptcam.model.concept_model import ConceptModel as ConceptModel, create_model as create_model
    from conceptcam.model.data_config import config_for_data as config_for_data
    from conceptcam.model.outputs import ConceptOutput as ConceptOutput, ConceptPart as ConceptPart
    from conceptcam.model.parts import standard_parts as standard_parts
    from conceptcam.model.pooling import create_pooling as create_pooling, list_poolings as list_poolings
    from conceptcam.model.predictions import Predictions as Predictions

__getattr__, __dir__ = hand_on(__name__)
