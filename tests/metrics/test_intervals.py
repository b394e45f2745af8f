import pytest
import torch
from scipy import stats

from conceptcam.metrics.classification import per_label_metrics
from conceptcam.metrics.intervals import _student, bootstrap_interval, label_intervals, resample_counts

nan = torch.nan


def examples(rows=60, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, 3, generator=random) * 4).round() / 4  # with ties
    labels = (torch.rand(rows, 3, generator=random) < logits.sigmoid()).double()
    labels[torch.rand(rows, 3, generator=random) < 0.2] = nan
    labels[:6, 0] = 0.4
    labels[:, 2] = torch.where(labels[:, 2].isnan(), nan, 1.0)
    return logits, labels


@pytest.mark.parametrize("groups", [None, [row // 3 for row in range(60)]])
def test_intervals_of_labels_equal_those_of_figures_drawn_one_by_one(groups):
    logits, labels = examples()
    fast = label_intervals(logits, labels, groups=groups, draws=40)

    def figures(rows):
        scores = per_label_metrics(logits[rows], labels[rows])
        both = torch.stack([scores.auroc, scores.average_precision])
        return torch.cat([both, both.nanmean(dim=1, keepdim=True)], dim=1)

    support = []
    for label in range(3):
        sides = {0: {}, 1: {}}  # how far each row, or patient, counts on each side
        for row, true in enumerate(labels[:, label].tolist()):
            who = groups[row] if groups else row
            for side, part in ((1, true), (0, 1 - true)):
                sides[side][who] = max(sides[side].get(who, 0), 0 if true != true else part)
        support.append(min(sum(sides[side].values()) for side in sides))
    support = torch.tensor([*support, support[0] + support[1]])  # the third label has no figures
    slow = bootstrap_interval(figures, 60, groups=groups, draws=40, support=support)
    for which, (each, mean) in enumerate(((fast[0], fast[2]), (fast[1], fast[3]))):
        for limit in range(3):
            expected = slow[limit][which]
            torch.testing.assert_close(torch.cat([each[limit], mean[limit][None]]), expected, equal_nan=True)
    assert fast.auroc.low[2].isnan() and fast.auroc.value[2].isnan()  # a label that is always present


def test_a_label_that_nobody_knows_has_no_interval():
    logits, labels = examples()
    without = label_intervals(logits, labels, draws=40)
    unknown = torch.full_like(labels[:, :1], nan)
    found = label_intervals(torch.cat([logits, logits[:, :1]], dim=1), torch.cat([labels, unknown], dim=1), draws=40)
    for one, other in zip(found[:2], without[:2], strict=True):
        for limit, expected in zip(one, other, strict=True):
            assert limit[3].isnan()
            torch.testing.assert_close(limit[:3], expected, equal_nan=True)
    torch.testing.assert_close(torch.stack(found.macro_auroc), torch.stack(without.macro_auroc))


def test_patients_are_drawn_whole():
    groups = ["a", "b", "a", "c", "b", "a"]
    counts = resample_counts(6, groups=groups, draws=50)
    assert torch.equal(counts[:, 0], counts[:, 2]) and torch.equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(dim=1) == 3).all()
    assert (resample_counts(6, draws=50).sum(dim=1) == 6).all()


def test_same_seed_draws_the_same_rows():
    assert torch.equal(resample_counts(9, draws=5, seed=3), resample_counts(9, draws=5, seed=3))
    assert not torch.equal(resample_counts(9, draws=5, seed=3), resample_counts(9, draws=5, seed=4))


def test_a_model_differs_from_itself_by_nothing():
    logits, labels = examples()
    same = label_intervals(logits, labels, minus=logits, draws=30)
    assert same.macro_auroc == (0, 0, 0)
    assert same.auroc.low[:2].tolist() == same.auroc.high[:2].tolist() == [0, 0]


def test_paired_differences_are_narrower_than_intervals_side_by_side():
    logits, labels = examples(300)
    nearly = logits + 0.1 * torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    alone = label_intervals(logits, labels, draws=300).macro_auroc
    paired = label_intervals(nearly, labels, minus=logits, draws=300).macro_auroc
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)
    swapped = label_intervals(logits, labels, minus=nearly, draws=300).macro_auroc
    torch.testing.assert_close(swapped.low, -paired.high)


def coverage(simulate, truth, sets=300):
    """Fraction of simulated data sets whose interval holds the truth."""
    inside = 0
    for seed in range(sets):
        interval = simulate(seed)
        inside += bool(interval.low <= truth <= interval.high)
    return inside / sets


def test_intervals_hold_the_auroc_in_95_of_100_data_sets():
    truth = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1 / 2**0.5)).item()  # of normals one apart

    def simulate(seed):
        random = torch.Generator().manual_seed(seed)
        labels = (torch.rand(200, 1, generator=random) < 0.3).double()
        return label_intervals(torch.randn(200, 1, generator=random) + labels, labels, draws=400).macro_auroc

    assert 0.91 <= coverage(simulate, truth) <= 0.98


def simulated(seed, rows, positives, distance):
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, 1, generator=random) < positives).double()
    return torch.randn(rows, 1, generator=random) + distance * labels, labels


def test_a_skewed_auroc_of_few_positives_is_held_too():
    truth = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(2 / 2**0.5)).item()
    held = 0
    for seed in range(300):
        logits, labels = simulated(seed, 200, 0.1, 2.0)  # 20 positives, AUROC .921
        interval = label_intervals(logits, labels, draws=300).macro_auroc
        held += bool(interval.low <= truth <= interval.high)
    assert 0.92 <= held / 300 <= 0.98


def test_student_is_that_of_scipy():
    freedom = torch.tensor([3.0, 4, 7.5, 20, 200], dtype=torch.float64)
    found = _student(torch.tensor(0.975, dtype=torch.float64), freedom)
    assert found.tolist() == pytest.approx(stats.t.ppf(0.975, freedom).tolist(), rel=0.01)


def test_bca_interval_is_that_of_scipy():
    values = torch.distributions.Exponential(1.0).sample((80,)).double()
    ours = bootstrap_interval(lambda rows: values[rows].mean(), 80, draws=9000, support=1e9)
    theirs = stats.bootstrap((values.numpy(),), lambda x, axis: x.mean(axis=axis), n_resamples=9000, rng=0)
    assert float(ours.low) == pytest.approx(theirs.confidence_interval.low, abs=0.03)  # the middle 95 % ends at 1.274
    assert float(ours.high) == pytest.approx(theirs.confidence_interval.high, abs=0.03)  # the middle 95 % ends at 1.274


def test_with_alike_images_of_a_patient_only_drawing_patients_covers():
    def simulate(seed, by_patient):
        random = torch.Generator().manual_seed(seed)
        values = (torch.randn(100, 1, generator=random) + 0.3 * torch.randn(100, 4, generator=random)).flatten()
        groups = [row // 4 for row in range(400)] if by_patient else None
        counts = resample_counts(400, groups=groups, draws=300)
        means = (counts @ values.double()) / counts.sum(dim=1)
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        return type("Limits", (), {"low": low, "high": high})

    assert 0.91 <= coverage(lambda seed: simulate(seed, True), 0.0) <= 0.99
    assert coverage(lambda seed: simulate(seed, False), 0.0) < 0.8


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="need one group per row, got 2 for 3 rows"):
        resample_counts(3, groups=["a", "b"])
    with pytest.raises(ValueError, match="at least one row"):
        resample_counts(0)
    with pytest.raises(ValueError, match="`level` must be between"):
        bootstrap_interval(lambda rows: rows.double().mean(), 3, level=95, draws=2)
