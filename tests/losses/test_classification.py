import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight as sklearn_class_weight
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from conceptcam.losses.class_weights import compute_class_weight, compute_pos_weight
from conceptcam.losses.classification import (
    AsymmetricLoss,
    FocalLoss,
    asymmetric_loss,
    class_balanced_loss,
    focal_loss,
    multiclass_loss,
    multilabel_loss,
)
from conceptcam.losses.masking import masked_mean

nan = torch.nan
LOSSES = {
    "multilabel": multilabel_loss,
    "multilabel weighted": lambda logits, labels: multilabel_loss(logits, labels, torch.tensor([1.0, 5.0, 0.5])),
    "focal": focal_loss,
    "focal weighted": lambda logits, labels: focal_loss(logits, labels, gamma=0.5, alpha=0.8),
    "asymmetric": asymmetric_loss,
    "asymmetric steep": lambda logits, labels: asymmetric_loss(logits, labels, gamma_pos=0.5, gamma_neg=0.5, shift=0.1),
    "asymmetric plain": lambda logits, labels: asymmetric_loss(logits, labels, gamma_pos=1, gamma_neg=0, shift=0.0),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def example(seed: int = 0, *, rows: int = 8, soft: bool = True) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, 3, generator=random, dtype=torch.float64)
    labels = torch.randint(0, 5 if soft else 2, (rows, 3), generator=random).double()
    return logits, labels / 4 if soft else labels


def with_unknown(labels: Tensor, seed: int = 1) -> Tensor:
    unknown = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    assert unknown.any() and not unknown.all()
    return labels.masked_fill(unknown, nan)


def test_the_documented_examples_cost_what_they_should():
    logits, labels = torch.tensor([[-0.5, 1.8, -1.2, 0.3, 1.5]]).double(), torch.tensor([[0.0, 1, 0, 0, 1]])
    each = [multilabel_loss(logits[:, i : i + 1], labels[:, i : i + 1]).item() for i in range(5)]
    assert each == [pytest.approx(value, abs=5e-5) for value in (0.4741, 0.1530, 0.2633, 0.8544, 0.2014)]
    assert multilabel_loss(logits, labels).item() == pytest.approx(0.38922, abs=5e-6)


def test_multilabel_is_the_log_loss_of_scikit_learn():
    logits, labels = example(soft=False)
    expected = log_loss(labels.flatten().numpy(), logits.sigmoid().flatten().numpy(), labels=[0, 1])
    assert multilabel_loss(logits, labels).item() == pytest.approx(expected)


def test_multilabel_weighs_positives_as_torch_does():
    logits, labels = example()
    weight = torch.tensor([1.0, 4.0, 0.2], dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    torch.testing.assert_close(multilabel_loss(logits, labels, weight), expected)


def test_a_positive_weight_shifts_the_best_logit_by_its_logarithm():
    prevalence, weight = 0.1, torch.tensor([9.0], dtype=torch.float64)
    best = torch.tensor([[math.log(prevalence / (1 - prevalence)) + math.log(9.0)]], dtype=torch.float64)
    best.requires_grad_()
    multilabel_loss(best, torch.full_like(best, prevalence), weight).backward()
    assert best.grad is not None and best.grad.abs().item() < 1e-9


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.8])
def test_focal_is_its_published_equation_for_hard_labels(gamma, alpha):
    logits, labels = example(soft=False)
    total = 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        p_t = p if label else 1 - p
        alpha_t = 1.0 if alpha is None else alpha if label else 1 - alpha
        total += -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    loss = focal_loss(logits, labels, gamma=gamma, alpha=alpha)
    assert loss.item() == pytest.approx(total / logits.numel())


