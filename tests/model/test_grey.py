"""A model of one channel sees grey images without three copies, and is saved, exported and explained as any other."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conceptcam import ConceptConfig, ConceptModel, create_backbone, explain, export_model
from conceptcam.data.transforms import Preprocess
from tests.worlds import SIZE, tiny_config, tiny_model


def grey_model() -> ConceptModel:
    model = tiny_model(in_chans=1)
    model.record = model.record.after("concepts", ["backbone"]).after("prototypes", []).after("task", ["task_head"])
    return model.eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_three_means_of_a_grey_model_become_their_mean():
    config = ConceptConfig(concepts=("a",), backbone="x", in_chans=1)
    assert config.mean == pytest.approx((math.fsum((0.485, 0.456, 0.406)) / 3,)) and len(config.std) == 1
    assert dataclasses.replace(config, in_chans=1) == config == ConceptConfig.from_dict(config.to_dict())


def test_a_grey_image_is_the_same_with_one_channel_or_three():
    pixels = noise(1, 50, 70)
    one, three = (Preprocess(SIZE, (0.5,) * channels, (0.25,) * channels) for channels in (1, 3))
    for image in (pixels, pixels[0], pixels.expand(3, -1, -1), pixels[0].numpy(), pixels.float() / 255):
        assert one(image).shape == (1, *SIZE) and torch.equal(one(image)[0], three(image)[1])
    assert torch.equal(one.denormalize(one(pixels)), three.denormalize(three(pixels)))


def test_colours_are_turned_into_the_grey_that_pillow_makes():
    pixels = noise(3, *SIZE)
    pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("L")
    ours = Preprocess(SIZE, (0.0,), (1.0,))(pixels)[0] * 255
    assert (ours - torch.from_numpy(np.array(pillow))).abs().max() <= 1.001


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:resnet18"])
def test_weights_of_three_channels_see_one_as_three_copies(name, tmp_path):
    given = create_backbone(name, image_size=(64, 64))
    save_file(given.model.state_dict(), tmp_path / "three.safetensors")
    grey = create_backbone(name, image_size=(64, 64), in_chans=1, weights=tmp_path / "three.safetensors").eval()
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(images), given.eval()(images.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)
    save_file(grey.model.state_dict(), tmp_path / "one.safetensors")
    again = create_backbone(name, image_size=(64, 64), in_chans=1, weights=tmp_path / "one.safetensors").eval()
    assert torch.equal(again(images), grey(images))


def test_what_three_channels_lack_is_named_to_a_grey_backbone(tmp_path):
    whole = create_backbone("timm:test_resnet", image_size=(64, 64)).model.state_dict()
    save_file({name: part for name, part in whole.items() if name != "layer4.0.bn1.bias"}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"89 of 90 tensors match; 1 missing \['layer4.0.bn1.bias'\], 0 left over"):
        create_backbone("timm:test_resnet", image_size=(64, 64), in_chans=1, weights=tmp_path / "a.safetensors")


def test_a_grey_model_is_loaded_as_it_was_saved(tmp_path):
    model, pixels = grey_model(), noise(1, *SIZE)
    model.save_pretrained(tmp_path)
    again = ConceptModel.from_pretrained(tmp_path)
    assert again.config == model.config == tiny_config(in_chans=1) and "grey images" in repr(again)
    images = again.preprocess(pixels)[None]
    assert images.shape == (1, 1, *SIZE)
    torch.testing.assert_close(again(images).task_logits, model(images).task_logits)
    assert explain(again, pixels).image.shape == (3, *SIZE)


def test_a_grey_model_refuses_three_channels_exports_with_one(tmp_path):
    model = grey_model()
    with pytest.raises(ValueError, match=r"of shape \(B, 1, 48, 64\), got"):
        model(torch.zeros(1, 3, *SIZE))
    assert max(export_model(model, tmp_path / "model.pt2").differences.values()) <= 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.zeros(3, 1, *SIZE))["task_logits"].shape == (3, 2)
