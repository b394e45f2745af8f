"""Any timm model that can give intermediate features, as a backbone."""

import contextlib
import fnmatch
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import group_parameters
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from conceptcam.backbones.base import Backbone, BackboneOptions
from conceptcam.hub.checkpoints import read_encoder
from conceptcam.hub.errors import plain_errors
from conceptcam.hub.pace import least_pace

Channels = tuple[float, float, float]

_WITHOUT_NORM = (Hiera, HieraDet)  # they refuse to normalize the features they give


class TimmBackbone(Backbone):
    """One feature grid of a timm model, channels first.

    Prefix tokens (class token, registers) are dropped, whatever their number. A transformer keeps its
    final norm, which its weights were trained with; layers behind the chosen grid are removed, so that
    hardly any parameter goes unused (a few families, such as HRNet, keep branches that the grid does not use).

    Args:
        name: timm model name, with or without a weight tag, such as `"resnet50.a1_in1k"`.
        request: Input size, feature level and weights.

    Raises:
        ValueError: If timm has no such model, it gives no grid at this level or size, or the weights do not fit.
    """

    model: Any  # timm models share methods but no typed base class

    def __init__(self, name: str, request: BackboneOptions) -> None:
        super().__init__()
        _published(name)  # there is such a model
        # With its own classifier, which is cut off below: asked for another number of classes, timm
        # loads weights without checking that they fit.
        model = _created(name, pretrained=request.pretrained, in_chans=request.in_chans)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"timm model {name!r} cannot give intermediate features; choose another one")
        levels = len(model.feature_info)
        if not -levels <= request.feature_level < levels:
            raise ValueError(f"timm:{name} has feature levels 0 to {levels - 1}, got {request.feature_level}")
        ignorable = set(model.state_dict())
        level = request.feature_level % levels
        self.norm = not isinstance(model, _WITHOUT_NORM)
        self.indices = model.prune_intermediate_layers([level], prune_norm=not self.norm, prune_head=True)
        info = model.feature_info[level]
        # SAM's final norm has convolutions in it and changes the number of channels.
        self.out_channels: int = info.get("num_chs_norm", info["num_chs"]) if self.norm else info["num_chs"]
        self.model = model
        if request.weights is not None:
            _load(name, model, request.weights, ignorable)
        _set_input_size(name, model, request.image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_chans, H, W), normalized -> features (B, out_channels, h, w)."""
        (features,) = self.model.forward_intermediates(
            images,
            indices=self.indices,
            norm=self.norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return features

    def layer_ids(self) -> dict[str, int]:
        """The layer of each parameter, as timm counts them: of a ViT, 0 is the stem, i + 1 block i, counted from 0."""
        if not hasattr(self.model, "group_matcher"):  # CAFormer, PiT and CSATv2 do not say
            return {}
        matcher = self.model.group_matcher(coarse=False)
        return {f"model.{name}": number for name, number in group_parameters(self.model, matcher, reverse=True).items()}

    def no_weight_decay(self) -> set[str]:
        """Position embeddings, class tokens and whatever else timm names."""
        # Convolutional families have no such method.
        patterns = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        return {
            f"model.{name}"
            for name, _ in self.model.named_parameters()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        }


def _created(name: str, *, pretrained: bool, in_chans: int) -> Any:
    """The timm model; with its published weights, all of them, if asked."""
    channels: dict[str, Any] = {} if in_chans == 3 else {"in_chans": in_chans}  # which a few families do not take
    try:
        with plain_errors(f"timm:{name}"), least_pace("timm/") if pretrained else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, **channels)
    except (RuntimeError, SafetensorError) as error:
        if not pretrained:
            raise
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"timm:{name} cannot start from its published weights: {why}") from error


def _load(name: str, model: Any, path: Path, ignorable: Collection[str]) -> None:
    """Fill a model with a checkpoint, at the checkpoint's own size if its position embeddings have another."""
    wanted = model.state_dict()
    tensors = _read(model, path, wanted, ignorable)
    if "pos_embed" in wanted and tensors["pos_embed"].shape != wanted["pos_embed"].shape:
        prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
        places = tensors["pos_embed"].shape[1] - prefix
        side = math.isqrt(max(places, 0))
        if side**2 != places or side == 0 or not isinstance(model, VisionTransformer):
            raise ValueError(
                f"{path} has position embeddings of shape {tuple(tensors['pos_embed'].shape)}, which do not fit "
                f"those of timm:{name}, {tuple(wanted['pos_embed'].shape)}, and are not of a square of places"
            )
        rows, columns = model.patch_embed.patch_size
        model.set_input_size(img_size=(side * rows, side * columns))
    model.load_state_dict(tensors)


