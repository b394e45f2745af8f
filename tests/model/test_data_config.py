import pytest

from conceptcam.backbones import backbone_normalization
from conceptcam.config import ConceptConfig
from conceptcam.model.data_config import config_for_data
from tests.worlds import Squares


def test_a_config_for_data_has_their_names_and_the_backbones_wishes():
    data = Squares(4)
    config = config_for_data(data, "timm:resnet18", image_size=(160, 224))
    assert (config.concepts, config.tasks, config.task_kind) == (
        tuple(data.concepts),
        tuple(data.tasks),
        data.task_kind,
    )
    assert (config.mean, config.std) == backbone_normalization("timm:resnet18")
    assert config.feature_level == -2  # the last of 5 levels has 5 rows


def test_a_field_that_is_given_wins():
    chosen = {"mean": (0.1, 0.2, 0.3), "feature_level": -1, "bottleneck": "concepts", "embed_dim": 8}
    config = config_for_data(Squares(4), "timm:resnet18", **chosen)
    assert {name: getattr(config, name) for name in chosen} == chosen
    assert config.image_size == ConceptConfig(concepts=("a",), backbone="timm:resnet18").image_size


def test_a_grey_config_for_data_has_one_number_per_image():
    config = config_for_data(Squares(4), "timm:resnet18", in_chans=1)
    mean, std = backbone_normalization("timm:resnet18")
    assert config.mean == pytest.approx((sum(mean) / 3,)) and config.std == pytest.approx((sum(std) / 3,))
