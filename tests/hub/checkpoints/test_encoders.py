import functools
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import resnet as our_resnets
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torchvision.models import resnet as their_resnets

from conceptcam.hub.checkpoints import Encoder, read_encoder
from tests.hub.checkpoints.published import (
    DEPTH,
    HEADS,
    PATCH,
    SIDE,
    WIDTH,
    mae_file,
    mae_tokens,
    mae_weights,
    randomized,
    resized,
    timm_dinov2,
    timm_vit,
    tokens,
)

OTHER = 48, 64  # another input size, not square
CLOSE = 1e-5


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    import transformers  # takes seconds to import

    transformers.utils.logging.disable_progress_bar()
    return transformers


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *(size or (SIDE, SIDE)))


def gap(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    assert first.std() > 0.1
    return (first - second).abs().max().item()


def saved(path: Path, weights: dict[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


def loaded(model: nn.Module, path: Path) -> Encoder:
    """Fills a model with the encoder of a file."""
    encoder = read_encoder(path, model.state_dict())
    model.load_state_dict(encoder.tensors)
    return encoder


# --- MAE -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mae(tmp_path: Path) -> tuple[dict[str, Tensor], Path]:
    weights = mae_weights()
    return weights, mae_file(tmp_path / "mae.pth", weights)


def test_mae_gives_the_features_of_its_own_encoder(mae):
    weights, path = mae
    model, pixels = timm_vit(), images()
    assert gap(tokens(model, pixels), mae_tokens(weights, pixels)) > 0.1, "not equal before loading"
    assert loaded(model, path).format == "mae"
    assert gap(tokens(model, pixels), mae_tokens(weights, pixels)) <= CLOSE


def test_mae_gives_the_features_of_its_own_encoder_at_another_size(mae):
    weights, path = mae
    model, pixels = timm_vit(), images(*OTHER)
    loaded(model, path)
    model.set_input_size(OTHER)
    there = weights | {"pos_embed": resized(weights["pos_embed"], OTHER[0] // PATCH, OTHER[1] // PATCH)}
    assert gap(tokens(model, pixels), mae_tokens(there, pixels)) <= CLOSE


def test_decoder_and_mask_token_of_mae_are_left_out_and_listed(mae):
    weights, path = mae
    left_out = read_encoder(path, timm_vit().state_dict()).left_out
    assert set(left_out) == {name for name in weights if name.startswith(("decoder", "mask_token"))}


def test_a_full_vit_b_mae_has_150_tensors_of_254():
    with torch.device("meta"):
        wanted = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    # 104 more: 8 blocks of 12, mask token, positions, and weight and bias of embed, norm and pred.
    assert (len(wanted), 8 * 12 + 2 + 3 * 2) == (150, 104)


def test_the_head_of_a_fine_tuned_mae_is_left_out(tmp_path):
    weights = timm_vit().state_dict() | {"head.weight": torch.zeros(14, WIDTH), "head.bias": torch.zeros(14)}
    encoder = read_encoder(mae_file(tmp_path / "tuned.pth", weights), timm_vit().state_dict())
    assert encoder.left_out == ("head.bias", "head.weight")


def test_a_mae_fine_tuned_by_global_pooling_is_refused_and_told_why(tmp_path):
    weights = timm_vit().state_dict()
    for kind in ("weight", "bias"):
        weights[f"fc_norm.{kind}"] = weights.pop(f"norm.{kind}")
    path = mae_file(tmp_path / "tuned.pth", weights)
    with pytest.raises(ValueError, match=r"2 missing \['norm.bias', 'norm.weight'\].*take the pretrained checkpoint"):
        read_encoder(path, timm_vit().state_dict())


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def hf_config(kind: Any, **changes: Any) -> Any:
    fields = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "layer_norm_eps": 1e-6}
    return kind(**fields | {"patch_size": PATCH, "image_size": SIDE} | changes)


def hf_vit(transformers: ModuleType, **changes: Any) -> nn.Module:
    config = hf_config(transformers.ViTConfig, intermediate_size=4 * WIDTH, **changes)
    return randomized(transformers.ViTModel(config))


def hf_vit_classifier(transformers: ModuleType) -> nn.Module:
    config = hf_config(transformers.ViTConfig, intermediate_size=4 * WIDTH)
    return randomized(transformers.ViTForImageClassification(config))


def hf_mae(transformers: ModuleType) -> nn.Module:
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = hf_config(
        transformers.ViTMAEConfig,
        intermediate_size=4 * WIDTH,
        decoder_intermediate_size=32,
        mask_ratio=0.0,
        **decoder,
    )
    return randomized(transformers.ViTMAEForPreTraining(config))


def hf_dinov2(transformers: ModuleType, **changes: Any) -> nn.Module:
    return randomized(transformers.Dinov2Model(hf_config(transformers.Dinov2Config, **changes)))


def hf_registers(transformers: ModuleType) -> nn.Module:
    config = hf_config(transformers.Dinov2WithRegistersConfig, num_register_tokens=4)
    return randomized(transformers.Dinov2WithRegistersModel(config))


SPELLINGS = {"old": "attention.attention.query", "v5": "attention.q_proj"}


def hf_file(model: nn.Module, folder: Path, spelling: str) -> Path:
    """The file of a model: as transformers 5 saves it, which is the old spelling, or with its names of today."""
    if spelling == "old":
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
    else:
        path = saved(folder / "model.safetensors", model.state_dict())
    assert SPELLINGS[spelling] in path.read_bytes()[:20_000].decode(errors="ignore")
    return path


def hf_tokens(model: nn.Module, pixels: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(pixels, **options).last_hidden_state


@pytest.mark.parametrize("spelling", SPELLINGS)
class TestHuggingFace:
    def test_vit_gives_its_features(self, transformers, tmp_path, spelling):
        theirs, ours, pixels = hf_vit(transformers), timm_vit(), images()
        encoder = loaded(ours, hf_file(theirs, tmp_path, spelling))
        assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels)) <= CLOSE
        assert encoder[1:] == ("huggingface-vit", ("pooler.dense.bias", "pooler.dense.weight"))

    def test_a_vit_classifier_gives_the_features_of_its_encoder(self, transformers, tmp_path, spelling):
        theirs, ours, pixels = hf_vit_classifier(transformers), timm_vit(), images()
        encoder = loaded(ours, hf_file(theirs, tmp_path, spelling))
        assert gap(tokens(ours, pixels), hf_tokens(theirs.vit, pixels)) <= CLOSE
        assert encoder.left_out == ("classifier.bias", "classifier.weight")

    def test_vitmae_gives_the_features_it_has_without_masking(self, transformers, tmp_path, spelling):
        theirs, ours, pixels = hf_mae(transformers), timm_vit(), images()
        encoder = loaded(ours, hf_file(theirs, tmp_path, spelling))
        in_order = torch.arange((SIDE // PATCH) ** 2.0).expand(2, -1)  # it shuffles patches by this noise
        with torch.no_grad():
            expected = theirs.vit(pixels, noise=in_order).last_hidden_state
        assert gap(tokens(ours, pixels), expected) <= CLOSE
        assert encoder.format == "huggingface-vitmae"
        assert all(name.startswith("decoder.") for name in encoder.left_out)

    def test_dinov2_gives_its_features(self, transformers, tmp_path, spelling):
        theirs, ours, pixels = hf_dinov2(transformers), timm_dinov2(), images()
        encoder = loaded(ours, hf_file(theirs, tmp_path, spelling))
        assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels)) <= CLOSE
        assert encoder[1:] == ("huggingface-dinov2", ("embeddings.mask_token",))

    def test_dinov2_with_gated_layers_gives_its_features(self, transformers, tmp_path, spelling):
        theirs, pixels = hf_dinov2(transformers, use_swiglu_ffn=True), images()
        ours = timm_dinov2(swiglu=(int(4 * WIDTH * 2 / 3) + 7) // 8 * 8)
        loaded(ours, hf_file(theirs, tmp_path, spelling))
        assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels)) <= CLOSE

    def test_dinov2_with_registers_gives_its_features(self, transformers, tmp_path, spelling):
        theirs, ours, pixels = hf_registers(transformers), timm_dinov2(registers=4), images()
        encoder = loaded(ours, hf_file(theirs, tmp_path, spelling))
        assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels)) <= CLOSE
        assert encoder.format == "huggingface-dinov2-with-registers"

    def test_dinov2_with_registers_gives_its_features_at_another_size(self, transformers, tmp_path, spelling):
        theirs, ours, pixels = hf_registers(transformers), timm_dinov2(registers=4), images(*OTHER)
        loaded(ours, hf_file(theirs, tmp_path, spelling))
        ours.set_input_size(OTHER)
        assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels)) <= CLOSE


