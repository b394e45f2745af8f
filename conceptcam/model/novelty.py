"""Whether a model may say anything about an image: how unlike its training images it is, as the record tells."""

import base64

import numpy as np
import torch
from torch import Tensor

from conceptcam.config import TrainingRecord
from conceptcam.metrics.novelty import FeatureStatistics, feature_distance


def unlikeness(record: TrainingRecord, features: Tensor) -> Tensor:
    """How far images are from the training images, in units of the distance from which they count as unlike.

    Args:
        record: Of the model; see `fit_novelty`.
        features: (B, C, h, w), as `ConceptPart` holds them.

    Returns:
        (B,) float64 on the CPU: above 1 is unlike; NaN if the record has no statistics.
    """
    if not record.feature_statistics or record.unlike_from is None:
        return torch.full((len(features),), torch.nan, dtype=torch.float64)
    pooled = features.mean(dim=(-2, -1))
    return feature_distance(pooled, unpack_statistics(record.feature_statistics, pooled.shape[1])) / record.unlike_from


def unlike_sentence(record: TrainingRecord, value: float) -> str:
    """What to say first about an image that is unlike the training images; empty if it is not, or nobody can tell."""
    if not value > 1:
        return ""
    return (
        f"this image is unlike those the model was trained on ({value:.1f} times as far as {record.unlike_source}); "
        "what follows means little"
    )


def pack_statistics(statistics: FeatureStatistics) -> str:
    """Statistics as text: their numbers in a row, as float32 of lowest byte first, in base64."""
    numbers = torch.cat([part.flatten() for part in statistics]).float().numpy()
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode("ascii")


def unpack_statistics(text: str, channels: int) -> FeatureStatistics:
    """What `pack_statistics` wrote of features of C channels.

    Raises:
        ValueError: If the text holds statistics of other features.
    """
    try:
        numbers = torch.from_numpy(np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64))
    except ValueError as error:
        raise ValueError(f"`feature_statistics` of the record cannot be read: {error}") from error
    rank, left = divmod(len(numbers) - 2 * channels - 1, channels + 1)
    if rank < 1 or left:
        raise ValueError(f"`feature_statistics` of the record are not those of features of {channels} channels")
    mean, std, directions, variances, rest = numbers.split([channels, channels, rank * channels, rank, 1])
    return FeatureStatistics(mean, std, directions.view(rank, channels), variances, rest[0])


def unlike_threshold(distances: Tensor) -> tuple[float, str]:
    """From which distance an image is unlike, and in words of how many validation images (N,) it is that."""
    count = len(distances)
    if count < 1000:
        return float(distances.max()), f"the furthest of {count} validation images"
    return float(distances.quantile(0.999)), f"99.9 % of {count} validation images"


def can_tell(record: TrainingRecord) -> bool:
    """Whether the record has what it takes."""
    return bool(record.feature_statistics) and record.unlike_from is not None