@pytest.mark.parametrize("gamma, alpha", [(2.0, None), (2.0, 0.25), (0.5, 0.8)])
def test_focal_is_that_of_torchvision_for_hard_labels(gamma, alpha):
    logits, labels = example(soft=False)
    expected = sigmoid_focal_loss(logits, labels, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, labels, gamma=gamma, alpha=alpha), expected)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, labels: focal_loss(logits, labels, gamma=0.0),
        lambda logits, labels: asymmetric_loss(logits, labels, gamma_pos=0.0, gamma_neg=0.0, shift=0.0),
    ],
    ids=["focal", "asymmetric"],
)
def test_without_focusing_both_losses_are_plain_cross_entropy(loss, soft):
    logits, labels = example(soft=soft)
    logits = torch.cat([logits, torch.tensor([[40.0, -40.0, 90.0], [-90.0, 40.0, 0.0]]).double()]).requires_grad_()
    labels = torch.cat([labels, torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).double()])
    plain, focused = multilabel_loss(logits, labels), loss(logits, labels)
    torch.testing.assert_close(focused, plain)
    (expected,), (gradient,) = torch.autograd.grad(plain, logits), torch.autograd.grad(focused, logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("gamma_pos, gamma_neg, shift", [(0.0, 4.0, 0.05), (1.0, 2.0, 0.2), (0.5, 0.0, 0.1)])
def test_asymmetric_is_its_published_equation_for_hard_labels(gamma_pos, gamma_neg, shift):
    logits, labels = example(soft=False)
    total = 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        shifted = max(p - shift, 0)
        total -= (1 - p) ** gamma_pos * math.log(p) if label else shifted**gamma_neg * math.log(1 - shifted)
    loss = asymmetric_loss(logits, labels, gamma_pos=gamma_pos, gamma_neg=gamma_neg, shift=shift)
    assert loss.item() == pytest.approx(total / logits.numel())


def test_asymmetric_forgets_negatives_below_its_shift():
    logits = torch.tensor([[-3.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 1), shift=0.05, gamma_neg=0.0)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.item() == 0


def test_focal_weighs_positives_and_negatives_alike_by_default():
    logits = torch.tensor([[1.3]])
    assert focal_loss(logits, torch.ones(1, 1)).item() == pytest.approx(focal_loss(-logits, torch.zeros(1, 1)).item())
    assert FocalLoss().alpha is None


def test_multiclass_is_cross_entropy_of_torch_for_any_rows():
    logits, _ = example()
    classes = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
    torch.testing.assert_close(
        multiclass_loss(logits, F.one_hot(classes, 3).double()), F.cross_entropy(logits, classes)
    )
    soft = torch.rand(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(multiclass_loss(logits, soft), F.cross_entropy(logits, soft))


def test_multiclass_weighs_classes_as_torch_does_for_soft_targets():
    logits, _ = example()
    weight = torch.tensor([1.0, 4.0, 0.2], dtype=torch.float64)
    soft = torch.rand(8, 3, dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(multiclass_loss(logits, soft, weight), F.cross_entropy(logits, soft, weight=weight))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focused_multiclass_is_its_equation_for_one_hot_rows(gamma):
    logits, _ = example()
    classes = torch.arange(8) % 3
    total = 0.0
    for row, true in zip(logits.tolist(), classes.tolist(), strict=True):
        p = math.exp(row[true]) / sum(math.exp(logit) for logit in row)
        total -= (1 - p) ** gamma * math.log(p)
    loss = multiclass_loss(logits, F.one_hot(classes, 3).double(), gamma=gamma)
    assert loss.item() == pytest.approx(total / 8)


def test_focused_multiclass_of_two_classes_is_the_focal_loss():
    logits, labels = example()
    logit, label = logits[:, :1], labels[:, :1]
    two = multiclass_loss(torch.cat([torch.zeros_like(logit), logit], 1), torch.cat([1 - label, label], 1), gamma=2.0)
    torch.testing.assert_close(two, focal_loss(logit, label, gamma=2.0))


@pytest.mark.parametrize("options", [{}, {"weight": torch.tensor([1.0, 4.0, 0.2])}, {"gamma": 2.0}, {"gamma": 0.5}])
def test_the_gradient_of_multiclass_is_that_of_differences(options):
    logits, _ = example()
    targets = torch.rand(8, 3, dtype=torch.float64).softmax(-1)
    targets[3] = nan
    assert torch.autograd.gradcheck(lambda values: multiclass_loss(values, targets, **options), logits.requires_grad_())
    far = torch.tensor([[100.0, -100.0, 0.0]], requires_grad=True)
    multiclass_loss(far, torch.tensor([[1.0, 0.0, 0.0]]), **options).backward()
    assert far.grad is not None and far.grad.isfinite().all()


def test_multiclass_leaves_out_rows_with_an_unknown():
    logits, _ = example()
    targets = F.one_hot(torch.arange(8) % 3, 3).double()
    unknown = targets.clone()
    unknown[2] = nan
    unknown[5, 1] = nan
    kept = torch.tensor([0, 1, 3, 4, 6, 7])
    torch.testing.assert_close(multiclass_loss(logits, unknown), multiclass_loss(logits[kept], targets[kept]))


@each_loss
def test_unknown_labels_change_no_value_or_gradient(loss):
    """Dropping a label and not knowing it are the same, whatever the model says there."""
    logits, labels = example()
    labels = with_unknown(labels)
    kept = ~labels.isnan()
    sums, weights = torch.zeros((), dtype=torch.float64), 0
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    for row in range(len(labels)):
        for column in range(3):
            if kept[row, column]:
                alone = torch.full_like(labels[:1], nan)
                alone[0, column] = labels[row, column]
                sums, weights = sums + loss(second[row : row + 1], alone), weights + 1
    value, expected = loss(first, labels), sums / weights
    torch.testing.assert_close(value, expected)
    (gradient,), (wanted,) = torch.autograd.grad(value, first), torch.autograd.grad(expected, second)
    torch.testing.assert_close(gradient, wanted)
    assert (gradient[~kept] == 0).all() and (gradient[kept] != 0).any()
    wild = logits.masked_fill(~kept, 1e4)
    assert torch.equal(loss(wild, labels), loss(logits, labels))


@each_loss
def test_a_batch_of_unknown_labels_gives_0_with_a_gradient_path(loss):
    logits = example()[0].requires_grad_()
    value = loss(logits, torch.full_like(logits, nan))
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_multiclass_of_unknown_rows_gives_0_with_a_gradient_path():
    logits = example()[0].requires_grad_()
    value = multiclass_loss(logits, torch.full_like(logits, nan))
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


@each_loss
def test_gradients_at_logits_of_100_are_finite_and_repeat(loss):
    logits = torch.tensor([[100.0, -100.0, 100.0], [-100.0, 17.0, -17.0], [0.0, 50.0, -50.0]], requires_grad=True)
    for labels in (torch.ones(3, 3), torch.zeros(3, 3), torch.full((3, 3), 0.5)):
        values = [loss(logits, labels) for _ in range(2)]
        gradients = [torch.autograd.grad(value, logits)[0] for value in values]
        assert values[0].isfinite() and gradients[0].isfinite().all()
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)


@each_loss
def test_the_gradient_is_that_of_finite_differences(loss):
    logits, labels = example()
    assert torch.autograd.gradcheck(lambda values: loss(values, with_unknown(labels)), logits.requires_grad_())


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_nothing_but_their_own_rounding(loss, dtype):
    logits, labels = example(rows=600, soft=False)
    logits = (10 * logits).to(dtype)
    assert loss(logits, labels.float()).item() == pytest.approx(loss(logits.double(), labels).item(), rel=1e-4)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_labels_may_be_of_any_type(loss, dtype):
    logits, labels = example(soft=False)
    torch.testing.assert_close(loss(logits, labels.to(dtype)), loss(logits, labels))


@each_loss
@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(8), r"labels have shape \(8,\), but predictions \(8, 3\)"),
        (torch.zeros(3, 8), r"labels have shape \(3, 8\), but predictions \(8, 3\)"),
        (torch.full((8, 3), -1.0), r"labels must be in \[0, 1\], or NaN where unknown; got -1"),
        (torch.full((8, 3), 2), r"labels must be in \[0, 1\], or NaN where unknown; got 2"),
    ],
)
def test_labels_of_another_shape_or_range_are_refused(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(example()[0], labels)


@pytest.mark.parametrize("row, total", [([0.0, 0.0, 0.0], "0"), ([1.0, 1.0, 0.0], "2")])
def test_multiclass_targets_that_do_not_sum_to_1_are_refused(row, total):
    with pytest.raises(ValueError, match=f"rows that sum to 1, or hold NaN; one sums to {total}"):
        multiclass_loss(torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 0.0], row]))


