"""Poolings: how a map of one concept becomes one logit for the whole image."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conceptcam._checks import check_known


class MaxPool(nn.Module):
    """The highest place decides. Sharp maps, but only one place per image learns; ties share the gradient."""

    def forward(self, maps: Tensor) -> Tensor:
        """Concept maps (B, K, h, w) -> concept logits (B, K)."""
        return maps.amax(dim=(-2, -1))


class MeanPool(nn.Module):
    """Every place has an equal say (global average pooling). Small findings are diluted."""

    def forward(self, maps: Tensor) -> Tensor:
        """Concept maps (B, K, h, w) -> concept logits (B, K)."""
        return maps.mean(dim=(-2, -1))


class LsePool(nn.Module):
    """Log-mean-exp: between mean (`r` near 0) and max (`r` large) (Pinheiro and Collobert, 2015)."""

    def __init__(self, r: float = 5.0) -> None:
        super().__init__()
        if not r > 0:
            raise ValueError(f"`r` of lse pooling (`pooling_param`, --pooling-param) must be above 0, got {r}")
        self.r = r

    def forward(self, maps: Tensor) -> Tensor:
        """Concept maps (B, K, h, w) -> concept logits (B, K)."""
        places = maps.shape[-2] * maps.shape[-1]
        return (torch.logsumexp(self.r * maps, dim=(-2, -1)) - math.log(places)) / self.r


class TopkPool(nn.Module):
    """The mean of the `k` highest places, of all of them where the grid has fewer; or of a fraction of all places.

    Args:
        k: How many places, a whole number of at least 1; or which fraction of the grid, above 0 and below 1. A
            fraction means the same on a fine grid and on a coarse one, and is at least one place.
    """

    def __init__(self, k: float = 4) -> None:
        super().__init__()
        if not (0 < k < 1 or (k >= 1 and k == int(k))):
            raise ValueError(
                "`k` of topk pooling (`pooling_param`, --pooling-param) must be a fraction below 1 or a whole number "
                f"of at least 1, got {k}"
            )
        self.k = k if k < 1 else int(k)

    def forward(self, maps: Tensor) -> Tensor:
        """Concept maps (B, K, h, w) -> concept logits (B, K)."""
        places = maps.flatten(-2)
        count = places.shape[-1]
        k = max(1, round(self.k * count)) if self.k < 1 else min(int(self.k), count)
        return places.topk(k, dim=-1).values.mean(dim=-1)


class NoisyOrPool(nn.Module):
    """The concept is present if it is at any place, places being independent: 1 - prod(1 - p).

    An untrained grid of n places at logit 0 starts at 1 - 2^-n, so start the head from a low bias.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Concept maps (B, K, h, w) -> concept logits (B, K)."""
        absent = F.softplus(maps).sum(dim=(-2, -1))  # -log of the probability that it is nowhere
        # logit(1 - e^-a) = a + log(1 - e^-a), which neither overflows for large a nor cancels for small.
        return absent + torch.log(-torch.expm1(-absent.clamp(min=torch.finfo(absent.dtype).tiny)))


class AttentionPool(nn.Module):
    """The mean over places weighed by the softmax of the map, one learned sharpness per concept.

    Starts as plain softmax attention and can learn to be the mean (0) or the max (large), per concept
    (McFee, Salamon and Bello, 2018, "Adaptive pooling operators").
    """

    def __init__(self, num_concepts: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.ones(num_concepts))

    def forward(self, maps: Tensor) -> Tensor:
        """Concept maps (B, K, h, w) -> concept logits (B, K)."""
        places = maps.flatten(-2)
        weights = (self.sharpness[:, None] * places).softmax(dim=-1)
        return (weights * places).sum(dim=-1)


_POOLINGS: dict[str, Callable[[int, float | None], nn.Module]] = {
    "max": lambda concepts, value: MaxPool(),
    "mean": lambda concepts, value: MeanPool(),
    "lse": lambda concepts, value: LsePool() if value is None else LsePool(value),
    "topk": lambda concepts, value: TopkPool() if value is None else TopkPool(value),
    "noisy_or": lambda concepts, value: NoisyOrPool(),
    "attention": lambda concepts, value: AttentionPool(concepts),
}
_WITH_VALUE = ("lse", "topk")


def list_poolings() -> list[str]:
    """Names that `create_pooling` knows, sorted."""
    return sorted(_POOLINGS)


def create_pooling(name: str, *, num_concepts: int, value: float | None = None) -> nn.Module:
    """Build a pooling by name: a module from concept maps (B, K, h, w) to concept logits (B, K).

    Args:
        name: One of `list_poolings()`.
        num_concepts: K, for poolings that learn something per concept.
        value: `k` of `topk`, a number of places or a fraction of them, or `r` of `lse`; None takes their default.

    Raises:
        ValueError: If no pooling has that name, or a value is given to one that takes none.
    """
    check_known("pooling", name, list_poolings())
    if value is not None and name not in _WITH_VALUE:
        raise ValueError(f"pooling {name!r} takes no value, got {value}; only {list(_WITH_VALUE)} do")
    return _POOLINGS[name](num_concepts, value)
