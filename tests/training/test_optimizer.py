import copy
import dataclasses
import json
import math
import re

import pytest
import torch
from timm.optim import param_groups_layer_decay

from conceptcam.backbones import Backbone
from conceptcam.backbones.timm import TimmBackbone
from conceptcam.training.optimizer import parameter_groups, schedule
from conceptcam.training.presets import get_preset
from conceptcam.training.stages import Stage
from tests.worlds import tiny_model

VIT, SWIN, CNN = "timm:test_vit4", "timm:swin_tiny_patch4_window7_224", "timm:test_resnet"
VIT_BLOCKS = 9


def stage(index: int = 0, **changes) -> Stage:
    rows = get_preset("recommended").stages(tiny_model().config, backbone_pretrained=True)
    return dataclasses.replace(rows[index], **changes)


def vit_model():
    return tiny_model(backbone=VIT)


def groups_by_name(model, groups) -> dict[str, list[dict]]:
    """The groups that each of a model's parameters is in."""
    return {
        name: [group for group in groups if any(parameter is other for other in group["params"])]
        for name, parameter in model.named_parameters()
    }


def only_groups(model, groups) -> dict[str, dict]:
    """The one group of each parameter that learns."""
    return {name: found[0] for name, found in groups_by_name(model, groups).items() if found}


@pytest.mark.parametrize("backbone", ["small_cnn_s8", VIT, CNN])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_exactly_the_learning_parameters_are_in_one_group(backbone, index):
    model, row = tiny_model(backbone=backbone), stage(index)
    found = groups_by_name(model, parameter_groups(model, row))
    for name, parameter in model.named_parameters():
        learns = name.partition(".")[0] in row.parts
        assert len(found[name]) == learns, name
        assert parameter.requires_grad == learns, name


def test_a_layer_learns_at_a_fraction_of_the_next_layers_rate():
    model, row = vit_model(), stage(layer_decay=0.7)
    found = only_groups(model, parameter_groups(model, row))
    for name, group in found.items():
        block = re.match(r"backbone\.model\.blocks\.(\d+)\.", name)
        if block:
            expected = row.lr["backbone"] * 0.7 ** (VIT_BLOCKS - int(block[1]))
        elif name.startswith("backbone."):  # all that is in front of the blocks
            expected = row.lr["backbone"] * 0.7 ** (VIT_BLOCKS + 1)
        else:
            expected = row.lr["concept_head"]
        assert group["lr"] == pytest.approx(expected, rel=1e-12), name
    assert sum("blocks" in name for name in found) > VIT_BLOCKS


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit4", "test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"]
)
def test_rates_and_decay_of_a_whole_timm_model_are_timms_own(name):
    import timm

    with torch.device("meta"):
        model = timm.create_model(name)
    patterns = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    outside = {
        id(parameter): group
        for group in param_groups_layer_decay(model, 0.05, no_weight_decay_list=patterns, layer_decay=0.6)
        for parameter in group["params"]
    }
    size = model.pretrained_cfg["input_size"][-2:]
    ours = tiny_model(backbone=f"timm:{name}", image_size=size)
    row = stage(layer_decay=0.6, weight_decay=0.05, lr={"backbone": 1.0})
    found = only_groups(ours, parameter_groups(ours, row))
    theirs = {name: outside[id(parameter)] for name, parameter in model.named_parameters()}
    assert found
    for path, group in found.items():
        same = theirs[path.removeprefix("backbone.model.")]
        assert (group["lr"], group["weight_decay"]) == pytest.approx((same["lr_scale"], same["weight_decay"])), path


def test_a_layer_decay_of_1_gives_one_rate_for_the_whole_backbone():
    model, row = vit_model(), stage(layer_decay=1.0)
    found = only_groups(model, parameter_groups(model, row))
    assert {group["lr"] for name, group in found.items() if name.startswith("backbone")} == {row.lr["backbone"]}