def test_positive_weight_is_negatives_per_positive():
    labels = torch.zeros(100, 3)
    labels[:20, 0] = labels[:50, 1] = labels[:80, 2] = 1
    assert compute_pos_weight(labels).tolist() == pytest.approx([4.0, 1.0, 0.25])


def test_positive_weight_is_large_for_rare_labels_not_small():
    """The inverted weight is a bug planted on purpose elsewhere; here it would show."""
    rare, common = torch.zeros(100, 1), torch.ones(100, 1)
    rare[:5] = 1
    common[:5] = 0
    assert compute_pos_weight(rare).item() > 1 > compute_pos_weight(common).item()


def test_positive_weight_counts_soft_labels_in_part():
    labels = torch.tensor([[1.0, nan], [0.5, nan], [nan, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert compute_pos_weight(labels).tolist() == pytest.approx([2.5 / 1.5, 2.0])


def test_positive_weight_is_always_finite_and_1_if_unknown():
    labels = torch.zeros(1000, 3)
    labels[0, 0] = 1
    labels[:, 2] = nan
    assert compute_pos_weight(labels).tolist() == [20.0, 20.0, 1.0]
    assert compute_pos_weight(labels, max_weight=5.0).tolist() == [5.0, 5.0, 1.0]


def test_positive_weight_takes_integer_labels():
    labels = torch.tensor([[1, 0], [0, 0], [0, 1]])
    assert compute_pos_weight(labels).tolist() == [2.0, 2.0]


def test_positive_weight_balances_the_two_sides_of_the_loss():
    labels = torch.zeros(100, 1)
    labels[:20] = 1
    weight = compute_pos_weight(labels)
    logits = torch.zeros(100, 1, requires_grad=True)
    multilabel_loss(logits, labels, weight).backward()
    assert logits.grad is not None
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-7)


STRATEGIES = ("none", "ratio", "sqrt", "effective")
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
known_or_not = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0]), st.just(nan))
columns = st.lists(known_or_not, min_size=1, max_size=30)


