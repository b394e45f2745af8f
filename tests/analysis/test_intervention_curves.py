import dataclasses
import math

import pytest
import torch

from conceptcam.analysis import intervention_curves as curves
from conceptcam.analysis.evaluation import evaluate
from conceptcam.analysis.fitting import fit_thresholds
from conceptcam.analysis.intervention import Intervention, apply_interventions
from conceptcam.analysis.intervention_curves import intervention_curve
from conceptcam.metrics.classification import per_label_metrics, task_scores
from tests.worlds import CONCEPTS, Squares, batches, tiny_model

DATA = Squares(40, 2)
TEST = batches(DATA)
BOTH = pytest.mark.parametrize("bottleneck", ["prototypes", "concepts"])
POLICIES = ("random", "ucp", "lcp", "cctp", "ectp", "eudtp")


def taught(bottleneck="prototypes", **changes):
    model = tiny_model(bottleneck=bottleneck, **changes)
    with torch.no_grad():
        model.concept_head.score.weight.normal_(generator=torch.Generator().manual_seed(2))
        model.task_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for stage, part in (("concepts", "backbone"), ("prototypes", "prototypes"), ("task", "task_head")):
        model.record = model.record.after(stage, [part])
    fit_thresholds(model, batches(Squares(40, 1)), thresholds_source="40 squares")
    return model.eval()


def output_of(model):
    with torch.no_grad():
        return model(torch.cat([batch.images for batch in TEST]))


def answer_of(label):
    return "present" if label else "absent"


@pytest.mark.parametrize("policy", ["ucp", "lcp", "cctp"])
@BOTH
def test_curve_equals_interventions_answered_one_by_one(bottleneck, policy):
    model = taught(bottleneck)
    output, labels, weight = output_of(model), DATA.concept_labels, model.task_head.weight.detach()
    curve = intervention_curve(model, TEST, policy=policy)
    for count in range(4):
        told = []
        for row in range(40):
            p = output.concept_logits[row].sigmoid()
            contributions = [
                sum(abs(float((output.evidence[row, k] * weight[t, k]).sum())) for t in range(2)) for k in range(3)
            ]
            key = {
                "ucp": lambda k, p=p: abs(float(p[k]) - 0.5),
                "lcp": lambda k, p=p, row=row: -abs(float(p[k] - labels[row, k])),
                "cctp": lambda k, c=contributions: -c[k],
            }[policy]
            asked = sorted(range(3), key=key)[:count]
            told.append(Intervention(answers={CONCEPTS[k]: answer_of(labels[row, k]) for k in asked}))
        logits = apply_interventions(model, output, told).task_logits
        expected = per_label_metrics(logits, DATA.task_labels).auroc.nanmean()
        assert float(curve.auroc[count]) == pytest.approx(float(expected), abs=1e-6)


@BOTH
def test_own_answers_change_nothing_and_no_answer_is_the_evaluation(bottleneck):
    model = taught(bottleneck)
    summary = evaluate(model, TEST, draws=0).summary()
    curve = intervention_curve(model, TEST, answers="self")
    assert curve.auroc.tolist() == [curve.auroc[0].item()] * 4
    assert curve.average_precision.tolist() == [curve.average_precision[0].item()] * 4
    assert float(curve.auroc[0]) == pytest.approx(summary["task_auroc"])
    assert curve.accuracy.isnan().all()


@BOTH
def test_all_policies_meet_at_none_and_all_answers(bottleneck):
    model = taught(bottleneck)
    curves = [intervention_curve(model, TEST, policy=policy, counts=[0, 1, 3]) for policy in POLICIES]
    for curve in curves:
        assert curve.counts.tolist() == [0, 1, 3]
        assert curve.auroc[[0, 2]].tolist() == curves[0].auroc[[0, 2]].tolist()


def bernoulli(logits):
    return [1 / (1 + math.exp(-value)) for value in logits.tolist()]


def slow_gain(policy, before, after):
    """Divergence of two tasks, or decrease of their entropy, from their probabilities."""

    def entropy(said):
        return -sum(p * math.log(p) + (1 - p) * math.log(1 - p) for p in said)

    if policy == "eudtp":
        return entropy(before) - entropy(after)
    return sum(
        new * math.log(new / old) + (1 - new) * math.log((1 - new) / (1 - old))
        for new, old in zip(after, before, strict=True)
    )


