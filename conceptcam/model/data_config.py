"""Which config does a model of some data need?"""

from typing import Any

from conceptcam.backbones import backbone_normalization, usual_feature_level
from conceptcam.config import ConceptConfig
from conceptcam.data.batch import ConceptDataset


def config_for_data(data: ConceptDataset, backbone: str, **fields: Any) -> ConceptConfig:
    """The config of a model for data: their concepts and tasks, and images as the backbone expects them.

    `conceptcam train` makes its config like this.

    Args:
        data: Has the names of concepts and tasks, and the kind of tasks.
        backbone: As `create_backbone` takes; its published mean and standard deviation are taken, and the feature level
            that `usual_feature_level` gives.
        **fields: Other fields of `ConceptConfig`, such as `image_size`; `mean`, `std`, `feature_level` and `task_kind`
            given here win. Names of concepts and tasks are always those of the data.

    Raises:
        TypeError: If `ConceptConfig` has no such field, or names of concepts or tasks are given.
        ValueError: If there is no such backbone, or a field has an impossible value.
    """
    mean, std = backbone_normalization(backbone)
    level = usual_feature_level(backbone, fields.get("image_size", ConceptConfig.image_size))
    usual = {"task_kind": data.task_kind, "feature_level": level, "mean": mean, "std": std}
    return ConceptConfig(concepts=tuple(data.concepts), tasks=tuple(data.tasks), backbone=backbone, **(usual | fields))
