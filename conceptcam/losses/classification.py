"""Is each label right? Classification losses and weights for rare labels, some of them unknown.

Labels are in [0, 1]; NaN means unknown, and what is unknown counts nowhere: not in a loss, not in a weight. A
label between 0 and 1 counts in part as present and in part as absent, in both. A batch in which nothing is known
gives exactly 0, with a gradient path.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptcam._checks import check_choice, check_number
from conceptcam.config import TaskKind
from conceptcam.losses.class_weights import compute_class_weight, compute_pos_weight
from conceptcam.losses.masking import at_least_float32, check_weight, known_rows, masked_mean, split_known

Strategy = Literal["none", "ratio", "sqrt", "effective", "focal", "asymmetric"]


def class_balanced_loss(
    strategy: Strategy, labels: Tensor, *, kind: TaskKind = "multilabel"
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of (logits, labels) for data in which some labels are rare.

    Args:
        strategy: `"none"`: plain cross-entropy. `"ratio"`, `"sqrt"`, `"effective"`: cross-entropy with the weights
            of that strategy; see `compute_pos_weight` and `compute_class_weight`. `"focal"`: `focal_loss`, or for
            multi-class tasks `multiclass_loss` with the same gamma. `"asymmetric"`: `asymmetric_loss`. The last
            two weigh a label by how wrong the model is, not by how often the label occurs.
        labels: (N, L), those of the training data alone; the weights are computed from them.
        kind: `"multilabel"` if any number of labels can be true, `"multiclass"` if exactly one is.

    Raises:
        ValueError: If a name is unknown, the labels do not fit the kind, or a multi-class task is to have the
            asymmetric loss, which treats labels one by one.
    """
    check_choice("strategy", strategy, Strategy)
    check_choice("kind", kind, TaskKind)
    if strategy == "focal":
        return FocalLoss() if kind == "multilabel" else functools.partial(multiclass_loss, gamma=2.0)
    if strategy == "asymmetric":
        if kind == "multiclass":
            raise ValueError("the asymmetric loss is for multi-label tasks; for multi-class ones choose 'focal'")
        return AsymmetricLoss()
    if kind == "multiclass":
        return functools.partial(multiclass_loss, weight=compute_class_weight(labels, strategy=strategy))
    return functools.partial(multilabel_loss, pos_weight=compute_pos_weight(labels, strategy=strategy))


def multilabel_loss(logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, averaged over the known labels.

    Args:
        logits: (B, L).
        labels: (B, L) in [0, 1], NaN where unknown.
        pos_weight: (L,) weight of positives, as in `nn.BCEWithLogitsLoss`; see `compute_pos_weight`.

    Returns:
        Scalar.

    Raises:
        ValueError: If shapes differ or a label is outside [0, 1].
    """
    logits = at_least_float32(logits)
    known, target = split_known(logits, labels)
    check_weight("pos_weight", pos_weight, logits.shape[-1])
    weight = None if pos_weight is None else pos_weight.to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    return masked_mean(losses, known)


def multiclass_loss(logits: Tensor, targets: Tensor, weight: Tensor | None = None, *, gamma: float = 0.0) -> Tensor:
    """Cross-entropy against one-hot or soft rows, averaged over the rows that are known.

    Args:
        logits: (B, L).
        targets: (B, L) in [0, 1], rows that sum to 1; a row with a NaN is unknown.
        weight: (L,) weight of each class; see `compute_class_weight`. The mean is over rows and not over their weights
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
    rows, target = known_rows(logits, targets)
    log_probability = logits.log_softmax(dim=-1)
    losses = -target * log_probability
    check_weight("weight", weight, logits.shape[-1])
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


class FocalLoss(nn.Module):
    """`focal_loss` with fixed options."""

    def __init__(self, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        check_number("`gamma`", gamma, 0)
        if alpha is not None:
            check_number("`alpha`", alpha, 0, 1)
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, L) and labels (B, L) -> scalar."""
        return focal_loss(logits, labels, gamma=self.gamma, alpha=self.alpha)


class AsymmetricLoss(nn.Module):
    """`asymmetric_loss` with fixed options."""

    def __init__(self, gamma_pos: float = 0.0, gamma_neg: float = 4.0, shift: float = 0.05) -> None:
        super().__init__()
        check_number("`gamma_pos`", gamma_pos, 0)
        check_number("`gamma_neg`", gamma_neg, 0)
        check_number("`shift`", shift, 0, 1)
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.shift = shift

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, L) and labels (B, L) -> scalar."""
        return asymmetric_loss(logits, labels, gamma_pos=self.gamma_pos, gamma_neg=self.gamma_neg, shift=self.shift)


def _power(error: Tensor, gamma: float) -> Tensor:
    # The slope of a power below 1 is infinite at 0, and NaN in the gradient once multiplied by a loss of 0.
    return error.clamp(min=torch.finfo(error.dtype).tiny) ** gamma
