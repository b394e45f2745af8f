"""Tools of others call a view unchanged, and train the model through it."""

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.functional import interpolate

from conceptcam import BBoxGuidedConceptLoss, ConceptPart, ModelView
from conceptcam.training.optimizer import parameter_groups
from conceptcam.training.stages import task_stage
from tests.worlds import SIZE, Squares, batches, tiny_model, weights

OUTPUTS = ("concept_logits", "concept_maps", "concepts", "task_logits")
# Other packages warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE)


def as_tensor(output: torch.Tensor | ConceptPart) -> torch.Tensor:
    return output.concept_logits if isinstance(output, ConceptPart) else output


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_view_gives_the_models_output(output, bottleneck):
    model, pixels = tiny_model(bottleneck=bottleneck).eval(), images()
    said = model(pixels)
    given = ModelView(model, output)(pixels)
    if output == "concepts":
        assert isinstance(given, ConceptPart) and all(map(torch.equal, given, said[:3]))
    else:
        assert torch.equal(given, getattr(said, output))


@pytest.mark.parametrize("pooling", ["max", "attention"])
@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_parameter_of_a_view_gets_a_gradient(output, bottleneck, pooling):
    model = tiny_model(bottleneck=bottleneck, pooling=pooling)
    nn.init.normal_(model.task_head.weight)
    view = ModelView(model, output)
    as_tensor(view(images())).square().sum().backward()
    assert [name for name, parameter in view.named_parameters() if parameter.grad is None] == []


def test_an_optimizer_of_a_view_trains_the_model():
    model = tiny_model()
    view, before = ModelView(model), weights(model)
    optimizer = torch.optim.SGD(view.parameters(), lr=0.1)
    view(images()).sum().backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"backbone", "concept_head"}


def test_training_mode_of_a_view_leaves_frozen_parts_still():
    model = tiny_model()
    model.backbone.requires_grad_(False)
    view = ModelView(model).train()
    assert not model.backbone.training and model.concept_head.training and view.training
    assert not view.eval().training and not model.training


def test_moving_or_casting_a_view_moves_the_whole_model():
    model = tiny_model()
    view = ModelView(model).double()
    assert {value.dtype for value in model.parameters()} == {torch.float64}
    assert view(images().double()).dtype == torch.float64
    assert {value.device.type for value in ModelView(model).to("meta").model.parameters()} == {"meta"}


def test_timm_decays_of_a_view_what_our_stages_decay():
    optim = pytest.importorskip("timm.optim")
    model = tiny_model(backbone="timm:test_vit", image_size=(64, 64))
    groups = optim.create_optimizer_v2(ModelView(model, "task_logits"), "adamw", lr=1.0, weight_decay=0.5).param_groups
    stage = task_stage(
        model.config, lr=dict.fromkeys(("backbone", "projector", "prototypes", "task_head"), 1.0), weight_decay=0.5
    )
    ours = parameter_groups(model, stage)
    assert decayed(groups) == decayed(ours) and "prototypes.vectors" in model.no_weight_decay()
    assert ModelView(model).no_weight_decay() == {"backbone.model.cls_token", "backbone.model.pos_embed"}


def decayed(groups: list[dict[str, Any]]) -> set[int]:
    return {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}


def test_a_copied_view_has_a_model_of_its_own():
    view = ModelView(tiny_model())
    copied = copy.deepcopy(view)
    assert copied.model is not view.model and copied.backbone is copied.model.backbone


def test_an_unknown_output_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown `output` 'concept_logit'; did you mean"):
        ModelView(tiny_model(), "concept_logit")
    with pytest.raises(ValueError, match="no tasks"):
        ModelView(tiny_model(tasks=()), "task_logits")


@pytest.fixture
def process_group():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.parametrize("output", OUTPUTS)
def test_ddp_trains_through_a_view_step_after_step(output, process_group):
    model = tiny_model()
    nn.init.normal_(model.task_head.weight)
    wrapped = nn.parallel.DistributedDataParallel(ModelView(model, output))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-2)
    for _ in range(3):  # a parameter without a gradient would be an error at the second step
        optimizer.zero_grad()
        as_tensor(wrapped(images())).square().mean().backward()
        optimizer.step()


def test_accelerate_trains_stage_1_in_bf16_through_a_view():
    accelerate = pytest.importorskip("accelerate")
    model, before, seen = tiny_model(), weights(tiny_model()), set()
    model.concept_head.register_forward_hook(lambda part, given, output: seen.add(output.dtype))
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    try:
        view = ModelView(model, "concepts")
        view, optimizer = accelerator.prepare(view, torch.optim.SGD(view.parameters(), lr=0.1))
        loss_fn = BBoxGuidedConceptLoss()
        for batch in batches(Squares(8)):
            part = view(batch.images)
            accelerator.backward(
                loss_fn(part.concept_maps, batch.concepts, batch.boxes, concept_logits=part.concept_logits)
            )
            optimizer.step()
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert seen == {torch.bfloat16}
    assert not torch.equal(model.concept_head.score.weight, before["concept_head.score.weight"])


def grad_cam_of_ours(model: nn.Module, pixels: torch.Tensor, concept: int) -> torch.Tensor:
    """What Grad-CAM is of a linear head on pooled features: the map without its bias, above 0; (h, w)."""
    maps = model.forward_concepts(pixels).concept_maps[0, concept] - model.concept_head.score.bias[concept]
    return maps.relu().detach()


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.detach().flatten(), second.detach().flatten()]))[0, 1])


def mean_pooled() -> nn.Module:
    model = tiny_model(pooling="mean").eval()
    nn.init.normal_(model.concept_head.score.weight)
    return model


def test_grad_cam_of_a_mean_pooled_model_is_our_own_map():
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    model, pixels = mean_pooled(), images(1)
    with grad_cam.GradCAM(model=ModelView(model), target_layers=[model.backbone]) as cam:
        given = torch.tensor(cam(input_tensor=pixels, targets=[targets.ClassifierOutputTarget(1)])[0])
    ours = interpolate(grad_cam_of_ours(model, pixels, 1)[None, None], SIZE, mode="bilinear")[0, 0]
    assert given.shape == SIZE and correlation(given, ours) > 0.9999


def test_torchcam_of_a_mean_pooled_model_is_our_own_map():
    torchcam = pytest.importorskip("torchcam.methods")
    model, pixels = mean_pooled(), images(1).requires_grad_()
    view = ModelView(model)
    with torchcam.GradCAM(view, target_layer=view.backbone) as cam:
        (given,) = cam(2, view(pixels))
    assert correlation(given[0], grad_cam_of_ours(model, pixels, 2)) > 0.9999


def test_captum_attributes_a_concept_logit_of_a_view_completely():
    attr = pytest.importorskip("captum.attr")
    view, pixels = ModelView(mean_pooled()), images(1)
    methods = attr.LayerGradCam(view, view.backbone), attr.IntegratedGradients(view)
    layer = methods[0].attribute(pixels, target=0)
    assert correlation(layer[0, 0].relu(), grad_cam_of_ours(view.model, pixels, 0)) > 0.9999
    whole = methods[1].attribute(pixels, target=0, n_steps=200).sum()
    expected = (view(pixels) - view(torch.zeros_like(pixels)))[0, 0]
    assert torch.allclose(whole.float(), expected, atol=1e-2)
