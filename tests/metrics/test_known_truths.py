"""What metrics of maps must give where the answer is known; single images and absent concepts do no harm."""

import pytest
import torch

from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.detection import DetectionMetrics
from conceptcam.metrics.faithfulness import FaithfulnessMetrics, PerturbationCurves
from conceptcam.metrics.leakage import LeakageMetrics
from conceptcam.metrics.localization import LocalizationMetrics
from conceptcam.metrics.prototype_parts import PrototypeParts
from conceptcam.metrics.prototypes import PrototypePurity
from conceptcam.metrics.regions import RegionMetrics

SIZE = (32, 32)
# The second concept is drawn nowhere.
BOXES = ConceptBoxes(
    torch.tensor([[0.125, 0.25, 0.375, 0.5], [0.5, 0.125, 0.875, 0.375]]), torch.zeros(2).long(), torch.tensor([0, 1])
)


def drawn(images):
    """(B, 2, H, W) bool, which pixels are in boxes."""
    return BOXES.coverage((2, 2, *SIZE))[:images] > 0


def test_a_perfect_map_scores_1_on_every_metric_of_maps():
    maps = torch.where(drawn(2), 40.0, -40.0)
    place = LocalizationMetrics(2)
    place.update(maps, BOXES, SIZE)
    scores = place.compute()
    for name in ("pointing", "pointing_grid", "energy", "iou", "rank", "side"):
        assert float(getattr(scores, name)[0]) == pytest.approx(1), name
    found = DetectionMetrics(2)
    found.update(maps, BOXES, SIZE)
    for name in ("max_box_accuracy", "box_accuracy", "pixel_precision", "froc", "sensitivity"):
        assert getattr(found.compute(), name)[0].eq(1).all(), name
    region = RegionMetrics(2)
    region.update(maps[:, :1].expand(-1, 2, -1, -1), drawn(2)[:, 0])
    assert all(float(one[0]) == pytest.approx(1) for one in region.compute()[:2])
    pure = PrototypePurity()
    pure.update(maps.clamp(min=0)[:, :, None], BOXES)
    assert float(pure.compute()[0, 0]) == 1


def test_a_uniform_map_scores_the_formula_of_chance():
    area = drawn(2)[:, 0].double().mean(dim=(1, 2))
    maps = torch.full((2, 2, *SIZE), 1.0)
    place = LocalizationMetrics(2)
    place.update(maps, BOXES, SIZE)
    scores = place.compute()
    for name in ("energy", "rank", "iou", "chance"):
        assert float(getattr(scores, name)[0]) == pytest.approx(float(area.mean()), abs=1e-6), name
    found = DetectionMetrics(2)
    found.update(maps, BOXES, SIZE)
    scores = found.compute()
    assert float(scores.pixel_precision[0]) == pytest.approx(float(area.mean())) == float(scores.pixel_chance[0])
    assert float(scores.max_box_accuracy[0]) == float(scores.box_chance[0]) == 0  # no box has 30 % of the image
    assert scores.froc[0].eq(0).all()


def test_a_mirrored_model_has_no_mirror_gap_above_0():
    maps = torch.where(drawn(2), 40.0, -40.0)
    place = LocalizationMetrics(2)
    place.update(maps.flip(-1), BOXES, SIZE)
    assert float(place.compute().mirror_gap[0]) <= 0


def test_single_images_and_absent_concepts_are_nan_and_no_error():
    one = ConceptBoxes(BOXES.xyxy[:1], BOXES.concept[:1], BOXES.image[:1])
    maps = torch.where(drawn(1), 40.0, -40.0)
    place, found, parts = LocalizationMetrics(2), DetectionMetrics(2), PrototypeParts(2, 1, min_images=1)
    place.update(maps, one, SIZE)
    found.update(maps, one, SIZE)
    parts.update(maps[:, :, None], torch.tensor([[1.0, 0.0]]), one)
    for metric, name in ((place, "pointing"), (found, "pixel_precision"), (parts, "share")):
        values = getattr(metric.compute(), name).flatten()
        assert float(values[0]) == 1 and values[1].isnan(), name
    faithful = FaithfulnessMetrics(2)
    falling, rising = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    faithful.update(torch.tensor([0]), PerturbationCurves(falling, rising, falling, rising))
    scores = faithful.compute()
    assert scores.deletion[0] == 0.5 and scores.deletion[1].isnan() and scores.support.tolist() == [1, 0]
    leaks = LeakageMetrics(2, 1)
    leaks.update(torch.tensor([[0.3, 0.7]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]]))
    scores = leaks.compute()
    assert all(part.shape == (2,) for part in scores) and scores.support.tolist() == [1, 1]
    assert scores.ois.isnan().all() and scores.nis.isnan().all()
