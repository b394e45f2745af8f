from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from conceptcam.config import ConceptConfig
from conceptcam.hub.checkpoints import read_concept_checkpoint
from conceptcam.model.concept_model import ConceptModel

CONCEPTS, PER_CONCEPT, EMBED, TASKS, CHANNELS = 3, 2, 5, 4, 96


class SeedHeads(nn.Module):
    """The seed's model behind its backbone: five parts, convolutions for linear layers, prototypes as filters."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, CHANNELS, 8, 8)
        self.concept_head = nn.Conv2d(CHANNELS, CONCEPTS, 1)
        self.projector = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU(), nn.Conv2d(CHANNELS, EMBED, 1))
        self.prototypes = nn.Parameter(torch.randn(CONCEPTS * PER_CONCEPT, EMBED, 1, 1))
        self.task_head = nn.Linear(CONCEPTS * PER_CONCEPT, TASKS)

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features -> concept maps (B, K, h, w) and the best similarity to each prototype (B, K * M)."""
        filters = F.normalize(self.prototypes, dim=1)
        similarity = F.conv2d(F.normalize(self.projector(features), dim=1), filters)
        return self.concept_head(features), similarity.amax(dim=(-2, -1))


def flat(model: SeedHeads) -> dict[str, Any]:
    return dict(model.state_dict())


def nested(model: SeedHeads) -> dict[str, Any]:
    parts = {name: part.state_dict() for name, part in model.named_children()}
    return parts | {"prototypes": model.prototypes.data}


