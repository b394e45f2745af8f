import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torchmetrics.functional.classification import binary_calibration_error

from conceptcam.losses.class_weights import compute_pos_weight
from conceptcam.metrics.calibration import (
    CalibrationMetrics,
    CalibrationScores,
    calibration_scores,
    fit_scaling,
    prior_correction,
    reliability_curve,
    scale_logits,
)

nan = torch.nan


def examples(rows=200, labels=4, seed=0, soft=True):
    """Probabilities with ties, labels of which some are unknown, absent or soft."""
    random = torch.Generator().manual_seed(seed)
    probabilities = (torch.rand(rows, labels, generator=random) * 20).round() / 20
    truth = (torch.rand(rows, labels, generator=random) < probabilities).double()
    truth[torch.rand(rows, labels, generator=random) < 0.2] = nan
    truth[:, -1] = nan
    if soft:
        truth[: min(5, rows), 0] = 0.3
    return probabilities, truth


def slow(p, y, bins):
    """ECE, adaptive ECE and Brier score of one label in plain Python."""
    rows = [(a, b) for a, b in zip(p.tolist(), y.tolist(), strict=True) if not math.isnan(b)]
    if not rows:
        return [nan] * 3
    wide, equal = {}, {}
    for a, b in rows:
        wide.setdefault(min(int(a * bins), bins - 1), []).append((a, b))
        below = sum(other < a for other, _ in rows)
        equal.setdefault(below * bins // len(rows), []).append((a, b))

    def error(groups):
        return sum(abs(sum(a for a, _ in g) - sum(b for _, b in g)) for g in groups.values()) / len(rows)

    return [error(wide), error(equal), sum(b * (1 - a) ** 2 + (1 - b) * a * a for a, b in rows) / len(rows)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [1, 2, 17, 200])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_scores_equal_a_slow_loop(rows, bins, seed):
    probabilities, labels = examples(rows, seed=seed)
    scores = calibration_scores(probabilities, labels, bins=bins)
    for label in range(4):
        expected = slow(probabilities[:, label].double(), labels[:, label], bins)
        found = [float(part[label]) for part in scores[:3]]
        assert found == pytest.approx(expected, nan_ok=True)
        known = ~labels[:, label].isnan()
        assert scores.positives[label] + scores.negatives[label] == pytest.approx(float(known.sum()))
        rate = labels[known, label].mean()
        torch.testing.assert_close(scores.base_rate_brier[label], rate * (1 - rate), equal_nan=True)


def test_error_equals_that_of_torchmetrics():
    random = torch.Generator().manual_seed(1)
    p, y = torch.rand(500, 3, generator=random), (torch.rand(500, 3, generator=random) < 0.3).long()
    scores = calibration_scores(p, y)
    for label in range(3):
        expected = binary_calibration_error(p[:, label].contiguous(), y[:, label], n_bins=15, norm="l1")
        assert float(scores.ece[label]) == pytest.approx(float(expected), abs=1e-5)


def test_order_of_rows_does_not_matter():
    probabilities, labels = examples()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    for one, other in zip(
        calibration_scores(probabilities, labels), calibration_scores(probabilities[order], labels[order]), strict=True
    ):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_who_always_says_the_base_rate_is_calibrated():
    _, labels = examples(soft=False)
    rate = labels.nanmean(dim=0).nan_to_num(0.5)
    scores = calibration_scores(rate.expand(200, 4), labels)
    assert scores.ece[:3].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    torch.testing.assert_close(scores.brier, scores.base_rate_brier, equal_nan=True)
    assert scores.ece[3].isnan() and scores.brier[3].isnan()


def test_shards_on_any_rank_merge_to_the_same_scores():
    probabilities, labels = examples()
    first, second = CalibrationMetrics(), CalibrationMetrics()
    for rows, rank in ((slice(0, 7), first), (slice(7, 7), second), (slice(7, 200), second)):
        rank.update(probabilities[rows], labels[rows])
    first.merge_state(second)
    for one, other in zip(first.compute(), calibration_scores(probabilities, labels), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert isinstance(first.compute(), CalibrationScores)


def test_reliability_curve_holds_what_the_error_sums():
    probabilities, labels = examples()
    curve = reliability_curve(probabilities, labels)
    assert curve.rows.sum(dim=1).tolist() == (~labels.isnan()).sum(dim=0).tolist()
    gap = ((curve.probability - curve.fraction).abs() * curve.rows).nansum(dim=1) / curve.rows.sum(dim=1)
    torch.testing.assert_close(gap, calibration_scores(probabilities, labels).ece, equal_nan=True)


def logits_and_labels(rows=400, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 3, generator=random).double() * 2
    true = (logits * torch.tensor([0.5, 2.0, 1.0]) + torch.tensor([-1.0, 0.5, 0.0])).sigmoid()
    return logits, (torch.rand(rows, 3, generator=random) < true).double()


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_scaling_equals_a_logistic_regression_of_scikit_learn(method):
    logits, labels = logits_and_labels()
    scaling = fit_scaling(logits, labels, method=method)
    for label in range(3):
        y = labels[:, label]
        plus, minus = float(y.sum()), float((1 - y).sum())
        target = torch.where(y > 0, (plus + 1) / (plus + 2), 1 / (minus + 2)).numpy()
        x = logits[:, label].repeat(2)[:, None].numpy()
        weights = [*target, *(1 - target)]  # each row twice, as a positive and as a negative
        oracle = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000, fit_intercept=method == "platt")
        oracle.fit(x, [1] * 400 + [0] * 400, sample_weight=weights)
        assert float(scaling.slope[label]) == pytest.approx(float(oracle.coef_[0, 0]), rel=1e-3)
        assert float(scaling.intercept[label]) == pytest.approx(float(oracle.intercept_[0]), abs=1e-3)


def test_scaling_finds_what_was_planted_and_lowers_the_error():
    logits, labels = logits_and_labels(40_000)
    scaling = fit_scaling(logits, labels)
    assert scaling.slope.tolist() == pytest.approx([0.5, 2.0, 1.0], rel=0.05)
    assert scaling.intercept.tolist() == pytest.approx([-1.0, 0.5, 0.0], abs=0.05)
    fresh, truth = logits_and_labels(40_000, seed=1)
    before, after = (
        calibration_scores(fresh.sigmoid(), truth),
        calibration_scores(scale_logits(fresh, scaling).sigmoid(), truth),
    )
    assert (after.ece < 0.015).all() and (before.ece[:2] > 0.05).all()


def test_scaling_of_separated_rows_is_finite_and_keeps_order():
    logits = torch.tensor([[-3.0], [-1.0], [1.0], [torch.inf]])
    scaling = fit_scaling(logits, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert scaling.slope.isfinite().all() and scaling.slope > 0
    backwards = fit_scaling(-logits.clamp(-9, 9), torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert backwards.slope == 1e-3
    assert scale_logits(torch.zeros(1, 1), backwards).sigmoid().item() == pytest.approx(0.5, abs=1e-3)


def test_label_without_both_kinds_of_rows_stays_unscaled():
    scaling = fit_scaling(torch.randn(5, 3), torch.tensor([[1.0, 0.0, nan]]).expand(5, 3))
    assert scaling.slope.isnan().all()
    logits = torch.randn(5, 3)
    assert torch.equal(scale_logits(logits, scaling), logits.double())


def test_classes_share_one_temperature_of_least_cross_entropy():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, 4, generator=random).double()
    drawn = torch.multinomial((logits * 1.7).softmax(dim=1), 1, generator=random)[:, 0]
    targets = torch.nn.functional.one_hot(drawn, 4).double()
    targets[::7] = nan
    scaling = fit_scaling(logits, targets, kind="multiclass")
    known = ~targets[:, 0].isnan()
    tried = torch.linspace(0.5, 3, 2501).double()
    losses = [-(targets[known] * (logits[known] * s).log_softmax(dim=1)).sum() for s in tried]
    assert scaling.slope.tolist() == pytest.approx([float(tried[torch.stack(losses).argmin()])] * 4, abs=2e-3)
    assert scaling.intercept.tolist() == [0] * 4


def test_prior_correction_undoes_the_weight_of_positives():
    labels = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    weight = compute_pos_weight(labels)
    learned = torch.tensor(0.25).logit() + weight.log()  # the best logit under that weight
    assert scale_logits(learned[None], prior_correction(weight)).sigmoid().item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        (torch.tensor([[1.2]]), torch.ones(1, 1), "logits need a sigmoid first"),
        (torch.tensor([[nan]]), torch.ones(1, 1), r"must lie in \[0, 1\]"),
        (torch.ones(1, 1), torch.tensor([[2.0]]), "with NaN for unknown; got 2"),
        (torch.ones(2, 1), torch.ones(1, 1), "must both be"),
    ],
)
def test_impossible_numbers_are_refused(p, y, message):
    with pytest.raises(ValueError, match=message):
        calibration_scores(p, y)
