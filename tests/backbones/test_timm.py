import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conceptcam.backbones import create_backbone
from conceptcam.backbones.timm import TimmBackbone


def build(name: str, **options: Any) -> TimmBackbone:
    options.setdefault("image_size", timm.get_pretrained_cfg(name).input_size[-2:])
    backbone = create_backbone(f"timm:{name}", **options)
    assert isinstance(backbone, TimmBackbone)
    return backbone.eval()


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def timm_file(name: str, path: Path, seed: int = 1, **options: Any) -> nn.Module:
    """A timm model with random weights, and its safetensors file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, **options).eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    "name, size, prefix_tokens",
    [
        ("vit_relpos_small_patch16_224", (224, 224), 0),
        ("test_vit", (160, 96), 1),
        ("deit_tiny_distilled_patch16_224", (96, 224), 2),
        ("vit_small_patch14_reg4_dinov2", (56, 84), 5),
    ],
)
def test_prefix_tokens_are_dropped_whatever_their_number(name, size, prefix_tokens):
    backbone = build(name, feature_level=0, image_size=size)
    assert backbone.model.num_prefix_tokens == prefix_tokens
    image = randn(1, 3, *size)
    tokens = backbone.model.forward_features(image)[:, prefix_tokens:]
    expected = tokens.unflatten(1, backbone.model.patch_embed.grid_size).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone(image), expected)


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "deit_tiny_distilled_patch16_224", "xcit_nano_12_p16_224"])
@pytest.mark.parametrize("feature_level", [-1, 1])
def test_a_transformer_keeps_its_final_norm_at_every_level(name, feature_level):
    backbone = build(name, feature_level=feature_level)
    image = randn(1, 3, *timm.get_pretrained_cfg(name).input_size[-2:])
    before = backbone(image)
    norm = backbone.model.norm
    assert norm.weight.requires_grad
    norm.weight.data.mul_(2)
    norm.bias.data.add_(0.5)
    torch.testing.assert_close(backbone(image), 2 * before + 0.5)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"])
def test_the_last_level_is_what_timms_classifier_gets(name, tmp_path):
    model = timm_file(name, tmp_path / "w.safetensors")
    image = randn(2, 3, 160, 160)
    backbone = build(name, weights=tmp_path / "w.safetensors")
    (expected,) = model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True, output_fmt="NCHW")
    torch.testing.assert_close(backbone(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, sides", [("test_resnet", [80, 40, 20, 10, 5]), ("test_convnext", [40, 20, 10, 5]), ("test_vit", [10] * 6)]
)
def test_an_earlier_level_has_more_cells_and_no_later_layers(name, sides):
    image = randn(1, 3, 160, 160)
    sizes = []
    for level, side in enumerate(sides):
        first, second = build(name, feature_level=level), build(name, feature_level=level - len(sides))
        assert first(image).shape == second(image).shape == (1, first.out_channels, side, side)
        assert parameters(first) == parameters(second)
        sizes.append(parameters(first))
    assert sizes == sorted(set(sizes)), "each level has fewer parameters than the next"
    assert parameters(timm.create_model(name)) > sizes[-1], "and the last one has no classifier"


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet", "test_byobnet"])
def test_at_every_level_each_parameter_takes_part(name):
    levels = len(timm.create_model(name).feature_info)
    for level in range(levels):
        backbone = build(name, feature_level=level).train()
        backbone(randn(2, 3, 160, 160)).square().sum().backward()
        assert [key for key, value in backbone.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("level", [5, -6])
def test_a_level_that_is_not_there_is_refused_with_those_that_are(level):
    with pytest.raises(ValueError, match=f"timm:test_resnet has feature levels 0 to 4, got {level}"):
        build("test_resnet", feature_level=level)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_file_of_timm_is_loaded_whole_but_for_its_classifier(name, tmp_path):
    model = timm_file(name, tmp_path / "w.safetensors", num_classes=3)
    random_state = torch.get_rng_state()
    backbone = build(name, weights=tmp_path / "w.safetensors")
    assert torch.equal(torch.get_rng_state(), random_state), "loading leaves the global random state as it was"
    wanted = model.state_dict()
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, wanted[key])


def test_weights_of_the_native_size_are_resampled_to_another(tmp_path):
    timm_file("test_vit", tmp_path / "w.safetensors")
    backbone = build("test_vit", weights=tmp_path / "w.safetensors", image_size=(96, 224))
    assert backbone(randn(1, 3, 96, 224)).shape == (1, 64, 6, 14)


def change_file(path: Path, name: str, change: Any) -> None:
    weights = timm.create_model(name).state_dict()
    save_file({key: value.clone() for key, value in change(weights).items()}, path)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: {key: value for key, value in w.items() if key != "patch_embed.proj.bias"},
            r"(\d+) of (\d+) tensors match; 1 missing \['patch_embed.proj.bias'\], 0 left over \[\]",
        ),
        (
            lambda w: {key.replace("patch_embed.proj.b", "embed.b"): value for key, value in w.items()},
            r"1 missing \['patch_embed.proj.bias'\], 1 left over \['embed.bias'\]",
        ),
        (lambda w: {**w, "decoder": torch.zeros(1)}, r"0 missing \[\], 1 left over \['decoder'\]"),
        (
            lambda w: {**w, "pos_embed": torch.zeros(1, 190, 64)},
            r"1 of another shape or kind \['pos_embed \(1, 190, 64\) for \(1, 101, 64\)'\]",
        ),
        (
            lambda w: {f"vit.encoder.layer.{key}": value for key, value in w.items()},
            r"fit this backbone: 0 of (\d+) tensors match; .* left over \['vit.encoder.layer",
        ),
    ],
    ids=["missing", "renamed", "extra", "reshaped", "another library's names"],
)
def test_weights_that_do_not_fit_are_refused_with_counts_and_names(change, message, tmp_path):
    change_file(tmp_path / "w.safetensors", "test_vit", change)
    with pytest.raises(ValueError, match=message):
        build("test_vit", weights=tmp_path / "w.safetensors")


def test_a_pickle_of_tensors_loads_like_safetensors(tmp_path):
    weights = timm.create_model("test_vit").state_dict()
    torch.save(weights, tmp_path / "w.pth")
    loaded = build("test_vit", weights=tmp_path / "w.pth").model.state_dict()
    assert loaded and all(torch.equal(loaded[key], weights[key]) for key in loaded)


@pytest.mark.parametrize(
    "name, size, grid",
    [
        ("test_vit", (64, 208), (4, 13)),
        ("test_convnext", (64, 224), (2, 7)),
        ("test_resnet", (100, 60), (4, 2)),
        ("swin_tiny_patch4_window7_224", (96, 160), (3, 5)),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
def test_sizes_other_than_the_native_one_need_not_be_square(name, size, grid):
    backbone = build(name, image_size=size)
    assert backbone(randn(1, 3, *size)).shape == (1, backbone.out_channels, *grid)


@pytest.mark.parametrize(
    "name, size, message",
    [
        ("test_vit", (100, 160), r"timm:test_vit takes images in patches of \(16, 16\), got \(100, 160\)"),
        ("xcit_nano_12_p16_224", (224, 448), r"takes images of \(224, 224\) only, got \(224, 448\)"),
    ],
)
def test_a_size_the_architecture_cannot_take_is_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        build(name, image_size=size)


def test_a_misspelt_timm_name_lists_near_ones():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet5O'; near it: \['.*resnet.*\]. List them with"):
        create_backbone("timm:resnet5O")


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:some/model", ""])
def test_timms_own_ways_past_our_loaders_are_refused(name):
    with pytest.raises(ValueError, match=f"timm has no model '{name}'"):
        create_backbone(f"timm:{name}")


def test_a_model_that_gives_no_intermediate_features_is_refused(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="timm model 'test_vit' cannot give intermediate features; choose another"):
        create_backbone("timm:test_vit")


def test_without_pretrained_nothing_is_downloaded(monkeypatch):
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append(pretrained))
    with pytest.raises(ValueError):
        create_backbone("timm:test_vit")
    with pytest.raises(ValueError):
        create_backbone("timm:test_vit", pretrained=True)
    assert asked == [False, True]


def test_without_pretrained_no_client_of_the_hub_is_made(monkeypatch):
    # Making one fails behind a SOCKS proxy for which a package is missing, or without a file of certificates.
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("a client was made"))
    assert create_backbone("timm:test_vit", image_size=(160, 160)).out_channels > 0


def test_medmae_is_a_vit_base_with_patches_of_16_under_timms_names():
    with torch.device("meta"):
        backbone = create_backbone("medmae_vit_b16", feature_level=-1)
        encoder = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert isinstance(backbone, TimmBackbone)
    shapes = {key: value.shape for key, value in backbone.model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in encoder.state_dict().items()}
    assert len(shapes) == 150, "the tensors of the published encoder"
    with torch.device("meta"):
        assert backbone(torch.zeros(2, 3, 224, 224)).shape == (2, 768, 14, 14)


def test_missing_weights_of_medmae_say_what_to_do():
    with pytest.raises(ValueError, match="weights of medmae_vit_b16 cannot be downloaded by a program.*`weights="):
        create_backbone("medmae_vit_b16", pretrained=True)


def test_building_a_timm_backbone_prints_and_warns_nothing():
    code = "from conceptcam.backbones import create_backbone; create_backbone('timm:test_vit', image_size=(160, 160))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["hiera_tiny_224", "sam2_hiera_tiny"])
def test_models_that_do_not_normalize_a_grid_give_it_as_it_is(name):
    backbone = build(name, feature_level=1, image_size=(224, 224)).train()
    features = backbone(randn(1, 3, 224, 224))
    assert features.shape[1] == backbone.out_channels
    features.square().mean().backward()
    assert [key for key, value in backbone.named_parameters() if value.requires_grad and value.grad is None] == []


def test_a_final_norm_that_changes_the_number_of_channels_is_counted():
    with torch.device("meta"):
        backbone = build("samvit_base_patch16", feature_level=0)
        assert backbone(torch.zeros(1, 3, 1024, 1024)).shape == (1, 256, 64, 64)
    assert backbone.out_channels == 256