def test_layer_decay_leaves_the_later_stages_rates_alone():
    model = tiny_model()  # a backbone without known layers, which is frozen there
    for index in (1, 2):
        plain = parameter_groups(model, stage(index))
        decayed = parameter_groups(model, stage(index, layer_decay=0.5))
        assert [group["lr"] for group in plain] == [group["lr"] for group in decayed]


def test_layer_decay_of_a_backbone_without_known_layers_is_refused():
    with pytest.raises(
        ValueError, match=r"layer_decay=0\.5.*SmallCnn.*does not say.*leave `layer_decay` \(--layer-decay\) at 1"
    ):
        parameter_groups(tiny_model(), stage(layer_decay=0.5))


def test_layer_decay_of_a_model_without_layers_is_refused():
    model = tiny_model(backbone="timm:pit_ti_224", image_size=(224, 224))
    with pytest.raises(ValueError, match=r"a TimmBackbone, does not say which layer 'model\."):
        parameter_groups(model, stage(layer_decay=0.5))


def test_layers_that_the_user_froze_still_count():
    model, row = vit_model(), stage(layer_decay=0.5)
    last = f"backbone.model.blocks.{VIT_BLOCKS - 1}."
    frozen = {name for name, _ in model.named_parameters() if name.startswith(last)}
    found = only_groups(model, parameter_groups(model, row, frozen))
    before = f"backbone.model.blocks.{VIT_BLOCKS - 2}.attn.qkv.weight"
    assert found[before]["lr"] == pytest.approx(row.lr["backbone"] * 0.5**2)


def test_biases_norms_embeddings_and_prototypes_are_not_decayed():
    model = tiny_model(backbone="timm:vit_tiny_patch16_224", projector="ibn", pooling="attention")
    for index in (0, 1, 2):
        for name, group in only_groups(model, parameter_groups(model, stage(index, weight_decay=0.3))).items():
            parameter = model.get_parameter(name)
            spared = parameter.ndim == 1 or name in (
                "backbone.model.pos_embed",
                "backbone.model.cls_token",
                "prototypes.vectors",
            )
            assert group["weight_decay"] == (0.0 if spared else 0.3), name


@pytest.mark.parametrize(
    "backbone, name",
    [
        ("small_cnn_s8", "position"),
        (VIT, "model.reg_token"),
        (SWIN, "model.layers.0.blocks.0.attn.relative_position_bias_table"),
    ],
)
def test_backbones_name_what_is_not_decayed(backbone, name):
    model = tiny_model(backbone=backbone, image_size=(224, 224))
    found = only_groups(model, parameter_groups(model, stage()))
    assert model.backbone.get_parameter(name).ndim > 1
    assert found[f"backbone.{name}"]["weight_decay"] == 0


def test_prototypes_stay_as_they_are_where_nothing_teaches_them():
    model, row = tiny_model(), stage(1, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(parameter_groups(model, row))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert torch.equal(model.prototypes.vectors, before["prototypes.vectors"])
    weight = "projector.layers.0.weight"
    assert not torch.equal(model.get_parameter(weight), before[weight])


def test_what_the_user_froze_is_in_no_group_and_stays_in_eval_mode():
    model = vit_model()
    frozen = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    groups = parameter_groups(model, stage(layer_decay=0.5), frozen)
    assert {name.partition(".")[0] for name in only_groups(model, groups)} == {"concept_head"}
    assert not model.backbone.training and model.concept_head.training


def test_a_stage_with_nothing_to_learn_is_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"'task' has nothing to learn: all of \['task_head'\] was frozen beforehand"):
        parameter_groups(model, stage(-1), {name for name, _ in model.named_parameters()})


def test_groups_come_in_the_same_order_every_time():
    def order(model):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, stage(layer_decay=0.9))
        return [[names[id(parameter)] for parameter in group["params"]] for group in groups]

    assert order(vit_model()) == order(vit_model())  # a resumed optimizer is matched by position


