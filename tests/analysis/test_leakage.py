import dataclasses

import pytest
import torch

from conceptcam.analysis.answers import collect_answers
from conceptcam.analysis.baselines import fit_baselines
from conceptcam.analysis.intervention import Intervention, apply_interventions
from conceptcam.analysis.leakage import figures_of_answers, hard_soft_figures, measure_leakage, task_completeness
from conceptcam.metrics.classification import per_label_metrics
from conceptcam.metrics.leakage import LeakageMetrics
from tests.analysis.test_intervention_curves import BOTH, CONCEPTS, DATA, TEST, answer_of, output_of, taught


def auroc(logits):
    return float(per_label_metrics(logits, DATA.task_labels).auroc.nanmean())


@BOTH
def test_hard_and_true_figures_are_those_of_interventions(bottleneck):
    model = taught(bottleneck)
    output, found = output_of(model), hard_soft_figures(model, TEST)
    said = output.concept_logits.sigmoid() > torch.tensor([model.record.thresholds[name] for name in CONCEPTS])
    for labels, figure in ((said, found.hard), (DATA.concept_labels > 0.5, found.true)):
        told = [
            Intervention(answers={name: answer_of(labels[row, k]) for k, name in enumerate(CONCEPTS)})
            for row in range(40)
        ]
        assert figure == pytest.approx(auroc(apply_interventions(model, output, told).task_logits), abs=1e-6)
    assert found.soft == pytest.approx(auroc(output.task_logits), abs=1e-6)
    assert found.gap == found.soft - found.hard


@BOTH
def test_a_bottleneck_of_true_concepts_has_no_gap_nor_leak(bottleneck):
    model = taught(bottleneck)
    typical = {"typical_present": dict.fromkeys(CONCEPTS, 1.0), "typical_absent": dict.fromkeys(CONCEPTS, 0.0)}
    typical["thresholds"] = dict.fromkeys(CONCEPTS, 0.5)
    model.record = dataclasses.replace(model.record, **typical)
    answers = collect_answers(model, TEST, evidence=True)
    present, absent = torch.ones_like(answers.evidence), torch.zeros_like(answers.evidence)
    if bottleneck == "prototypes":
        rows = (model.record.evidence_present, model.record.evidence_absent)
        present, absent = (torch.tensor([of[name] for name in CONCEPTS]).expand(40, -1, -1) for of in rows)
    fed = torch.where(answers.concepts[..., None] > 0.5, present, absent)
    answers = answers._replace(evidence=fed, concept_logits=20 * answers.concepts - 10)
    figures = figures_of_answers(model, answers)
    assert figures.gap == 0 and figures.soft == figures.true
    metric = LeakageMetrics(3, 2, per_concept=answers.evidence.shape[2])
    metric.update(fed, answers.concepts, answers.targets)
    scores = metric.compute()
    assert scores.ctl.eq(0).all() and scores.icl.eq(0).all()
    told = (present != absent)[0].any(dim=1)  # an untrained model may have no word for one
    assert told.any() and scores.ois[told].eq(0).all()


def test_leakage_is_that_of_the_evidence():
    model = taught()
    answers = collect_answers(model, TEST, evidence=True)
    metric = LeakageMetrics(3, 2, per_concept=answers.evidence.shape[2])
    metric.update(answers.evidence, answers.concepts, answers.targets)
    for found, expected in zip(measure_leakage(model, TEST), metric.compute(), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_completeness_is_the_share_of_what_a_black_box_gains():
    model = taught()
    answers = collect_answers(model, TEST)
    simple = fit_baselines(answers.features, answers.concepts, answers.targets, kind="multilabel")
    found = task_completeness(model, TEST, simple)
    scores = simple.score(answers.features, answers.concepts, answers.targets)["logistic regression on pooled features"]
    through, full = (
        per_label_metrics(logits, DATA.task_labels).auroc
        for logits in (output_of(model).task_logits, simple.black_box(answers.features))
    )
    assert scores.task_auroc == pytest.approx(float(full.mean()))
    assert list(found.values()) == pytest.approx(((through - 0.5) / (full - 0.5)).tolist())
