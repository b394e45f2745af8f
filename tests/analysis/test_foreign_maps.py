"""Maps of other packages are measured, and drawn, as ours are."""

import importlib

import pytest
import torch
from torch import nn

from conceptcam import ModelView
from conceptcam.analysis.figures import overlay
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.detection import DetectionMetrics
from conceptcam.metrics.faithfulness import perturbation_curves
from conceptcam.metrics.localization import LocalizationMetrics
from conceptcam.metrics.regions import RegionMetrics, box_regions, map_logits
from tests.worlds import SIZE, Squares, batches, tiny_model

# Other packages warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
(BATCH,) = batches(Squares(6, 2))


def mean_pooled():
    model = tiny_model(pooling="mean").eval()
    nn.init.normal_(model.concept_head.score.weight)
    nn.init.zeros_(model.concept_head.score.bias)
    return model


def of_grad_cam(model):
    """(B, K, H, W), in the size of the image, which pytorch-grad-cam enlarges by itself."""
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")
    maps = []
    with grad_cam.GradCAM(model=ModelView(model), target_layers=[model.backbone]) as cam:
        for concept in range(3):
            maps.append(cam(BATCH.images, [targets.ClassifierOutputTarget(concept)] * len(BATCH.images)))
    return torch.stack([torch.from_numpy(one) for one in maps], dim=1)


def of_torchcam(model):
    """(B, K, h, w)."""
    methods = importlib.import_module("torchcam.methods") if pytest.importorskip("torchcam") else None
    maps = []
    view = ModelView(model)
    with methods.GradCAM(view, target_layer=model.backbone) as cam:
        for concept in range(3):
            maps.append(cam(concept, view(BATCH.images))[0].detach())
    return torch.stack(maps, dim=1)


def of_captum(model):
    """(B, K, h, w)."""
    attr = importlib.import_module("captum.attr") if pytest.importorskip("captum") else None
    cam = attr.LayerGradCam(ModelView(model), model.backbone)
    maps = [cam.attribute(BATCH.images, target=concept, relu_attributions=True).detach() for concept in range(3)]
    return torch.cat(maps, dim=1)


PACKAGES = pytest.mark.parametrize("explain", [of_grad_cam, of_torchcam, of_captum])


@PACKAGES
def test_grad_cam_of_any_package_points_where_mean_pooling_does(explain):
    model = mean_pooled()
    ours, theirs = LocalizationMetrics(3), LocalizationMetrics(3)
    with torch.no_grad():
        maps = model.forward_concepts(BATCH.images).concept_maps
    ours.update(map_logits(maps), BATCH.boxes, SIZE)
    theirs.update(map_logits(explain(model)), BATCH.boxes, SIZE)
    own, found = ours.compute(), theirs.compute()
    torch.testing.assert_close(own.pointing, found.pointing, equal_nan=True)
    if explain is of_captum:  # the others stretch each map, its lowest value to 0, before they hand it out
        torch.testing.assert_close(own.energy, found.energy, atol=1e-5, rtol=0, equal_nan=True)
    assert found.support.tolist() == own.support.tolist()


@PACKAGES
def test_foreign_maps_go_through_every_metric_and_into_figures(explain):
    model = mean_pooled()
    maps = explain(model)
    logits = map_logits(maps)
    detection, region = DetectionMetrics(3), RegionMetrics(3)
    detection.update(logits, BATCH.boxes, SIZE)
    region.update(logits, box_regions([(0.0, 0.0, 0.2, 0.2)] * 6, SIZE), BATCH.concepts)
    scores = detection.compute()
    assert scores.pixel_precision.isfinite().all() and scores.max_box_accuracy.isfinite().all()
    assert (region.compute().support > 0).all()
    curves = perturbation_curves(
        lambda shown: model.forward_concepts(shown).concept_logits[:, 0], BATCH.images, maps[:, 0], torch.zeros(())
    )
    assert curves.deletion.shape == (6, 15)
    assert overlay(Squares(6, 2).load_item(0).image, logits[0, 0].sigmoid().numpy()).width > 0


def test_maps_in_pixels_score_as_the_grid_they_were_enlarged_from():
    maps, boxes = (
        torch.randn(3, 2, 4, 5),
        ConceptBoxes(
            torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.4, 0.9, 0.7]]), torch.tensor([0, 1]), torch.tensor([0, 2])
        ),
    )
    large = nn.functional.interpolate(maps, size=(24, 30), mode="bilinear", align_corners=False)
    grid, pixels = LocalizationMetrics(2), LocalizationMetrics(2)
    grid.update(maps, boxes, (24, 30))
    pixels.update(large, boxes, (24, 30))
    for name in ("energy", "iou", "rank", "chance"):
        torch.testing.assert_close(getattr(grid.compute(), name), getattr(pixels.compute(), name))