# timm resizes position embeddings with an antialiased cubic filter, as transformers does for DINOv2 with registers.
# For ViT and DINOv2 transformers has another cubic filter, so they are compared with that filter exchanged, and all
# else of their resizing, such as which axis is which, as it is.
RESIZING: dict[str, tuple[Callable[..., nn.Module], Callable[[], VisionTransformer], dict[str, Any]]] = {
    "vit": (hf_vit, timm_vit, {"interpolate_pos_encoding": True}),
    "dinov2": (hf_dinov2, timm_dinov2, {}),
}


@pytest.mark.parametrize("kind", RESIZING)
def test_huggingface_features_at_another_size_use_timms_filter(transformers, tmp_path, monkeypatch, kind):
    (theirs, ours, options), pixels = RESIZING[kind], images(*OTHER)
    theirs, ours = theirs(transformers), ours()
    loaded(ours, hf_file(theirs, tmp_path, "old"))
    ours.set_input_size(OTHER)
    assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels, **options)) > CLOSE, "the filters differ"
    filtered = functools.partial(nn.functional.interpolate, antialias=True)
    monkeypatch.setattr(nn.functional, "interpolate", filtered)
    assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels, **options)) <= CLOSE


def test_the_epsilon_of_transformers_hardly_changes_features(transformers, tmp_path):
    theirs, ours, pixels = hf_vit(transformers, layer_norm_eps=1e-12), timm_vit(), images()
    loaded(ours, hf_file(theirs, tmp_path, "old"))
    assert gap(tokens(ours, pixels), hf_tokens(theirs, pixels)) < 1e-4


