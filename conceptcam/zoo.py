"""What can be loaded by name: backbones, recipes, models in the package; whence, how normalized, under which licence.

Records only: nothing here imports a network or touches the Hub.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from conceptcam.config import ConceptConfig, ModelRecord, did_you_mean, from_json

Kind = Literal["model", "recipe", "backbone"]
Format = Literal["mae", "timm", "huggingface-vit", "dinov2"]
Channels = tuple[float, float, float]

MODELS = Path(__file__).parent / "models"
"""Folder of the models that come with the package."""

VINDR_CONCEPTS: tuple[str, ...] = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung cavity",
    "Lung cyst",
    "Lung opacity",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pulmonary fibrosis",
    "Pneumothorax",
    "Pleural thickening",
    "Pleural effusion",
    "Rib fracture",
    "Other lesion",
)
"""The 22 local labels of VinDr-CXR, in its own order (Nguyen et al., 2022)."""

VINDR_TASKS: tuple[str, ...] = (
    "Pneumonia",
    "Tuberculosis",
    "Lung tumor",
    "COPD",
    "Other diseases",
    "No finding",
)
"""The six global labels of VinDr-CXR, in its own order."""

CSR_FIELDS: Mapping[str, Any] = {
    "pooling": "mean",
    "pooling_value": None,
    "head_bias": False,
    "projector": "ibn",
    "embed_dim": 256,
    "prototypes_per_concept": 100,
}
"""CSR's architecture as fields of `ConceptConfig` (Huy et al., CVPR 2025; D, not known to us, is a copy's 256)."""

# The mean of a concept map is a linear layer on globally pooled features: the classic concept predictor.
CBM_FIELDS: Mapping[str, Any] = {"bottleneck": "concepts", "pooling": "mean"}
"""The concept bottleneck model of Koh et al. (ICML 2020) as fields of `ConceptConfig`."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_STD = (0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583)


@dataclass(frozen=True, kw_only=True)
class BackboneRecord:
    """Everything that must travel with the published weights of a backbone.

    Attributes:
        name: What `create_backbone` takes.
        architecture: The timm model whose parameters the weights fill.
        repository: Hub repository of the weights; None if no program may fetch them.
        revision: Commit, tag or branch; None is the main branch.
        file: Path of the weights within the repository.
        format: Whose parameter names the file has.
        image_size: (H, W) in pixels that the weights were trained at.
        mean: Per-channel mean, of images in [0, 1], that the weights were trained with.
        std: Per-channel standard deviation likewise.
        grid: (h, w), cells of the last feature grid at `image_size`.
        license: Identifier as in SPDX.
        commercial_use: Whether that licence allows commercial use.
        citation: What its authors ask to be cited.
        note: What else must be known before use.
    """

    name: str
    architecture: str
    repository: str | None
    file: str | None
    license: str
    commercial_use: bool
    citation: str
    revision: str | None = None
    format: Format = "timm"
    image_size: tuple[int, int] = (224, 224)
    mean: Channels = _IMAGENET_MEAN
    std: Channels = _IMAGENET_STD
    grid: tuple[int, int] = (14, 14)
    note: str = ""

    @property
    def downloadable(self) -> bool:
        """Whether a program can fetch the weights."""
        return self.repository is not None


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


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """A taught model that comes with the package.

    Attributes:
        name: What `ConceptModel.from_pretrained` takes.
        folder: Where it is.
        config: What it is.
        record: What it has been taught.
        license: Identifier as in SPDX; the package's own.
    """

    name: str
    folder: Path
    config: ConceptConfig
    record: ModelRecord = field(default_factory=ModelRecord)
    license: str = "Apache-2.0"


def _timm(model: str, citation: str, **facts: Any) -> BackboneRecord:
    """A record of weights that timm publishes and loads itself."""
    facts = {"license": "Apache-2.0", "commercial_use": True, "name": f"timm:{model}", **facts}
    return BackboneRecord(
        architecture=model.partition(".")[0],
        repository=f"timm/{model}",
        file="model.safetensors",
        citation=citation,
        **facts,
    )


