"""What a model says about a batch, one named tensor per step."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from conceptcam.config import ConceptConfig, TrainingRecord


class ConceptPart(NamedTuple):
    """The first half of a forward pass: which concepts, and where.

    Shapes use B images, C feature channels, an h x w feature grid and K concepts.
    """

    features: Tensor
    """(B, C, h, w) backbone features."""
    concept_maps: Tensor
    """(B, K, h, w) logit of each concept at each place, indexed [row, column]."""
    concept_logits: Tensor
    """(B, K) logit of each concept in the image."""


class PrototypePart(NamedTuple):
    """What stage 2 learns from: how similar the concepts' vectors are to the prototypes."""

    vector_similarity: Tensor
    """(B, K, K, M) cosine of concept k's vector with prototype m of concept j, indexed [b, k, j, m]; 0 where the
    stage leaves concept k of image b out."""


class TaskPart(NamedTuple):
    """What stage 3 learns from: the evidence and the task logits."""

    evidence: Tensor
    """(B, K, M) highest value of each similarity map, or (B, K, 1) concept probabilities."""
    task_logits: Tensor
    """(B, T) logit of each task."""


class ConceptOutput(NamedTuple):
    """One forward pass, from features to task logits, with every step in between.

    Shapes use B images, C feature channels, an h x w feature grid, K concepts, M prototypes per
    concept and T tasks. Read fields by name: new ones may be added. In a `"concepts"` bottleneck there
    are no prototypes, so M is 0 in the similarities, and the evidence of a concept is its probability.
    """

    features: Tensor
    """(B, C, h, w) backbone features."""
    concept_maps: Tensor
    """(B, K, h, w) logit of each concept at each place, indexed [row, column]."""
    concept_logits: Tensor
    """(B, K) logit of each concept in the image."""
    vector_similarity: Tensor
    """(B, K, K, M) cosine of concept k's vector with prototype m of concept j, indexed [b, k, j, m]."""
    similarity_maps: Tensor
    """(B, K, M, h, w) cosine of each place with each prototype, clipped at 0, in [0, 1]."""
    evidence: Tensor
    """(B, K, M) highest value of each similarity map, or (B, K, 1) concept probabilities."""
    task_logits: Tensor
    """(B, T) logit of each task."""

    def as_dict(self) -> dict[str, Tensor]:
        """The tensors under the names that earlier training code uses."""
        return {
            "features": self.features,
            "cams": self.concept_maps,
            "concept_logits": self.concept_logits,
            "similarity_maps": self.similarity_maps,
            "similarity_scores": self.evidence,
            "logits": self.task_logits,
        }


# Files of torch may hold these: those of `torch.save`, read with `weights_only=True`, and of `torch.export.save`.
_OUTPUTS: tuple[type, ...] = (ConceptPart, PrototypePart, TaskPart, ConceptOutput)
torch.serialization.add_safe_globals([ConceptConfig, TrainingRecord, *_OUTPUTS])
for _kind in _OUTPUTS:
    _pytree._register_namedtuple(_kind, serialized_type_name=f"{__name__}.{_kind.__name__}")
