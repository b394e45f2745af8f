import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import Tensor

from conceptcam.losses.imbalance import (
    AsymmetricLoss,
    FocalLoss,
    asymmetric_loss,
    focal_loss,
    masked_mean,
    multiclass_loss,
    multilabel_loss,
    positive_weight,
)

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


def test_the_examples_of_the_seed_cost_what_they_should_and_their_mean_is_unweighted():
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


def test_the_best_logit_under_a_positive_weight_is_that_of_the_prior_plus_its_logarithm():
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


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, labels: focal_loss(logits, labels, gamma=0.0),
        lambda logits, labels: asymmetric_loss(logits, labels, gamma_pos=0.0, gamma_neg=0.0, shift=0.0),
    ],
    ids=["focal", "asymmetric"],
)
def test_without_focusing_focal_and_asymmetric_are_plain_cross_entropy_in_value_and_gradient(loss, soft):
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


def test_focal_weighs_positives_and_negatives_alike_unless_told_f17():
    logits = torch.tensor([[1.3]])
    assert focal_loss(logits, torch.ones(1, 1)).item() == pytest.approx(focal_loss(-logits, torch.zeros(1, 1)).item())
    assert FocalLoss().alpha is None


def test_multiclass_is_cross_entropy_of_torch_for_one_hot_and_soft_rows():
    logits, _ = example()
    classes = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])
    torch.testing.assert_close(
        multiclass_loss(logits, F.one_hot(classes, 3).double()), F.cross_entropy(logits, classes)
    )
    soft = torch.rand(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(multiclass_loss(logits, soft), F.cross_entropy(logits, soft))


def test_multiclass_leaves_out_rows_with_an_unknown():
    logits, _ = example()
    targets = F.one_hot(torch.arange(8) % 3, 3).double()
    unknown = targets.clone()
    unknown[2] = nan
    unknown[5, 1] = nan
    kept = torch.tensor([0, 1, 3, 4, 6, 7])
    torch.testing.assert_close(multiclass_loss(logits, unknown), multiclass_loss(logits[kept], targets[kept]))


@each_loss
def test_unknown_labels_leave_no_trace_in_value_or_gradient_f16(loss):
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
def test_a_batch_in_which_nothing_is_known_gives_0_that_can_be_differentiated_f7(loss):
    logits = example()[0].requires_grad_()
    value = loss(logits, torch.full_like(logits, nan))
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_multiclass_of_unknown_rows_gives_0_that_can_be_differentiated_f7():
    logits = example()[0].requires_grad_()
    value = multiclass_loss(logits, torch.full_like(logits, nan))
    assert value.item() == 0
    value.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


@each_loss
def test_gradients_at_logits_of_100_are_finite_and_repeat_exactly(loss):
    logits = torch.tensor([[100.0, -100.0, 100.0], [-100.0, 17.0, -17.0], [0.0, 50.0, -50.0]], requires_grad=True)
    for labels in (torch.ones(3, 3), torch.zeros(3, 3), torch.full((3, 3), 0.5)):
        values = [loss(logits, labels) for _ in range(2)]
        gradients = [torch.autograd.grad(value, logits)[0] for value in values]
        assert values[0].isfinite() and gradients[0].isfinite().all()
        assert torch.equal(*values) and torch.equal(*gradients)


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
    assert positive_weight(labels).tolist() == pytest.approx([4.0, 1.0, 0.25])


def test_positive_weight_is_large_for_rare_labels_not_small():
    """The inverted weight is a bug planted on purpose elsewhere; here it would show."""
    rare, common = torch.zeros(100, 1), torch.ones(100, 1)
    rare[:5] = 1
    common[:5] = 0
    assert positive_weight(rare).item() > 1 > positive_weight(common).item()


def test_positive_weight_counts_only_what_is_known_and_soft_labels_in_part():
    labels = torch.tensor([[1.0, nan], [0.5, nan], [nan, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert positive_weight(labels).tolist() == pytest.approx([2.5 / 1.5, 2.0])


def test_positive_weight_is_capped_finite_without_positives_and_1_where_nobody_knows_f17():
    labels = torch.zeros(1000, 3)
    labels[0, 0] = 1
    labels[:, 2] = nan
    assert positive_weight(labels).tolist() == [20.0, 20.0, 1.0]
    assert positive_weight(labels, cap=5.0).tolist() == [5.0, 5.0, 1.0]


def test_positive_weight_takes_integer_labels():
    labels = torch.tensor([[1, 0], [0, 0], [0, 1]])
    assert positive_weight(labels).tolist() == [2.0, 2.0]


def test_positive_weight_balances_the_two_sides_of_the_loss():
    labels = torch.zeros(100, 1)
    labels[:20] = 1
    weight = positive_weight(labels)
    logits = torch.zeros(100, 1, requires_grad=True)
    multilabel_loss(logits, labels, weight).backward()
    assert logits.grad is not None
    assert logits.grad.sum().item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("gamma, alpha", [(0.0, None), (2.0, 0.7)])
def test_modules_are_their_functions_with_fixed_options(gamma, alpha):
    logits, labels = example()
    assert torch.equal(FocalLoss(gamma, alpha)(logits, labels), focal_loss(logits, labels, gamma=gamma, alpha=alpha))
    options = {"gamma_pos": gamma, "gamma_neg": gamma + 1, "shift": 0.1}
    assert torch.equal(AsymmetricLoss(**options)(logits, labels), asymmetric_loss(logits, labels, **options))


def test_masked_mean_ignores_what_weighs_nothing_even_if_it_is_infinite():
    values = torch.tensor([1.0, torch.inf, 3.0, nan])
    assert masked_mean(values, torch.tensor([1.0, 0.0, 3.0, 0.0])).item() == pytest.approx(2.5)
