"""Named kinds of models: what `create_model` builds."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conceptcam._checks import did_you_mean
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
"""CSR's architecture as fields of `ConceptConfig` (Huy et al., CVPR 2025; D, not known to us, is a copy's 256)."""


# The mean of a concept map is a linear layer on globally pooled features: the classic concept predictor.
CBM_FIELDS: Mapping[str, Any] = {"bottleneck": "concepts", "pooling": "mean"}
"""The concept bottleneck model of Koh et al. (ICML 2020) as fields of `ConceptConfig`."""


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """An architecture that becomes a model once concepts and tasks are named; see `recipe_config`.

    Attributes:
        name: What `recipe_config` takes.
        backbone: Name of a backbone of the zoo, which brings image size, mean and standard deviation.
        fields: Fields of `ConceptConfig` that the recipe sets.
        reference: Whose architecture it is.
    """

    name: str
    backbone: str
    fields: Mapping[str, Any]
    reference: str


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


RECIPES: Mapping[str, ModelRecipe] = {
    f"{family}_{base}": ModelRecipe(name=f"{family}_{base}", backbone=backbone, fields=fields, reference=reference)
    for family, (fields, reference) in _FAMILIES.items()
    for base, backbone in _BASES.items()
}
"""Recipes by name."""


def recipe_config(name: str, *, concepts: Iterable[str], tasks: Iterable[str] = (), **overrides: Any) -> ConceptConfig:
    """The config of a recipe, for given names.

    Args:
        name: Name of the recipe; see `list_models(kind="recipe")`.
        concepts: Concept names.
        tasks: Task names.
        overrides: Fields of `ConceptConfig` to set otherwise. Another `backbone` brings its own image size, mean
            and standard deviation.

    Raises:
        ValueError: If the recipe or a field is unknown, a value is none that the config takes, or the zoo does not
            know the backbone and so cannot say how its images are normalized.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, RECIPES)}; known: {list(RECIPES)}")
    known = {known.name for known in dataclasses.fields(ConceptConfig)}
    for field_name in overrides.keys() - known:
        raise ValueError(
            f"a config has no field {field_name!r}{did_you_mean(field_name, known)}; it has {sorted(known)}"
        )
    recipe = RECIPES[name]
    values = {"backbone": recipe.backbone, **recipe.fields, **overrides}
    values = {**_preprocessing(values), **values, "concepts": concepts, "tasks": tasks}
    for names in ("concepts", "tasks"):
        if not isinstance(values[names], str):
            values[names] = tuple(values[names])
    return ConceptConfig(**values)


def _preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Image size, mean and standard deviation that go with the backbone's weights."""
    needed = ("image_size", "mean", "std")
    record = backbone_info(str(values["backbone"]))
    if record is not None:
        return {name: getattr(record, name) for name in needed}
    if missing := [name for name in needed if name not in values]:
        raise ValueError(
            f"the zoo does not know backbone {values['backbone']!r} and how its images are normalized"
            f"{did_you_mean(str(values['backbone']), BACKBONES)}; give {', '.join(missing)} too"
        )
    return {}
