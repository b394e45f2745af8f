"""How well logits tell labels apart: AUROC, average precision and F1, per label and with support.

One rule for labels holds throughout, the one of losses and weights: a label y counts as y of a positive and as
1 - y of a negative, so that a soft one, such as the fraction of readers who saw a finding, is never rounded; NaN is
unknown and left out of its label alone. Where labels are soft, not even the best ranking has an AUROC of 1. A score
that cannot be had is NaN, and so is no part of a macro average.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_choice
from conceptcam.config import TaskKind
from conceptcam.metrics.base import FractionMetric, RowMetric

# As in the losses, so that what can be trained on can be measured: shares rounded to two digits, or in bfloat16.
_SUM_TOLERANCE = 1e-2


class LabelScores(NamedTuple):
    """Scores of L labels, each of shape (L,), float64 on the CPU."""

    auroc: Tensor
    """Area under the ROC curve, ties counted half; NaN unless the known labels differ."""
    average_precision: Tensor
    """Sum over ranks of precision times gain in recall; NaN unless the known labels differ, because then it is
    their mean whatever the scores are: 1 without negatives."""
    f1: Tensor
    """F1 at the threshold, of positives and negatives counted in part; NaN without positives, or where the
    threshold is NaN."""
    positives: Tensor
    """Sum of the known labels: how many rows have the label, a whole number unless some are soft."""
    negatives: Tensor
    """How many rows lack it: what the positives leave of the known rows."""


def macro_average(values: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean over those of the values that are defined; NaN if none is.

    Args:
        values: (L,).
        counted: (L,) bool, which of them count, such as `well_supported` gives; None counts all.
    """
    return (values if counted is None else values.masked_fill(~counted, torch.nan)).nanmean()


def well_supported(scores: LabelScores, min_support: float = 5) -> Tensor:
    """(L,) bool, the labels that an average can rest on; all of them if there is none.

    The AUROC of a label with one negative is that one image's rank.

    Args:
        scores: Of L labels.
        min_support: Positives and negatives (soft ones counted in part) that a label needs to have.
    """
    enough = torch.minimum(scores.positives, scores.negatives) >= min_support
    return enough if enough.any() else torch.ones_like(enough)


def per_label_metrics(logits: Tensor, labels: Tensor, *, threshold: float | Tensor = 0.5) -> LabelScores:
    """Scores of each label on its own.

    Rows are ranked by logit in float64: a float32 probability is 1 from a logit of 17 on, which would
    tie the surest rows. Scores equal scikit-learn's where each row is given twice, as a positive of weight y and as a
    negative of weight 1 - y.

    Args:
        logits: (N, L); infinite ones are fine.
        labels: (N, L) in [0, 1]; NaN where unknown.
        threshold: Probability above which F1 calls a label present, one for all or (L,). Where it was
            chosen by looking at the same data, the F1 is an upper bound and no estimate.

    Raises:
        ValueError: If shapes differ, a label or threshold lies outside [0, 1], or a logit is NaN.
    """
    logits, labels = _checked(logits, labels)
    cut = torch.as_tensor(threshold, dtype=torch.float64).cpu()
    if cut.shape not in ((), labels.shape[1:]) or ((cut < 0) | (cut > 1)).any():
        raise ValueError(
            f"`threshold` must be one probability or {labels.shape[1]} of them, in [0, 1]; got {threshold}"
        )
    scores = _scores(logits, labels, called=logits.sigmoid() > cut)
    return scores._replace(f1=scores.f1.masked_fill(cut.isnan(), torch.nan))


def task_scores(logits: Tensor, targets: Tensor, kind: TaskKind, *, threshold: float | Tensor = 0.5) -> LabelScores:
    """Scores of each task.

    Multi-class tasks are scored one against the rest: rows are ranked by the softmax probability of the
    class (by its logit, log p - log(1 - p), which keeps apart what rounds to 1), and F1 calls the class
    of the highest logit, whatever the threshold.

    Args:
        logits: (N, T).
        targets: (N, T) in [0, 1]; NaN where unknown. For `"multiclass"` rows sum to 1, and a row with a NaN is
            unknown as a whole.
        kind: `"multilabel"` or `"multiclass"`.
        threshold: As in `per_label_metrics`; for `"multilabel"` alone.

    Raises:
        ValueError: As `per_label_metrics`, or if the kind is unknown or a multi-class row does not sum to 1.
    """
    check_choice("kind", kind, TaskKind)
    if kind == "multilabel":
        return per_label_metrics(logits, targets, threshold=threshold)
    logits, targets = _known_rows(*_checked(logits, targets))
    called = _called(logits)
    others = torch.eye(logits.shape[1], dtype=torch.bool)
    rest = logits[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=-1)  # (N, T), over the others
    return _scores(logits - rest, targets, called)