def slow_size(count: float, strategy: str, beta: float) -> float:
    """What a number of samples amounts to, the effective number as the sum it stands for."""
    if strategy == "effective":
        return (1 - beta**count) / (1 - beta)
    return {"none": 1.0, "ratio": count, "sqrt": math.sqrt(count)}[strategy]


@each_strategy
def test_positive_weight_of_each_strategy_equals_a_slow_loop(strategy):
    labels = with_unknown((torch.rand(300, 4, dtype=torch.float64) < torch.tensor([0.02, 0.2, 0.5, 0.9])).double())
    labels[::7] *= 0.75
    expected = []
    for column in labels.T.tolist():
        positives = negatives = 0.0
        for label in column:
            if not math.isnan(label):
                positives, negatives = positives + label, negatives + 1 - label
        weight = slow_size(negatives, strategy, 0.99) / slow_size(positives, strategy, 0.99)
        expected.append(min(max(weight, 1 / 6), 6.0))
    assert compute_pos_weight(labels, strategy=strategy, max_weight=6.0, beta=0.99).tolist() == pytest.approx(expected)


@each_strategy
def test_positive_weight_of_balanced_or_unknown_labels_is_1(strategy):
    labels = torch.zeros(40, 2)
    labels[:20, 0] = 1
    labels[:, 1] = nan
    assert compute_pos_weight(labels, strategy=strategy).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("strategy", ["ratio", "sqrt", "effective"])
def test_a_label_of_one_kind_alone_gets_the_limit_or_its_inverse(strategy):
    labels = torch.tensor([[0.0, 1.0]]).repeat(5000, 1)
    assert compute_pos_weight(labels, strategy=strategy, max_weight=4.0, beta=0.9999).tolist() == [4.0, 0.25]


def test_policies_differ_in_how_far_they_go():
    labels = torch.zeros(10_000, 1)
    labels[:200] = 1
    ratio, effective, sqrt = (
        compute_pos_weight(labels, strategy=strategy, max_weight=100.0).item()
        for strategy in ("ratio", "effective", "sqrt")
    )
    assert (ratio, sqrt) == (pytest.approx(49), pytest.approx(7))
    assert effective == pytest.approx((1 - 0.999**9800) / (1 - 0.999**200), rel=1e-6)
    assert ratio > sqrt > effective > 1


