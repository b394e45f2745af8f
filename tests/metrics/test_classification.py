import contextlib
import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix as sklearn_confusion,
    f1_score,
    roc_auc_score,
)
from torch import Tensor

from conceptcam.data.labels import Uncertain, resolve_uncertain
from conceptcam.losses import compute_pos_weight, multiclass_loss
from conceptcam.metrics.classification import (
    LabelMetrics,
    LabelScores,
    MacroAUROC,
    Top1Accuracy,
    balanced_accuracy,
    confusion_matrix,
    macro_average,
    per_label_metrics,
    task_scores,
    top_accuracy,
    well_supported,
)
from conceptcam.metrics.thresholds import best_thresholds

nan = torch.nan


def examples(rows: int = 200, labels: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits with ties, and labels of which some are unknown, one never and one always present."""
    random = torch.Generator().manual_seed(seed)
    truth = (torch.rand(rows, labels, generator=random) < 0.3).float()
    logits = (torch.randn(rows, labels, generator=random) + truth).mul(4).round() / 4
    truth[torch.rand(rows, labels, generator=random) < 0.2] = nan
    truth[:, 1] = 0.0
    truth[:, 2] = 1.0
    truth[:, 3] = nan
    return logits, truth


def columns(logits: Tensor, labels: Tensor) -> list[tuple[int, list[float], list[int]]]:
    """The known rows of each label that occurs both ways, as plain lists."""
    both = []
    for label in range(labels.shape[1]):
        rows = [row for row in range(len(labels)) if not labels[row, label].isnan()]
        truth = [int(labels[row, label] > 0.5) for row in rows]
        if len(set(truth)) == 2:
            both.append((label, [float(logits[row, label]) for row in rows], truth))
    return both


def naive_auroc(scores: list[float], truth: list[int]) -> float:
    """Share of (present, absent) pairs that are ordered rightly; ties count half."""
    present = [score for score, label in zip(scores, truth, strict=True) if label]
    absent = [score for score, label in zip(scores, truth, strict=True) if not label]
    wins = sum((high > low) + 0.5 * (high == low) for high in present for low in absent)
    return wins / (len(present) * len(absent))


def same(first: LabelScores, second: LabelScores) -> bool:
    return all(torch.allclose(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learn_and_a_naive_count(seed: int):
    logits, labels = examples(seed=seed)
    scores = per_label_metrics(logits, labels)
    compared = columns(logits, labels)
    assert [label for label, _, _ in compared] == [0, 4, 5]
    for label, ranked, truth in compared:
        called = [int(score > 0) for score in ranked]
        assert float(scores.auroc[label]) == pytest.approx(naive_auroc(ranked, truth), abs=1e-12)
        assert float(scores.auroc[label]) == pytest.approx(roc_auc_score(truth, ranked), abs=1e-12)
        expected = average_precision_score(truth, ranked)
        assert float(scores.average_precision[label]) == pytest.approx(expected, abs=1e-12)
        assert float(scores.f1[label]) == pytest.approx(f1_score(truth, called), abs=1e-12)
        assert (int(scores.positives[label]), int(scores.negatives[label])) == (
            sum(truth),
            len(truth) - sum(truth),
        )


def test_scores_are_float64_on_the_cpu():
    assert all(part.dtype == torch.float64 for part in per_label_metrics(*examples()))


def test_a_label_of_one_kind_alone_has_undefined_scores():
    logits, labels = examples()
    scores = per_label_metrics(logits, labels)
    assert scores.auroc[1:4].isnan().all()
    assert scores.average_precision[1:4].isnan().all()
    assert scores.f1[[1, 3]].isnan().all()
    assert 0 < float(scores.f1[2]) < 1  # recall is at stake even without negatives
    assert scores.positives[1:4].tolist() == [0, 200, 0]
    assert scores.negatives[1:4].tolist() == [200, 0, 0]


def test_macro_is_the_mean_of_the_defined_labels_alone():
    assert float(macro_average(torch.tensor([0.5, nan, 1.0]))) == 0.75
    assert macro_average(torch.tensor([nan, nan])).isnan()
    assert macro_average(torch.tensor([])).isnan()


def test_unknown_label_weighs_on_nothing():
    logits, labels = examples()
    known = ~labels[:, 0].isnan()
    kept = per_label_metrics(logits[known, :1], labels[known, :1])
    logits[~known] = 1e6
    assert same(per_label_metrics(logits[:, :1], labels[:, :1]), kept)


def soft_examples(seed: int = 0) -> tuple[Tensor, Tensor]:
    """As `examples`, but that a part of the known labels is soft."""
    logits, labels = examples(seed=seed)
    random = torch.Generator().manual_seed(seed + 10)
    share = torch.rand(labels.shape, generator=random)
    soft = torch.rand(labels.shape, generator=random) < 0.5
    return logits, torch.where(soft & ~labels.isnan(), share, labels)


def doubled(logits: Tensor, labels: Tensor, label: int) -> tuple[list[float], list[int], list[float]]:
    """Each known row of a label twice, as a positive and as a negative: logits, truths and weights."""
    known = [row for row in range(len(labels)) if not labels[row, label].isnan()]
    ranked = [float(logits[row, label]) for row in known]
    shares = [float(labels[row, label]) for row in known]
    return ranked * 2, [1] * len(known) + [0] * len(known), shares + [1 - share for share in shares]


@pytest.mark.parametrize("seed", range(3))
def test_soft_labels_score_as_weighted_rows_of_scikit_learn(seed: int):
    logits, labels = soft_examples(seed)
    scores = per_label_metrics(logits, labels)
    for label in (0, 1, 2, 4, 5):
        ranked, truth, weight = doubled(logits, labels, label)
        auroc = roc_auc_score(truth, ranked, sample_weight=weight)
        precision = average_precision_score(truth, ranked, sample_weight=weight)
        f1 = f1_score(truth, [int(score > 0) for score in ranked], sample_weight=weight)
        assert float(scores.auroc[label]) == pytest.approx(auroc, abs=1e-9)
        assert float(scores.average_precision[label]) == pytest.approx(precision, abs=1e-9)
        assert float(scores.f1[label]) == pytest.approx(f1, abs=1e-9)
        positives = sum(weight[: len(weight) // 2])
        assert float(scores.positives[label]) == pytest.approx(positives)
        assert float(scores.negatives[label]) == pytest.approx(len(weight) // 2 - positives)


@pytest.mark.parametrize("policy", ["ignore", "zeros", "ones", "soft"])
def test_an_uncertain_label_counts_in_scores_as_in_loss_weights(policy: Uncertain):
    logits, stored = examples()
    stored = stored[:, [0, 4, 5]].nan_to_num(-1.0)
    labels = resolve_uncertain(stored, policy)
    scores = per_label_metrics(logits[:, [0, 4, 5]], labels)
    ratio = (scores.negatives / scores.positives).float()
    torch.testing.assert_close(compute_pos_weight(labels), ratio)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_labels_that_are_all_alike_have_no_ranking_to_score(share: float):
    logits, labels = torch.randn(5, 1), torch.full((5, 1), share)
    scores = per_label_metrics(logits, labels)
    assert scores.auroc.isnan() and scores.average_precision.isnan()
    assert best_thresholds(logits, labels).isnan()
    assert float(scores.positives + scores.negatives) == 5
    assert MacroAUROC()(logits, labels).isnan()


def test_the_best_ranking_of_soft_labels_is_below_1():
    labels = torch.tensor([[0.0], [0.0], [0.7], [1.0]])
    best = float(per_label_metrics(labels * 4, labels).auroc)
    orders = [torch.tensor(order).float()[:, None] for order in itertools.permutations(range(4))]
    assert best == max(float(per_label_metrics(logits, labels).auroc) for logits in orders)
    assert best == pytest.approx(1 - 0.5 * 0.3 * 0.7 / (1.7 * 2.3))  # the soft row ties with itself


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30))
@settings(deadline=None, max_examples=50)
def test_rank_scores_do_not_change_under_a_monotone_transformation(rows: list[tuple[int, bool]]):
    logits = torch.tensor([[float(score)] for score, _ in rows])
    labels = torch.tensor([[float(label)] for _, label in rows])
    scores, moved = per_label_metrics(logits, labels), per_label_metrics(logits**3 * 5 - 2, labels)
    assert torch.equal(scores.auroc.nan_to_num(-1), moved.auroc.nan_to_num(-1))
    assert torch.equal(scores.average_precision.nan_to_num(-1), moved.average_precision.nan_to_num(-1))


def test_reversed_logits_reverse_the_auroc():
    logits, labels = examples()
    assert torch.allclose(
        per_label_metrics(-logits, labels).auroc,
        1 - per_label_metrics(logits, labels).auroc,
        equal_nan=True,
        atol=1e-12,
    )


@pytest.mark.parametrize("size", [1.0, 40.0, 1e4])
def test_sure_logits_do_not_tie(size: int):
    logits = torch.tensor([[-2.0], [-1], [1], [2]]) * size
    assert float(per_label_metrics(logits, torch.tensor([[0.0], [1], [0], [1]])).auroc) == pytest.approx(0.75)
    assert float(per_label_metrics(logits, torch.tensor([[0.0], [1], [1], [0]])).auroc) == pytest.approx(0.5)


def test_logits_that_all_lie_between_0_and_1_are_still_logits():
    logits = torch.tensor([[0.1], [0.2], [0.3]])
    assert float(per_label_metrics(logits, torch.tensor([[0.0], [0], [1]])).f1) == pytest.approx(0.5)


def test_infinite_logits_rank_highest():
    logits = torch.tensor([[torch.inf], [1.0], [-torch.inf]])
    assert float(per_label_metrics(logits, torch.tensor([[1.0], [0], [0]])).auroc) == 1


def test_one_label_keeps_its_axis_and_equals_its_column():
    logits, labels = examples()
    one = per_label_metrics(logits[:, :1], labels[:, :1])
    assert same(one, LabelScores(*(part[:1] for part in per_label_metrics(logits, labels))))
    metric = LabelMetrics()
    metric.update(logits[:, :1], labels[:, :1])
    for held in (metric, pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert [part.shape for part in held.compute()] == [(1,)] * 5
        assert [part.shape for part in held.compute()] == [(1,)] * 5  # from its cache, too


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0)])
def test_no_rows_or_no_labels_give_nan_and_no_error(shape: tuple[int, int]):
    scores = per_label_metrics(torch.zeros(shape), torch.zeros(shape))
    assert scores.auroc.shape == shape[1:]
    assert all(part.isnan().all() for part in scores[:3])
    assert macro_average(scores.auroc).isnan()
    assert best_thresholds(torch.zeros(shape), torch.zeros(shape)).isnan().all()


def test_an_undefined_threshold_leaves_f1_of_its_label_undefined():
    logits, labels = examples()
    threshold = torch.tensor([0.3, 0.5, 0.5, 0.5, 0.7, nan])
    f1 = per_label_metrics(logits, labels, threshold=threshold).f1
    for label, ranked, truth in columns(logits, labels)[:2]:
        cut = float(torch.logit(threshold[label].double()))
        called = [int(score > cut) for score in ranked]
        assert float(f1[label]) == pytest.approx(f1_score(truth, called), abs=1e-12)
    assert f1[5].isnan()


def multiclass(rows: int = 150, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    truth = torch.randint(classes, (rows,), generator=random)
    targets = torch.nn.functional.one_hot(truth, classes).float()
    targets[::7] = nan
    return torch.randn(rows, classes, generator=random) * 2 + targets.nan_to_num(), targets, truth


def test_multiclass_scores_equal_scikit_learn_one_against_the_rest():
    logits, targets, truth = multiclass()
    known = ~targets.isnan().any(dim=1)
    scores = task_scores(logits, targets, "multiclass")
    probability = logits[known].double().softmax(dim=1).numpy()
    expected = roc_auc_score(truth[known].numpy(), probability, multi_class="ovr", average=None)
    assert scores.auroc.tolist() == pytest.approx(list(expected), abs=1e-12)
    expected = average_precision_score(targets[known].numpy(), probability, average=None)
    assert scores.average_precision.tolist() == pytest.approx(list(expected), abs=1e-12)
    called = logits[known].argmax(dim=1)
    expected = f1_score(truth[known].numpy(), called.numpy(), average=None)
    assert scores.f1.tolist() == pytest.approx(list(expected), abs=1e-12)
    assert float(top_accuracy(logits, targets)) == pytest.approx(accuracy_score(truth[known], called))


def test_sure_multiclass_rows_do_not_tie():
    logits = torch.tensor([[60.0, 0], [50, 0], [0, 40]])
    targets = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    assert task_scores(logits, targets, "multiclass").auroc.tolist() == [1, 1]


def soft_multiclass() -> tuple[Tensor, Tensor]:
    """Rows of which some are unknown, some certain and some divided among the classes."""
    logits, targets, _ = multiclass()
    shares = torch.rand(targets.shape, generator=torch.Generator().manual_seed(2))
    divided = torch.arange(len(targets))[:, None] % 2 == 0
    return logits, torch.where(divided & ~targets.isnan(), shares / shares.sum(dim=1, keepdim=True), targets)


def test_soft_multiclass_targets_count_by_their_share_of_each_class():
    logits, targets = soft_multiclass()
    scores = task_scores(logits, targets, "multiclass")
    known = ~targets.isnan().any(dim=1)
    probability = logits.double().softmax(dim=1)
    called = torch.nn.functional.one_hot(logits.argmax(dim=1), 4)
    for label in range(4):
        ranked, truth, weight = doubled(probability, targets, label)
        assert float(scores.auroc[label]) == pytest.approx(roc_auc_score(truth, ranked, sample_weight=weight))
        expected = average_precision_score(truth, ranked, sample_weight=weight)
        assert float(scores.average_precision[label]) == pytest.approx(expected)
        expected = f1_score(truth, called[known, label].tolist() * 2, sample_weight=weight)
        assert float(scores.f1[label]) == pytest.approx(expected)


def test_accuracy_of_a_soft_row_is_the_share_of_the_class_called():
    logits, targets = soft_multiclass()
    shares = [
        float(row[int(logit.argmax())]) for logit, row in zip(logits, targets, strict=True) if not row.isnan().any()
    ]
    metric = Top1Accuracy()
    for rows in torch.arange(len(logits)).split(37):
        metric.update(logits[rows], targets[rows])
    assert float(top_accuracy(logits, targets)) == pytest.approx(sum(shares) / len(shares))
    assert float(metric.compute()) == pytest.approx(sum(shares) / len(shares))


@pytest.mark.parametrize(("total", "fits"), [(0.991, True), (1.009, True), (0.989, False), (1.011, False)])
def test_rows_that_can_be_trained_on_can_be_measured(total: float, fits: bool):
    logits, targets = torch.randn(1, 4), torch.full((1, 4), total / 4)
    for use in (multiclass_loss, top_accuracy, lambda *both: task_scores(*both, "multiclass")):
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="sum to 1"):
            use(logits, targets)


def test_multilabel_tasks_are_scored_as_labels():
    assert same(task_scores(*examples(), "multilabel"), per_label_metrics(*examples()))


@pytest.mark.parametrize("make", [LabelMetrics, MacroAUROC])
def test_batches_of_any_size_on_any_rank_score_as_one(make: Callable[[], LabelMetrics | MacroAUROC]):
    logits, labels = examples()
    whole, first, second = make(), make(), make()
    whole.update(logits, labels)
    for start, stop, rank in ((0, 3, first), (3, 90, second), (90, 90, second), (90, 200, first)):
        rank.update(logits[start:stop], labels[start:stop])
    first.merge_state(second)
    expected = per_label_metrics(logits, labels)
    if isinstance(whole, LabelMetrics):
        assert same(whole.compute(), expected)
        assert same(first.compute(), expected)
    else:
        torch.testing.assert_close(whole.compute(), macro_average(expected.auroc))
        torch.testing.assert_close(first.compute(), macro_average(expected.auroc))


def test_multiclass_metrics_equal_their_functions_over_batches():
    logits, targets, _ = multiclass()
    scores, mean, accuracy = LabelMetrics("multiclass"), MacroAUROC("multiclass"), Top1Accuracy()
    for rows in torch.arange(len(logits)).split(37):
        for metric in (scores, mean, accuracy):
            metric.update(logits[rows], targets[rows])
    expected = task_scores(logits, targets, "multiclass")
    assert same(scores.compute(), expected)
    torch.testing.assert_close(mean.compute(), macro_average(expected.auroc))
    torch.testing.assert_close(accuracy.compute(), top_accuracy(logits, targets))


def test_metrics_of_nothing_are_nan():
    mean, accuracy = MacroAUROC(), Top1Accuracy()
    mean.update(torch.zeros(0, 3), torch.zeros(0, 3))
    accuracy.update(torch.zeros(0, 3), torch.zeros(0, 3))
    assert mean.compute().isnan()
    assert accuracy.compute().isnan()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert MacroAUROC().compute().isnan()


def test_metrics_keep_no_graph():
    metric = MacroAUROC()
    metric.update(torch.randn(4, 2, requires_grad=True), torch.ones(4, 2))
    assert not metric.kept().requires_grad


def test_bad_input_is_named():
    logits = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"both be \(N, L\), got \(3, 2\) and \(3, 1\)"):
        per_label_metrics(logits, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="with NaN for unknown; got -1"):
        per_label_metrics(logits, torch.tensor([[0.0, -1]] * 3))
    with pytest.raises(ValueError, match=r"logits of labels \[1\] hold NaN"):
        per_label_metrics(torch.tensor([[0.0, nan]] * 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="one probability or 2 of them"):
        per_label_metrics(logits, logits, threshold=-1.0)
    with pytest.raises(ValueError, match="one probability or 2 of them"):
        per_label_metrics(logits, logits, threshold=torch.full((3,), 0.5))
    with pytest.raises(ValueError, match=r"sum to 1 in each row, or be NaN; got \[0.0, 0.0\]"):
        task_scores(logits, torch.zeros(3, 2), "multiclass")
    with pytest.raises(ValueError, match=r"must both be \(N, L\), got \(3, 2\) and \(2, 2\)"):
        MacroAUROC().update(logits, torch.zeros(2, 2))


def test_labels_of_little_support_are_left_out_of_the_macro():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 2, generator=random)
    labels = torch.zeros(40, 2)
    labels[:20, 0] = 1
    labels[0, 1] = 1
    alone = roc_auc_score(labels[:, 0], logits[:, 0])
    strict, lenient = MacroAUROC(min_support=2), MacroAUROC()
    for metric in (strict, lenient):
        metric.update(logits, labels)
    both = (alone + roc_auc_score(labels[:, 1], logits[:, 1])) / 2
    assert float(strict.compute()) == pytest.approx(alone, abs=1e-12)
    assert float(lenient.compute()) == pytest.approx(both, abs=1e-12)
    rare = MacroAUROC(min_support=2)
    rare.update(logits[:, 1:], labels[:, 1:])
    assert float(rare.compute()) == pytest.approx(roc_auc_score(labels[:, 1], logits[:, 1]), abs=1e-12)


def test_confusion_and_balanced_accuracy_equal_scikit_learns():
    random = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(50, 4, generator=random), torch.randint(0, 3, (50,), generator=random)
    targets = torch.eye(4)[truth]  # the last class never occurs
    targets[7] = nan
    known = torch.arange(50) != 7
    called = logits[known].argmax(dim=1)
    confusion = confusion_matrix(logits, targets)
    assert confusion.tolist() == sklearn_confusion(truth[known], called, labels=range(4)).tolist()
    recall = [(called[truth[known] == one] == one).double().mean().item() for one in range(3)]
    assert float(balanced_accuracy(confusion)) == pytest.approx(sum(recall) / 3)
    three = confusion_matrix(logits[:, :3], targets[:, :3])
    expected = balanced_accuracy_score(truth[known], logits[known, :3].argmax(dim=1))
    assert float(balanced_accuracy(three)) == pytest.approx(expected)


def test_one_answer_to_all_has_the_balanced_accuracy_of_chance():
    targets = torch.eye(3)[torch.tensor([0] * 18 + [1, 2])]
    confusion = confusion_matrix(torch.tensor([[1.0, 0.0, 0.0]]).expand(20, -1), targets)
    assert float(top_accuracy(torch.tensor([[1.0, 0.0, 0.0]]).expand(20, -1), targets)) == pytest.approx(0.9)
    assert float(balanced_accuracy(confusion)) == pytest.approx(1 / 3)


def test_an_average_rests_on_labels_with_enough_of_both():
    labels = torch.zeros(20, 4)
    for label, positives in enumerate((5, 4, 15, 16)):
        labels[:positives, label] = 1
    scores = per_label_metrics(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), labels)
    assert well_supported(scores).tolist() == [True, False, True, False]
    mean = float(macro_average(scores.auroc, well_supported(scores)))
    assert mean == pytest.approx(float(scores.auroc[[0, 2]].mean()))
    assert well_supported(scores, 50).all()  # better all than none


@pytest.mark.parametrize("metric", [LabelMetrics, MacroAUROC])
@pytest.mark.parametrize("kind", [14, "multi-class", None])
def test_a_metric_of_an_unknown_kind_is_refused_as_it_is_made(metric, kind):
    with pytest.raises(ValueError, match=r"unknown `kind` .*known: \['multilabel', 'multiclass'\]"):
        metric(kind)
