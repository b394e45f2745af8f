"""Is each label right? Classification losses and weights for rare labels, some of them unknown.

Labels are in [0, 1]; NaN means unknown, and what is unknown counts nowhere: not in a loss, not in a weight. A
label between 0 and 1 counts in part as present and in part as absent, in both. A batch in which nothing is known
gives exactly 0, with a gradient path.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptcam.config import TaskKind

WeightPolicy = Literal["none", "ratio", "sqrt", "effective"]
Imbalance = Literal["none", "ratio", "sqrt", "effective", "focal", "asymmetric"]


def classification_loss(
    imbalance: Imbalance, labels: Tensor, *, kind: TaskKind = "multilabel"
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of (logits, labels) that answers imbalance in the way named, for labels such as those given.

    Args:
        imbalance: `"none"`: plain cross-entropy. `"ratio"`, `"sqrt"`, `"effective"`: cross-entropy with the
            weights of that policy; see `positive_weight` and `class_weight`. `"focal"`: `focal_loss`, or for
            multi-class tasks `multiclass_loss` with the same gamma. `"asymmetric"`: `asymmetric_loss`. The last
            two weigh by what the model says and not by how often a label occurs.
        labels: (N, L) of the training data alone, from which weights are counted.
        kind: Whether any number of labels can be true or exactly one is.

    Raises:
        ValueError: If a name is unknown, labels do not fit the kind, or a multi-class task is to have the asymmetric
            loss, which treats labels one by one.
    """
    check_choice("imbalance", imbalance, Imbalance)
    check_choice("kind", kind, TaskKind)
    if imbalance == "focal":
        return FocalLoss() if kind == "multilabel" else functools.partial(multiclass_loss, gamma=2.0)
    if imbalance == "asymmetric":
        if kind == "multiclass":
            raise ValueError("the asymmetric loss is for multi-label tasks; for multi-class ones choose 'focal'")
        return AsymmetricLoss()
    if kind == "multiclass":
        return functools.partial(multiclass_loss, weight=class_weight(labels, policy=imbalance))
    return functools.partial(multilabel_loss, pos_weight=positive_weight(labels, policy=imbalance))