def test_effective_number_goes_from_1_to_the_ratio_with_beta():
    labels = torch.zeros(100, 1)
    labels[:10] = 1
    weights = [
        compute_pos_weight(labels, strategy="effective", beta=beta).item() for beta in (1e-9, 0.9, 0.99, 1 - 1e-12)
    ]
    assert weights[0] == pytest.approx(1) and weights[-1] == pytest.approx(9, rel=1e-3)
    assert weights == sorted(weights)


def test_effective_number_keeps_its_digits_near_beta_1():
    labels = torch.zeros(101, 1)
    labels[0] = 1
    weight = compute_pos_weight(labels, strategy="effective", max_weight=1000.0, beta=1 - 1e-9).item()
    assert weight == pytest.approx(100, rel=1e-6)


@given(columns, st.sampled_from(STRATEGIES), st.integers(0, 5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_unknown_labels_and_the_order_of_images_change_no_weight(column, strategy, unknown, random):
    labels = torch.tensor(column, dtype=torch.float64)[:, None]
    shuffled = [*column, *[nan] * unknown]
    random.shuffle(shuffled)
    more = torch.tensor(shuffled, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        compute_pos_weight(more, strategy=strategy), compute_pos_weight(labels, strategy=strategy)
    )


@given(columns, st.sampled_from(STRATEGIES))
@settings(max_examples=60, deadline=None)
def test_exchanging_present_and_absent_inverts_the_weight(column, strategy):
    labels = torch.tensor(column, dtype=torch.float64)[:, None]
    # Where one side is missing, the cap answers; where both are, the weight is 1.
    inverse = 1 / compute_pos_weight(labels, strategy=strategy)
    torch.testing.assert_close(compute_pos_weight(1 - labels, strategy=strategy), inverse)


@given(columns, st.sampled_from(["none", "ratio", "sqrt"]), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_weights_depend_on_frequencies_not_on_counts(column, strategy, times):
    """All but those of the effective number, to which a hundredth image is worth less than the tenth."""
    labels = torch.tensor(column, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        compute_pos_weight(labels.repeat(times, 1), strategy=strategy), compute_pos_weight(labels, strategy=strategy)
    )


@pytest.mark.parametrize("weights", [compute_pos_weight, compute_class_weight])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": "inverse"}, r"unknown `strategy` 'inverse'; known: \['none', 'ratio', 'sqrt', 'effective'\]"),
        ({"max_weight": 0.5}, "`max_weight` must be a number from 1 on, got 0.5"),
        ({"max_weight": math.inf}, "a label without positives would weigh infinitely much"),
        ({"beta": 1.0}, "`beta` must lie between 0 and 1, got 1.0; for the limits choose 'none' or 'ratio'"),
    ],
)
def test_impossible_ways_to_weigh_are_refused(weights, options, message):
    with pytest.raises(ValueError, match=message):
        weights(torch.eye(3), **options)


@pytest.mark.parametrize("weights", [compute_pos_weight, compute_class_weight])
def test_weights_of_labels_with_codes_are_refused(weights):
    labels = torch.eye(3)
    labels[1] = -1
    with pytest.raises(ValueError, match="got -1. If that is a code for uncertain, .*resolve_uncertain"):
        weights(labels)


def rows_of(*counts: int) -> Tensor:
    """One-hot rows with so many of each class."""
    return F.one_hot(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), len(counts)).double()


def test_class_weight_is_the_balanced_one_of_scikit_learn():
    targets = rows_of(50, 5, 20)
    expected = sklearn_class_weight("balanced", classes=np.arange(3), y=targets.argmax(1).numpy())
    assert compute_class_weight(targets).tolist() == pytest.approx(expected.tolist())


@each_strategy
def test_class_weights_equal_a_slow_loop_and_average_1(strategy):
    targets = rows_of(400, 3, 30)
    targets[5] = torch.tensor([0.25, 0.5, 0.25])
    targets[7] = targets[420, 1] = nan
    counts = [0.0, 0.0, 0.0]
    for row in targets.tolist():
        if not any(math.isnan(share) for share in row):
            counts = [count + share for count, share in zip(counts, row, strict=True)]
    sizes = [slow_size(count, strategy, 0.99) for count in counts]
    raw = [min(max(sizes) / size, 12.0) for size in sizes]
    mean = sum(count * weight for count, weight in zip(counts, raw, strict=True)) / sum(counts)
    weight = compute_class_weight(targets, strategy=strategy, max_weight=12.0, beta=0.99)
    assert weight.tolist() == pytest.approx([value / mean for value in raw])
    known = targets[~targets.isnan().any(dim=1)]
    assert (known @ weight).mean().item() == pytest.approx(1)


