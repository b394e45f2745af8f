import dataclasses
import importlib.util
import json

import pytest
import torch

from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.evaluation_figures import evaluation_figures
from conceptcam.analysis.faithfulness import count_forward_passes, measure_sample, sample_maps
from conceptcam.analysis.fitting import fit_thresholds
from conceptcam.analysis.intervention_curves import intervention_curve
from conceptcam.analysis.leakage import hard_soft_figures, measure_leakage
from conceptcam.analysis.randomization import randomization_check
from conceptcam.analysis.slow_measures import MOST_MAPS, STEPS, WRONG
from conceptcam.analysis.slow_table import LEAK_MARGIN, slow_lines
from conceptcam.analysis.spatial_curves import spatial_curve
from conceptcam.metrics.detection import DetectionMetrics
from conceptcam.metrics.information import concept_task_leakage, exchange_within_labels
from tests.analysis.test_intervention_curves import BOTH, TEST, output_of, taught
from tests.worlds import Squares, tiny_model


@pytest.fixture(scope="module", params=["prototypes", "concepts"])
def measured(request):
    model, said = taught(request.param), []
    return model, evaluate(model, TEST, everything=True, echo=said.append), said


def same(found, expected):
    assert set(found._fields) == set(expected._fields)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), equal_nan=True)


def test_together_they_find_what_each_measure_finds_alone(measured):
    model, result, _ = measured
    slow = result.slow
    same(slow.hard_soft, hard_soft_figures(model, TEST))
    same(slow.leakage, measure_leakage(model, TEST))
    same(slow.interventions["ectp"], intervention_curve(model, TEST, policy="ectp"))
    same(slow.interventions[WRONG], intervention_curve(model, TEST, answers="wrong"))
    same(slow.spatial["jittered"], spatial_curve(model, TEST, places="jittered"))
    wanted = sample_maps(result.per_image.concepts, per_concept=MOST_MAPS)
    same(slow.faithfulness["mean"], measure_sample(model, TEST, wanted, steps=STEPS)["mean"])
    assert slow.faithfulness["blur"].support.tolist() == wanted.sum(dim=0).tolist()
    assert slow.faithfulness_images == int(wanted.any(dim=1).sum())
    torch.testing.assert_close(slow.randomization.correlation, randomization_check(model, TEST[:1]).correlation)
    metric = DetectionMetrics(3)
    for batch in TEST:
        with torch.no_grad():
            metric.update(model(batch.images).concept_maps, batch.boxes, model.config.image_size)
    same(slow.detection, metric.compute())


def test_everything_leaves_the_usual_figures_as_they_are(measured):
    model, result, _ = measured
    usual = evaluate(model, TEST)
    assert usual.slow is None and "slow" not in usual.as_dict()
    assert result.table().startswith(usual.table().rstrip("\n"))
    assert {name: value for name, value in result.as_dict().items() if name != "slow"} == usual.as_dict()


def test_the_time_comes_first_then_a_line_per_measure(measured):
    _, result, (estimate, *lines) = measured
    assert estimate.startswith("Measuring the rest takes about ")
    maps = int(result.slow.faithfulness["mean"].support.sum())
    assert f"insertion and deletion of {maps} maps of {result.slow.faithfulness_images} images" in estimate
    assert [line.partition(":")[0] for line in lines] == [
        "boxes, places and prototypes", f"insertion and deletion of {maps} maps", "shuffled weights", "leakage",
        "corrections",
    ]  # fmt: skip


def test_forward_passes_of_a_sample_are_as_counted(monkeypatch):
    model, seen = taught(), []
    real = type(model).forward_concepts
    monkeypatch.setattr(
        type(model), "forward_concepts", lambda self, images: seen.append(len(images)) or real(self, images)
    )
    wanted = sample_maps(torch.cat([batch.concepts for batch in TEST]), per_concept=3)
    measure_sample(model, TEST, wanted, steps=5)
    assert sum(seen) == count_forward_passes(wanted, steps=5)


def test_a_sample_takes_each_present_image_equally_often():
    labels = torch.tensor([[1.0, 0.0], [1.0, torch.nan], [0.0, 1.0], [1.0, 0.6]]).repeat(5, 1)
    drawn = torch.stack([sample_maps(labels, per_concept=4, seed=seed) for seed in range(400)])
    assert not drawn[:, ~(labels > 0.5)].any() and (drawn.sum(dim=1) == 4).all()
    often = drawn.double().mean(dim=0)[labels > 0.5]
    expected = (4 / (labels > 0.5).sum(dim=0)).expand(20, 2)[labels > 0.5]
    torch.testing.assert_close(often, expected.double(), atol=0.1, rtol=0)


def test_batches_that_pass_once_do_not_do_for_everything():
    with pytest.raises(ValueError, match="not an iterator"):
        evaluate(taught(), iter(TEST), everything=True)