def test_a_backbone_named_as_in_transformers_takes_its_file(transformers, tmp_path):
    theirs, ours = hf_vit(transformers), hf_vit(transformers)
    path = hf_file(theirs, tmp_path, "v5")
    loaded(ours, path)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_a_backbone_named_as_in_transformers_takes_no_file_of_mae(transformers, mae):
    wanted = {f"vit.{name}": value for name, value in hf_vit(transformers).state_dict().items()}
    with pytest.raises(ValueError, match=rf"0 of {len(wanted)} tensors match; {len(wanted)} missing \['vit.emb"):
        read_encoder(mae[1], wanted)


# --- DINOv2, timm, torchvision ---------------------------------------------------------------------------------------


def meta_dinov2(model: VisionTransformer, registers: int) -> dict[str, Tensor]:
    """Random weights under the names that `facebookresearch/dinov2` has for such a model."""
    names = {"reg_token": "register_tokens"}
    weights = {names.get(name, name): torch.randn_like(value) for name, value in model.state_dict().items()}
    weights["pos_embed"] = torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH)
    return weights | {"mask_token": torch.randn(1, WIDTH)}


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [None, 88])
def test_the_original_dinov2_loads_as_timm_itself_converts_it(tmp_path, registers, swiglu):
    ours, theirs = (timm_dinov2(registers=registers, swiglu=swiglu) for _ in range(2))
    weights = meta_dinov2(ours, registers)
    if swiglu:
        spell = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
        for ours_name, their_name in spell.items():
            weights = {name.replace(ours_name, their_name): value for name, value in weights.items()}
    theirs.load_state_dict(checkpoint_filter_fn(dict(weights), theirs))
    encoder = loaded(ours, saved(tmp_path / "dinov2.pth", weights))
    pixels = images()
    assert gap(tokens(ours, pixels), tokens(theirs, pixels)) == 0
    assert encoder[1:] == ("dinov2", ("mask_token",))