def multilabel_loss(logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, averaged over the known labels.

    Args:
        logits: (B, L).
        labels: (B, L) in [0, 1], NaN where unknown.
        pos_weight: (L,) weight of positives, as in `nn.BCEWithLogitsLoss`; see `positive_weight`.

    Returns:
        Scalar.

    Raises:
        ValueError: If shapes differ or a label is outside [0, 1].
    """
    logits = at_least_float32(logits)
    known, target = split_known(logits, labels)
    weight = None if pos_weight is None else pos_weight.to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    return masked_mean(losses, known)


def multiclass_loss(logits: Tensor, targets: Tensor, weight: Tensor | None = None, *, gamma: float = 0.0) -> Tensor:
    """Cross-entropy against one-hot or soft rows, averaged over the rows that are known.

    Args:
        logits: (B, L).
        targets: (B, L) in [0, 1], rows that sum to 1; a row with a NaN is unknown.
        weight: (L,) weight of each class; see `class_weight`. The mean is over rows and not over their weights
            (torch divides by the latter if targets are indices), so a row does not count more in one batch than
            in another.
        gamma: A row's loss is scaled by its remaining error to this power, as in `focal_loss`, of which this is
            the same for two classes. The error is half the absolute distance between probabilities and targets,
            1 - p of the true class if there is one.

    Returns:
        Scalar.

    Raises:
        ValueError: If shapes differ, a target is outside [0, 1] or a known row does not sum to 1.
    """
    logits = at_least_float32(logits)
    rows, target = _known_rows(logits, targets)
    log_probability = logits.log_softmax(dim=-1)
    losses = -target * log_probability
    if weight is not None:
        losses = losses * weight.to(logits)
    losses = losses.sum(dim=-1)
    if gamma:
        error = (target - log_probability.exp()).abs().sum(dim=-1) / 2
        losses = losses * _power(error, gamma)
    return masked_mean(losses, rows)


def focal_loss(logits: Tensor, labels: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Cross-entropy in which well-classified labels count less (Lin et al., 2017, Eq. 4 and 5).

    Args:
        logits: (B, L).
        labels: (B, L) in [0, 1], NaN where unknown.
        gamma: A label's loss is scaled by its remaining error to this power; 0 is plain cross-entropy.
        alpha: Weight of positives, negatives weighing `1 - alpha`; None weighs both 1. Published as .25, which
            makes positives count three times *less*: use a value above .5 for rare labels.

    Returns:
        Scalar, the mean over the known labels.
    """
    logits = at_least_float32(logits)
    known, target = split_known(logits, labels)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # Distance to the label is 1 - p_t for a hard label, and is 0 where a soft label is met.
    losses = losses * _power((target - logits.sigmoid()).abs(), gamma)
    if alpha is not None:
        losses = losses * (alpha * target + (1 - alpha) * (1 - target))
    return masked_mean(losses, known)


def asymmetric_loss(
    logits: Tensor, labels: Tensor, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, shift: float = 0.05
) -> Tensor:
    """Focal loss that focuses negatives more than positives and forgets the easiest of them.

    Ridnik et al., 2021, "Asymmetric loss for multi-label classification", Eq. 4 to 7.

    Args:
        logits: (B, L).
        labels: (B, L) in [0, 1], NaN where unknown. A soft label mixes the two losses.
        gamma_pos: Focusing of positives.
        gamma_neg: Focusing of negatives.
        shift: Negatives below this probability cost nothing.

    Returns:
        Scalar, the mean over the known labels.
    """
    logits = at_least_float32(logits)
    known, target = split_known(logits, labels)
    probability = logits.sigmoid()
    # log(1 - p + shift), at most 0, in a form that does not saturate where p is nearly 1.
    absent = torch.logaddexp(F.logsigmoid(-logits), logits.new_tensor(shift).log()).clamp(max=0)
    positive = -F.logsigmoid(logits) * _power(1 - probability, gamma_pos)
    negative = -absent * _power((probability - shift).clamp(min=0), gamma_neg)
    return masked_mean(target * positive + (1 - target) * negative, known)


def positive_weight(
    labels: Tensor, *, policy: WeightPolicy = "ratio", cap: float = 20.0, beta: float = 0.999
) -> Tensor:
    """Weight of positives against negatives: by default negatives / positives, at most `cap`.

    Compute it from the training labels only, `positive_weight(dataset.concept_labels)`.

    With n positives and m negatives among the known labels of a column, soft ones counted in part,

    - `"none"`: 1.
    - `"ratio"`: m / n, which gives both sides the same total weight.
    - `"sqrt"`: the square root of m / n.
    - `"effective"`: E(m) / E(n), where E(n) = (1 - beta^n) / (1 - beta) is the effective number of samples
      (Cui et al., 2019, "Class-balanced loss", Eq. 2): further images of one kind bring ever less that is new.
      The paper weighs the classes of a multi-class problem by 1 / E; here each label is a problem of its own
      with two classes, and only their ratio matters.

    Args:
        labels: (N, L) in [0, 1], NaN where unknown.
        policy: See above.
        cap: Largest weight, and its inverse the smallest: a label without positives gets the one, a label without
            negatives the other, so that both go on learning.
        beta: Of `"effective"`: E(n) never exceeds 1 / (1 - beta). Towards 0 it gives `"none"`, towards 1
            `"ratio"`; the paper tries 0.9 to 0.9999.

    Returns:
        (L,) weights, for `pos_weight`. 1 for a label nobody knows anywhere.

    Raises:
        ValueError: If a label is outside [0, 1], the policy is unknown, or `cap` or `beta` out of range.
    """
    _check_weighting(policy, cap, beta)
    labels = at_least_float32(labels)
    known, target = split_known(labels, labels)
    positives = torch.where(known, target, 0).sum(dim=0)
    negatives = torch.where(known, 1 - target, 0).sum(dim=0)
    ratio = _per(_size(negatives, policy, beta), _size(positives, policy, beta)).clamp(min=1 / cap, max=cap)
    return torch.where(positives + negatives > 0, ratio, 1.0)


def class_weight(targets: Tensor, *, policy: WeightPolicy = "ratio", cap: float = 20.0, beta: float = 0.999) -> Tensor:
    """Weight of each class of a multi-class task: by default the inverse of its frequency, within `cap`.

    Compute it from the training targets only. The policies are those of `positive_weight`: a class with n rows
    weighs 1, 1 / n, 1 / sqrt(n) or 1 / E(n). Weights are then scaled so that the training rows weigh 1 on
    average, which leaves the size of the loss as it is.

    Args:
        targets: (N, L) in [0, 1], rows that sum to 1; a row with a NaN is unknown.
        policy: See above.
        cap: How many times as much as the most frequent class any class may weigh; one without rows does.
        beta: Of `"effective"`; see `positive_weight`.

    Returns:
        (L,) weights, for `multiclass_loss`; 1 if no row is known.

    Raises:
        ValueError: As `positive_weight`, or if a known row does not sum to 1.
    """
    _check_weighting(policy, cap, beta)
    targets = at_least_float32(targets)
    rows, target = _known_rows(targets, targets)
    counts = target[rows].sum(dim=0)
    sizes = _size(counts, policy, beta)
    relative = _per(sizes.max(), sizes).clamp(max=cap)
    total = (counts * relative).sum()
    return torch.where(total > 0, relative * (counts.sum() / total), 1.0)


def _check_weighting(policy: str, cap: float, beta: float) -> None:
    check_choice("policy", policy, WeightPolicy)
    if not 1 <= cap < math.inf:
        raise ValueError(
            f"`cap` must be a number from 1 on, got {cap}: without it, a label without positives would weigh"
            " infinitely much"
        )
    if not 0 < beta < 1:
        raise ValueError(f"`beta` must lie between 0 and 1, got {beta}; for the limits choose 'none' or 'ratio'")


def _size(counts: Tensor, policy: WeightPolicy, beta: float) -> Tensor:
    """What a number of samples amounts to; weights are inverse to it."""
    if policy == "none":
        return torch.ones_like(counts)
    if policy == "sqrt":
        return counts.sqrt()
    if policy == "effective":
        # 1 - beta^n without its factor, which cancels. Of a rare label beta^n is next to 1 and would lose its digits.
        return -torch.expm1(counts * math.log(beta))
    return counts


def _per(sizes: Tensor, others: Tensor) -> Tensor:
    """The first over the second; next to infinite, and not NaN, where the second is 0."""
    return sizes / others.clamp(min=torch.finfo(others.dtype).tiny)


class FocalLoss(nn.Module):
    """`focal_loss` with fixed options."""

    def __init__(self, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, L) and labels (B, L) -> scalar."""
        return focal_loss(logits, labels, gamma=self.gamma, alpha=self.alpha)


class AsymmetricLoss(nn.Module):
    """`asymmetric_loss` with fixed options."""

    def __init__(self, gamma_pos: float = 0.0, gamma_neg: float = 4.0, shift: float = 0.05) -> None:
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.shift = shift

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, L) and labels (B, L) -> scalar."""
        return asymmetric_loss(logits, labels, gamma_pos=self.gamma_pos, gamma_neg=self.gamma_neg, shift=self.shift)


def check_choice(name: str, value: str, known: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s."""
    if value not in get_args(known):
        raise ValueError(f"unknown `{name}` {value!r}; known: {list(get_args(known))}")


def _known_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) which rows are known, and multi-class targets with 0 in place of the unknown."""
    known, target = split_known(logits, targets)
    rows = known.all(dim=-1)
    sums = target.sum(dim=-1)[rows]
    if ((sums - 1).abs() > 1e-2).any():
        strange = sums[(sums - 1).abs().argmax()].item()
        raise ValueError(f"multi-class targets must be rows that sum to 1, or hold NaN; one sums to {strange:g}")
    return rows, target


def split_known(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels are known, and the labels with 0 in place of the unknown.

    Raises:
        ValueError: If shapes differ or a known label is outside [0, 1].
    """
    if logits.shape != labels.shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but predictions {tuple(logits.shape)}")
    known = ~labels.isnan()
    target = torch.where(known, labels, 0).to(logits.dtype)
    if ((target < 0) | (target > 1)).any():
        strange = target[(target < 0) | (target > 1)][0].item()
        raise ValueError(
            f"labels must be in [0, 1], or NaN where unknown; got {strange:g}. If that is a code for uncertain, "
            "`conceptcam.labels.resolve_uncertain` says what it should count as."
        )
    return known, target


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are; half precision loses small terms and overflows in sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values by weights of the same shape; exactly 0, with a gradient path, where all weigh 0."""
    weights = weights.to(values.dtype)
    total = weights.sum()
    # `where` keeps an infinite value of weight 0 from becoming NaN.
    return torch.where(weights > 0, values * weights, 0).sum() / torch.where(total > 0, total, 1)


def _power(error: Tensor, gamma: float) -> Tensor:
    # The slope of a power below 1 is infinite at 0, and NaN in the gradient once multiplied by a loss of 0.
    return error.clamp(min=torch.finfo(error.dtype).tiny) ** gamma
