import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conceptcam.backbones import Backbone, BackboneOptions, create_backbone, list_backbones, register_backbone, registry


class _Blank(Backbone):
    def __init__(self, request: BackboneOptions) -> None:
        super().__init__()
        self.request = request
        self.out_channels = 1

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1, ::4, ::4]


@pytest.fixture
def names(monkeypatch):
    """Names registered in a test are forgotten after it."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_our_own_backbones_are_listed_sorted():
    assert {"medmae_vit_b16", "small_cnn_s8", "rad_dino_vit_b14"} <= set(list_backbones())
    assert list_backbones() == sorted(list_backbones())


def test_a_registered_factory_gets_all_options_of_the_caller(names, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    register_backbone("blank")(_Blank)
    assert "blank" in list_backbones()
    built = create_backbone("blank", weights=str(tmp_path / "w.safetensors"), image_size=(8, 12), feature_level=-2)
    assert isinstance(built, _Blank)
    assert built.request == BackboneOptions(
        image_size=(8, 12), feature_level=-2, pretrained=False, weights=tmp_path / "w.safetensors"
    )
    defaults = create_backbone("blank")
    assert isinstance(defaults, _Blank) and defaults.request == BackboneOptions()


def test_the_decorator_returns_the_factory_it_was_given(names):
    assert register_backbone("blank")(_Blank) is _Blank


@pytest.mark.parametrize("name", ["small_cnn_s8", "medmae_vit_b16", "mine:v2", "timm:resnet50", ":"])
def test_taken_names_and_colons_are_refused_and_nothing_is_replaced(names, name):
    before = dict(registry._FACTORIES)
    with pytest.raises(ValueError, match=f"cannot register backbone '{name}': the name is taken or holds a colon"):
        register_backbone(name)(_Blank)
    assert before == registry._FACTORIES


@pytest.mark.parametrize("name, near", [("small_cnn", "small_cnn_s8"), ("medmae_vitb16", "medmae_vit_b16")])
def test_an_unknown_name_lists_the_near_ones(name, near):
    with pytest.raises(ValueError, match=rf"unknown backbone '{name}'; did you mean \['{near}'.*\]; registered: .*"):
        create_backbone(name)


@pytest.mark.parametrize("name", ["resnet50", "", "hub:resnet50"])
def test_an_unknown_name_lists_the_known_ones_and_timms_prefix(name):
    with pytest.raises(ValueError, match=rf"unknown backbone '{name}'; registered: .*For a timm model write 'timm:"):
        create_backbone(name)


def test_two_sources_of_weights_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"give either `pretrained=True` \(--pretrained\) or `weights` \(--weights\), not both"
    ):
        create_backbone("small_cnn_s8", pretrained=True, weights=tmp_path / "w.safetensors")


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file .*nowhere.safetensors"):
        create_backbone("small_cnn_s8", weights=tmp_path / "nowhere.safetensors")


WRONG_SIZES = [224, (224,), (224, 224, 3), (0, 224), (224, -8), (224.0, 224), ("2", "2"), "22", (True, 8), None]


@pytest.mark.parametrize("size", WRONG_SIZES, ids=repr)
@pytest.mark.parametrize("name", ["small_cnn_s8", "blank", "timm:resnet10t"])
def test_a_size_must_be_two_whole_numbers(names, name, size):
    register_backbone("blank")(_Blank)
    with pytest.raises(
        ValueError,
        match=rf"`image_size` \(--image-size\) must be \(H, W\), two ints above 0, got {re.escape(repr(size))}",
    ):
        create_backbone(name, image_size=size)


def test_a_factory_is_given_its_size_as_a_tuple(names):
    register_backbone("blank")(_Blank)
    assert create_backbone("blank", image_size=[8, 12]).request.image_size == (8, 12)
