"""Labels that nobody knows: left out of losses."""

from typing import Any

import torch
from torch import Tensor

from conceptcam._checks import brief


def known_rows(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) which rows are known, and multi-class targets with 0 in place of the unknown."""
    known, target = split_known(logits, targets)
    rows = known.all(dim=-1)
    sums = target.sum(dim=-1)
    if not torch.compiler.is_compiling() and len(strange := sums[rows & ((sums - 1).abs() > 1e-2)]):
        raise ValueError(f"multi-class targets must be rows that sum to 1, or hold NaN; one sums to {strange[0]:g}")
    return rows, target


def as_labels(labels: Any, like: Tensor) -> Tensor:
    """Labels as a tensor, beside another one: tensors as they are, lists and numpy arrays of numbers as floats.

    Raises:
        ValueError: If they are no numbers, or rows differ in length.
    """
    if isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(labels, dtype=torch.float32, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"labels must be numbers in rows of one length, with NaN where unknown; got {brief(labels)}"
        ) from error


def check_weight(what: str, weight: Tensor | None, labels: int) -> None:
    """Refuse weights of labels of another shape than (labels,), which would weigh images.

    Raises:
        ValueError: With both shapes.
    """
    if weight is not None and weight.shape != (labels,):
        raise ValueError(f"`{what}` must have the shape ({labels},), one weight per label; got {tuple(weight.shape)}")


def split_known(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels are known, and the labels with 0 in place of the unknown.

    In code that `torch.compile` makes, values of labels are not checked, as the check would break the graph.

    Raises:
        ValueError: If shapes differ or a known label is outside [0, 1].
    """
    labels = as_labels(labels, logits)
    if logits.shape != labels.shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but predictions {tuple(logits.shape)}")
    known = ~labels.isnan()
    target = torch.where(known, labels, 0).to(logits.dtype)
    if not torch.compiler.is_compiling() and len(strange := target[(target < 0) | (target > 1)]):
        raise ValueError(
            f"labels must be in [0, 1], or NaN where unknown; got {strange[0]:g}. If that is a code for uncertain, "
            "`conceptcam.data.labels.resolve_uncertain` says what it should count as."
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
