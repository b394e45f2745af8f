"""Named architectures: what `create_model` builds for your concepts and tasks."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conceptcam._checks import check_known, check_not_str, did_you_mean
from conceptcam.config import ConceptConfig
from conceptcam.hub.published_backbones import BACKBONES, backbone_info

CSR_FIELDS: Mapping[str, Any] = {
    "pooling": "mean",
    "pooling_param": None,
    "head_bias": False,
    "projector": "ibn",
    "embed_dim": 256,
    "prototypes_per_concept": 100,
}
"""CSR as fields of `ConceptConfig` (Huy et al., CVPR 2025; its D is not known to us, a copy of its code has 256)."""

# The mean of a concept map is a linear layer on globally pooled features: the classic concept predictor.
CBM_FIELDS: Mapping[str, Any] = {"bottleneck": "concepts", "pooling": "mean"}
"""The concept bottleneck model of Koh et al. (ICML 2020) as fields of `ConceptConfig`."""

_FAMILIES: dict[str, tuple[Mapping[str, Any], str]] = {
    "csr": (
        CSR_FIELDS,
        "Huy et al., Interactive Medical Image Analysis with Concept-based Similarity Reasoning, CVPR 2025",
    ),
    "cbm": (CBM_FIELDS, "Koh et al., Concept Bottleneck Models, ICML 2020"),
}
_BASES = {
    "medmae_vit_b16": "medmae_vit_b16",
    "medical_mae_vit_b16": "medical_mae_vit_b16",
    "rad_dino_vit_b14": "rad_dino_vit_b14",
    "convnext_tiny": "timm:convnext_tiny.in12k_ft_in1k",
    "resnet50": "timm:resnet50.a1_in1k",
    "vit_b16": "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of model that `create_model` builds once concepts and tasks are named.

    Attributes:
        name: What `create_model` takes.
        backbone: A backbone of the zoo, which brings image size, mean and standard deviation.
        fields: Fields of `ConceptConfig` that the architecture sets.
        reference: Whose architecture it is.
    """

    name: str
    backbone: str
    fields: Mapping[str, Any]
    reference: str


ARCHITECTURES: Mapping[str, Architecture] = {
    f"{family}_{base}": Architecture(name=f"{family}_{base}", backbone=backbone, fields=fields, reference=reference)
    for family, (fields, reference) in _FAMILIES.items()
    for base, backbone in _BASES.items()
}
"""Architectures by name."""


def architecture_config(
    name: str, *, concepts: Iterable[str], tasks: Iterable[str] = (), **overrides: Any
) -> ConceptConfig:
    """The config of an architecture for your concepts and tasks.

    Args:
        name: A name that `list_architectures` lists.
        concepts: Concept names.
        tasks: Task names.
        overrides: Fields of `ConceptConfig` that shall differ. Another `backbone` brings its own image size, mean
            and standard deviation.

    Raises:
        ValueError: If the architecture or a field is unknown, if the config refuses a value, or if the zoo does not
            know the backbone and the normalization of its images was not given.
    """
    check_known("architecture", name, ARCHITECTURES)
    known = {known.name for known in dataclasses.fields(ConceptConfig)}
    for field_name in overrides.keys() - known:
        hint = did_you_mean(field_name, known)
        raise ValueError(f"a config has no field {field_name!r}{hint}; it has {sorted(known)}")
    values = {"backbone": ARCHITECTURES[name].backbone, **ARCHITECTURES[name].fields, **overrides}
    check_not_str("concepts", concepts)
    check_not_str("tasks", tasks)
    return ConceptConfig(**{**_preprocessing(values), **values, "concepts": tuple(concepts), "tasks": tuple(tasks)})


def _preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Image size, mean and standard deviation that go with the backbone's weights."""
    needed = ("image_size", "mean", "std")
    backbone = str(values["backbone"])
    if (info := backbone_info(backbone)) is not None:
        return {name: getattr(info, name) for name in needed}
    if missing := [name for name in needed if name not in values]:
        raise ValueError(
            f"the zoo does not know backbone {values['backbone']!r} and how its images are normalized"
            f"{did_you_mean(backbone, BACKBONES)}; give {', '.join(missing)} too"
        )
    return {}
