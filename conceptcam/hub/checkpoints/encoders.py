"""The encoder of a published checkpoint, under the backbone's own names: all of it, or an error."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from conceptcam.hub.checkpoints.files import read_checkpoint, tensors_within
from conceptcam.hub.checkpoints.key_mapping import (
    Tensors,
    fold_class_place,
    from_dinov2,
    from_huggingface,
    from_sequential_resnet,
    is_resizable,
)
from conceptcam.hub.weights import is_alike, misfit, refuse_not_finite

_logger = logging.getLogger(__name__)

_CONTAINERS = ("model", "state_dict", "model_state_dict", "teacher", "backbone")
# Modules that others wrap an encoder in; what is beside a wrapped encoder is no part of it.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "vit.", "dinov2.", "dinov2_with_registers.")
# Tensors by which an encoder is found.
_LANDMARKS = (
    "embeddings.cls_token",
    "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.weight",
    "4.0.conv1.weight",
)
# What stands beside the encoder's own tensors and has no use for features.
_NOT_ENCODER = (
    "decoder_",
    "decoder.",
    "mask_token",
    "embeddings.mask_token",
    "pooler.",
    "head.",
    "fc.",
    "fc_norm.",
    "classifier.",
    "dino_head.",
    "ibot_head.",
)


class Encoder(NamedTuple):
    """The weights of a backbone, as a checkpoint of others has them."""

    tensors: dict[str, Tensor]
    """Under exactly the names that were wanted; whatever is no whole number is float32."""
    format: str
    """Whose spelling it was: `"timm"`, `"mae"`, `"huggingface-vit"`, `"huggingface-dinov2"`, ..."""
    left_out: tuple[str, ...]
    """Names in the file that are no part of the encoder: decoder, classifier, mask token."""


def read_encoder(path: Path, wanted: Mapping[str, Tensor], *, may_hold: Collection[str] = ()) -> Encoder:
    """The encoder of a checkpoint file, in whatever format it was published.

    Read are checkpoints of timm, of MAE and those pretrained with its code, of ViT, ViTMAE and DINOv2 in either
    spelling of transformers, of the original DINOv2, and of torchvision's ResNets; wrapped for distributed training
    or compilation or not; in half precision or not.

    A file does not say the number of attention heads nor the epsilon of its norms: those are the backbone's.
    timm's norms have 1e-6, those of a ViT of transformers mostly 1e-12; the features differ by about as little.
    At other image sizes timm resizes position embeddings with an antialiased cubic filter, as transformers does for
    DINOv2 with registers; for ViT and DINOv2 transformers has another filter, and features differ a little there.

    Args:
        path: A safetensors file or a pickle.
        wanted: The backbone's state dict, of which names, shapes and kinds are used; it may be on the meta device.
        may_hold: More names that may be left out, such as those of a classifier that was cut off.

    Returns:
        Every tensor that is wanted. `pos_embed` has as many places as the file has: resize the model to it first.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely; if a tensor is missing, left over, or of another shape or kind than
            wanted; or if a number in it is not finite. The message counts what matched and names the first that did
            not.
    """
    return fit_encoder(read_checkpoint(path), wanted, str(path), may_hold=may_hold)


def fit_encoder(
    content: Mapping[str, Any], wanted: Mapping[str, Tensor], source: str, *, may_hold: Collection[str] = ()
) -> Encoder:
    """As `read_encoder`, of what a file holds; `source` names it in messages."""
    found = tensors_within(content, source, _CONTAINERS)
    prefix = _find_prefix(found, (*_LANDMARKS, *list(wanted)[:1]), source)
    beside = [name for name in found if not name.startswith(prefix)]
    inside = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    if twin := _twin(inside, {*beside}):
        raise ValueError(
            f"{source} holds several encoders, under the names {[prefix, twin]}; save the one you mean alone"
        )
    spelling, named = _translate(inside, beside, wanted)
    named = fold_class_place(named, wanted)
    more = named.keys() - wanted.keys()
    left_out = {name for name in more if name in may_hold or name.startswith(_NOT_ENCODER)}
    if what := misfit(named, wanted, more - left_out, _fits):
        advice = _advice(wanted.keys() - named.keys(), named)
        raise ValueError(f"{source} ({spelling} format) does not fit this backbone: {what}{advice}")
    kept = {name: named[name].float() if value.is_floating_point() else named[name] for name, value in wanted.items()}
    refuse_not_finite(kept, source)
    outside = tuple(sorted([*beside, *(prefix + name for name in left_out)]))
    _logger.info("%s: %d of %d tensors, %s format, %d left out", source, len(kept), len(wanted), spelling, len(outside))
    return Encoder(kept, spelling, outside)


def _find_prefix(tensors: Tensors, landmarks: Collection[str], source: str) -> str:
    """What stands before the names of the encoder: nothing, or wrappers, as in `module.vit.`."""
    found, waiting = [], [""]
    for prefix in waiting:
        if any(prefix + landmark in tensors for landmark in landmarks):
            found.append(prefix)
        longer = (prefix + wrapper for wrapper in _WRAPPERS)
        waiting += [start for start in longer if any(name.startswith(start) for name in tensors)]
    if len(found) > 1:
        raise ValueError(f"{source} holds several encoders, under the names {found}; save the one you mean alone")
    return found[0] if found else ""


def _twin(inside: Tensors, beside: Collection[str]) -> str:
    """What stands before the names of a second encoder with nearly the same tensors; empty if there is none."""
    first = next(iter(inside), "")
    others = {name.removesuffix(first) for name in beside if name.endswith(f".{first}")}
    held = {other: sum(other + name in beside for name in inside) for other in sorted(others)}
    return next((other for other, count in held.items() if count > 0.9 * len(inside)), "")


def _translate(tensors: Tensors, beside: Collection[str], wanted: Mapping[str, Tensor]) -> tuple[str, Tensors]:
    """Whose spelling it is, and the tensors under timm's names."""
    if "decoder_embed.weight" in tensors:
        return "mae", tensors
    if wanted.keys() <= tensors.keys():  # whatever the backbone is, these are its names
        return ("dinov2" if "mask_token" in tensors else "timm"), tensors
    if any(name.startswith("embeddings.") for name in tensors):
        return _huggingface_kind(tensors, beside), from_huggingface(tensors)
    if "mask_token" in tensors:
        return "dinov2", from_dinov2(tensors)
    if "4.0.conv1.weight" in tensors and "0.weight" in tensors:
        return "torchvision-resnet", from_sequential_resnet(tensors)
    return "timm", tensors


def _huggingface_kind(tensors: Tensors, beside: Collection[str]) -> str:
    if "embeddings.register_tokens" in tensors:
        return "huggingface-dinov2-with-registers"
    if any(".layer_scale1." in name for name in tensors):
        return "huggingface-dinov2"
    return "huggingface-vitmae" if any(name.startswith("decoder.") for name in beside) else "huggingface-vit"


def _fits(name: str, found: Tensor, wanted: Tensor) -> bool:
    resizable = name == "pos_embed" and found.is_floating_point() and is_resizable(found, wanted)
    return resizable or is_alike(found, wanted)


def _advice(missing: Collection[str], named: Tensors) -> str:
    if "norm.weight" not in missing or "fc_norm.weight" not in named:
        return ""
    # The norm of a mean is not the mean of norms, so fc_norm cannot stand in for norm.
    return (
        ". It was fine-tuned to classify by the mean of its tokens, which fc_norm normalizes afterwards, so it has no "
        "norm for the tokens themselves, which the features of this backbone are: take the pretrained checkpoint that "
        "it was fine-tuned from"
    )
