"""From which probability on is a label called present, and which probability is typical where it is?"""

import torch
from torch import Tensor

from conceptcam.metrics.label_rows import checked, rankable, sides


def best_thresholds(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability threshold of each label that gives the highest F1; choose it on validation data.

    It lies half-way between the probabilities (in float64) it separates. Of equally good ones the highest
    is given. Soft labels count in part, as in the F1 of `per_label_metrics`.

    Args:
        logits: (N, L).
        labels: (N, L) in [0, 1]; NaN where unknown.

    Returns:
        (L,) float64; NaN for a label whose known rows do not differ, as there is nothing to weigh up.

    Raises:
        ValueError: As `per_label_metrics`.
    """
    logits, labels = checked(logits, labels)
    best = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    for label, ranked, truth in rankable(logits, labels):
        best[label] = _best_threshold(ranked.sigmoid(), truth)
    return best


def thresholds_at(
    logits: Tensor, labels: Tensor, *, sensitivity: float | None = None, specificity: float | None = None
) -> Tensor:
    """Probability threshold of each label that reaches a target: choose it on validation data.

    Of the thresholds with at least this sensitivity the highest is given, which has the best specificity; of those with
    at least this specificity the lowest. It lies half-way between the probabilities (in float64) it separates.

    Args:
        logits: (N, L).
        labels: (N, L) in [0, 1]; NaN where unknown. Soft ones count in part.
        sensitivity: Fraction of positives to be called present, in (0, 1].
        specificity: Fraction of negatives to be called absent, in (0, 1].

    Returns:
        (L,) float64; NaN for a label whose known rows do not differ.

    Raises:
        ValueError: As `per_label_metrics`, or unless just one target in (0, 1] is given.
    """
    target = specificity if sensitivity is None else sensitivity
    if (sensitivity is None) == (specificity is None) or target is None or not 0 < target <= 1:
        raise ValueError(
            f"need a `sensitivity` or a `specificity` in (0, 1], and not both; got {sensitivity} and {specificity}"
        )
    logits, labels = checked(logits, labels)
    chosen = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    for label, ranked, truth in rankable(logits, labels):
        values, group = ranked.sigmoid().unique(return_inverse=True)  # ascending; no threshold lies between equal ones
        edges = torch.cat([values.new_zeros(1), values, values.new_ones(1)])
        positives, negatives = (
            torch.cat([values.new_zeros(1), values.new_zeros(len(values)).index_add(0, group, weight).cumsum(0)])
            for weight in (truth, 1 - truth)
        )  # of the rows below each of the cuts, of which there is one below, between and above all values
        reached = (positives[-1] - positives) / positives[-1] if specificity is None else negatives / negatives[-1]
        enough = (reached >= target - 1e-12).nonzero()[:, 0]
        cut = int(enough[-1] if specificity is None else enough[0])
        chosen[label] = _middle(edges[cut], edges[cut + 1])
    return chosen


def typical_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Median probability of each label where it is present, and where it is absent.

    Rows are weighted by y and by 1 - y, so a soft label has a say in both. Of two middle values the lower is given.

    Args:
        logits: (N, L).
        labels: (N, L) in [0, 1]; NaN where unknown.

    Returns:
        (L,) and (L,), float64; NaN for a label that is never present, or never absent.

    Raises:
        ValueError: As `per_label_metrics`.
    """
    logits, labels = checked(logits, labels)
    return typical_values(logits.sigmoid(), labels)


def typical_values(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `typical_probabilities`, of any values (N, L), such as evidence.

    Raises:
        ValueError: As `per_label_metrics`.
    """
    values, labels = checked(values, labels)
    present, absent = sides(labels)
    return _medians(values, present), _medians(values, absent)


def _best_threshold(probability: Tensor, truth: Tensor) -> Tensor:
    values, order = probability.sort(descending=True)
    f1 = 2 * truth[order].cumsum(0) / (torch.arange(1, len(values) + 1) + truth.sum())
    below = torch.cat([values[1:], values.new_zeros(1)])
    f1[values == below] = -1  # no threshold lies between equal values
    best = f1.argmax()
    return _middle(below[best], values[best])


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Half-way between two numbers, and below the upper one."""
    middle = (low + high) / 2
    # Between neighbouring floats the middle rounds to either.
    return torch.where(middle < high, middle, low)


def _medians(values: Tensor, weights: Tensor) -> Tensor:
    """(L,) median of each column of (N, L) values by weights; NaN where nothing weighs."""
    if not len(values):
        return values.new_full(values.shape[1:], torch.nan)
    values, order = values.sort(dim=0)
    weights = weights.gather(0, order).cumsum(dim=0)
    half = (weights >= weights[-1] / 2).int().argmax(dim=0)  # the first row that reaches it
    return values.gather(0, half[None])[0].masked_fill(weights[-1] == 0, torch.nan)
