import json
import math

import pytest
import torch

from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.explanation import explain
from conceptcam.analysis.fitting import fit_calibration, fit_thresholds
from conceptcam.analysis.intervention import Intervention, correction_doubts_of
from conceptcam.analysis.intervention_result import intervene
from conceptcam.config import ConceptConfig, TrainingRecord, from_json, to_json
from conceptcam.metrics.calibration import fit_scaling
from tests.worlds import CONCEPTS, TASKS, Squares, batches, tiny_model

IMAGE = Squares(4, preprocess=False).load_item(1).image
VALIDATION = batches(Squares(40, 1))


def taught(bottleneck="prototypes", **changes):
    model = tiny_model(bottleneck=bottleneck, **changes)
    with torch.no_grad():
        model.concept_head.score.weight.normal_(generator=torch.Generator().manual_seed(2))
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for stage, part in (("concepts", "backbone"), ("prototypes", "prototypes"), ("task", "task_head")):
        model.record = model.record.after(stage, [part])
    return model.eval()


def calibrated(**changes):
    model = taught(**changes)
    fit_thresholds(model, VALIDATION, thresholds_source="40 squares")
    fit_calibration(model, VALIDATION, calibration_source="40 squares")
    return model


def outputs(model):
    with torch.no_grad():
        said = [model(batch.images) for batch in VALIDATION]
    return torch.cat([one.concept_logits for one in said]), torch.cat([one.task_logits for one in said])


def test_record_holds_the_scaling_of_validation_logits():
    model = calibrated()
    logits, tasks = outputs(model)
    data = Squares(40, 1)
    for names, pairs, said, true in (
        (CONCEPTS, model.record.calibration, logits, data.concept_labels),
        (TASKS, model.record.task_calibration, tasks, data.task_labels),
    ):
        scaling = fit_scaling(said, true)
        for index, name in enumerate(names):
            expected = float(scaling.slope[index]), float(scaling.intercept[index])
            assert pairs[name] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_predict_and_explain_report_the_same_calibrated_probability(bottleneck):
    model = calibrated(bottleneck=bottleneck)
    table, raw = model.predict([IMAGE]), model.predict([IMAGE], calibrated=False)
    explanation = explain(model, IMAGE)
    for k, name in enumerate(CONCEPTS):
        slope, intercept = model.record.calibration[name]
        logit = math.log(raw.concept_probabilities[0, k] / (1 - raw.concept_probabilities[0, k]))
        expected = 1 / (1 + math.exp(-slope * logit - intercept))
        assert table.concept_probabilities[0, k].item() == pytest.approx(expected, abs=1e-5)
        assert explanation.concept(name).probability == pytest.approx(expected, abs=1e-5)
        # Whether a concept is called present does not depend on calibration.
        called = raw.concept_probabilities[0, k] > model.record.thresholds[name]
        assert (explanation.concept(name).probability > explanation.concept(name).threshold) == bool(called)
    for t, task in enumerate(explanation.tasks):
        assert table.task_probabilities[0, t].item() == pytest.approx(task.probability, abs=1e-5)
        assert math.fsum([task.bias, *(part.value for part in task.contributions)]) == task.logit


@pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
def test_an_answer_is_a_probability_as_it_is_reported(bottleneck):
    model = calibrated(bottleneck=bottleneck)
    own = {one.concept: one.probability for one in explain(model, IMAGE).concepts}
    same = intervene(model, IMAGE, Intervention(answers=own))
    assert [task.logit for task in same.before.tasks] == [task.logit for task in same.after.tasks]
    told = intervene(model, IMAGE, Intervention(answers={"dark": 0.3}))
    assert told.concepts[0].after == pytest.approx(0.3, abs=1e-5)


def test_evaluation_measures_the_probabilities_that_are_reported():
    model = taught()
    data = batches(Squares(60, 3))
    before = evaluate(model, data)
    fit_calibration(model, data, calibration_source="the same squares")
    after = evaluate(model, data)
    assert (after.calibration.brier < before.calibration.brier).all()
    assert torch.equal(after.concept_scores.auroc, before.concept_scores.auroc)
    summary = after.summary()
    assert summary["concept_ece"] == pytest.approx(float(after.calibration.ece.mean()))
    assert summary["task_brier"] < before.summary()["task_brier"]
    assert {"ECE", "Brier"} <= set(after.table().splitlines()[0].split())


def test_tasks_that_exclude_each_other_still_add_up_to_one():
    model = calibrated(task_kind="multiclass")
    assert len(set(model.record.task_calibration.values())) == 1
    assert model.predict([IMAGE]).task_probabilities.sum().item() == pytest.approx(1)


def test_calibration_is_saved_and_forgotten_with_its_parts():
    record = TrainingRecord(calibration={"a": [0.5, -1]}, task_calibration={"b": (2, 0)}, calibration_source="x")
    config = ConceptConfig(concepts=("a",), tasks=("b",), backbone="small_cnn_s8")
    assert from_json(to_json(config, record))[1] == record
    assert record.after("task", ["task_head"]).calibration == record.calibration
    assert record.after("task", ["task_head"]).task_calibration == {}
    assert record.after("concepts", ["concept_head"]).calibration == {}
    old = json.loads(to_json(config, TrainingRecord()))
    for name in ("calibration", "task_calibration", "calibration_source"):
        del old["record"][name]
    assert from_json(json.dumps(old))[1] == TrainingRecord()
    with pytest.raises(ValueError, match="must hold a slope above 0 and an intercept"):
        TrainingRecord(calibration={"a": (-1.0, 0.0)})


def test_thresholds_can_be_those_of_a_sensitivity():
    model = taught()
    fit_thresholds(model, VALIDATION, thresholds_source="40 squares", sensitivity=1.0)
    logits, _ = outputs(model)
    labels = Squares(40, 1).concept_labels > 0
    for k, name in enumerate(CONCEPTS):
        assert (logits[labels[:, k], k].double().sigmoid() > model.record.thresholds[name]).all()


def test_fitting_thresholds_says_which_corrections_go_wrong():
    model = taught("concepts")
    assert fit_thresholds(model, VALIDATION, thresholds_source="40 squares") == tuple(
        correction_doubts_of(model.config, model.record)
    )
    with torch.no_grad():
        model.concept_head.score.weight.zero_()  # one score for all images
    (found,) = fit_thresholds(model, VALIDATION, thresholds_source="40 squares")
    assert all(f"'{name}' (+0.000)" in found for name in CONCEPTS)


def test_a_model_without_tasks_is_not_warned_of_corrections():
    model = tiny_model(tasks=())
    model.record = TrainingRecord(stages=("concepts", "prototypes"))
    with torch.no_grad():
        model.concept_head.score.weight.zero_()
    assert fit_thresholds(model, VALIDATION, thresholds_source="40 squares") == ()
