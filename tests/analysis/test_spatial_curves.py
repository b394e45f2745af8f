import pytest
import torch

from conceptcam.analysis.intervention import Intervention, apply_interventions
from conceptcam.analysis.spatial_curves import move_boxes, spatial_curve
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.metrics.classification import macro_average, per_label_metrics
from tests.analysis.test_intervention_curves import BOTH, DATA, TEST, output_of, taught
from tests.worlds import CONCEPTS, tiny_model


def boxes_of(image):
    boxes = DATA.load_item(image).boxes
    return [(CONCEPTS[k], box.tolist()) for k, box in zip(boxes.concept.tolist(), boxes.xyxy, strict=True)]


@pytest.mark.parametrize("scope", ["image", "concept"])
@BOTH
def test_curve_equals_interventions_that_point(bottleneck, scope):
    model = taught(bottleneck)
    output = output_of(model)
    curve = spatial_curve(model, TEST, scope=scope, elsewhere=(1.0, 0.3, 0.0))
    assert curve.elsewhere.tolist() == [1, 0.3, 0]
    for step, weight in enumerate((0.3, 0.0), start=1):
        told = []
        for image in range(40):
            drawn = boxes_of(image)
            if scope == "image":
                here = {name: [box for _, box in drawn] for name in CONCEPTS} if drawn else {}
            else:
                here = {name: [box] for name, box in drawn}
            told.append(Intervention(here=here, elsewhere=weight))
        changed = apply_interventions(model, output, told)
        tasks = macro_average(per_label_metrics(changed.task_logits, DATA.task_labels).auroc)
        concepts = macro_average(per_label_metrics(changed.concept_logits, DATA.concept_labels).auroc)
        assert float(curve.auroc[step]) == pytest.approx(float(tasks), abs=1e-6)
        assert float(curve.concept_auroc[step]) == pytest.approx(float(concepts), abs=1e-6)
    assert float(curve.auroc[0]) == float(macro_average(per_label_metrics(output.task_logits, DATA.task_labels).auroc))


def test_mirrored_places_are_those_of_mirrored_boxes():
    model = taught("concepts")
    random = torch.Generator()
    mirrored = [batch._replace(boxes=move_boxes(batch.boxes, "mirrored", random)) for batch in TEST]
    expected, curve = spatial_curve(model, mirrored), spatial_curve(model, TEST, places="mirrored")
    assert all(torch.equal(one, other) for one, other in zip(curve[:3], expected[:3], strict=True))
    assert not torch.equal(curve.auroc, spatial_curve(model, TEST).auroc)
    again = [spatial_curve(model, TEST, places="jittered", seed=seed).auroc for seed in (0, 0, 1)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_images_in_which_nobody_drew_stay_as_they_are():
    model = taught()
    curve = spatial_curve(model, [batch._replace(boxes=None) for batch in TEST])
    assert len(set(curve.auroc.tolist())) == 1


def test_mirrored_twice_is_where_it_was_and_jitter_stays_inside():
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2) * 0.9
    boxes = ConceptBoxes(
        torch.cat([corner, corner + (1 - corner) * 0.9 * torch.rand(200, 2) + 1e-4], dim=1),
        torch.zeros(200).long(),
        torch.arange(200),
    )
    twice = move_boxes(move_boxes(boxes, "mirrored", random), "mirrored", random)
    torch.testing.assert_close(twice.xyxy, boxes.xyxy)
    moved = move_boxes(boxes, "jittered", random)  # is checked as it is made
    edge = (moved.xyxy - boxes.xyxy)[:, 2] / (boxes.xyxy[:, 2] - boxes.xyxy[:, 0])
    assert 0.08 < float(edge.std()) < 0.2
    assert move_boxes(boxes, "oracle", random) is boxes


def test_what_cannot_be_pointed_at_is_refused():
    model = taught()
    with pytest.raises(ValueError, match=r"weights in \[0, 1\], got \[2\]"):
        spatial_curve(model, TEST, elsewhere=[2])
    with pytest.raises(ValueError, match="unknown `places` 'elsewhere'"):
        spatial_curve(model, TEST, places="elsewhere")
    with pytest.raises(ValueError, match="no batches"):
        spatial_curve(model, [])
    untaught = tiny_model()
    untaught.record = untaught.record.after("concepts", ["backbone"])
    with pytest.raises(ValueError, match="never taught the task"):
        spatial_curve(untaught, TEST)
