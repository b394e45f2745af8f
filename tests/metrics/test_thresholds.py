import pytest
import torch
from sklearn.metrics import f1_score

from conceptcam.metrics.classification import per_label_metrics
from conceptcam.metrics.thresholds import best_thresholds, thresholds_at, typical_probabilities
from tests.metrics.test_classification import columns, doubled, examples, soft_examples


@pytest.mark.parametrize("seed", range(3))
def test_the_best_threshold_reaches_the_highest_f1_score(seed: int):
    logits, labels = examples(seed=seed)
    best = best_thresholds(logits, labels)
    assert best.isnan().tolist() == [False, True, True, True, False, False]
    reached = per_label_metrics(logits, labels, threshold=best).f1
    for label, ranked, truth in columns(logits, labels):
        cuts = [-torch.inf, *ranked]
        highest = max(f1_score(truth, [int(score > cut) for score in ranked]) for cut in cuts)
        assert float(reached[label]) == pytest.approx(highest, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_threshold_of_soft_labels_has_the_best_f1_score(seed: int):
    logits, labels = soft_examples(seed)
    reached = per_label_metrics(logits, labels, threshold=best_thresholds(logits, labels)).f1
    for label in (0, 1, 2, 4, 5):
        ranked, truth, weight = doubled(logits, labels, label)
        highest = max(
            f1_score(truth, [int(score > cut) for score in ranked], sample_weight=weight)
            for cut in [-torch.inf, *set(ranked)]
            if cut < max(ranked)
        )
        assert float(reached[label]) == pytest.approx(highest, abs=1e-9)


def naive_median(values: list[float], weights: list[float]) -> float:
    """The lowest value that, with those below, has half of the weight."""
    for value in sorted(values):
        if sum(w for v, w in zip(values, weights, strict=True) if v <= value) >= sum(weights) / 2:
            return value
    raise AssertionError


def test_typical_probabilities_are_medians_of_present_and_absent():
    logits, labels = examples()
    present, absent = typical_probabilities(logits, labels)
    for label, ranked, truth in columns(logits, labels):
        for typical, side in ((present, 1), (absent, 0)):
            own = [score for score, one in zip(ranked, truth, strict=True) if one == side]
            expected = torch.tensor(own, dtype=torch.float64).sigmoid().median()
            assert float(typical[label]) == float(expected)
    assert present.isnan().tolist() == [False, True, False, True, False, False]
    assert absent.isnan().tolist() == [False, False, True, True, False, False]
    assert all(part.isnan().all() and part.shape == (2,) for part in typical_probabilities(*torch.zeros(2, 0, 2)))


def test_soft_labels_have_a_say_in_both_typical_probabilities():
    logits, labels = soft_examples()
    present, absent = typical_probabilities(logits, labels)
    for label in (0, 1, 2, 4, 5):
        ranked, _, weight = doubled(logits, labels, label)
        half = len(ranked) // 2
        for typical, weights in ((present, weight[:half]), (absent, weight[half:])):
            expected = torch.tensor(naive_median(ranked[:half], weights), dtype=torch.float64).sigmoid()
            assert float(typical[label]) == pytest.approx(float(expected), abs=1e-12)


def test_best_threshold_lies_between_the_sides_it_separates():
    logits = torch.tensor([[-3.0], [-1], [1], [2]])
    best = float(best_thresholds(logits, torch.tensor([[0.0], [0], [1], [1]])))
    assert best == pytest.approx(float(logits[1:3].double().sigmoid().mean()))


@pytest.mark.parametrize("step", range(4))
def test_best_threshold_separates_neighbouring_floats(step: int):
    # Near 0.5, a logit of 4 * 2**-53 moves the probability by one float; the middle rounds up or down.
    logits = torch.tensor([[step], [step + 1]], dtype=torch.float64) * 4 * 2**-53
    low, high = logits.sigmoid()[:, 0]
    assert torch.nextafter(low, torch.ones_like(low)) == high
    labels = torch.tensor([[0.0], [1]])
    assert float(per_label_metrics(logits, labels, threshold=best_thresholds(logits, labels)).f1) == 1


@pytest.mark.parametrize("name", ["sensitivity", "specificity"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.9, 1.0])
def test_thresholds_reach_their_target_and_no_further(target, name):
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(60, 3, generator=random) * 3).round() / 2  # with ties
    labels = (torch.rand(60, 3, generator=random) < logits.sigmoid()).float()
    labels[::6] = torch.nan
    labels[1:9, 0] = 0.4
    cuts = thresholds_at(logits, labels, **{name: target})
    for label in range(3):
        known = ~labels[:, label].isnan()
        p, y = logits[known, label].double().sigmoid(), labels[known, label].double()

        def reached(cut, p=p, y=y):
            called = p > cut
            right, of = (y * called, y) if name == "sensitivity" else ((1 - y) * ~called, 1 - y)
            return float(right.sum() / of.sum())

        assert reached(float(cuts[label])) >= target - 1e-9
        enough = [int((p > cut).sum()) for cut in [-1.0, *p.tolist(), 1.0] if reached(cut) >= target - 1e-9]
        best = min(enough) if name == "sensitivity" else max(enough)
        assert int((p > cuts[label]).sum()) == best


def test_a_threshold_needs_one_target():
    for wrong in ({}, {"sensitivity": 0.9, "specificity": 0.9}, {"sensitivity": 0.0}, {"specificity": 1.1}):
        with pytest.raises(ValueError, match="need a `sensitivity` or a `specificity`"):
            thresholds_at(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]), **wrong)
    assert thresholds_at(torch.zeros(2, 1), torch.ones(2, 1), sensitivity=0.5).isnan().all()
