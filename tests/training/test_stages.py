import dataclasses

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from conceptcam.losses import class_balanced_loss, compute_pos_weight
from conceptcam.training.presets import get_preset, list_presets
from conceptcam.training.stages import Stage, scatter_rows
from tests.worlds import Squares, batches, tiny_config, tiny_model


def original_loss(maps, labels, boxes, pos_weight, beta=0.5):
    """The original document's stage-1 loss for one box per concept, as a plain loop."""
    logits = maps.amax(dim=(2, 3))
    terms = [
        -(pos_weight[k] * labels[b, k] * torch.log(torch.sigmoid(logits[b, k])))
        - (1 - labels[b, k]) * torch.log(1 - torch.sigmoid(logits[b, k]))
        for b in range(maps.shape[0])
        for k in range(maps.shape[1])
    ]
    height, width = maps.shape[2:]
    places = []
    for (x0, y0, x1, y1), k, b in zip(boxes.xyxy.tolist(), boxes.concept.tolist(), boxes.image.tolist(), strict=True):
        inside = torch.zeros(height, width)
        for row in range(height):
            for column in range(width):
                if y0 <= (row + 0.5) / height <= y1 and x0 <= (column + 0.5) / width <= x1:
                    inside[row, column] = 1
        places.append((torch.relu(-maps[b, k] * inside)).mean() + (torch.relu(maps[b, k] * (1 - inside))).mean())
    return torch.stack(terms).mean() + beta * torch.stack(places).mean()


def test_original_preset_minimizes_the_documents_loss():
    data = Squares(6)
    weight = compute_pos_weight(data.concept_labels)
    loss = class_balanced_loss("ratio", data.concept_labels)
    stage = get_preset("original").stages(tiny_config(), concept_loss=loss)[0]
    (batch,) = batches(data, 6)
    with torch.no_grad():
        seen = tiny_model().forward_concepts(batch.images)
        seen = seen._replace(concept_maps=torch.randn_like(seen.concept_maps))
        seen = seen._replace(concept_logits=seen.concept_maps.amax(dim=(2, 3)))
        expected = original_loss(seen.concept_maps, batch.concepts, batch.boxes, weight)
        torch.testing.assert_close(stage.loss_fn(seen, batch), expected)


def test_original_preset_has_the_documents_numbers():
    chosen = get_preset("original")
    config = chosen.apply_to(tiny_config(prototypes_per_concept=9, pooling="mean"))
    assert (config.pooling, config.prototypes_per_concept, config.embed_dim) == ("max", 5, 128)
    concepts, prototypes, task = chosen.stages(config, backbone_pretrained=True)
    assert [stage.epochs for stage in (concepts, prototypes, task)] == [20, 10, 20]
    assert concepts.lr["concept_head"] == 1e-4
    assert concepts.lr["backbone"] == pytest.approx(0.01 * 1e-4)
    assert chosen.stages(config)[0].lr["backbone"] == 1e-4


@pytest.mark.parametrize("name", list_presets())
def test_stages_follow_from_the_config(name):
    chosen = get_preset(name)
    second = ["embedding", "prototypes"] if name == "recommended" else ["prototypes"]
    full = [stage.name for stage in chosen.stages(tiny_config())]
    assert full == ["concepts", *second, "task"]
    assert [stage.name for stage in chosen.stages(tiny_config(tasks=()))] == ["concepts", *second]
    assert [s.name for s in chosen.stages(tiny_config(bottleneck="concepts"))] == ["concepts", "task"]


def test_freeze_freezes_all_but_the_parts_named():
    model = tiny_model()
    groups = get_preset().stages(model.config)[1].freeze(model)
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"projector", "prototypes"}
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_frozen_backbone_is_left_out_of_every_stage():
    for stage in get_preset().stages(tiny_config(), freeze_backbone=True):
        assert "backbone" not in stage.parts