_MEDICAL_MAE = "Xiao et al., Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, WACV 2023"
_MEDICAL_MAE_NOTE = (
    "Converted by 1aurent, who tagged it Apache-2.0, from github.com/lambert-x/medical_mae; the `medmae` in the "
    "repository's name means that work, not MedMAE. Pre-training normalized {others} with ImageNet's figures and NIH "
    "ChestX-ray14 with mean .5056, std .252; the record has the former, which most images had."
)
_RECORDS = (
    BackboneRecord(
        name="medmae_vit_b16",
        architecture="vit_base_patch16_224",
        repository=None,
        file=None,
        format="mae",
        license="CC-BY-NC-4.0",
        commercial_use=False,
        citation="Gupta et al., MedMAE: A Self-Supervised Backbone for Medical Imaging Tasks, arXiv:2407.14784",
        note="its authors hand MedMAE out through a shared drive, linked from github.com/islamosmanubc/MedMAE; get "
        "`pre_trained_medmae.pth` there and pass `weights=` with its path. Models called `medmae` on the Hub are "
        "another work, `medical_mae_vit_b16` here.",
    ),
    BackboneRecord(
        name="medical_mae_vit_b16",
        architecture="vit_base_patch16_224",
        repository="1aurent/vit_base_patch16_224.medmae_CXR_mae",
        file="model.safetensors",
        license="Apache-2.0",
        commercial_use=True,
        citation=f"{_MEDICAL_MAE}, arXiv:2210.12843",
        note=_MEDICAL_MAE_NOTE.format(others="CheXpert and MIMIC-CXR"),
    ),
    BackboneRecord(
        name="medical_mae_vit_s16",
        architecture="vit_small_patch16_224",
        repository="1aurent/vit_small_patch16_224.medmae_CXR_mae",
        file="model.safetensors",
        license="Apache-2.0",
        commercial_use=True,
        citation=f"{_MEDICAL_MAE}, arXiv:2210.12843",
        note=_MEDICAL_MAE_NOTE.format(others="CheXpert"),
    ),
    _timm(
        "vit_base_patch16_224.mae",
        "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv:2111.06377",
        name="mae_vit_b16",
        license="CC-BY-NC-4.0",
        commercial_use=False,
        note="The card of facebook/vit-mae-base says Apache-2.0 of the same weights; their authors published them "
        "under CC-BY-NC-4.0.",
    ),
    BackboneRecord(
        name="rad_dino_vit_b14",
        architecture="vit_base_patch14_dinov2",
        repository="microsoft/rad-dino",
        file="model.safetensors",
        format="dinov2",
        image_size=(518, 518),
        mean=_GREY_MEAN,
        std=_GREY_STD,
        grid=(37, 37),
        license="MIT",
        commercial_use=True,
        citation="Pérez-García et al., Exploring scalable medical image encoders beyond text supervision, Nature "
        "Machine Intelligence 2025, arXiv:2401.10815",
        note="Older revisions of the repository carry MSRLA, a licence for research only, and the card still says "
        "that the model is shared for research.",
    ),
    BackboneRecord(
        name="xray_dinov2_vit_b14",
        architecture="vit_base_patch14_dinov2",
        repository="StanfordAIMI/dinov2-base-xray-224",
        file="model.safetensors",
        format="dinov2",
        grid=(16, 16),
        license="Apache-2.0",
        commercial_use=True,
        citation="Chambon et al., CheXpert Plus, arXiv:2405.19538, whose repository lists the model as XrayDINOv2",
        note="Mean and std are those of DINOv2, which has ImageNet's; that training on radiographs kept them could not "
        "be verified. Compare them with `preprocessor_config.json` of the repository.",
    ),
    _timm(
        "resnet50.a1_in1k",
        "Wightman et al., ResNet strikes back, arXiv:2110.00476",
        grid=(7, 7),
    ),
    _timm(
        "convnext_tiny.in12k_ft_in1k",
        "Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545",
        grid=(7, 7),
    ),
    _timm(
        "densenet121.ra_in1k",
        "Huang et al., Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993",
        grid=(7, 7),
    ),
    _timm(
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "Steiner et al., How to train your ViT?, arXiv:2106.10270",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    _timm(
        "vit_small_patch14_dinov2.lvd142m",
        "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193",
        image_size=(518, 518),
        grid=(37, 37),
    ),
    _timm(
        "vit_base_patch14_dinov2.lvd142m",
        "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193",
        image_size=(518, 518),
        grid=(37, 37),
    ),
)
BACKBONES: Mapping[str, BackboneRecord] = {record.name: record for record in _RECORDS}
"""Backbones by the name that `create_backbone` takes."""

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


def backbone_record(name: str) -> BackboneRecord | None:
    """What is known of a backbone's published weights; None if the zoo does not have it.

    Weights of timm's are also found by timm's name of them, with its tag: `"timm:vit_base_patch16_224.mae"`.
    """
    source, _, model = name.partition(":")
    if name in BACKBONES or source != "timm":
        return BACKBONES.get(name)
    return next((record for record in _RECORDS if record.repository == f"timm/{model}"), None)


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
    record = backbone_record(str(values["backbone"]))
    if record is not None:
        return {name: getattr(record, name) for name in needed}
    if missing := [name for name in needed if name not in values]:
        raise ValueError(
            f"the zoo does not know backbone {values['backbone']!r} and how its images are normalized"
            f"{did_you_mean(str(values['backbone']), BACKBONES)}; give {', '.join(missing)} too"
        )
    return {}


def bundled_models() -> dict[str, Path]:
    """The models that come with the package: name -> folder."""
    return {file.parent.name: file.parent for file in sorted(MODELS.glob("*/config.json"))}


def list_models(
    pattern: str = "*",
    *,
    kind: Kind | None = None,
    commercial_use: bool | None = None,
    downloadable: bool | None = None,
) -> list[str]:
    """Names of what the zoo has: models of the package, then recipes, then backbones.

    Args:
        pattern: What the name looks like, with `*` for anything, as for files.
        kind: `"model"`: taught concept models. `"recipe"`: architectures for your names. `"backbone"`: image models.
        commercial_use: Whether the licence of the weights, of a recipe its backbone's, allows commercial use.
        downloadable: Whether a program can get the weights, from the package or from the Hub.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"unknown kind {kind!r}; known: {list(get_args(Kind))}")
    names = {"model": bundled_models(), "recipe": RECIPES, "backbone": BACKBONES}
    found = [name for each in names if kind in (None, each) for name in fnmatch.filter(names[each], pattern)]
    if commercial_use is not None:
        found = [name for name in found if _allows_commercial_use(name) == commercial_use]
    if downloadable is not None:
        found = [name for name in found if _is_downloadable(name) == downloadable]
    return found


def model_info(name: str) -> BundledModel | ModelRecipe | BackboneRecord:
    """The record of anything in the zoo.

    Raises:
        ValueError: If nothing has that name.
    """
    if name in (models := bundled_models()):
        config, record = from_json((models[name] / "config.json").read_text(encoding="utf-8"))
        return BundledModel(name=name, folder=models[name], config=config, record=record)
    found = RECIPES.get(name) or backbone_record(name)
    if found is None:
        raise ValueError(
            f"the zoo has no {name!r}{did_you_mean(name, list_models())}; `list_models()` says what it has"
        )
    return found


def licence_notice(name: str) -> str:
    """The sentence to show before weights are downloaded whose licence forbids commercial use.

    Args:
        name: A backbone, recipe or model.

    Returns:
        The sentence; empty if the licence allows commercial use, and also if the zoo does not know the name.
    """
    record = _weights_of(name)
    return "" if record is None else noncommercial_notice(record.name, record.license)


def noncommercial_notice(name: str, license: str) -> str:
    """`licence_notice` for weights of any name under a licence whose identifier is known; empty if it allows it."""
    if not re.search(r"-nc(-|$)", license.lower()):
        return ""
    return f"the weights of {name} are under {license}, which forbids commercial use"


def models_table(names: Iterable[str] | None = None) -> str:
    """A Markdown table of what the zoo has, aligned so that it reads well as plain text too.

    Args:
        names: As `list_models` gives them; None is all.
    """
    rows = [_COLUMNS, *(_row(name) for name in (list_models() if names is None else names))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    rows.insert(1, tuple("-" * width for width in widths))
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |\n" for row in rows
    )


_COLUMNS = ("name", "kind", "grid @ size", "licence", "commercial use", "weights")


def _row(name: str) -> tuple[str, ...]:
    info = model_info(name)
    if isinstance(info, BundledModel):
        return (name, "model", f"- @ {_times(info.config.image_size)}", info.license, "yes", "in the package")
    record = info if isinstance(info, BackboneRecord) else BACKBONES[info.backbone]
    where = f"{_times(record.grid)} @ {_times(record.image_size)}"
    kind = "backbone" if info is record else "recipe"
    return (name, kind, where, record.license, "yes" if record.commercial_use else "no", record.repository or "yours")


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _weights_of(name: str) -> BackboneRecord | None:
    """The record of the published weights that a backbone or recipe starts from."""
    return backbone_record(RECIPES[name].backbone if name in RECIPES else name)


def _allows_commercial_use(name: str) -> bool:
    record = _weights_of(name)
    return record is None or record.commercial_use


def _is_downloadable(name: str) -> bool:
    record = _weights_of(name)
    return record is None or record.downloadable
