"""How much rare labels weigh."""

import math
from typing import Literal

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.losses.masking import at_least_float32, known_rows, split_known

WeightStrategy = Literal["none", "ratio", "sqrt", "effective"]


def compute_pos_weight(
    labels: Tensor, *, strategy: WeightStrategy = "ratio", max_weight: float = 20.0, beta: float = 0.999
) -> Tensor:
    """Weight of positives against negatives: by default negatives / positives, at most `max_weight`.

    Compute it from the training labels only, `compute_pos_weight(dataset.concept_labels)`.

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
        strategy: See above.
        max_weight: Largest weight, and its inverse the smallest: a label without positives gets the one, a label
            without negatives the other, so that both go on learning.
        beta: Of `"effective"`: E(n) never exceeds 1 / (1 - beta). Towards 0 it gives `"none"`, towards 1
            `"ratio"`; the paper tries 0.9 to 0.9999.

    Returns:
        (L,) weights, for `pos_weight`. 1 for a label nobody knows anywhere.

    Raises:
        ValueError: If a label is outside [0, 1], the strategy is unknown, or `max_weight` or `beta` out of range.
    """
    _check_weighting(strategy, max_weight, beta)
    labels = at_least_float32(labels)
    known, target = split_known(labels, labels)
    positives, negatives = target.sum(dim=0), ((1 - target) * known).sum(dim=0)
    ratio = _per(_size(negatives, strategy, beta), _size(positives, strategy, beta))
    return torch.where(positives + negatives > 0, ratio.clamp(1 / max_weight, max_weight), 1.0)


def compute_class_weight(
    targets: Tensor, *, strategy: WeightStrategy = "ratio", max_weight: float = 20.0, beta: float = 0.999
) -> Tensor:
    """Weight of each class of a multi-class task: by default the inverse of its frequency, within `max_weight`.

    Compute it from the training targets only. The strategies are those of `compute_pos_weight`: a class with n rows
    weighs 1, 1 / n, 1 / sqrt(n) or 1 / E(n). Weights are then scaled so that the training rows weigh 1 on
    average, which leaves the size of the loss as it is.

    Args:
        targets: (N, L) in [0, 1], rows that sum to 1; a row with a NaN is unknown.
        strategy: See above.
        max_weight: How many times as much as the most frequent class any class may weigh; one without rows does.
        beta: Of `"effective"`; see `compute_pos_weight`.

    Returns:
        (L,) weights, for `multiclass_loss`; 1 if no row is known.

    Raises:
        ValueError: As `compute_pos_weight`, or if a known row does not sum to 1.
    """
    _check_weighting(strategy, max_weight, beta)
    targets = at_least_float32(targets)
    rows, target = known_rows(targets, targets)
    counts = target[rows].sum(dim=0)
    sizes = _size(counts, strategy, beta)
    relative = _per(sizes.max(), sizes).clamp(max=max_weight)
    total = (counts * relative).sum()
    return torch.where(total > 0, relative * (counts.sum() / total), 1.0)


def _check_weighting(strategy: str, max_weight: float, beta: float) -> None:
    check_choice("strategy", strategy, WeightStrategy)
    if not 1 <= max_weight < math.inf:
        raise ValueError(
            f"`max_weight` must be a number from 1 on, got {max_weight}: without it, a label without positives would "
            "weigh infinitely much"
        )
    if not 0 < beta < 1:
        raise ValueError(f"`beta` must lie between 0 and 1, got {beta}; for the limits choose 'none' or 'ratio'")


def _size(counts: Tensor, strategy: WeightStrategy, beta: float) -> Tensor:
    """What a number of samples amounts to; weights are inverse to it."""
    if strategy == "none":
        return torch.ones_like(counts)
    if strategy == "sqrt":
        return counts.sqrt()
    if strategy == "effective":
        # 1 - beta^n without its factor, which cancels. Of a rare label beta^n is next to 1 and would lose its digits.
        return -torch.expm1(counts * math.log(beta))
    return counts


def _per(sizes: Tensor, others: Tensor) -> Tensor:
    """The first over the second; next to infinite, and not NaN, where the second is 0."""
    return sizes / others.clamp(min=torch.finfo(others.dtype).tiny)
