import pytest
import torch
from sklearn.feature_selection._mutual_info import _compute_mi_cc, _compute_mi_cd
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.naive_bayes import CategoricalNB

from conceptcam.metrics.information import (
    concept_task_leakage,
    entropy,
    exchange_within_labels,
    interconcept_leakage,
    mutual_information,
)
from conceptcam.metrics.leakage import LeakageMetrics, _halves, completeness, niche_impurity, oracle_impurity

nan = torch.nan


def world(rows=300, leak=0.0, seed=0):
    """Three concepts, a task that needs more than them, and scores; the first may carry what the task needs."""
    random = torch.Generator().manual_seed(seed)
    concepts = (torch.rand(rows, 3, generator=random) < torch.tensor([0.5, 0.3, 0.4])).double()
    hidden = (torch.rand(rows, generator=random) < 0.5).double()
    task = ((concepts[:, 0] + hidden) > 1).double()[:, None]
    noise = torch.randn(rows, 3, generator=random).double()
    scores = 3 * concepts + noise
    scores[:, 0] += leak * hidden
    return scores, concepts, task


def test_information_of_continuous_columns_is_that_of_scikit_learn():
    x, y = torch.randn(150).double(), torch.randn(150).double()
    y[:100] += x[:100]
    y[100:120] = y[100]  # ties
    scaled = [one / one.std() for one in (x, y)]
    assert mutual_information(x, y) == pytest.approx(_compute_mi_cc(*(one.numpy() for one in scaled), 3))
    assert mutual_information(x, torch.randn(150).double()) >= 0


def test_information_of_a_score_and_a_label_is_that_of_scikit_learn():
    x, label = torch.randn(150).double(), torch.randint(0, 3, (150,))
    x += label
    label[0] = 7  # a value that occurs once
    assert mutual_information(x, label) == pytest.approx(_compute_mi_cd(x.numpy(), label.numpy(), 3))
    assert mutual_information(label, x) == mutual_information(x, label)


def test_information_of_labels_is_that_of_frequencies():
    first, second = torch.randint(0, 3, (80,)), torch.randint(0, 2, (80,))
    assert mutual_information(first, second) == pytest.approx(mutual_info_score(first, second))
    assert mutual_information(first, first) == pytest.approx(entropy(first))
    assert mutual_information(first[:1], second[:1]) == 0


@pytest.mark.parametrize("typical", [(0.0, 1.0), (0.13, 0.87)])
def test_true_concepts_leak_nothing(typical):
    _, concepts, task = world()
    fed = torch.where(concepts > 0.5, typical[1], typical[0])
    assert concept_task_leakage(fed, concepts, task).eq(0).all()
    assert interconcept_leakage(fed, concepts).nan_to_num().eq(0).all()
    assert oracle_impurity(fed, concepts).eq(0).all()
    assert niche_impurity(fed, concepts).sub(0.5).abs().max() < 0.08


def test_a_score_that_carries_the_task_leaks_more_than_its_control():
    scores, concepts, task = world(leak=2.0)
    control = exchange_within_labels(scores, concepts)
    leaking, exchanged = (concept_task_leakage(one, concepts, task)[:, 0] for one in (scores, control))
    assert leaking[0] > 0.1 + exchanged[0]
    assert (leaking[1:] < 0.1).all()


def test_excess_is_over_the_entropy_of_the_task():
    scores, concepts, task = world(leak=1.0)
    concepts[:40, 1] = nan
    task[30:70] = nan
    found = concept_task_leakage(scores, concepts, task)
    for k in range(3):
        known = ~(concepts[:, k].isnan() | task[:, 0].isnan())
        x, c, y = scores[known, k], concepts[known, k], task[known, 0]
        told = _compute_mi_cd(x.numpy(), y.long().numpy(), 3) - mutual_info_score(c, y)
        assert float(found[k]) == pytest.approx(max(0, told) / mutual_info_score(y, y))


def test_scores_that_share_a_secret_leak_between_concepts():
    scores, concepts, _ = world()
    secret = torch.randn(300).double()
    shared = scores.clone()
    shared[:, :2] += 2 * secret[:, None]
    before, after = interconcept_leakage(scores, concepts), interconcept_leakage(shared, concepts)
    assert after[0, 1] > before[0, 1] + 0.1
    assert after.diagonal().isnan().all() and after[0, 1] == after[1, 0]


def test_exchanged_scores_keep_their_label():
    scores, concepts, _ = world(40)
    concepts[:5, 0] = nan
    exchanged = exchange_within_labels(scores, concepts)
    assert not torch.equal(exchanged, scores)
    for k in range(3):
        for own in (concepts[:, k] == 1, concepts[:, k] == 0, concepts[:, k].isnan()):
            assert exchanged[own, k].sort().values.tolist() == scores[own, k].sort().values.tolist()