def top_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Fraction of known rows whose highest logit is that of the true class; NaN if no row is known.

    A soft row counts in part: by its target for the class of the highest logit.

    Args:
        logits: (N, T).
        targets: (N, T), multi-class as in `task_scores`.

    Raises:
        ValueError: As `task_scores`.
    """
    return _top_hits(logits, targets).mean()


def confusion_matrix(logits: Tensor, targets: Tensor) -> Tensor:
    """(T, T) how many known rows of each class, in the order of rows, are called each class, in that of columns.

    A row is called the class of its highest logit. A soft row counts in part, for each class by its target.

    Args:
        logits: (N, T).
        targets: (N, T), multi-class as in `task_scores`.

    Raises:
        ValueError: As `task_scores`.
    """
    logits, targets = _known_rows(*_checked(logits, targets))
    return targets.T @ _called(logits).double()


def balanced_accuracy(confusion: Tensor) -> Tensor:
    """Mean over the classes that occur of how many of their rows are called right (macro recall); NaN if none occurs.

    The same answer for all rows gives 1 over the number of these classes, however common the one called is.

    Args:
        confusion: (T, T), as `confusion_matrix` gives it.
    """
    return macro_average(confusion.diagonal() / confusion.sum(dim=1))


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
    logits, labels = _checked(logits, labels)
    best = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    for label, ranked, truth in _rankable(logits, labels):
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
    logits, labels = _checked(logits, labels)
    chosen = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    for label, ranked, truth in _rankable(logits, labels):
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
    logits, labels = _checked(logits, labels)
    return typical_values(logits.sigmoid(), labels)


def typical_values(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `typical_probabilities`, of any values (N, L), such as evidence.

    Raises:
        ValueError: As `per_label_metrics`.
    """
    values, labels = _checked(values, labels)
    present, absent = _sides(labels)
    return _medians(values, present), _medians(values, absent)