def _read(model: Any, path: Path, wanted: Mapping[str, Tensor], ignorable: Collection[str]) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint; for a model of grey images also those of one that took three channels."""
    first = model.pretrained_cfg.get("first_conv") or ()
    names = [f"{name}.weight" for name in ([first] if isinstance(first, str) else first)]
    widened = {name: wanted[name].expand(-1, 3, -1, -1) for name in names if wanted[name].shape[1] == 1}
    if not widened:
        return read_encoder(path, wanted, may_hold=ignorable).tensors
    try:
        tensors = dict(read_encoder(path, {**wanted, **widened}, may_hold=ignorable).tensors)
    except ValueError as of_three:
        try:
            return read_encoder(path, wanted, may_hold=ignorable).tensors
        except ValueError as of_one:
            if str(of_one) == str(of_three):
                raise
            raise ValueError(f"{of_three}. Read as a checkpoint of one channel: {of_one}") from of_one
    return tensors | {name: tensors[name].sum(dim=1, keepdim=True) for name in widened}


def level_strides(name: str) -> list[int]:
    """Pixels per cell of each feature level of a timm model; one level if it does not say.

    Raises:
        ValueError: If timm has no such model.
    """
    _published(name)
    with torch.device("meta"), contextlib.suppress(NotImplementedError):
        model: Any = timm.create_model(name, pretrained=False)
        return [info["reduction"] for info in model.feature_info]
    return [1]


def normalization(name: str) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel that a timm model's weights were trained with."""
    published = _published(name)
    if published is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    mean, std = (cast(Channels, tuple(values)) for values in (published.mean, published.std))
    return mean, std


def licence(name: str) -> str:
    """Licence of a timm model's published weights, as timm states it; empty if it does not."""
    published = _published(name)
    return (published.license or "") if published is not None else ""


def _published(name: str) -> Any:
    """What timm states about a model's published weights, None if there are none.

    Raises:
        ValueError: If timm has no such model, or no such weights of it.
    """
    # Only names of timm's own registry: timm would take `hf-hub:...` or a path too, past our own loaders.
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0][:6]}*")[:5]
        raise ValueError(f"timm has no model {name!r}; near it: {near}. List them with `timm.list_models()`.")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"timm has no such weights of {name!r}: {error}") from error


def _set_input_size(name: str, model: Any, image_size: tuple[int, int]) -> None:
    """Tell models with a fixed input size what it is; position embeddings are resampled."""
    patches = getattr(model, "patch_embed", None)
    if isinstance(patches, timm.layers.PatchEmbed) and not patches.dynamic_img_pad:
        sides = zip(image_size, patches.patch_size, strict=True)
        if any(side % patch for side, patch in sides):
            raise ValueError(f"timm:{name} takes images in patches of {patches.patch_size}, got {image_size}")
    now = getattr(patches, "img_size", None) or model.pretrained_cfg["input_size"][-2:]
    if tuple(now) == tuple(image_size):
        return
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=tuple(image_size))
    elif model.pretrained_cfg.get("fixed_input_size", False):
        size = model.pretrained_cfg["input_size"][-2:]
        raise ValueError(f"timm:{name} takes images of {size} only, got {image_size}")