def test_a_teacher_of_dinov2_training_is_taken_out_of_its_file(tmp_path):
    weights = timm_dinov2().state_dict()
    teacher = {f"backbone.{name}": value for name, value in weights.items()}
    content = {"teacher": teacher | {"dino_head.mlp.0.weight": torch.zeros(3)}, "iteration": 9}
    encoder = read_encoder(saved(tmp_path / "teacher.pth", content), weights)
    assert encoder.left_out == ("dino_head.mlp.0.weight",)


@pytest.mark.parametrize("name", ["file.safetensors", "file.pth"])
def test_a_timm_file_loads_with_its_classifier_left_out(tmp_path, name):
    theirs, ours, pixels = timm_vit(num_classes=5), timm_vit(), images()
    encoder = loaded(ours, saved(tmp_path / name, theirs.state_dict()))
    assert gap(tokens(ours, pixels), tokens(theirs, pixels)) == 0
    assert encoder[1:] == ("timm", ("head.bias", "head.weight"))


def test_names_that_the_caller_knows_are_left_out(tmp_path):
    weights = timm_vit(depth=3).state_dict()
    path, wanted = saved(tmp_path / "file.pth", weights), timm_vit().state_dict()
    with pytest.raises(ValueError, match=r"12 left over \['blocks.2."):
        read_encoder(path, wanted)
    encoder = read_encoder(path, wanted, may_hold=weights)
    assert len(encoder.left_out) == 12


@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_a_torchvision_resnet_in_a_sequential_gives_its_features(tmp_path, block):
    theirs, ours = (source.ResNet(getattr(source, block), [1, 1, 1, 1]) for source in (their_resnets, our_resnets))
    ours.reset_classifier(0)
    cut = nn.Sequential(*list(theirs.eval().children())[:-2])
    weights = {f"backbone.{name}": value for name, value in cut.state_dict().items()}
    encoder = loaded(ours.eval(), saved(tmp_path / "resnet.pth", weights))
    pixels = images(64, 64)
    with torch.no_grad():
        assert gap(ours.forward_features(pixels), cut(pixels)) <= CLOSE
    assert encoder.format == "torchvision-resnet"


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "backbone."]
)
@pytest.mark.parametrize("container", [(), ("model",), ("state_dict",), ("model_state_dict",), ("state_dict", "model")])
def test_wrappers_and_containers_are_taken_off(tmp_path, prefix, container):
    weights = timm_vit().state_dict()
    content: dict[str, Any] = {prefix + name: value for name, value in weights.items()}
    for name in container:
        content = {name: content, "epoch": 3}
    encoder = read_encoder(saved(tmp_path / "file.pth", content), weights)
    assert all(torch.equal(encoder.tensors[name], value) for name, value in weights.items())
    assert encoder.left_out == ()


def test_wrappers_around_mae_are_taken_off(tmp_path):
    weights = mae_weights()
    path = mae_file(tmp_path / "mae.pth", {f"module.{name}": value for name, value in weights.items()})
    encoder = read_encoder(path, timm_vit().state_dict())
    assert encoder.format == "mae"
    assert all(torch.equal(value, weights[name]) for name, value in encoder.tensors.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    weights = timm_vit().state_dict()
    path = saved(tmp_path / "half.pth", {name: value.to(dtype) for name, value in weights.items()})
    for name, value in read_encoder(path, weights).tensors.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].to(dtype).float())


