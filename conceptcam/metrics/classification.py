"""How well logits tell labels apart: AUROC, average precision and F1, per label and with support.

One rule for labels holds throughout, the one of losses and weights: a label y counts as y of a positive and as
1 - y of a negative, so that a soft one, such as the fraction of readers who saw a finding, is never rounded; NaN is
unknown and left out of its label alone. Where labels are soft, not even the best ranking has an AUROC of 1. A score
that cannot be had is NaN, and so is no part of a macro average.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import check_choice, check_number
from conceptcam.config import TaskKind
from conceptcam.metrics.base import FractionMetric, RowMetric
from conceptcam.metrics.label_rows import check_shapes, checked, known_rows, rankable, sides


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
    logits, labels = checked(logits, labels)
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
    logits, targets = known_rows(*checked(logits, targets))
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
    logits, targets = known_rows(*checked(logits, targets))
    return targets.T @ _called(logits).double()


def balanced_accuracy(confusion: Tensor) -> Tensor:
    """Mean over the classes that occur of how many of their rows are called right (macro recall); NaN if none occurs.

    The same answer for all rows gives 1 over the number of these classes, however common the one called is.

    Args:
        confusion: (T, T), as `confusion_matrix` gives it.
    """
    return macro_average(confusion.diagonal() / confusion.sum(dim=1))


class _LabelRows(RowMetric):
    """Base of metrics of logits and labels that are known only once all rows are."""

    def __init__(self, kind: TaskKind) -> None:
        super().__init__()
        check_choice("kind", kind, TaskKind)
        self.kind: TaskKind = kind

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, L) and labels (N, L) in [0, 1], NaN where unknown."""
        check_shapes(logits, labels)
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
        check_number("`min_support`", min_support, 0, whole=True)
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


def _scores(logits: Tensor, labels: Tensor, called: Tensor) -> LabelScores:
    present, absent = sides(labels)
    positives, negatives = present.sum(dim=0), absent.sum(dim=0)
    f1 = 2 * (called * present).sum(dim=0) / ((called * (present + absent)).sum(dim=0) + positives)
    auroc = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    precision = auroc.clone()
    for label, ranked, truth in rankable(logits, labels):
        auroc[label], precision[label] = _areas(ranked, truth)
    return LabelScores(auroc, precision, f1.masked_fill(positives == 0, torch.nan), positives, negatives)


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


def _called(logits: Tensor) -> Tensor:
    """(N, T) bool, the class of the highest logit of each row, the first of equals."""
    return torch.arange(logits.shape[1]) == (logits.argmax(dim=1, keepdim=True) if logits.shape[1] else logits)


def _top_hits(logits: Tensor, targets: Tensor) -> Tensor:
    logits, targets = known_rows(*checked(logits, targets))
    return (_called(logits) * targets).sum(dim=1)