@pytest.mark.parametrize("policy", ["ectp", "eudtp"])
@BOTH
def test_expectations_are_taken_anew_after_each_answer(bottleneck, policy):
    model = taught(bottleneck)
    output, labels = output_of(model), DATA.concept_labels
    labels = labels.clone()
    labels[0, 1] = math.nan
    data = [batch._replace(concepts=labels[8 * i : 8 * i + 8]) for i, batch in enumerate(TEST)]
    curve = intervention_curve(model, data, policy=policy)
    asked = [{} for _ in range(40)]
    for count in range(4):
        told = [Intervention(answers=answers) for answers in asked]
        logits = apply_interventions(model, output, told).task_logits
        expected = per_label_metrics(logits, DATA.task_labels).auroc.nanmean()
        assert float(curve.auroc[count]) == pytest.approx(float(expected), abs=1e-6)
        for row, answers in enumerate(asked):
            one = type(output)(*(part[row : row + 1] for part in output))
            before = bernoulli(logits[row])
            gains = {}
            for k, name in enumerate(CONCEPTS):
                if name in answers or labels[row, k].isnan():
                    continue
                p, gains[k] = float(output.concept_logits[row, k].sigmoid()), 0.0
                for word, chance in (("present", p), ("absent", 1 - p)):
                    after = apply_interventions(model, one, [Intervention(answers={**answers, name: word})])
                    gains[k] += chance * slow_gain(policy, before, bernoulli(after.task_logits[0]))
            if gains:
                best = max(gains, key=gains.get)
                answers[CONCEPTS[best]] = answer_of(labels[row, best])


@pytest.mark.parametrize("policy", POLICIES)
@BOTH
def test_own_answers_leave_every_task_logit_as_it_is_to_the_bit(bottleneck, policy, monkeypatch):
    model, seen = taught(bottleneck), []
    monkeypatch.setattr(curves, "task_scores", lambda logits, *rest: seen.append(logits) or task_scores(logits, *rest))
    intervention_curve(model, TEST, policy=policy, answers="self")
    assert len(seen) == 4 and all(torch.equal(logits, seen[0]) for logits in seen)


@pytest.mark.parametrize("exclusive", [False, True])
def test_expected_change_is_never_negative(exclusive):
    before, after = torch.randn(50, 3).double() * 4, torch.randn(50, 3).double() * 4
    assert (curves._divergence(after, before, exclusive) >= 0).all()
    assert curves._divergence(before, before, exclusive).abs().max() < 1e-12
    p, q = after.softmax(1), before.softmax(1)
    if exclusive:
        torch.testing.assert_close(curves._divergence(after, before, True), (p * (p / q).log()).sum(1))
        torch.testing.assert_close(curves._uncertainty(before, True), -(q * q.log()).sum(1))


def test_right_answers_help_a_right_head_and_wrong_ones_harm_it():
    model = taught("concepts")
    with torch.no_grad():
        model.task_head.weight.fill_(1.0)  # the tasks grow with each concept
    typical = {"typical_present": dict.fromkeys(CONCEPTS, 0.9), "typical_absent": dict.fromkeys(CONCEPTS, 0.1)}
    model.record = dataclasses.replace(model.record, **typical)
    right = intervention_curve(model, TEST)
    wrong = intervention_curve(model, TEST, answers="wrong")
    assert right.auroc[-1] > 0.95 and wrong.auroc[-1] < 0.1
    assert right.auroc[0] == wrong.auroc[0] and right.mean_auroc > wrong.mean_auroc


def test_unknown_concepts_are_not_answered():
    model = taught()
    hidden = [batch._replace(concepts=torch.full_like(batch.concepts, torch.nan)) for batch in TEST]
    assert len(set(intervention_curve(model, hidden).auroc.tolist())) == 1


def test_random_order_follows_its_seed():
    model = taught()
    first, again, other = (intervention_curve(model, TEST, policy="random", seed=seed).auroc for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_accuracy_is_that_of_tasks_that_exclude_each_other():
    model = taught("concepts", task_kind="multiclass")
    data = [batch._replace(targets=torch.eye(2)[batch.concepts[:, 0].long()]) for batch in TEST]
    curve = intervention_curve(model, data)
    logits = output_of(model).task_logits
    expected = (logits.argmax(dim=1) == DATA.concept_labels[:, 0]).double().mean()
    assert float(curve.accuracy[0]) == pytest.approx(float(expected))


def test_curves_that_cannot_be_drawn_are_refused():
    model = taught()
    with pytest.raises(ValueError, match="unknown `policy` 'upc'"):
        intervention_curve(model, TEST, policy="upc")
    model.record = dataclasses.replace(model.record, evidence_present={})
    with pytest.raises(ValueError, match="which scores are typical of"):
        intervention_curve(model, TEST)
    untaught = tiny_model()
    untaught.record = untaught.record.after("concepts", ["backbone"])
    with pytest.raises(ValueError, match="never taught the task"):
        intervention_curve(untaught, TEST)
