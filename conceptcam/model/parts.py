"""Which parts does a config call for, and how large is each?"""

from pathlib import Path
from typing import Any

from conceptcam.backbones import Backbone, create_backbone
from conceptcam.config import ConceptConfig
from conceptcam.model.heads import ConceptHead, Prototypes, TaskHead, create_projector
from conceptcam.model.pooling import create_pooling


def standard_parts(
    config: ConceptConfig,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
) -> dict[str, Any]:
    """The parts of a model, sized by its config and untrained, save perhaps the backbone.

    `ConceptModel.from_config` builds a model of them. To put in a part of your own, replace its entry:
    `ConceptModel(config, **standard_parts(config) | {"pool": my_pooling})`.

    Args:
        config: What the model is.
        pretrained_backbone: Whether to download the backbone's published weights.
        backbone_weights: A file or a place on the Hub to start the backbone from; see `create_backbone`.

    Returns:
        Argument of `ConceptModel` -> the part; `projector` and `prototypes` are None in a `"concepts"` bottleneck.

    Raises:
        ValueError: If a name in the config is unknown, or the weights do not fit.
    """
    backbone = create_backbone(
        config.backbone,
        pretrained=pretrained_backbone,
        weights=backbone_weights,
        image_size=config.image_size,
        feature_level=config.feature_level,
        in_chans=config.in_chans,
    )
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"backbone {config.backbone!r} gave a {type(backbone).__name__}; its factory must return a `Backbone`"
        )
    channels, concepts = backbone.out_channels, len(config.concepts)
    with_prototypes = config.bottleneck == "prototypes"
    per_concept = config.prototypes_per_concept if with_prototypes else 1
    return {
        "backbone": backbone,
        "concept_head": ConceptHead(channels, concepts, bias=config.head_bias, prior=_prior(config.pooling)),
        "pool": create_pooling(config.pooling, num_concepts=concepts, value=config.pooling_param),
        "projector": create_projector(config.projector, channels, config.embed_dim) if with_prototypes else None,
        "prototypes": Prototypes(concepts, per_concept, config.embed_dim) if with_prototypes else None,
        "task_head": TaskHead(concepts, per_concept, len(config.tasks)),
    }


def _prior(pooling: str) -> float:
    """Probability that every place starts from, such that a concept is hardly ever seen in the whole image."""
    # Noisy-or adds places up: the same start at each of, say, 14 x 14 would be near certainty.
    return 0.05 / 14**2 if pooling == "noisy_or" else 0.05
