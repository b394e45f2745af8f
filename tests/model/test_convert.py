import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from conceptcam.backbones import create_backbone
from conceptcam.model.concept_model import ConceptModel
from conceptcam.model.convert import convert_backbone, convert_concept_model

TINY = "timm:vit_tiny_patch16_224"
WIDTH = 192
CONCEPTS, TASKS, PER_CONCEPT, EMBED = ("effusion", "nodule", "edema"), ("tuberculosis", "other"), 2, 5


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    import transformers  # takes seconds to import

    return transformers


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the tiny ViT, with a tensor of a decoder beside it."""
    torch.manual_seed(1)
    model = VisionTransformer(embed_dim=WIDTH, num_heads=3, num_classes=0)
    path = tmp_path_factory.mktemp("mae") / "mae.pth"
    torch.save({"model": model.state_dict() | {"decoder_embed.weight": torch.zeros(2, 2)}, "epoch": 3}, path)
    return path


def test_a_converted_backbone_is_loaded_by_its_name(mae_file, tmp_path):
    summary = convert_backbone(mae_file, tmp_path / "new" / "vit.safetensors", backbone=TINY)
    assert summary.endswith(f"vit.safetensors: 150 of 150 tensors of {TINY}, from mae format, 1 left out")
    backbone = create_backbone(TINY, weights=tmp_path / "new" / "vit.safetensors")
    published = torch.load(mae_file, weights_only=True)["model"]
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, published[name.removeprefix("model.")])


def test_positions_of_another_size_are_resized_when_loaded(tmp_path):
    model = VisionTransformer(img_size=96, embed_dim=WIDTH, num_heads=3, num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "small.pth")
    convert_backbone(tmp_path / "small.pth", tmp_path / "small.safetensors", backbone=TINY)
    assert load_file(tmp_path / "small.safetensors")["pos_embed"].shape == (1, 37, WIDTH)
    backbone = create_backbone(TINY, weights=tmp_path / "small.safetensors", image_size=(64, 96)).eval()
    model.set_input_size((64, 96))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        torch.testing.assert_close(backbone(images), expected, rtol=0, atol=1e-5)


def test_a_checkpoint_of_something_else_leaves_what_was_there(mae_file, tmp_path):
    target = tmp_path / "vit.safetensors"
    target.write_bytes(b"before")
    with pytest.raises(ValueError, match="tensors match"):
        convert_backbone(mae_file, target, backbone="timm:vit_small_patch16_224")
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_the_target_must_be_named_as_what_it_is(mae_file, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got .*vit\.pth"):
        convert_backbone(mae_file, tmp_path / "vit.pth", backbone=TINY)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 1 MB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_a_sentence_and_leaves_what_was_there(mae_file, tmp_path, full_disk):
    target = tmp_path / "vit.safetensors"
    target.write_bytes(b"before")
    with pytest.raises(OSError, match=r"^could not write .*vit\.safetensors: .*File too large"):
        convert_backbone(mae_file, target, backbone=TINY)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


class Predecessor(nn.Module):
    """The seed's own model over a ViT of transformers; its parts have the names that its files have."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.vit = vit
        self.concept_head = nn.Conv2d(WIDTH, len(CONCEPTS), 1)
        self.projector = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, EMBED, 1))
        self.prototypes = nn.Parameter(torch.rand(len(CONCEPTS) * PER_CONCEPT, EMBED, 1, 1))
        self.task_head = nn.Linear(len(CONCEPTS) * PER_CONCEPT, len(TASKS))
        nn.init.ones_(self.projector[2].bias)  # similarities above 0: below it a `ConceptModel` clips

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> concept maps and task logits."""
        features = self.backbone.vit(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
        similarity = F.conv2d(F.normalize(self.projector(features), dim=1), F.normalize(self.prototypes, dim=1))
        assert (similarity.amax(dim=(-2, -1)) > 0).all()
        return self.concept_head(features), self.task_head(similarity.amax(dim=(-2, -1)))


@pytest.fixture(scope="module")
def predecessor(transformers: ModuleType) -> Predecessor:
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_attention_heads=3, intermediate_size=4 * WIDTH, num_hidden_layers=12, layer_norm_eps=1e-6
    )
    return Predecessor(transformers.ViTModel(config)).eval()


def flat(model: Predecessor) -> dict[str, Any]:
    return dict(model.state_dict())


def nested(model: Predecessor) -> dict[str, Any]:
    parts = {name: part.state_dict() for name, part in model.named_children()}
    return parts | {"prototypes": model.prototypes.data}


@pytest.mark.parametrize("layout", [flat, nested])
def test_a_checkpoint_of_the_seed_says_the_same_as_a_concept_model(predecessor, tmp_path, layout):
    torch.save(layout(predecessor), tmp_path / "best_model_stage3.pth")
    summary = convert_concept_model(
        tmp_path / "best_model_stage3.pth",
        tmp_path / "model",
        concepts=CONCEPTS,
        tasks=TASKS,
        backbone=TINY,
        stages=("concepts", "prototypes", "task"),
    )
    assert summary.endswith(f"3 concepts with 2 prototypes each, 2 tasks, 150 of 150 tensors of {TINY}")
    model = ConceptModel.from_pretrained(tmp_path / "model")
    assert (model.config.concepts, model.config.tasks) == (CONCEPTS, TASKS)
    assert model.record.stages == ("concepts", "prototypes", "task")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        concept_maps, task_logits = predecessor(images)
        output = model(images)
    torch.testing.assert_close(output.concept_maps, concept_maps, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.task_logits, task_logits, rtol=0, atol=1e-5)


def test_images_are_normalized_as_the_backbone_expects(predecessor, tmp_path):
    torch.save(flat(predecessor), tmp_path / "model.pth")
    backbone = "timm:vit_tiny_patch16_224.augreg_in21k"
    names = {"concepts": CONCEPTS, "tasks": TASKS, "backbone": backbone}
    convert_concept_model(tmp_path / "model.pth", tmp_path / "own", **names)
    convert_concept_model(tmp_path / "model.pth", tmp_path / "told", **names, mean=(0.1, 0.2, 0.3), image_size=(64, 96))
    own, told = (ConceptModel.from_pretrained(tmp_path / name).config for name in ("own", "told"))
    assert own.mean == own.std == told.std == timm.get_pretrained_cfg(backbone.removeprefix("timm:")).mean
    assert own.mean == (0.5, 0.5, 0.5)
    assert (told.mean, told.image_size) == ((0.1, 0.2, 0.3), (64, 96))


@pytest.mark.parametrize(
    "names, sentence",
    [
        ({"concepts": CONCEPTS[:2]}, r"has 3 concepts, but 2 were named: \['effusion', 'nodule'\]"),
        ({"tasks": ("a", "b", "c")}, r"has 2 tasks, but 3 were named"),
        ({"backbone": "timm:vit_small_patch16_224"}, "tensors match"),
    ],
)
def test_names_and_backbone_must_fit_the_file(predecessor, tmp_path, names, sentence):
    torch.save(flat(predecessor), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=sentence):
        convert_concept_model(
            tmp_path / "model.pth",
            tmp_path / "model",
            **{"concepts": CONCEPTS, "tasks": TASKS, "backbone": TINY} | names,
        )
    assert not (tmp_path / "model").exists()


def test_heads_for_other_features_than_the_backbones_are_refused(predecessor, tmp_path):
    weights = flat(predecessor)
    projector = nn.Sequential(nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, EMBED))
    weights |= nn.ModuleDict({"concept_head": nn.Linear(7, len(CONCEPTS)), "projector": projector}).state_dict()
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"its concept head reads 7 channels, timm:vit_tiny_patch16_224 gives 192"):
        convert_concept_model(tmp_path / "model.pth", tmp_path / "model", concepts=CONCEPTS, tasks=TASKS, backbone=TINY)


def test_converting_emits_no_warning_and_leaves_the_random_state(predecessor, mae_file, tmp_path):
    torch.save(flat(predecessor), tmp_path / "model.pth")
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        convert_backbone(mae_file, tmp_path / "vit.safetensors", backbone=TINY)
        convert_concept_model(tmp_path / "model.pth", tmp_path / "model", concepts=CONCEPTS, tasks=TASKS, backbone=TINY)
    assert not warned
    assert torch.equal(torch.get_rng_state(), before)
