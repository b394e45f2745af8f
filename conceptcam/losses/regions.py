"""Do maps stay where findings can be, such as the lungs or the lesion? A loss on what they show outside."""

import torch.nn.functional as F
from torch import Tensor

from conceptcam.losses.masking import at_least_float32


def region_loss(concept_maps: Tensor, regions: Tensor) -> Tensor:
    """How much maps show outside the region of their image.

    The mean of softplus(logit) over the places outside, that is the cross-entropy of calling each of them absent;
    a place that is partly outside counts in part. An image that is inside everywhere counts 0.

    Args:
        concept_maps: (B, K, h, w) logits.
        regions: (B, H, W) in [0, 1], 1 inside; any size.

    Returns:
        Scalar, the mean over images and concepts; exactly 0, with a gradient path, if nothing is outside.

    Raises:
        ValueError: If there is not one region per image.
    """
    if regions.ndim != 3 or len(regions) != len(concept_maps):
        raise ValueError(
            f"expected a region (H, W) for each of {len(concept_maps)} images, got the shape {tuple(regions.shape)}"
        )
    maps = at_least_float32(concept_maps)
    outside = 1 - F.adaptive_avg_pool2d(regions[:, None].to(maps), (maps.shape[2], maps.shape[3]))  # (B, 1, h, w)
    area = outside.sum(dim=(-2, -1))
    shown = (F.softplus(maps) * outside).sum(dim=(-2, -1))
    return (shown / area.clamp(min=1)).mean()