def test_each_part_has_its_own_learning_rate():
    stage = get_preset().stages(tiny_config(), backbone_pretrained=True)[0]
    model = tiny_model()
    by_rate = {
        name.split(".")[0]: group["lr"]
        for group in stage.freeze(model)
        for name, p in model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert by_rate["backbone"] < by_rate["concept_head"]


def test_unknown_part_is_refused_with_the_near_name():
    stage = get_preset().stages(tiny_config())[-1]
    with pytest.raises(ValueError, match=r"unknown part 'taskhead'; did you mean \['task_head'\]"):
        dataclasses.replace(stage, lr={"taskhead": 1.0}).freeze(tiny_model())


def test_stage_that_teaches_nothing_is_refused():
    row = get_preset().stages(tiny_config())[0]
    with pytest.raises(ValueError, match="a learning rate above 0"):
        dataclasses.replace(row, lr={"backbone": 0.0})
    with pytest.raises(ValueError, match="unknown `schedule` 'step'"):
        dataclasses.replace(row, schedule="step")
    assert isinstance(row, Stage)


def test_unknown_preset_lists_the_near_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'recomended'; did you mean \['recommended'\]"):
        get_preset("recomended")


def test_epochs_of_an_unknown_stage_are_refused():
    with pytest.raises(ValueError, match=r"unknown stage 'concept'; did you mean \['concepts'\]"):
        get_preset().stages(tiny_config(), epochs={"concept": 3})


def test_multiclass_task_learns_by_cross_entropy():
    config = tiny_config(task_kind="multiclass")
    stage = get_preset().stages(config)[-1]
    (batch,) = batches(Squares(4), 4)
    batch = batch._replace(targets=torch.tensor([[1.0, 0], [0, 1], [torch.nan, torch.nan], [0.5, 0.5]]))
    output = tiny_model(task_kind="multiclass")(batch.images)._replace(task_logits=torch.randn(4, 2))
    known = [0, 1, 3]
    expected = torch.nn.functional.cross_entropy(output.task_logits[known], batch.targets[known])
    torch.testing.assert_close(stage.loss_fn(output, batch), expected)


class Spy:
    """A loss that remembers what it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, logits, labels):
        self.given.append((logits, labels))
        return logits.square().mean()


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@pytest.mark.parametrize("name", ["recommended", "original"])
def test_stages_learn_from_the_losses_given_to_the_preset(name, kind):
    losses = {"concept_loss": Spy(), "task_loss": Spy()}
    model = tiny_model(task_kind=kind)
    concepts, *_, task = get_preset(name).stages(model.config, **losses)
    (batch,) = batches(Squares(4), 4)
    output = model(batch.images)
    concepts.loss_fn(output, batch)
    assert torch.equal(task.loss_fn(output, batch), output.task_logits.square().mean())
    assert losses["concept_loss"].given == [(output.concept_logits, batch.concepts)]
    assert losses["task_loss"].given == [(output.task_logits, batch.targets)]


def test_paper_preset_leaves_rare_labels_as_they_are():
    spy = Spy()
    model = tiny_model()
    (batch,) = batches(Squares(4), 4)
    output = model(batch.images)
    told, plain = (
        get_preset("paper").stages(model.config, **losses) for losses in ({"concept_loss": spy, "task_loss": spy}, {})
    )
    assert all(torch.equal(told[i].loss_fn(output, batch), plain[i].loss_fn(output, batch)) for i in (0, 2))
    assert not spy.given and not get_preset("paper").uses_losses


@pytest.mark.parametrize("name", list_presets())
def test_without_given_losses_stages_learn_by_cross_entropy(name):
    model = tiny_model()
    concepts, *_, task = get_preset(name).stages(model.config)
    batch = batches(Squares(4), 4)[0]._replace(boxes=None)
    output = model(batch.images)
    plain = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(concepts.loss_fn(output, batch), plain(output.concept_logits, batch.concepts))
    torch.testing.assert_close(task.loss_fn(output, batch), plain(output.task_logits, batch.targets))


def test_rows_scattered_under_a_mask_equal_a_loop_over_places():
    drawn = torch.rand(4, 3, generator=torch.manual_seed(0)) < 0.5
    for mask in (drawn, torch.zeros_like(drawn), torch.ones_like(drawn)):
        rows = torch.rand(int(mask.sum()), 2, 5)
        expected, left = torch.zeros(4, 3, 2, 5), iter(rows)
        for b, k in mask.nonzero():
            expected[b, k] = next(left)
        assert torch.equal(scatter_rows(rows, mask), expected)


def test_no_gradient_of_scattered_rows_is_indexed_by_a_mask():
    # Its size would depend on the data, and inductor, of torch.compile, makes no code for it.
    def gradient(rows, mask):
        return torch.autograd.grad(scatter_rows(rows, mask).square().sum(), rows)[0]

    mask = torch.tensor([[True, False, True], [False, True, False]])
    rows = torch.rand(3, 4, requires_grad=True)
    traced = make_fx(gradient, tracing_mode="fake")(rows, mask)
    torch.testing.assert_close(traced(rows, mask), 2 * rows)
    nodes = [node for node in traced.graph.nodes if node.target is torch.ops.aten.index.Tensor]
    assert nodes and not any(index.meta["val"].dtype == torch.bool for node in nodes for index in node.args[1])