@pytest.mark.parametrize("backbone", [VIT, "timm:test_vit", CNN, "timm:test_convnext", "timm:test_efficientnet"])
def test_timm_knows_the_layer_of_every_parameter(backbone):
    part = tiny_model(backbone=backbone).backbone
    assert isinstance(part, TimmBackbone)
    numbers = part.layer_ids()
    assert set(numbers) == {name for name, _ in part.named_parameters()}
    assert set(numbers.values()) == set(range(max(numbers.values()) + 1))


def test_a_backbone_of_your_own_needs_to_know_nothing_of_layers():
    class Plain(Backbone):
        out_channels = 3

        def forward(self, images):
            return images

    assert Plain().layer_ids() == {} and Plain().no_weight_decay() == set()


def optimizer_of(rates=(0.1, 0.003)):
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def course(row, optimizer, steps, count=None):
    """The rates that each step takes."""
    scheduler = schedule(row, optimizer, steps)
    rates = []
    for _ in range(steps if count is None else count):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps, warmup", [(1, 0.05), (2, 0.5), (7, 0.0), (40, 0.05), (100, 0.2), (10, 1.0)])
def test_cosine_rises_in_a_line_then_falls_along_half_a_cosine(steps, warmup):
    rates = course(stage(schedule="cosine", warmup=warmup), optimizer_of(), steps)
    rise = round(warmup * steps)
    for step, (first, second) in enumerate(rates):
        if step < rise:
            factor = (step + 1) / rise
        else:
            factor = (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
        assert (first, second) == pytest.approx((0.1 * factor, 0.003 * factor), rel=1e-12, abs=1e-15)
    assert all(min(pair) > 0 for pair in rates)
    assert max(first for first, _ in rates) == 0.1


def test_the_cosine_ends_at_0_and_stays_there():
    optimizer = optimizer_of()
    course(stage(schedule="cosine"), optimizer, 20, count=20)
    assert optimizer.param_groups[0]["lr"] == 0
    optimizer = optimizer_of()
    course(stage(schedule="cosine"), optimizer, 20, count=25)
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_constant_rate_needs_no_number_of_steps():
    optimizer = optimizer_of()
    scheduler = schedule(stage(schedule="constant", warmup=0.5), optimizer, None)
    for _ in range(3):
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.003]
        optimizer.step()
        scheduler.step()


def test_a_cosine_without_a_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="'concepts' has a cosine schedule, so `train_batches` needs a length"):
        schedule(stage(schedule="cosine"), optimizer_of(), None)
    with pytest.raises(ValueError, match="'concepts' has a cosine schedule over 0 steps; it needs one at least"):
        schedule(stage(schedule="cosine"), optimizer_of(), 0)


@pytest.mark.parametrize("kind", ["cosine", "constant"])
@pytest.mark.parametrize("stop", range(13))
def test_a_schedule_resumed_at_any_step_goes_on_with_the_same_rates(kind, stop):
    row, steps = stage(schedule=kind, warmup=0.3), 12
    whole = course(row, optimizer_of(), steps)

    optimizer = optimizer_of()
    scheduler = schedule(row, optimizer, steps)
    for _ in range(stop):
        optimizer.step()
        scheduler.step()
    saved = json.loads(json.dumps(scheduler.state_dict()))  # plain numbers only
    optimizer_state = copy.deepcopy(optimizer.state_dict())

    torch.manual_seed(stop)
    optimizer = optimizer_of()
    scheduler = schedule(row, optimizer, steps)
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(saved)
    rates = []
    for _ in range(stop, steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert rates == whole[stop:]


def test_neither_groups_nor_schedules_touch_the_random_state():
    model = vit_model()
    before = torch.get_rng_state()
    optimizer = torch.optim.AdamW(parameter_groups(model, stage(layer_decay=0.7)))
    schedule(stage(), optimizer, 5)
    assert torch.equal(torch.get_rng_state(), before)
