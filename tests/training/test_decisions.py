import pytest

from conceptcam.model.linear_solver import LinearSolver
from conceptcam.training.decisions import decide
from conceptcam.training.presets import get_preset
from tests.worlds import tiny_config


def decisions(**given):
    preset = get_preset(given.pop("preset", "recommended"))
    return decide(preset, tiny_config(), **{"images": 112, "backbone_pretrained": True, **given})


def stages(**given):
    config, options, _ = decisions(**given)
    return {stage.name: stage for stage in get_preset().stages(config, **options)}


def test_from_few_images_everything_is_found_at_once():
    rows = stages()
    assert list(rows) == ["concepts", "prototypes", "task"]
    assert all(row.solver is not None for row in rows.values())
    assert "backbone" not in rows["concepts"].parts
    config, _, reason = decisions()
    assert (config.pooling, config.pooling_param, config.projector) == ("topk", 0.1, "linear")
    assert reason.startswith("112 training images are few for a pretrained backbone, so it stays frozen")


@pytest.mark.parametrize("given", [{"images": 1000}, {"backbone_pretrained": False}, {"freeze_backbone": False}])
def test_otherwise_the_backbone_learns_step_by_step(given):
    rows = stages(**given)
    assert list(rows) == ["concepts", "embedding", "prototypes", "task"]
    assert "backbone" in rows["concepts"].parts and rows["concepts"].solver is None
    assert rows["task"].solver == LinearSolver(l2=None)
    config = decisions(**given).config
    assert (config.pooling, config.pooling_param, config.projector) == ("max", None, "mlp")


@pytest.mark.parametrize("images, count", [(112, 5), (999, 5), (1000, 1)])
def test_few_images_choose_an_epoch_by_several_scores(images, count):
    assert stages(images=images, freeze_backbone=False)["concepts"].score_epochs == count


def test_a_frozen_backbone_and_very_many_images_learn_step_by_step():
    rows = stages(images=50_000, freeze_backbone=True)
    assert "backbone" not in rows["concepts"].parts and rows["concepts"].solver is None


@pytest.mark.parametrize("stage", ["concepts", "prototypes", "task"])
def test_a_stage_whose_epochs_are_chosen_learns_step_by_step(stage):
    rows = stages(epochs={stage: 4})
    assert rows[stage].solver is None
    assert sum(row.epochs for name, row in rows.items() if name in (stage, "embedding")) == 4 or stage == "prototypes"
    assert all(row.solver is not None for name, row in rows.items() if name not in (stage, "embedding"))


def test_every_decision_can_be_overridden():
    fields = {"pooling": "lse", "pooling_param": 3.0, "projector": "mlp"}
    config = decisions(fields=fields).config
    assert {name: getattr(config, name) for name in fields} == fields
    assert stages(solve_task=False)["task"].solver is None


@pytest.mark.parametrize(
    "images, epochs", [(40, 60), (112, 60), (640, 40), (3200, 20), (32_000, 20), (64_000, 10), (10_000_000, 1)]
)
def test_epochs_have_steps_enough_to_learn_and_no_more_than_help(images, epochs):
    assert stages(images=images, backbone_pretrained=False)["concepts"].epochs == epochs


@pytest.mark.parametrize("preset", ["original", "paper"])
def test_presets_of_a_document_decide_nothing(preset):
    config, options, reason = decisions(preset=preset)
    assert config == get_preset(preset).apply_to(tiny_config())
    assert not options["freeze_backbone"] and options["task_solver"] is None and reason == ""