class _LabelRows(RowMetric):
    """Base of metrics of logits and labels that are known only once all rows are."""

    def __init__(self, kind: TaskKind) -> None:
        super().__init__()
        check_choice("kind", kind, TaskKind)
        self.kind: TaskKind = kind

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, L) and labels (N, L) in [0, 1], NaN where unknown."""
        _check_shapes(logits, labels)
        at_least = torch.promote_types(logits.dtype, torch.float32)
        # (N, L, 2) of both, so that one gather moves them.
        self.keep(torch.stack([logits.to(at_least), labels.to(at_least)], dim=-1))

    def _scores(self, threshold: float | Tensor = 0.5) -> LabelScores:
        logits, labels = self.kept(0, 2).unbind(-1)
        return task_scores(logits, labels, self.kind, threshold=threshold)


class MacroAUROC(_LabelRows):
    """Mean AUROC over the labels whose rows differ; NaN if there is none.

    torchmetrics' own macro average counts an absent label as 0, which drags the mean down whenever the
    validation set lacks a rare finding.

    Args:
        kind: `"multilabel"`, also for concepts, or `"multiclass"`.
        min_support: Labels with fewer positives or fewer negatives are left out, unless all have fewer; see
            `well_supported`.
    """

    higher_is_better = True

    def __init__(self, kind: TaskKind = "multilabel", *, min_support: int = 1) -> None:
        super().__init__(kind)
        self.min_support = min_support

    def compute(self) -> Tensor:
        """The mean, a float64 scalar."""
        scores = self._scores()
        return macro_average(scores.auroc, well_supported(scores, self.min_support))


class LabelMetrics(_LabelRows):
    """`LabelScores` over all batches.

    Args:
        kind: `"multilabel"`, also for concepts, or `"multiclass"`.
        threshold: As in `per_label_metrics`.

    Raises:
        ValueError: If the kind is unknown. The number of labels is read from the first batch.
    """

    plotted = ("auroc", "average_precision", "f1")

    def __init__(self, kind: TaskKind = "multilabel", *, threshold: float | Tensor = 0.5) -> None:
        super().__init__(kind)
        self.threshold = threshold

    def compute(self) -> LabelScores:
        """The scores of each label; of no labels, if there was no batch."""
        return self._scores(self.threshold)


class Top1Accuracy(FractionMetric):
    """`top_accuracy` over all batches."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (N, T) and multi-class targets (N, T)."""
        hits = _top_hits(logits, targets)
        self.count(hits, torch.ones_like(hits))


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(f"logits and labels must both be (N, L), got {tuple(logits.shape)} and {tuple(labels.shape)}")


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU."""
    _check_shapes(logits, labels)
    logits, labels = logits.detach().double().cpu(), labels.detach().double().cpu()
    if len(strange := labels[(labels < 0) | (labels > 1)]):
        raise ValueError(f"labels must lie in [0, 1], with NaN for unknown; got {strange[0]:g}")
    if broken := logits.isnan().any(dim=0).nonzero()[:, 0].tolist():
        raise ValueError(f"logits of labels {broken} hold NaN: the model or its input is broken")
    return logits, labels


def _scores(logits: Tensor, labels: Tensor, called: Tensor) -> LabelScores:
    present, absent = _sides(labels)
    positives, negatives = present.sum(dim=0), absent.sum(dim=0)
    f1 = 2 * (called * present).sum(dim=0) / ((called * (present + absent)).sum(dim=0) + positives)
    auroc = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    precision = auroc.clone()
    for label, ranked, truth in _rankable(logits, labels):
        auroc[label], precision[label] = _areas(ranked, truth)
    return LabelScores(auroc, precision, f1.masked_fill(positives == 0, torch.nan), positives, negatives)


def _sides(labels: Tensor) -> tuple[Tensor, Tensor]:
    """How much each row counts as present, and as absent; unknown ones as neither."""
    known = ~labels.isnan()
    return torch.where(known, labels, 0), torch.where(known, 1 - labels, 0)


def _rankable(logits: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index, logits and labels of the known rows of each label, unless they are all alike, hard or soft.

    No order of such rows is better than another: they would have an AUROC of .5 whatever the logits.
    """
    for label in range(labels.shape[1]):
        known = ~labels[:, label].isnan()
        truth = labels[known, label]
        if len(truth) and truth.min() < truth.max():
            yield label, logits[known, label], truth


def _areas(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC and average precision of one label, of which each row is `truth` of a positive, the rest a negative."""
    values, group = logits.unique(return_inverse=True)  # ascending; what ties is one group
    nothing = truth.new_zeros(len(values))
    positives, negatives = nothing.index_add(0, group, truth), nothing.index_add(0, group, 1 - truth)
    below = negatives.cumsum(0) - negatives / 2
    auroc = (positives * below).sum() / (positives.sum() * negatives.sum())
    positives, negatives = positives.flip(0), negatives.flip(0)
    right, wrong = positives.cumsum(0), negatives.cumsum(0)
    return auroc, (positives * right / (right + wrong)).sum() / positives.sum()


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


def _known_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The known rows of a multi-class task."""
    rows = ~targets.isnan().any(dim=1)
    logits, targets = logits[rows], targets[rows]
    wrong = (targets.sum(dim=1) - 1).abs() > _SUM_TOLERANCE
    if targets.shape[1] and wrong.any():
        raise ValueError(f"multi-class targets must sum to 1 in each row, or be NaN; got {targets[wrong][0].tolist()}")
    return logits, targets


def _called(logits: Tensor) -> Tensor:
    """(N, T) bool, the class of the highest logit of each row, the first of equals."""
    return torch.arange(logits.shape[1]) == (logits.argmax(dim=1, keepdim=True) if logits.shape[1] else logits)


def _top_hits(logits: Tensor, targets: Tensor) -> Tensor:
    logits, targets = _known_rows(*_checked(logits, targets))
    return (_called(logits) * targets).sum(dim=1)