def test_the_table_has_a_control_beside_each_leak(measured):
    _, result, _ = measured
    (line,) = (one for one in result.table().splitlines() if one.startswith("leak to tasks (CTL)"))
    leakage = result.slow.leakage
    assert f"{leakage.ctl.nanmean():.3f}" in line and f"{leakage.ctl_control.nanmean():.3f}" in line
    says = "Scores leak: they tell the tasks more than their concepts do" in result.table()
    assert says == bool(leakage.ctl.nanmean() > leakage.ctl_control.nanmean() + LEAK_MARGIN)
    written = json.loads(json.dumps(result.as_dict(), allow_nan=False))["slow"]
    assert written["interventions"]["ucp"]["auroc"] == result.slow.interventions["ucp"].auroc.tolist()


def test_a_leak_within_the_margin_is_not_called_one(measured):
    _, result, _ = measured
    control = result.slow.leakage.ctl_control
    for above, says in ((LEAK_MARGIN - 0.001, False), (LEAK_MARGIN + 0.001, True)):
        leakage = result.slow.leakage._replace(ctl=control + above)
        assert ("Scores leak" in "\n".join(slow_lines(result.slow._replace(leakage=leakage)))) == says


@pytest.mark.parametrize("images", [24, 100])
def test_scores_that_carry_only_their_concept_stay_in_the_margin(images):
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        concepts, targets = (torch.rand(2, images, 4, generator=random) < 0.35).float()
        scores = torch.randn(images, 4, generator=random) + concepts
        own = concept_task_leakage(scores, concepts, targets).nanmean()
        control = concept_task_leakage(exchange_within_labels(scores, concepts), concepts, targets).nanmean()
        assert own <= control + LEAK_MARGIN


def test_figures_of_false_alarms_and_corrections_are_drawn(measured):
    pytest.importorskip("matplotlib")
    _, result, _ = measured
    figures = evaluation_figures(result)
    assert {"froc", "interventions"} <= set(figures)
    (axes,) = figures["froc"].axes
    (mean,) = (line for line in axes.lines if line.get_label() == "mean")
    assert mean.get_ydata().tolist() == pytest.approx(result.slow.detection.froc.nanmean(dim=0).tolist())
    assert len(figures["interventions"].axes[0].lines) == 7


@BOTH
def test_without_tasks_or_boxes_the_rest_is_measured(bottleneck):
    model = tiny_model(bottleneck=bottleneck)
    model.record = model.record.after("concepts", ["backbone"])
    result = evaluate(model, [batch._replace(boxes=None) for batch in TEST], everything=True)
    slow = result.slow
    assert slow.leakage is None and slow.interventions == slow.spatial == {} and slow.parts is None
    assert slow.detection.froc.isnan().all() and slow.faithfulness["blur"].support.sum() > 0
    assert "insertion, blur" in result.table()


def test_prototypes_are_measured_without_labels_of_tasks():
    whole = evaluate(taught(), TEST, everything=True).slow
    slow = evaluate(taught(), [batch._replace(targets=batch.targets[:, :0]) for batch in TEST], everything=True).slow
    same(slow.parts, whole.parts)
    assert slow.agreement != slow.agreement and slow.interventions == {}


def test_concepts_without_typical_scores_are_not_corrected():
    model = taught()
    typical = {name: row for name, row in model.record.evidence_present.items() if name != "dark"}
    model.record = dataclasses.replace(model.record, evidence_present=typical)
    slow = evaluate(model, Squares(16, 2).dataloader(8), everything=True).slow
    assert slow.uncorrected == ("dark",) and slow.hard_soft is None and slow.leakage is not None
    assert slow.interventions["ucp"].auroc.isfinite().all()
    assert output_of(model).evidence.isfinite().all()


@BOTH
def test_one_concept_without_boxes_has_curves_of_answers_alone(bottleneck):
    model = tiny_model(bottleneck=bottleneck, concepts=("bright",))
    for stage, part in (("concepts", "backbone"), ("prototypes", "prototypes"), ("task", "task_head")):
        model.record = model.record.after(stage, [part])
    few = [batch._replace(concepts=batch.concepts[:, :1], boxes=None) for batch in TEST]
    fit_thresholds(model, few, thresholds_source="squares")
    result = evaluate(model, few, everything=True)
    assert result.slow.interventions["ucp"].counts.tolist() == [0, 1] and result.slow.spatial == {}
    assert "one concept corrected by ucp" in result.table() and "boxes alone" not in result.table()
    if importlib.util.find_spec("matplotlib") is not None:
        assert len(evaluation_figures(result)["interventions"].axes) == 1


@pytest.mark.parametrize("prevalence", [0.003, 0.02, 0.5])
def test_more_images_take_no_more_passes_than_the_bound(prevalence: float):
    """Rare concepts share no images, and come near it; `measure_slow` says what it is."""
    counts = []
    for images in (100, 1_000, 100_000):
        labels = (torch.rand(images, 5, generator=torch.Generator().manual_seed(images)) < prevalence).float()
        counts.append(count_forward_passes(sample_maps(labels, per_concept=MOST_MAPS), steps=STEPS))
    bound = 864 * 5
    assert max(counts) <= bound
    assert counts[-1] > (0.5 if prevalence == 0.5 else 0.9) * bound