def distributed(model: SeedHeads) -> dict[str, Any]:
    return {"model_state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}, "epoch": 3}


def as_linear(model: SeedHeads) -> dict[str, Any]:
    """Linear layers in place of convolutions, prototypes by concept."""
    squeezed = {name: value.flatten(1) if value.ndim == 4 else value for name, value in model.state_dict().items()}
    return squeezed | {"prototypes": model.prototypes.data.reshape(CONCEPTS, PER_CONCEPT, EMBED)}


def saved(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def converted(path: Path) -> ConceptModel:
    checkpoint = read_concept_checkpoint(path)
    config = ConceptConfig(
        concepts=("a", "b", "c"),
        tasks=("s", "t", "u", "v"),
        backbone="small_cnn_s8",
        image_size=(24, 32),
        embed_dim=checkpoint.embed_dim,
        prototypes_per_concept=checkpoint.prototypes_per_concept,
    )
    model = ConceptModel.from_config(config).eval()
    own_backbone = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    model.load_state_dict(own_backbone | checkpoint.heads)
    return model


@pytest.mark.parametrize("layout", [flat, nested, distributed, as_linear])
@torch.no_grad()
def test_the_heads_of_the_seed_say_the_same_in_a_concept_model(tmp_path, layout):
    theirs = SeedHeads().eval()
    theirs.prototypes.abs_()
    theirs.projector[2].bias.fill_(1)  # so that no prototype is opposite to a whole image
    output = converted(saved(tmp_path / "best_model.pth", layout(theirs)))(torch.randn(8, 3, 24, 32))
    concept_maps, scores = theirs.heads(output.features)
    assert (scores > 0).all()
    torch.testing.assert_close(output.concept_maps, concept_maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.task_logits, theirs.task_head(scores), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_prototype_opposite_to_an_image_counts_nothing(tmp_path):
    theirs = SeedHeads().eval()
    output = converted(saved(tmp_path / "best_model.pth", flat(theirs)))(torch.randn(8, 3, 24, 32))
    _, scores = theirs.heads(output.features)
    assert (scores < 0).any()
    torch.testing.assert_close(output.task_logits, theirs.task_head(scores.clamp(min=0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [flat, nested, distributed, as_linear])
def test_the_sizes_are_read_off_the_file(tmp_path, layout):
    checkpoint = read_concept_checkpoint(saved(tmp_path / "best_model.pth", layout(SeedHeads())))
    assert checkpoint[2:] == (CONCEPTS, PER_CONCEPT, EMBED, TASKS, CHANNELS, True)
    assert checkpoint.backbone.keys() == {"weight", "bias"}


def test_a_safetensors_file_is_read_too(tmp_path):
    model = SeedHeads()
    save_file(flat(model), tmp_path / "best.safetensors")
    heads = read_concept_checkpoint(tmp_path / "best.safetensors").heads
    assert torch.equal(heads["projector.layers.2.bias"], model.projector[2].bias)


def test_a_concept_head_without_bias_is_told(tmp_path):
    weights = flat(SeedHeads())
    del weights["concept_head.bias"]
    checkpoint = read_concept_checkpoint(saved(tmp_path / "model.pth", weights))
    assert not checkpoint.head_bias
    assert "concept_head.score.bias" not in checkpoint.heads


def test_half_precision_becomes_float32(tmp_path):
    weights = {name: value.half() for name, value in flat(SeedHeads()).items()}
    heads = read_concept_checkpoint(saved(tmp_path / "model.pth", weights)).heads
    assert {value.dtype for value in heads.values()} == {torch.float32}


def without_part(weights: dict[str, Any]) -> None:
    del weights["prototypes"]


def with_more(weights: dict[str, Any]) -> None:
    weights["attention.weight"] = torch.zeros(2, 2)


def wide_convolution(weights: dict[str, Any]) -> None:
    weights["concept_head.weight"] = torch.zeros(CONCEPTS, CHANNELS, 3, 3)


def two_layers_in_the_head(weights: dict[str, Any]) -> None:
    weights["concept_head.1.weight"] = torch.zeros(CONCEPTS, CONCEPTS)


def one_layer(weights: dict[str, Any]) -> None:
    del weights["projector.0.weight"], weights["projector.0.bias"]


def three_layers(weights: dict[str, Any]) -> None:
    weights |= {"projector.4.weight": torch.zeros(EMBED, EMBED), "projector.4.bias": torch.zeros(EMBED)}


def batch_norm(weights: dict[str, Any]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        weights[f"projector.1.{name}"] = torch.zeros(CHANNELS)


def narrow(weights: dict[str, Any]) -> None:
    weights |= {"projector.0.weight": torch.zeros(7, CHANNELS), "projector.0.bias": torch.zeros(7)}
    weights["projector.2.weight"] = torch.zeros(EMBED, 7)


def uneven_prototypes(weights: dict[str, Any]) -> None:
    weights["prototypes"] = torch.zeros(CONCEPTS * PER_CONCEPT + 1, EMBED)


def wide_prototypes(weights: dict[str, Any]) -> None:
    weights["prototypes"] = torch.zeros(CONCEPTS * PER_CONCEPT, EMBED + 1)


def task_head_over_concepts(weights: dict[str, Any]) -> None:
    weights["task_head.weight"] = torch.zeros(TASKS, CONCEPTS)


def task_head_without_bias(weights: dict[str, Any]) -> None:
    del weights["task_head.bias"]


def not_finite(weights: dict[str, Any]) -> None:
    weights["prototypes"] = weights["prototypes"] / 0


REFUSED = {
    without_part: r"it lacks \['prototypes'\], and it has 0 other tensors",
    with_more: r"it lacks \[\], and it has 1 other tensors \['attention.weight'\]",
    wide_convolution: r"concept_head must hold weights and biases of linear layers or 1x1 convolutions",
    two_layers_in_the_head: r"concept_head must be one linear layer, it has 2",
    one_layer: r"the projector must be two layers with bias, 96 -> 96 -> D, with a ReLU between; it has",
    three_layers: r"the projector must be two layers with bias",
    batch_norm: r"projector must hold weights and biases of linear layers or 1x1 convolutions, nothing else",
    narrow: r"the projector must be two layers with bias, 96 -> 96 -> D",
    uneven_prototypes: r"prototypes must be one tensor .* K = 3 .* D = 5 .*; got \[\(7, 5\)\]",
    wide_prototypes: r"prototypes must be one tensor .*; got \[\(6, 6\)\]",
    task_head_over_concepts: r"over the 3 x 2 similarities to prototypes; it reads 3 numbers, with bias",
    task_head_without_bias: r"it reads 6 numbers, without bias",
    not_finite: r"not finite, in 1 tensors: \['prototypes.vectors'\]",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, change):
    weights = flat(SeedHeads())
    change(weights)
    with pytest.raises(ValueError, match=REFUSED[change]) as error:
        read_concept_checkpoint(saved(tmp_path / "model.pth", weights))
    assert "model.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_over_concepts_is_one_over_single_prototypes(tmp_path):
    weights = flat(SeedHeads())
    weights["prototypes"] = torch.randn(CONCEPTS, EMBED)
    weights["task_head.weight"] = torch.randn(TASKS, CONCEPTS)
    checkpoint = read_concept_checkpoint(saved(tmp_path / "model.pth", weights))
    assert checkpoint.prototypes_per_concept == 1
    assert torch.equal(checkpoint.heads["task_head.weight"][..., 0], weights["task_head.weight"])
