import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conceptcam.backbones import create_backbone


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["small_cnn_s8", "small_cnn_s8_w64", "tiny_cnn_s8"])
@pytest.mark.parametrize("size", [(112, 112), (128, 96), (8, 16)])
def test_the_grid_has_a_cell_for_each_8_pixels(name, size):
    backbone = create_backbone(name, image_size=size).eval()
    features = backbone(randn(2, 3, *size))
    assert features.shape == (2, backbone.out_channels, size[0] // 8, size[1] // 8)


def test_it_has_about_half_a_million_parameters():
    parameters = sum(value.numel() for value in create_backbone("small_cnn_s8", image_size=(112, 112)).parameters())
    assert 0.4e6 < parameters < 0.9e6


@pytest.mark.parametrize("name", ["small_cnn_s4", "small_cnn_s4_w64", "tiny_cnn_s4"])
def test_a_fine_grid_has_a_cell_for_each_4_pixels(name):
    fine = create_backbone(name, image_size=(64, 48)).eval()
    coarse = create_backbone(name.replace("s4", "s8"), image_size=(64, 48)).eval()
    assert fine(randn(2, 3, 64, 48)).shape == (2, fine.out_channels, 16, 12)
    added = {key for key in fine.state_dict() if key.startswith("fine.")}
    assert fine.state_dict().keys() - added == coarse.state_dict().keys()


def test_a_fine_grid_tells_apart_what_lies_in_one_coarse_cell():
    backbone = create_backbone("small_cnn_s4", image_size=(64, 64)).eval()
    image = randn(1, 3, 64, 64).requires_grad_()
    backbone(image)[0, :, 8, 8].sum().backward()
    own, beside = image.grad[..., 32:36, 32:36].abs().mean(), image.grad[..., 36:40, 36:40].abs().mean()
    assert own > 1.2 * beside


@pytest.mark.parametrize("name", ["small_cnn_s8", "tiny_cnn_s8", "small_cnn_s4", "tiny_cnn_s4"])
def test_every_parameter_learns(name):
    backbone = create_backbone(name, image_size=(32, 32))
    backbone(randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, value in backbone.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_a_cell_sees_most_of_a_small_image_but_its_own_place_most():
    backbone = create_backbone("small_cnn_s8", image_size=(112, 112)).eval()
    image = randn(1, 3, 112, 112).requires_grad_()
    backbone(image)[0, :, 7, 7].sum().backward()
    assert image.grad is not None
    influence = image.grad.abs().sum(dim=(0, 1))
    assert (influence > 0).float().mean() > 0.5
    own = influence[56:64, 56:64].mean()
    assert own > 3 * influence.mean()


def test_its_own_weights_file_loads_to_the_bit(tmp_path):
    first, second = (create_backbone("small_cnn_s8", image_size=(32, 48)).eval() for _ in range(2))
    image = randn(1, 3, 32, 48)
    assert not torch.equal(first(image), second(image))
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    loaded = create_backbone("small_cnn_s8", image_size=(32, 48), weights=tmp_path / "w.safetensors").eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in loaded.state_dict().items())
    torch.testing.assert_close(loaded(image), first(image), rtol=1e-4, atol=1e-5)


def test_a_pickle_loads_and_numbers_that_are_not_finite_do_not(tmp_path):
    weights = create_backbone("small_cnn_s8", image_size=(16, 16)).state_dict()
    torch.save(weights, tmp_path / "w.pth")
    loaded = create_backbone("small_cnn_s8", image_size=(16, 16), weights=tmp_path / "w.pth")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    torch.save({**weights, "position": weights["position"] / 0}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"numbers that are not finite, in 1 tensors: \['position'\]"):
        create_backbone("small_cnn_s8", image_size=(16, 16), weights=tmp_path / "w.pth")


def test_weights_for_another_image_size_are_refused_with_both_shapes(tmp_path):
    save_file(create_backbone("small_cnn_s8", image_size=(32, 32)).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        ValueError, match=r"1 of another shape or kind \['position \(1, 96, 4, 4\) for \(1, 96, 4, 6\)'\]"
    ):
        create_backbone("small_cnn_s8", image_size=(32, 48), weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretrained": True}, "small_cnn_s8 has no published weights; it is made to train from scratch"),
        ({"feature_level": -2}, "small_cnn_s8 has one feature level, got -2"),
        ({"image_size": (100, 112)}, r"needs sides that are multiples of 8, got \(100, 112\)"),
    ],
)
def test_what_it_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("small_cnn_s8", **options)
