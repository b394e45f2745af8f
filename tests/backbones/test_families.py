"""One small member of each of many timm families, with random weights: it runs, and all of it learns."""

import pytest
import timm
import torch

from conceptcam.backbones import Backbone, create_backbone

# Name, and whether the architecture takes images that are not square.
FAMILIES = {
    "resnet10t": True,
    "convnext_atto": True,
    "vit_tiny_patch16_224": True,
    "deit_tiny_distilled_patch16_224": True,
    "vit_small_patch14_reg4_dinov2": True,
    "swin_tiny_patch4_window7_224": True,
    "swinv2_tiny_window8_256": True,
    "maxvit_pico_rw_256": True,
    "coatnet_pico_rw_224": True,
    "efficientnet_b0": True,
    "tf_efficientnet_lite0": True,
    "mobilenetv3_small_050": True,
    "densenet121": True,
    "regnetx_002": True,
    "eva02_tiny_patch14_224": True,
    "levit_128s": False,
    "hrnet_w18_small": True,
    "pvt_v2_b0": True,
    "davit_tiny": True,
    "mixer_s32_224": False,
    "xcit_nano_12_p16_224": False,
    "edgenext_xx_small": True,
    "mobilevit_xxs": True,
    "poolformer_s12": True,
    "fastvit_t8": True,
}
# HRNet ends in exchanges between resolutions of which its features use one.
IDLE = {"hrnet_w18_small": ("model.stage4.0.fuse_layers.", "model.incre_modules.")}

# Words of torch about how timm resamples position biases; they come when a size is not the native one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.searchsorted"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence"),
]


def native_size(name: str) -> tuple[int, int]:
    size = timm.get_pretrained_cfg(name).input_size[-2:]
    return (112, 112) if name == "vit_small_patch14_reg4_dinov2" else size  # 518 would take seconds


def build(name: str, size: tuple[int, int]) -> Backbone:
    return create_backbone(f"timm:{name}", image_size=size)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_uses_each_parameter_forward_and_backward(name):
    size = native_size(name)
    backbone = build(name, size)
    features = backbone(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert features.shape[:2] == (2, backbone.out_channels) and features.ndim == 4
    assert features.isfinite().all() and features.std() > 0
    features.square().mean().backward()
    gradients = {key: value.grad for key, value in backbone.named_parameters() if value.requires_grad}
    idle = [key for key, gradient in gradients.items() if gradient is None]
    assert all(name in IDLE and key.startswith(IDLE[name]) for key in idle)
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_images_that_are_not_square_or_refuses_them(name):
    height, width = native_size(name)
    if not FAMILIES[name]:
        with pytest.raises(ValueError, match=rf"timm:{name} takes images of \({height}, {width}\) only"):
            build(name, (height, 2 * width))
        return
    backbone = build(name, (height, 2 * width)).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, height, 2 * width))
    rows, columns = features.shape[-2:]
    assert columns in (2 * rows, 2 * rows - 1)
