"""Is each label right? Multi-label classification losses for rare labels, some of them unknown.

Labels are in [0, 1]; NaN means unknown, and what is unknown counts nowhere: not in a loss, not in a weight. A
batch in which nothing is known gives exactly 0, with a gradient path.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def multiclass_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against one-hot or soft rows, averaged over the rows that are known.

    Args:
        logits: (B, L).
        targets: (B, L) in [0, 1], rows that sum to 1; a row with a NaN is unknown.

    Returns:
        Scalar.

    Raises:
        ValueError: If shapes differ, a target is outside [0, 1] or a known row does not sum to 1.
    """
    logits = at_least_float32(logits)
    known, target = split_known(logits, targets)
    rows = known.all(dim=-1)
    sums = target.sum(dim=-1)[rows]
    if ((sums - 1).abs() > 1e-2).any():
        strange = sums[(sums - 1).abs().argmax()].item()
        raise ValueError(f"multi-class targets must be rows that sum to 1, or hold NaN; one sums to {strange:g}")
    return masked_mean(-(target * logits.log_softmax(dim=-1)).sum(dim=-1), rows)


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


def positive_weight(labels: Tensor, *, cap: float = 20.0) -> Tensor:
    """Weight of positives that balances them against negatives: negatives / positives, at most `cap`.

    Compute it from the training labels only, `positive_weight(dataset.concept_labels)`.

    Args:
        labels: (N, L) in [0, 1], NaN where unknown.
        cap: Largest weight, and its inverse the smallest: a label without positives gets the one, a label without
            negatives the other, so that both go on learning.

    Returns:
        (L,) weights, for `pos_weight`. 1 for a label nobody knows anywhere.
    """
    labels = at_least_float32(labels)
    known, target = split_known(labels, labels)
    positives = torch.where(known, target, 0).sum(dim=0)
    negatives = torch.where(known, 1 - target, 0).sum(dim=0)
    ratio = (negatives / positives.clamp(min=torch.finfo(labels.dtype).tiny)).clamp(min=1 / cap, max=cap)
    return torch.where(positives + negatives > 0, ratio, 1.0)


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
        raise ValueError(f"labels must be in [0, 1], or NaN where unknown; got {strange:g}")
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
