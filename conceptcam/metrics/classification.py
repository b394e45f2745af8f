"""How well logits tell labels apart: AUROC, average precision and F1, per label and with support.

One rule for labels holds throughout: above 0.5 is present, up to 0.5 is absent (soft labels, such as the
share of readers who saw a finding, are rounded, because a ranking needs two sides), NaN is unknown and
left out of its label alone. A score that cannot be had is NaN, and so is no part of a macro average.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from conceptcam.config import TaskKind
from conceptcam.metrics.gather import RowMetric, ShareMetric


class LabelScores(NamedTuple):
    """Scores of L labels, each of shape (L,), float64 on the CPU; support as integers."""

    auroc: Tensor
    """Area under the ROC curve, ties counted half; NaN unless the label occurs both ways."""
    average_precision: Tensor
    """Sum over ranks of precision times gain in recall; NaN unless the label occurs both ways, because
    without negatives it is 1 whatever the scores are."""
    f1: Tensor
    """F1 at the threshold; NaN without positives, or where the threshold is NaN."""
    positives: Tensor
    """How many rows are known to have the label."""
    negatives: Tensor
    """How many rows are known to lack it."""


def macro(values: Tensor) -> Tensor:
    """Mean over those of the values that are defined; NaN if none is."""
    return values.nanmean()


def label_scores(logits: Tensor, labels: Tensor, *, threshold: float | Tensor = 0.5) -> LabelScores:
    """Scores of each label on its own.

    Rows are ranked by logit in float64: a float32 probability is 1 from a logit of 17 on, which would
    tie the surest rows. Areas are torchmetrics', whose float32 sums agree with exact ones to about 1e-6.

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
        targets: (N, T) in [0, 1]; NaN where unknown. For `"multiclass"` rows sum to 1, the true class is
            the one with the largest share, and a row with a NaN is unknown as a whole.
        kind: `"multilabel"` or `"multiclass"`.
        threshold: As in `label_scores`; for `"multilabel"` alone.

    Raises:
        ValueError: As `label_scores`, or if a multi-class row does not sum to 1.
    """
    if kind == "multilabel":
        return label_scores(logits, targets, threshold=threshold)
    logits, targets = _one_hot_rows(*_checked(logits, targets))
    called = _one_hot(logits) > 0
    others = torch.eye(logits.shape[1], dtype=torch.bool)
    rest = logits[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=-1)  # (N, T), over the others
    return _scores(logits - rest, targets, called)


def top_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of known rows whose highest logit is that of the true class; NaN if no row is known.

    Args:
        logits: (N, T).
        targets: (N, T), multi-class as in `task_scores`.

    Raises:
        ValueError: As `task_scores`.
    """
    return _top_hits(logits, targets).mean()


def best_thresholds(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability threshold of each label that gives the highest F1; choose it on validation data.

    It lies half-way between the probabilities (in float64) it separates. Of equally good ones the highest
    is given.

    Args:
        logits: (N, L).
        labels: (N, L) in [0, 1]; NaN where unknown.

    Returns:
        (L,) float64; NaN for a label that does not occur both ways, as there is nothing to weigh up.

    Raises:
        ValueError: As `label_scores`.
    """
    logits, labels = _checked(logits, labels)
    known = ~labels.isnan()
    best = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    for label in _occurs_both_ways(labels).nonzero()[:, 0].tolist():
        rows = known[:, label]
        best[label] = _best_threshold(logits[rows, label].sigmoid(), labels[rows, label] > 0.5)
    return best


class MacroAUROC(RowMetric):
    """Mean AUROC over the labels that occur both ways; NaN if none does.

    torchmetrics' own macro average counts an absent label as 0, which drags the mean down whenever the
    validation set lacks a rare finding.

    Args:
        kind: `"multilabel"`, also for concepts, or `"multiclass"`.
        min_support: Labels with fewer positives or fewer negatives are left out, unless all have fewer: the
            AUROC of a label with one negative is that one image's rank.
    """

    higher_is_better = True

    def __init__(self, kind: TaskKind = "multilabel", *, min_support: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.min_support = min_support

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, L) and labels (N, L) in [0, 1], NaN where unknown."""
        self.keep(_rows(logits, labels))

    def compute(self) -> Tensor:
        """The mean, a float64 scalar."""
        logits, labels = self.kept(0, 2).unbind(-1)
        scores = task_scores(logits, labels, self.kind)
        enough = torch.minimum(scores.positives, scores.negatives) >= self.min_support
        return macro(scores.auroc[enough] if enough.any() else scores.auroc)


class LabelMetrics(RowMetric):
    """`LabelScores` over all batches.

    Args:
        kind: `"multilabel"`, also for concepts, or `"multiclass"`.
        threshold: As in `label_scores`.
    """

    def __init__(self, kind: TaskKind = "multilabel", *, threshold: float | Tensor = 0.5) -> None:
        super().__init__()
        self.kind = kind
        self.threshold = threshold

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, L) and labels (N, L) in [0, 1], NaN where unknown."""
        self.keep(_rows(logits, labels))

    def compute(self) -> LabelScores:
        """The scores of each label; of no labels, if there was no batch."""
        logits, labels = self.kept(0, 2).unbind(-1)
        return task_scores(logits, labels, self.kind, threshold=self.threshold)


class TopAccuracy(ShareMetric):
    """`top_accuracy` over all batches."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add logits (N, T) and multi-class targets (N, T)."""
        self.count(_top_hits(logits, targets))


