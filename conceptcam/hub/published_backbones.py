"""Backbones with published weights: where these are, how their images are normalized, under which licence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["mae", "timm", "huggingface-vit", "dinov2"]
Channels = tuple[float, float, float]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_STD = (0.5307, 0.5307, 0.5307), (0.2583, 0.2583, 0.2583)


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
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


def _timm(model: str, citation: str, **facts: Any) -> BackboneInfo:
    """A record of weights that timm publishes and loads itself."""
    facts = {"license": "Apache-2.0", "commercial_use": True, "name": f"timm:{model}", **facts}
    return BackboneInfo(
        architecture=model.partition(".")[0],
        repository=f"timm/{model}",
        file="model.safetensors",
        citation=citation,
        **facts,
    )


def _medical_mae(size: Literal["base", "small"], others: str) -> BackboneInfo:
    """A record of Medical MAE, whose pre-training had other data sets besides NIH ChestX-ray14."""
    model = f"vit_{size}_patch16_224"
    return BackboneInfo(
        name=f"medical_mae_vit_{size[0]}16",
        architecture=model,
        repository=f"1aurent/{model}.medmae_CXR_mae",
        file="model.safetensors",
        license="Apache-2.0",
        commercial_use=True,
        citation="Xiao et al., Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification, WACV "
        "2023, arXiv:2210.12843",
        note="Converted by 1aurent, who tagged it Apache-2.0, from github.com/lambert-x/medical_mae; the `medmae` in "
        f"the repository's name means that work, not MedMAE. Pre-training normalized {others} with ImageNet's figures "
        "and NIH ChestX-ray14 with mean .5056, std .252; the record has the former, which most images had.",
    )


def _dinov2(size: Literal["base", "small"]) -> BackboneInfo:
    citation = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193"
    return _timm(f"vit_{size}_patch14_dinov2.lvd142m", citation, image_size=(518, 518), grid=(37, 37))


_RECORDS = (
    BackboneInfo(
        name="medmae_vit_b16",
        architecture="vit_base_patch16_224",
        repository=None,
        file=None,
        format="mae",
        license="CC-BY-NC-4.0",
        commercial_use=False,
        citation="Gupta et al., MedMAE: A Self-Supervised Backbone for Medical Imaging Tasks, arXiv:2407.14784",
        note="its authors hand MedMAE out through a shared drive, linked from github.com/islamosmanubc/MedMAE; get "
        "`pre_trained_medmae.pth` there and pass `weights=` (--weights) with its path. Models called `medmae` on the "
        "Hub are another work, `medical_mae_vit_b16` here.",
    ),
    _medical_mae("base", "CheXpert and MIMIC-CXR"),
    _medical_mae("small", "CheXpert"),
    _timm(
        "vit_base_patch16_224.mae",
        "He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv:2111.06377",
        name="mae_vit_b16",
        license="CC-BY-NC-4.0",
        commercial_use=False,
        note="The card of facebook/vit-mae-base says Apache-2.0 of the same weights; their authors published them "
        "under CC-BY-NC-4.0.",
    ),
    BackboneInfo(
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
    BackboneInfo(
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
    _timm("resnet50.a1_in1k", "Wightman et al., ResNet strikes back, arXiv:2110.00476", grid=(7, 7)),
    _timm(
        "convnext_tiny.in12k_ft_in1k", "Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545", grid=(7, 7)
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
    _dinov2("small"),
    _dinov2("base"),
)
BACKBONES: Mapping[str, BackboneInfo] = {record.name: record for record in _RECORDS}
"""Backbones by the name that `create_backbone` takes."""


def backbone_info(name: str) -> BackboneInfo | None:
    """What is known of a backbone's published weights; None if the zoo does not have it.

    Weights of timm's are also found by timm's name of them, with its tag: `"timm:vit_base_patch16_224.mae"`.
    """
    source, _, model = name.partition(":")
    if name in BACKBONES or source != "timm":
        return BACKBONES.get(name)
    return next((record for record in _RECORDS if record.repository == f"timm/{model}"), None)


def repository_notice(repository: str) -> str:
    """The sentence for whatever a repository of the zoo holds; empty if its licence allows commercial use."""
    record = next((record for record in _RECORDS if record.repository == repository), None)
    return "" if record is None or record.commercial_use else forbids_commercial_use(repository, record.license)


def noncommercial_notice(name: str, license: str) -> str:
    """The sentence for weights that have no record, by the identifier of their licence; empty if it allows it."""
    return forbids_commercial_use(name, license) if re.search(r"-nc(-|$)", license.lower()) else ""


def forbids_commercial_use(name: str, license: str) -> str:
    """The sentence to show before weights are downloaded whose licence forbids commercial use."""
    return f"the weights of {name} are under {license}, which forbids commercial use"
