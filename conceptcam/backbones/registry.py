"""Backbones by name."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from conceptcam._checks import brief, did_you_mean
from conceptcam.backbones.base import Backbone, BackboneOptions
from conceptcam.hub.address import Address, parse_source
from conceptcam.hub.download import check_download, download
from conceptcam.hub.model_folder import WEIGHTS_FILE
from conceptcam.hub.published_backbones import (
    BACKBONES,
    BackboneInfo,
    backbone_info,
    noncommercial_notice,
    repository_notice,
)
from conceptcam.hub.zoo import license_notice

log = logging.getLogger(__name__)

PICKLE_FILE = "pytorch_model.bin"
"""What older repositories hold in place of safetensors."""


Factory = Callable[[BackboneOptions], Backbone]
_FACTORIES: dict[str, Factory] = {}


def register_backbone(name: str) -> Callable[[Factory], Factory]:
    """Make `create_backbone(name)` call the decorated function.

    The function takes a `BackboneOptions` and returns a `Backbone`. Import what it needs inside it:
    registering must stay cheap. It must refuse what it cannot do: weights, a size or a level that it ignored would
    be a model of other weights than were asked for.

    Raises:
        ValueError: If the name is taken or holds a colon, which marks a source such as `timm:`.
    """
    if name in _FACTORIES or name in BACKBONES or ":" in name:
        raise ValueError(f"cannot register backbone {name!r}: the name is taken or holds a colon")

    def register(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return register


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] = (224, 224),
    feature_level: int = -1,
    in_chans: int = 3,
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: A name of the zoo or a registered one, or `"timm:"` followed by any timm model name.
        pretrained: Whether to start from the published weights, downloaded, instead of random ones. If their
            licence forbids commercial use, that is logged as a warning first.
        weights: A checkpoint to start from, as a file or on the Hub: `"organization/name"` or
            `"organization/name/file"`, perhaps with `@revision`. Backbones of timm's, of the zoo and our own take
            safetensors and pickles of timm, facebookresearch/mae, Hugging Face ViT, ViTMAE and DINOv2; pickles
            are read without running code. Loading is strict: an encoder tensor that is missing, left
            over, of another shape or not finite is an error.
        image_size: (H, W) of the images in pixels; position embeddings are resized to it.
        feature_level: Which of the backbone's feature grids to give, counted as in a Python list; the
            last, -1, is the coarsest. What lies behind an earlier one is cut off.
        in_chans: Channels of the images: 3, or 1 for grey ones. Weights of three channels are added up, so that an
            image of one channel gives what three copies of it would.

    Raises:
        ValueError: If the name, the level, the size or the weights do not fit.
        FileNotFoundError: If the weights are not there.
        PermissionError: If the Hub refuses access.
        ConnectionError: If the Hub cannot be reached, or breaks off.
    """
    if pretrained and weights is not None:
        raise ValueError("give either `pretrained=True` (--pretrained) or `weights` (--weights), not both")
    image_size = _checked_size(image_size)
    if in_chans not in (1, 3):
        raise ValueError(f"`in_chans` must be 1, for grey images, or 3, got {in_chans!r}")
    path = _fetched(weights) if weights is not None else None
    # Loading leaves the global random state as it was: what is random at first is overwritten.
    with torch.random.fork_rng(devices=[], enabled=pretrained or path is not None):
        return _build(
            name,
            BackboneOptions(
                image_size=image_size,
                feature_level=feature_level,
                pretrained=pretrained,
                weights=path,
                in_chans=in_chans,
            ),
        )


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W), as a tuple."""
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if not whole:
        raise ValueError(f"`image_size` (--image-size) must be (H, W), two ints above 0, got {size!r}")
    return (size[0], size[1])


def _build(name: str, request: BackboneOptions) -> Backbone:
    source, colon, model = name.partition(":")
    if colon and source == "timm":
        from conceptcam.backbones.timm import TimmBackbone, licence  # timm takes seconds to import

        if request.pretrained:
            _show(license_notice(name) or noncommercial_notice(name, licence(model)))
        return TimmBackbone(model, request)
    if (record := backbone_info(name)) is not None:
        from conceptcam.backbones.timm import TimmBackbone  # timm takes seconds to import

        if request.pretrained:
            request = dataclasses.replace(request, pretrained=False, weights=_published(record))
        return TimmBackbone(record.architecture, request)
    if name not in _FACTORIES:
        raise ValueError(
            f"unknown backbone {brief(name)}{did_you_mean(name, list_backbones())}; registered: "
            f"{list_backbones()}. For a timm model write 'timm:NAME'; for your own, use `register_backbone`."
        )
    return _FACTORIES[name](request)


def _published(record: BackboneInfo) -> Path:
    """The published weights of a record, downloaded."""
    if record.repository is None or record.file is None:
        raise ValueError(f"the weights of {record.name} cannot be downloaded by a program: {record.note}")
    _show(license_notice(record.name))
    return check_download(download(Address(record.repository, record.revision), (record.file,)) / record.file)


def _show(notice: str) -> None:
    if notice:
        log.warning("%s", notice)


def _fetched(weights: str | os.PathLike[str]) -> Path:
    """The file that weights stand for, downloaded if they are on the Hub."""
    place = parse_source(weights)
    if isinstance(place, Path):
        if not place.is_file():
            raise FileNotFoundError(f"no weights file {place}")
        return place
    _show(repository_notice(place.repository))
    if place.file is not None:
        return check_download(download(place, (place.file,)) / place.file)
    missing = []
    for file in (WEIGHTS_FILE, PICKLE_FILE):
        try:
            return check_download(download(place, (file,)) / file)
        except FileNotFoundError as error:
            missing.append(error)
    raise FileNotFoundError(f"no weights file {weights} is here, and on the Hub: {missing[0]}")


def backbone_normalization(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel, of images in [0, 1], that a backbone expects.

    Those of the zoo's record or those that timm publishes with a model, and ImageNet's for any other name.

    Raises:
        ValueError: If timm has no such model.
    """
    if (record := backbone_info(name)) is not None:
        return record.mean, record.std
    source, colon, model = name.partition(":")
    if colon and source == "timm":
        from conceptcam.backbones.timm import normalization  # timm takes seconds to import

        return normalization(model)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def usual_feature_level(name: str, image_size: tuple[int, int]) -> int:
    """The feature level whose grid is neither too coarse to point with nor finer than the backbone is good for.

    The last level, or the one before if the last has fewer than 14 cells along a side of the image: on a hundred skin
    lesions of 224 pixels, a grid of 14 x 14 gave a better diagnosis than the last one, of 7 x 7, which knew no more.

    Raises:
        ValueError: If timm has no such model.
    """
    source, colon, model = name.partition(":")
    if not colon or source != "timm":
        return -1
    from conceptcam.backbones.timm import level_strides  # timm takes seconds to import

    strides = level_strides(model)
    coarse = min(image_size) / strides[-1] < 14
    return -2 if coarse and len(strides) > 1 and strides[-2] < strides[-1] else -1


def list_backbones() -> list[str]:
    """Names of the zoo and registered names, sorted. Names under `timm:` are not listed; ask `timm.list_models()`."""
    return sorted(name for name in {*BACKBONES, *_FACTORIES} if ":" not in name)