def slow_told(column, label):
    """AUROC of a label from a column, by scikit-learn's naive Bayes on bins of the other half."""
    found = []
    halves = _halves(len(column))
    for learn, apply in (halves[::-1], halves):
        edges = torch.quantile(column[learn], torch.linspace(0.1, 0.9, 9).double()).unique()
        bins = torch.bucketize(column.contiguous(), edges)[:, None].numpy()
        bayes = CategoricalNB(min_categories=len(edges) + 1).fit(bins[learn], label[learn])
        logs = bayes.predict_log_proba(bins[apply])
        found.append(roc_auc_score(label[apply], logs[:, 1] - logs[:, 0]))
    return sum(found) / 2


def test_oracle_impurity_equals_classifiers_of_scikit_learn():
    scores, concepts, _ = world(leak=1.0)
    scores[:, 2] += concepts[:, 0]
    scores[:30, 1] = 0.5  # ties
    found = oracle_impurity(scores, concepts)
    for i in range(3):
        gaps = [slow_told(scores[:, i], concepts[:, j]) - slow_told(concepts[:, i], concepts[:, j]) for j in range(3)]
        assert float(found[i]) == pytest.approx(2 * (sum(gap**2 for gap in gaps) / 3) ** 0.5, abs=1e-9)
    pure = oracle_impurity(world()[0], concepts)
    assert found[2] > pure[2] + 0.05


def test_niche_impurity_rises_with_what_others_tell():
    scores, concepts, _ = world(leak=0.0)
    spread = scores.clone()
    spread[:, 1:] += 3 * concepts[:, :1]  # in each of the others
    pure, impure = niche_impurity(scores, concepts), niche_impurity(spread, concepts)
    assert abs(pure[0] - 0.5) < 0.1 and impure[0] > pure[0] + 0.1


def test_niche_impurity_equals_a_loop_over_thresholds():
    scores, concepts, _ = world(120)
    found = niche_impurity(scores, concepts)
    for i in range(3):
        curve = []
        for step in range(21):
            total = 0.0
            for learn, apply in (_halves(120)[::-1], _halves(120)):
                logs = torch.zeros(len(apply)).double()
                for j in range(3):
                    related = abs(float(torch.corrcoef(torch.stack([scores[:, j], concepts[:, i]]))[0, 1]))
                    if j == i or related > step / 20:
                        continue
                    edges = torch.quantile(scores[learn, j], torch.linspace(0.1, 0.9, 9).double())
                    bins = torch.bucketize(scores[:, j].contiguous(), edges)[:, None].numpy()
                    bayes = CategoricalNB(min_categories=10).fit(bins[learn], concepts[learn, i])
                    said = torch.from_numpy(bayes.predict_log_proba(bins[apply]))
                    logs += said[:, 1] - said[:, 0]
                total += roc_auc_score(concepts[apply, i], logs.round(decimals=9)) / 2
            curve.append(total)
        area = sum((a + b) / 2 / 20 for a, b in zip(curve, curve[1:], strict=False))
        assert float(found[i]) == pytest.approx(area, abs=1e-6)


def test_completeness_is_the_share_above_chance():
    assert float(completeness(0.7, 0.9)) == pytest.approx(0.5)
    assert completeness(torch.tensor([0.9, 0.5, 0.8]), torch.tensor([0.9, 0.7, 0.5])).tolist()[:2] == [1, 0]
    assert completeness(0.8, 0.5).isnan()


def test_shards_merge_to_the_same_number():
    scores, concepts, task = world(90)
    concepts[:, 2] = 1  # always present
    scores = torch.stack([scores, scores**2], dim=-1)
    whole, first, second = (LeakageMetrics(3, task.shape[1], per_concept=2) for _ in range(3))
    whole.update(scores, concepts, task)
    for start, stop, rank in ((0, 1, first), (1, 40, first), (40, 40, second), (40, 90, second)):
        rank.update(scores[start:stop], concepts[start:stop], task[start:stop])
    first.merge_state(second)
    merged = first.compute()
    for one, other in zip(merged, whole.compute(), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    assert merged.icl[2].isnan() and merged.support.tolist() == [90, 90, 90]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"need scores \(B, 3, 1\), or \(B, 3\) .* targets \(B, 1\), got \[\(4, 2\)"):
        LeakageMetrics(3, 1).update(torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"need scores \(B, 3, 2\)"):
        LeakageMetrics(3, 1, per_concept=2).update(torch.zeros(4, 2, 3), torch.zeros(4, 3), torch.zeros(4, 1))
