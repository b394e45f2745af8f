import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conceptcam.backbones import Backbone
from conceptcam.config import ConceptConfig, TrainingRecord
from conceptcam.model.concept_model import ConceptModel, create_model
from conceptcam.model.heads import ConceptHead, TaskHead
from conceptcam.model.outputs import ConceptOutput
from conceptcam.model.parts import standard_parts
from conceptcam.model.pooling import MaxPool, list_poolings
from tests.worlds import SIZE, tiny_model


def config_with(**changes: Any) -> ConceptConfig:
    defaults: dict[str, Any] = {
        "concepts": ("a", "b", "c"),
        "tasks": ("t", "u"),
        "backbone": "small_cnn_s8",
        "image_size": (32, 48),
        "embed_dim": 8,
        "prototypes_per_concept": 4,
    }
    return ConceptConfig(**{**defaults, **changes})


def model_with(seed: int = 0, **changes: Any) -> ConceptModel:
    """A model in eval mode whose task head and batch norms are no longer untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ConceptModel.from_config(config_with(**changes))
        nn.init.normal_(model.task_head.weight)
        nn.init.normal_(model.task_head.bias)
        model.train()
        model(torch.randn(4, 3, *model.config.image_size))
    return model.eval()


def images(batch: int = 2, size: tuple[int, int] = (32, 48), seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "ibn": {"projector": "ibn"},
    "project first": {"pooling_order": "project_then_pool"},
    "attention": {"pooling": "attention", "head_bias": False},
    "no tasks": {"tasks": ()},
    "multiclass": {"task_kind": "multiclass", "attention_temperature": 0.1},
    "concepts": {"bottleneck": "concepts"},
    "square": {"image_size": (32, 32)},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


@each_variant
def test_every_field_of_the_output_has_its_documented_shape(changes):
    model = model_with(**changes)
    height, width = model.config.image_size
    grid = (height // 8, width // 8)
    members = 0 if model.config.bottleneck == "concepts" else 4
    output = model(images(5, (height, width)))
    assert isinstance(output, ConceptOutput)
    assert {name: tuple(value.shape) for name, value in output._asdict().items()} == {
        "features": (5, model.backbone.out_channels, *grid),
        "concept_maps": (5, 3, *grid),
        "concept_logits": (5, 3),
        "vector_similarity": (5, 3, 3, members),
        "similarity_maps": (5, 3, members, *grid),
        "evidence": (5, 3, members or 1),
        "task_logits": (5, len(model.config.tasks)),
    }


def test_the_config_reaches_the_parts_it_names():
    model = model_with(head_bias=False, pooling="topk", pooling_param=2, projector="ibn")
    assert model.concept_head.score.bias is None
    assert model.pool.k == 2
    assert type(model.projector).__name__ == "IbnProjector"
    assert model.prototypes.vectors.shape == (3, 4, 8)
    assert tuple(model.preprocess.image_size) == (32, 48)


@each_variant
def test_a_task_logit_is_its_bias_and_contributions(changes):
    model = model_with(**changes)
    output = model(images(size=model.config.image_size))
    contributions = model.task_head.contributions(output.evidence)
    torch.testing.assert_close(contributions.sum(dim=(-2, -1)) + model.task_head.bias, output.task_logits)


@each_variant
def test_one_image_says_the_same_alone_and_in_a_batch(changes):
    model = model_with(**changes)
    three = images(3, model.config.image_size)
    for alone, among in zip(model(three[1:2]), model(three), strict=True):
        torch.testing.assert_close(alone[0], among[1], rtol=1e-4, atol=1e-5)


def test_forward_is_forward_concepts_then_forward_task():
    model = model_with()
    seen = model.forward_concepts(images())
    whole = model(images())
    for field in seen._fields:
        torch.testing.assert_close(getattr(seen, field), getattr(whole, field))
    for first, second in zip(model.forward_task(seen), whole, strict=True):
        torch.testing.assert_close(first, second)


def test_concept_logits_are_the_pooled_concept_maps():
    model = model_with(pooling="mean")
    output = model(images())
    torch.testing.assert_close(output.concept_maps, model.concept_head(output.features))
    torch.testing.assert_close(output.concept_logits, output.concept_maps.mean(dim=(-2, -1)))


@each_variant
def test_evidence_is_the_maximum_of_maps_clipped_at_0(changes):
    model = model_with(**changes)
    output = model(images(size=model.config.image_size))
    assert output.similarity_maps.numel() == 0 or output.similarity_maps.min() >= 0
    assert (output.similarity_maps <= 1 + 1e-6).all()
    if output.similarity_maps.shape[2]:
        assert torch.equal(output.evidence, output.similarity_maps.amax(dim=(-2, -1)))


def test_some_cosine_is_negative_before_clipping():
    model = model_with()
    places = model.projector(model.forward_concepts(images()).features.flatten(2).mT)
    assert model.prototypes(places).min() < 0


def test_a_spatial_map_of_ones_changes_no_bit():
    output = model_with()(images())
    weighted = (output.similarity_maps * torch.ones(4, 6)).relu()
    assert torch.equal(weighted.amax(dim=(-2, -1)), output.evidence)


def test_similarity_maps_are_cosines_of_places_with_prototypes():
    model = model_with()
    output = model(images())
    for row, column, concept, member in ((0, 0, 0, 0), (3, 5, 2, 3), (1, 4, 1, 2)):
        place = model.projector(output.features[:, None, :, row, column])[:, 0]
        cosine = torch.cosine_similarity(place, model.prototypes.vectors[concept, member][None])
        torch.testing.assert_close(output.similarity_maps[:, concept, member, row, column], cosine.relu())


@pytest.mark.parametrize("order", ["pool_then_project", "project_then_pool"])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_concept_vectors_are_features_weighed_by_softmax_of_maps(order, temperature):
    model = model_with(pooling_order=order, attention_temperature=temperature)
    output = model(images())
    for image, concept, other, member in ((0, 0, 0, 0), (1, 2, 1, 3)):
        weights = (output.concept_maps[image, concept].flatten() / temperature).softmax(0)
        places = output.features[image].flatten(1).T  # (h w, C)
        if order == "project_then_pool":
            vector = weights @ model.projector(places[None])[0]
        else:
            vector = model.projector((weights @ places)[None, None])[0, 0]
        expected = torch.cosine_similarity(vector, model.prototypes.vectors[other, member], dim=0)
        torch.testing.assert_close(output.vector_similarity[image, concept, other, member], expected)


def test_the_two_pooling_orders_differ():
    first, second = (
        model_with(pooling_order=order)(images()).vector_similarity
        for order in ("pool_then_project", "project_then_pool")
    )
    assert (first - second).abs().max() > 1e-4


def test_a_low_map_temperature_looks_at_the_highest_place_alone():
    model = model_with(attention_temperature=1e-4)
    output = model(images())
    highest = output.concept_maps.flatten(2).argmax(-1)[0, 1]
    vector = model.projector(output.features[0].flatten(1).T[highest][None, None])
    torch.testing.assert_close(output.vector_similarity[0, 1], model.prototypes(vector)[0, 0])


def test_concept_bottleneck_reads_the_probability_it_shows():
    """What the model displays as its concept score is what its diagnosis reads."""
    output = model_with(bottleneck="concepts")(images())
    torch.testing.assert_close(output.evidence[..., 0], output.concept_logits.sigmoid())


def test_a_concept_bottleneck_has_no_parts_that_no_stage_would_train():
    model = model_with(bottleneck="concepts")
    assert model.projector is None and model.prototypes is None
    assert not [name for name in model.state_dict() if name.startswith(("projector", "prototypes"))]


def test_the_names_of_earlier_training_code_reach_the_same_tensors():
    output = model_with()(images())
    named = output.as_dict()
    assert named["cams"] is output.concept_maps and named["logits"] is output.task_logits
    assert named["similarity_scores"] is output.evidence
    assert set(named) == {"features", "cams", "concept_logits", "similarity_maps", "similarity_scores", "logits"}


@pytest.mark.parametrize("projector", ["mlp", "ibn"])
def test_both_halves_teach_every_part_they_should(projector):
    model = model_with(projector=projector, pooling="attention").train()
    output = model(images(4))
    (output.vector_similarity.square().sum() + output.task_logits.square().sum()).backward()
    output = model(images(4))
    output.concept_logits.square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_stage_two_leaves_no_gradient_in_the_task_head():
    model = model_with()
    model(images()).vector_similarity.sum().backward()
    assert all(value.grad is None for value in model.task_head.parameters())


def test_frozen_parts_stay_in_eval_mode_under_train():
    model = model_with()
    model.backbone.requires_grad_(False)
    model.concept_head.requires_grad_(False)
    model.train()
    modes = {name: part.training for name, part in model.named_children()}
    assert modes == {
        "backbone": False,
        "concept_head": False,
        "pool": True,
        "projector": True,
        "prototypes": True,
        "task_head": True,
    }
    assert not any(layer.training for layer in model.backbone.modules())
    model.backbone.requires_grad_(True)
    assert model.train().backbone.training
    assert not any(layer.training for layer in model.eval().modules())


def test_a_frozen_backbone_keeps_its_batch_norm_statistics():
    model = model_with(projector="ibn")
    model.backbone.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.1)
    for step in range(3):
        output = model(images(4, seed=step))
        (output.task_logits.square().sum() + output.vector_similarity.square().sum()).backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"concept_head", "projector", "prototypes", "task_head"}
    assert any("running_mean" in name for name in moved), "what is not frozen does move"


@pytest.mark.parametrize("feature_level", [-1, -2])
def test_a_cut_backbone_gives_a_model_with_a_finer_grid(feature_level):
    model = ConceptModel.from_config(
        config_with(backbone="timm:test_resnet", feature_level=feature_level, image_size=(64, 96))
    ).eval()
    side = 32 if feature_level == -1 else 16
    assert model(images(1, (64, 96))).concept_maps.shape == (1, 3, 64 // side, 96 // side)


def test_a_model_preprocesses_an_image_of_any_size_and_type():
    model = model_with()
    for image in (torch.zeros(3, 70, 50, dtype=torch.uint8), torch.zeros(3, 32, 48, dtype=torch.float64)):
        assert model(model.preprocess(image)[None]).task_logits.shape == (1, 2)


@pytest.mark.parametrize(
    "wrong, got",
    [
        (torch.zeros(2, 3, 48, 32), r"torch.float32 of shape \(2, 3, 48, 32\)"),
        (torch.zeros(3, 32, 48), r"torch.float32 of shape \(3, 32, 48\)"),
        (torch.zeros(2, 1, 32, 48), r"torch.float32 of shape \(2, 1, 32, 48\)"),
        (torch.zeros(2, 3, 32, 48, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(2, 3, 32, 48, dtype=torch.float64), "torch.float64"),
        (torch.zeros(2, 3, 32, 48, dtype=torch.float16), "torch.float16"),
    ],
)
def test_images_of_another_shape_or_type_are_refused(wrong, got):
    expected = r"expected normalized torch.float32 images of shape \(B, 3, 32, 48\), got "
    with pytest.raises(ValueError, match=f"{expected}{got}.*`model.preprocess` makes them"):
        model_with()(wrong)


def test_autocast_and_a_model_in_half_precision_both_run():
    model = model_with()
    exact = model(images())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images())
    torch.testing.assert_close(output.concept_logits.float(), exact.concept_logits, rtol=0.1, atol=0.1)
    assert model.bfloat16()(images().bfloat16()).task_logits.dtype == torch.bfloat16


class _Cells(Backbone):
    """The mean colour of each 8 x 8 cell."""

    out_channels = 3

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)


def test_a_model_takes_parts_of_ones_own():
    config = config_with(bottleneck="concepts")
    model = ConceptModel(
        config, backbone=_Cells(), concept_head=ConceptHead(3, 3), pool=MaxPool(), task_head=TaskHead(3, 1, 2)
    )
    assert model(images()).concept_maps.shape == (2, 3, 4, 6)
    assert model.record == TrainingRecord()


def test_a_bottleneck_of_prototypes_needs_its_parts():
    with pytest.raises(ValueError, match="a 'prototypes' bottleneck needs a projector and prototypes"):
        ConceptModel(
            config_with(),
            backbone=_Cells(),
            concept_head=ConceptHead(3, 3),
            pool=MaxPool(),
            task_head=TaskHead(3, 4, 2),
        )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backbone": "small_cnn"}, "unknown backbone 'small_cnn'; did you mean .*small_cnn_s8"),
        ({"pooling": "median"}, "unknown pooling 'median'; did you mean \\['mean'\\]; known: "),
        ({"image_size": (30, 48)}, "small_cnn_s8 needs sides that are multiples of 8"),
    ],
)
def test_names_that_no_part_answers_to_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ConceptModel.from_config(config_with(**changes))


@pytest.mark.parametrize("names", [{"concepts": "AB"}, {"concepts": ["A"], "tasks": "AB"}])
def test_a_text_in_place_of_names_is_not_taken_for_its_letters(names):
    with pytest.raises(ValueError, match=r"must be a list of names, got the text 'AB'; for one name write \['AB'\]"):
        create_model("cbm_resnet50", **names)


def test_a_model_is_shown_in_a_line_per_part():
    names = [f"concept {number}" for number in range(300)]
    lines = repr(model_with(concepts=names, tasks=())).splitlines()
    assert lines[:4] == [
        "ConceptModel of 32 x 48 images on 'small_cnn_s8'",
        "  300 concepts: 'concept 0', 'concept 1', 'concept 2' and 297 more",
        "  0 tasks: -",
        "  taught: nothing yet",
    ]
    assert lines[-2] == "  prototypes: Prototypes, 9,600 parameters"
    assert [line.split(":")[0].strip() for line in lines[4:]] == [
        "backbone", "concept_head", "pool", "projector", "prototypes", "task_head"
    ]  # fmt: skip


def test_the_same_global_seed_builds_the_same_model():
    first, second, other = (model_with(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("pooling", list_poolings())
def test_an_untrained_model_sees_hardly_any_concept(pooling):
    torch.manual_seed(0)
    config = ConceptConfig(concepts=("a", "b"), backbone="small_cnn_s8", image_size=(112, 112), pooling=pooling)
    logits = ConceptModel.from_config(config).eval().forward_concepts(torch.randn(2, 3, 112, 112)).concept_logits
    assert (logits.sigmoid() < 0.2).all()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_forward_compiles_as_one_graph(bottleneck, mode):
    model = tiny_model(bottleneck=bottleneck).train(mode == "train")
    images = torch.randn(2, 3, *SIZE)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")(images)
    assert all(torch.allclose(got, wanted, atol=1e-6) for got, wanted in zip(compiled, model(images), strict=True))


def test_a_part_of_your_own_takes_a_standard_ones_place():
    class Median(nn.Module):
        def forward(self, concept_maps: Tensor) -> Tensor:
            return concept_maps.flatten(2).median(dim=-1).values

    config = config_with()
    model = ConceptModel(config, **standard_parts(config) | {"pool": Median()}).eval()
    output = model(images(2))
    assert torch.equal(output.concept_logits, output.concept_maps.flatten(2).median(dim=-1).values)
    assert output.task_logits.shape == (2, len(config.tasks))
