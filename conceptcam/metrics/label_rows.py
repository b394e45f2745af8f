"""What a row counts as under each label: a soft label in part, an unknown one not at all."""

from collections.abc import Iterator

import torch
from torch import Tensor

# As in the losses, so that what can be trained on can be measured: shares rounded to two digits, or in bfloat16.
_SUM_TOLERANCE = 1e-2


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Refuse logits and labels that are not both (N, L)."""
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(f"logits and labels must both be (N, L), got {tuple(logits.shape)} and {tuple(labels.shape)}")


def checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels (N, L) in float64 on the CPU.

    Raises:
        ValueError: If shapes differ, a label lies outside [0, 1], or a logit is NaN.
    """
    check_shapes(logits, labels)
    logits, labels = logits.detach().double().cpu(), labels.detach().double().cpu()
    if len(strange := labels[(labels < 0) | (labels > 1)]):
        raise ValueError(f"labels must lie in [0, 1], with NaN for unknown; got {strange[0]:g}")
    if broken := logits.isnan().any(dim=0).nonzero()[:, 0].tolist():
        raise ValueError(f"logits of labels {broken} hold NaN: the model or its input is broken")
    return logits, labels


def known_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a multi-class task of which no target is NaN.

    Raises:
        ValueError: If the targets of one of them do not sum to 1.
    """
    rows = ~targets.isnan().any(dim=1)
    logits, targets = logits[rows], targets[rows]
    wrong = (targets.sum(dim=1) - 1).abs() > _SUM_TOLERANCE
    if targets.shape[1] and wrong.any():
        raise ValueError(f"multi-class targets must sum to 1 in each row, or be NaN; got {targets[wrong][0].tolist()}")
    return logits, targets


def sides(labels: Tensor) -> tuple[Tensor, Tensor]:
    """How much each row counts as present, and as absent; unknown ones as neither."""
    known = ~labels.isnan()
    return torch.where(known, labels, 0), torch.where(known, 1 - labels, 0)


def rankable(logits: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index, logits and labels of the known rows of each label, unless they are all alike, hard or soft.

    No order of such rows is better than another: they would have an AUROC of .5 whatever the logits.
    """
    for label in range(labels.shape[1]):
        known = ~labels[:, label].isnan()
        truth = labels[known, label]
        if len(truth) and truth.min() < truth.max():
            yield label, logits[known, label], truth