def _checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU."""
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(f"logits and labels must both be (N, L), got {tuple(logits.shape)} and {tuple(labels.shape)}")
    logits, labels = logits.detach().double().cpu(), labels.detach().double().cpu()
    if ((labels < 0) | (labels > 1)).any():
        raise ValueError(
            f"labels must lie in [0, 1], with NaN for unknown; got {labels.nan_to_num().min():g} "
            f"to {labels.nan_to_num().max():g}"
        )
    if logits.isnan().any():
        strange = logits.isnan().any(dim=0).nonzero()[:, 0].tolist()
        raise ValueError(f"logits of labels {strange} hold NaN: the model or its input is broken")
    return logits, labels


def _scores(logits: Tensor, labels: Tensor, called: Tensor) -> LabelScores:
    known, present = ~labels.isnan(), labels > 0.5
    positives = present.sum(dim=0)
    # F1 in place of torchmetrics': one line for all labels, in float64, and NaN without positives.
    f1 = 2 * (called & present).sum(dim=0).double() / ((called & known).sum(dim=0) + positives)
    auroc = torch.full(labels.shape[1:], torch.nan, dtype=torch.float64)
    precision = auroc.clone()
    for label in _occurs_both_ways(labels).nonzero()[:, 0].tolist():
        rows = known[:, label]
        # Ranks in [0, 1) stand for the logits: torchmetrics takes a sigmoid of anything outside [0, 1].
        rank = torch.unique(logits[rows, label], return_inverse=True)[1].double() / len(logits)
        truth = present[rows, label].long()
        auroc[label] = binary_auroc(rank, truth, validate_args=False)
        precision[label] = binary_average_precision(rank, truth, validate_args=False)
    negatives = (known & ~present).sum(dim=0)
    return LabelScores(auroc, precision, f1.masked_fill(positives == 0, torch.nan), positives, negatives)


def _occurs_both_ways(labels: Tensor) -> Tensor:
    return (labels > 0.5).any(dim=0) & (labels <= 0.5).any(dim=0)


def _best_threshold(probability: Tensor, present: Tensor) -> Tensor:
    values, order = probability.sort(descending=True)
    f1 = 2 * present[order].cumsum(0).double() / (torch.arange(1, len(values) + 1) + present.sum())
    below = torch.cat([values[1:], values.new_zeros(1)])
    f1[values == below] = -1  # no threshold lies between equal values
    best = f1.argmax()
    middle = (values[best] + below[best]) / 2
    # Between neighbouring floats the middle rounds to either; it must not reach the upper one.
    return torch.where(middle < values[best], middle, below[best])


def _one_hot_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The known rows of a multi-class task, the true class as 1 and the others as 0."""
    rows = ~targets.isnan().any(dim=1)
    logits, targets = logits[rows], targets[rows]
    wrong = (targets.sum(dim=1) - 1).abs() > 1e-3
    if targets.shape[1] and wrong.any():
        raise ValueError(f"multi-class targets must sum to 1 in each row, or be NaN; got {targets[wrong][0].tolist()}")
    return logits, _one_hot(targets)


def _one_hot(scores: Tensor) -> Tensor:
    """1 at the highest of each row, the first of equals, and 0 elsewhere."""
    if scores.shape[1] == 0:
        return scores
    return torch.zeros_like(scores).scatter(1, scores.argmax(dim=1, keepdim=True), 1.0)


def _top_hits(logits: Tensor, targets: Tensor) -> Tensor:
    logits, targets = _one_hot_rows(*_checked(logits, targets))
    return (_one_hot(logits) * targets).sum(dim=1)


def _rows(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, L, 2) of both, so that one gather moves them."""
    if logits.shape != labels.shape:
        raise ValueError(f"logits and labels must have one shape, got {tuple(logits.shape)} and {tuple(labels.shape)}")
    at_least = torch.promote_types(logits.dtype, torch.float32)
    return torch.stack([logits.to(at_least), labels.to(at_least)], dim=-1)
