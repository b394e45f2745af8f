"""The trainable parts between features and task logits, in the order data meets them."""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from conceptcam.config import ProjectorKind


class ConceptHead(nn.Module):
    """Scores every concept at every place: features (B, C, h, w) -> concept maps (B, K, h, w).

    A 1x1 convolution without activation, so a concept map holds logits. Its weights start near 0: the
    maximum over a grid of randomly weighted features would start far above 0, and the loss with it.

    Args:
        in_channels: C.
        num_concepts: K.
        bias: Whether each concept has a bias.
        prior: Probability that every place starts from, through the bias; .5 is a bias of 0.
    """

    def __init__(self, in_channels: int, num_concepts: int, *, bias: bool = True, prior: float = 0.05) -> None:
        super().__init__()
        self.score = nn.Conv2d(in_channels, num_concepts, kernel_size=1, bias=bias)
        nn.init.normal_(self.score.weight, std=0.01)
        if self.score.bias is not None:
            nn.init.constant_(self.score.bias, math.log(prior / (1 - prior)))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> concept maps (B, K, h, w), logits."""
        return self.score(features)


class Projector(nn.Module):
    """Moves feature vectors into the prototypes' space: (B, N, C) -> (B, N, D).

    `project_grid` does the same at every place of a grid.
    """

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_channels, in_channels), nn.ReLU(inplace=True), nn.Linear(in_channels, embed_dim)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, N, C) -> embeddings (B, N, D)."""
        return self.layers(vectors)


class LinearProjector(nn.Module):
    """One linear layer: (B, N, C) -> (B, N, D). Stage 2 can find its weights at once; see `PrototypePlacement`."""

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, embed_dim)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, N, C) -> embeddings (B, N, D)."""
        return self.layer(vectors)


class IbnProjector(nn.Module):
    """CSR's projector: three blocks of 1-D convolution, IBN and ReLU with residual (Huy et al., 2025).

    The convolutions look at one vector at a time. IBN normalizes one half of the channels over the
    batch and the other half by instance; an instance here is one vector, so a vector is projected alike
    whether it comes alone or as one place of a grid. Widths are not stated in the paper's copies; D is
    used throughout.
    """

    def __init__(self, in_channels: int, embed_dim: int, *, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(in_channels, embed_dim)
        self.blocks = nn.ModuleList([_IbnBlock(embed_dim) for _ in range(blocks)])

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors (B, N, C) -> embeddings (B, N, D)."""
        embeddings = self.enter(vectors)
        for block in self.blocks:
            embeddings = block(embeddings)
        return embeddings


class _IbnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)
        self.batch_half = width // 2
        self.batch_norm = nn.BatchNorm1d(self.batch_half)
        self.instance_norm = nn.LayerNorm(width - self.batch_half)

    def forward(self, vectors: Tensor) -> Tensor:
        by_batch, by_instance = self.mix(vectors).tensor_split([self.batch_half], dim=-1)
        by_batch = rearrange(self.batch_norm(rearrange(by_batch, "b n d -> b d n")), "b d n -> b n d")
        return vectors + torch.cat([by_batch, self.instance_norm(by_instance)], dim=-1).relu()


def create_projector(kind: ProjectorKind, in_channels: int, embed_dim: int) -> nn.Module:
    """Build the projector a config names."""
    kinds = {"mlp": Projector, "linear": LinearProjector, "ibn": IbnProjector}
    return kinds[kind](in_channels, embed_dim)


def project_grid(projector: nn.Module, features: Tensor) -> Tensor:
    """Project the vector at every place: (B, C, h, w) -> (B, D, h, w)."""
    embeddings = projector(rearrange(features, "b c h w -> b (h w) c"))
    return rearrange(embeddings, "b (h w) d -> b d h w", h=features.shape[-2])


class Prototypes(nn.Module):
    """M learned examples of each of K concepts, compared with vectors by cosine (CSR, Eq. 10)."""

    def __init__(self, num_concepts: int, per_concept: int, embed_dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(num_concepts, per_concept, embed_dim))

    def forward(self, vectors: Tensor) -> Tensor:
        """Compare vectors (B, N, D) with all prototypes: -> cosines (B, N, K, M), in [-1, 1]."""
        return einsum(F.normalize(vectors, dim=-1), F.normalize(self.vectors, dim=-1), "b n d, k m d -> b n k m")


class TaskHead(nn.Module):
    """Computes task logits from evidence: (B, K, M) -> (B, T) (CSR, Eq. 1).

    One linear layer, so that a task logit is a bias plus one contribution per prototype. A head of your own
    must also have the method `contributions`, or its model cannot be explained.
    """

    def __init__(self, num_concepts: int, per_concept: int, num_tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_tasks, num_concepts, per_concept))
        self.bias = nn.Parameter(torch.zeros(num_tasks))

    def contributions(self, evidence: Tensor) -> Tensor:
        """What each piece of evidence adds to each task logit: (B, K, M) -> (B, T, K, M)."""
        return evidence[:, None] * self.weight

    def forward(self, evidence: Tensor) -> Tensor:
        """Evidence (B, K, M) -> task logits (B, T)."""
        return self.contributions(evidence).sum(dim=(-2, -1)) + self.bias