@each_strategy
def test_classes_without_rows_get_the_limit(strategy):
    weight = compute_class_weight(rows_of(30, 0), strategy=strategy, max_weight=7.0)
    assert weight[1].item() == pytest.approx(1.0 if strategy == "none" else 7.0)
    assert compute_class_weight(torch.full((4, 3), nan), strategy=strategy).tolist() == [1.0, 1.0, 1.0]


@each_strategy
def test_two_classes_weigh_as_positives_against_negatives(strategy):
    targets = rows_of(90, 6)
    absent, present = compute_class_weight(targets, strategy=strategy).tolist()
    assert present / absent == pytest.approx(compute_pos_weight(targets[:, 1:], strategy=strategy).item())


def test_class_weight_refuses_rows_that_do_not_sum_to_1():
    with pytest.raises(ValueError, match="rows that sum to 1, or hold NaN; one sums to 2"):
        compute_class_weight(torch.ones(1, 2))


@each_strategy
def test_a_strategy_names_cross_entropy_with_its_weights(strategy):
    logits, labels = example(soft=False)
    weighted = multilabel_loss(logits, labels, compute_pos_weight(labels, strategy=strategy))
    torch.testing.assert_close(class_balanced_loss(strategy, labels)(logits, labels), weighted)
    targets = rows_of(5, 1, 2)
    weighted = multiclass_loss(logits, targets, compute_class_weight(targets, strategy=strategy))
    torch.testing.assert_close(class_balanced_loss(strategy, targets, kind="multiclass")(logits, targets), weighted)


def test_focal_and_asymmetric_can_be_named_and_focal_for_classes_too():
    logits, labels = example()
    torch.testing.assert_close(class_balanced_loss("focal", labels)(logits, labels), focal_loss(logits, labels))
    asymmetric = class_balanced_loss("asymmetric", labels)(logits, labels)
    torch.testing.assert_close(asymmetric, asymmetric_loss(logits, labels))
    targets = rows_of(5, 1, 2)
    loss = class_balanced_loss("focal", targets, kind="multiclass")
    torch.testing.assert_close(loss(logits, targets), multiclass_loss(logits, targets, gamma=2.0))


@pytest.mark.parametrize(
    "strategy, kind, message",
    [
        (
            "asymmetric",
            "multiclass",
            "the asymmetric loss is for multi-label tasks; for multi-class ones choose 'focal'",
        ),
        ("smote", "multilabel", "unknown `strategy` 'smote'; known: .*'sqrt', 'effective', 'focal', 'asymmetric'"),
        ("ratio", "ordinal", r"unknown `kind` 'ordinal'; known: \['multilabel', 'multiclass'\]"),
    ],
)
def test_answers_to_imbalance_that_do_not_exist_are_refused(strategy, kind, message):
    with pytest.raises(ValueError, match=message):
        class_balanced_loss(strategy, torch.eye(3), kind=kind)


@pytest.mark.parametrize("gamma, alpha", [(0.0, None), (2.0, 0.7)])
def test_modules_are_their_functions_with_fixed_options(gamma, alpha):
    logits, labels = example()
    assert torch.equal(FocalLoss(gamma, alpha)(logits, labels), focal_loss(logits, labels, gamma=gamma, alpha=alpha))
    options = {"gamma_pos": gamma, "gamma_neg": gamma + 1, "shift": 0.1}
    assert torch.equal(AsymmetricLoss(**options)(logits, labels), asymmetric_loss(logits, labels, **options))


def test_masked_mean_ignores_infinities_that_weigh_nothing():
    values = torch.tensor([1.0, torch.inf, 3.0, nan])
    assert masked_mean(values, torch.tensor([1.0, 0.0, 3.0, 0.0])).item() == pytest.approx(2.5)
