"""How unlike the training images an image is: the distance of its pooled features from theirs.

Concept models answer to anything, a photograph of a cat included, and with confidence. Features of what a backbone has
not learned from lie outside the cloud of the training features, mostly in directions in which these hardly vary. So the
distance has two parts of equal weight: along the main directions of the cloud, each in units of its own spread, as
Mahalanobis's, and away from all of them, in units of what training images leave over.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST = 1e-6  # spread of a channel that never varies


class FeatureStatistics(NamedTuple):
    """Where features of training images lie; float64 on the CPU."""

    mean: Tensor
    """(C,)"""
    std: Tensor
    """(C,)"""
    directions: Tensor
    """(R, C) main directions of features that were standardized, of length 1 and at right angles."""
    variances: Tensor
    """(R,) of the training features along them."""
    rest: Tensor
    """Mean squared length of what lies outside of all directions, a scalar."""


def fit_feature_statistics(features: Tensor, *, rank: int = 16) -> FeatureStatistics:
    """Statistics of pooled features.

    Args:
        features: (N, C), a row per training image; two thousand are plenty.
        rank: How many main directions R to keep, at most; there are never more than C - 1 or a quarter of N.

    Raises:
        ValueError: If there are fewer than 8 rows, or a number is not finite.
    """
    if features.ndim != 2 or len(features) < 8 or not features.isfinite().all():
        raise ValueError(f"need at least 8 rows of finite features (N, C), got shape {tuple(features.shape)}")
    features = features.detach().double().cpu()
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=_SMALLEST)
    standard = (features - mean) / std
    variances, directions = torch.linalg.eigh(standard.T @ standard / len(standard))  # ascending
    kept = max(1, min(rank, features.shape[1] - 1, len(features) // 4))
    directions, variances = directions.T[-kept:], variances[-kept:].clamp(min=_SMALLEST)
    outside = standard - standard @ directions.T @ directions
    return FeatureStatistics(mean, std, directions, variances, outside.square().sum(dim=1).mean().clamp(min=_SMALLEST))


def feature_distance(features: Tensor, statistics: FeatureStatistics) -> Tensor:
    """(N,) distance of features (N, C) from those of training, float64 on the CPU; about 1.4 for a training image."""
    standard = (features.detach().double().cpu() - statistics.mean) / statistics.std
    along = standard @ statistics.directions.T
    outside = standard - along @ statistics.directions
    within = (along.square() / statistics.variances).mean(dim=1)
    return (within + outside.square().sum(dim=1) / statistics.rest).sqrt()