def test_whole_numbers_stay_whole(tmp_path):
    weights = timm.create_model("resnet18", num_classes=0).state_dict()
    tensors = read_encoder(saved(tmp_path / "resnet.pth", weights), weights).tensors
    assert {value.dtype for name, value in tensors.items() if "num_batches" in name} == {torch.int64}


# --- Positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [24, 56])
def test_positions_keep_the_number_of_places_of_the_file(tmp_path, side):
    path = mae_file(tmp_path / "mae.pth", mae_weights(side))
    encoder = read_encoder(path, timm_vit().state_dict())
    assert encoder.tensors["pos_embed"].shape == (1, 1 + (side // PATCH) ** 2, WIDTH)


def test_positions_without_the_class_keep_their_number(transformers, tmp_path):
    path = hf_file(hf_registers(transformers), tmp_path, "old")
    encoder = read_encoder(path, timm_dinov2(56, registers=4).state_dict())
    assert encoder.tensors["pos_embed"].shape == (1, (SIDE // PATCH) ** 2, WIDTH)


@pytest.mark.parametrize(
    "shape", [(1, 1 + 6 * 2, WIDTH), (1, 16, WIDTH), (1, 17, 2 * WIDTH), (17, WIDTH), (1, 1, WIDTH)]
)
def test_positions_of_no_square_or_without_a_class_place_are_refused(tmp_path, shape):
    path = saved(tmp_path / "file.pth", timm_vit().state_dict() | {"pos_embed": torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"1 of another shape or kind \['pos_embed \("):
        read_encoder(path, timm_vit().state_dict())


def test_positions_of_an_oblong_grid_fit_a_model_of_that_grid(tmp_path):
    weights = timm_vit(OTHER).state_dict()
    tensors = read_encoder(saved(tmp_path / "file.pth", weights), weights).tensors
    assert torch.equal(tensors["pos_embed"], weights["pos_embed"])


# --- Faults ----------------------------------------------------------------------------------------------------------


def rename(weights: dict[str, Tensor], name: str) -> None:
    weights[f"{name}_"] = weights.pop(name)


def drop(weights: dict[str, Tensor], name: str) -> None:
    del weights[name]


def reshape(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = torch.cat([weights[name], weights[name]])


def whole_numbers(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = weights[name].to(torch.int8)


def spoil(weights: dict[str, Tensor], name: str) -> None:
    weights[name].view(-1)[-1] = math.inf


FAULTS = {
    rename: r"MATCH of N tensors match; 1 missing \['WANTED'\], 1 left over \['.*_'\], 0 of another",
    drop: r"MATCH of N tensors match; 1 missing \['WANTED'\], 0 left over \[\], 0 of another",
    reshape: r"MATCH of N tensors match; 0 missing \[\], 0 left over \[\], 1 of another shape or kind \['WANTED \(",
    whole_numbers: r"MATCH of N tensors match; .* 1 of another shape or kind \['WANTED .* int8 for \(",
    spoil: r"not finite, in 1 tensors: \['WANTED'\]",
}
ENCODER = {name: value.to("meta") for name, value in timm_vit().state_dict().items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_any_tensor_of_a_mae_file_names_the_tensor(tmp_path, fault):
    for name in ENCODER:
        weights = mae_weights()
        fault(weights, name)
        sentence = FAULTS[fault].replace("WANTED", name).replace("MATCH", str(len(ENCODER) - 1))
        with pytest.raises(ValueError, match=sentence.replace("N", str(len(ENCODER)))) as error:
            read_encoder(mae_file(tmp_path / "mae.pth", weights), ENCODER)
        assert "\n" not in str(error.value)


# What one tensor of Hugging Face's is needed for; a third of a joint tensor is no less needed than a whole one.
@pytest.mark.parametrize("fault", [rename, drop, reshape, whole_numbers, spoil])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_fault_in_any_one_tensor_of_a_huggingface_file_is_an_error(transformers, tmp_path, fault, spelling):
    whole = load_file(hf_file(hf_registers(transformers), tmp_path, spelling))
    wanted = timm_dinov2(registers=4).state_dict()
    needed = [name for name in whole if name != "embeddings.mask_token"]
    assert len(needed) == len(wanted) + 4 * DEPTH
    for name in needed:
        weights = {other: value.clone() for other, value in whole.items()}
        fault(weights, name)
        with pytest.raises(ValueError, match="tensors match; |not finite"):
            read_encoder(saved(tmp_path / "faulty.pth", weights), wanted)


def test_a_tensor_under_both_spellings_is_left_over(transformers, tmp_path):
    weights = hf_vit(transformers).state_dict()
    weights["encoder.layer.1.layernorm_after.bias"] = weights["layers.1.layernorm_after.bias"] + 1
    with pytest.raises(ValueError, match=r"1 left over \['encoder.layer.1.layernorm_after.bias'\]"):
        read_encoder(saved(tmp_path / "both.pth", weights), ENCODER)


def test_numbers_in_the_decoder_may_be_anything(tmp_path):
    weights = mae_weights()
    weights["decoder_pred.bias"][0] = math.nan
    read_encoder(mae_file(tmp_path / "mae.pth", weights), ENCODER)


def test_a_file_of_a_decoder_alone_matches_nothing(tmp_path):
    weights = {name: value for name, value in mae_weights().items() if name.startswith("decoder")}
    with pytest.raises(ValueError, match=rf"\(mae format\) .*: 0 of {len(ENCODER)} tensors match; {len(ENCODER)} miss"):
        read_encoder(mae_file(tmp_path / "mae.pth", weights), ENCODER)


def test_a_huggingface_file_of_another_width_shows_both_widths(transformers, tmp_path):
    path = hf_file(hf_vit(transformers), tmp_path, "old")
    with pytest.raises(ValueError, match=r"of another shape or kind \['blocks.0.attn.proj.bias \(32,\) for \(64,\)'"):
        read_encoder(path, timm_vit(embed_dim=64).state_dict())


def test_a_dinov2_without_registers_fits_no_model_with_them(transformers, tmp_path):
    with pytest.raises(ValueError, match=r"1 missing \['reg_token'\], 0 left over"):
        read_encoder(hf_file(hf_dinov2(transformers), tmp_path, "old"), timm_dinov2(registers=4).state_dict())


def test_registers_are_not_dropped_for_a_model_without_them(transformers, tmp_path):
    with pytest.raises(ValueError, match=r"0 missing \[\], 1 left over \['reg_token'\]"):
        read_encoder(hf_file(hf_registers(transformers), tmp_path, "old"), timm_dinov2().state_dict())


# --- Manners ---------------------------------------------------------------------------------------------------------


def test_the_result_is_logged(mae, caplog):
    with caplog.at_level(logging.INFO, "conceptcam"):
        read_encoder(mae[1], ENCODER)
    count = len(ENCODER)
    assert caplog.messages == [f"{mae[1]}: {count} of {count} tensors, mae format, {2 + 6 + 24 + 1 - 1} left out"]


def test_the_model_may_be_on_the_meta_device(mae):
    assert all(value.is_meta for value in ENCODER.values())
    assert not any(value.is_meta for value in read_encoder(mae[1], ENCODER).tensors.values())


def test_reading_an_encoder_is_quiet_and_keeps_the_random_state(transformers, tmp_path, mae):
    files = {mae[1]: timm_vit(), hf_file(hf_registers(transformers), tmp_path, "old"): timm_dinov2(registers=4)}
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for path, model in files.items():
            read_encoder(path, model.state_dict())
    assert not warned
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", ["backbone.", "encoder.", "ema.model."])
def test_two_encoders_under_two_names_are_refused(tmp_path, other):
    real = timm_vit().state_dict()
    both = {f"model.{name}": torch.zeros_like(value) for name, value in real.items()}
    path = saved(tmp_path / "two.pth", both | {f"{other}{name}": value for name, value in real.items()})
    with pytest.raises(
        ValueError, match=rf"two.pth holds several encoders, under the names \['model.', '{other}'\]; save"
    ):
        read_encoder(path, real)
