"""How others spell the parameters of a vision transformer, and the tensors they split or join differently."""

import re
from collections.abc import Callable, Iterable, Mapping
from math import isqrt

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

_HF_STEM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
# Within a block; the older spelling is also the one transformers 5 still writes to files.
_HF_BLOCK = {
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.fc2",
}
_HF_NAME = re.compile(r"(?:encoder\.)?layers?\.(\d+)\.(.+)\.(weight|bias|lambda1)")
_JOINED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}


def from_huggingface(tensors: Tensors) -> Tensors:
    """ViT, ViTMAE and DINOv2 of transformers 4 and 5 -> timm's names, with queries, keys and values joined.

    The gate of a SwiGLU comes first in timm's joint layer, as in DINOv2's own. Names that are not known stay.
    """
    return _join(_renamed(tensors, _huggingface_name))


def from_dinov2(tensors: Tensors) -> Tensors:
    """The original DINOv2 -> timm's names."""
    names = {"register_tokens": "reg_token"}
    return _renamed(
        tensors, lambda name: names.get(name, name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."))
    )


def from_sequential_resnet(tensors: Tensors) -> Tensors:
    """A torchvision ResNet without its classifier, put into an `nn.Sequential`, whose layers have numbers."""
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

    def rename(name: str) -> str:
        number, _, rest = name.partition(".")
        return f"{names.get(number, number)}.{rest}"

    return _renamed(tensors, rename)


def fold_class_place(tensors: Tensors, wanted: Mapping[str, Tensor]) -> Tensors:
    """Add the class token's place to the class token, for a model whose position embedding has none for it.

    Such a model adds positions to the patches alone (timm calls it `no_embed_class`); the sum is the same.
    """
    if not {"pos_embed", "cls_token"} <= (tensors.keys() & wanted.keys()):
        return tensors
    place, token = tensors["pos_embed"], tensors["cls_token"]
    if not (_prefix_places(place) == 1 and _prefix_places(wanted["pos_embed"]) == 0):
        return tensors
    if token.shape != (1, 1, place.shape[-1]) or not (token.is_floating_point() and place.is_floating_point()):
        return tensors  # which is an error further on
    folded = token.float() + place[:, :1].float()
    return tensors | {"cls_token": folded, "pos_embed": place[:, 1:]}


def is_resizable(found: Tensor, wanted: Tensor) -> bool:
    """Whether two position embeddings differ in nothing but the side of their square grid."""
    prefix = _prefix_places(found)
    return prefix is not None and prefix == _prefix_places(wanted) and found.shape[-1] == wanted.shape[-1]


def _prefix_places(position: Tensor) -> int | None:
    """Of a position embedding (1, places, C): how many places come before a square grid, 0 or 1; None if neither."""
    if position.ndim != 3 or position.shape[0] != 1:
        return None
    places = position.shape[1]
    return next((prefix for prefix in (0, 1) if isqrt(places - prefix) ** 2 == places - prefix > 0), None)


def _huggingface_name(name: str) -> str:
    block = _HF_NAME.fullmatch(name)
    if block is None:
        return _HF_STEM.get(name, name)
    number, layer, kind = block.groups()
    if kind == "lambda1":
        return f"blocks.{number}.{layer.replace('layer_scale', 'ls')}.gamma"
    return f"blocks.{number}.{_HF_BLOCK.get(layer, layer)}.{kind}"


def _renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    """The tensors under new names; one whose new name is taken keeps its own, and will be left over."""
    renamed: Tensors = {}
    for name, value in tensors.items():
        new = rename(name)
        renamed[name if new in renamed else new] = value
    return renamed


def _join(tensors: Tensors) -> Tensors:
    joined = dict(tensors)
    for name in tensors:
        for whole, parts in _JOINED.items():
            found = re.fullmatch(rf"(blocks\.\d+)\.{re.escape(parts[0])}\.(weight|bias)", name)
            if found is None:
                continue
            block, kind = found.groups()
            names = [f"{block}.{part}.{kind}" for part in parts]
            # What lacks a part, or does not fit together, stays apart, and is reported as missing.
            if all(part in tensors for part in names) and _fit_together(tensors[part] for part in names):
                joined[f"{block}.{whole}.{kind}"] = torch.cat([joined.pop(part) for part in names])
    return joined


def _fit_together(parts: Iterable[Tensor]) -> bool:
    kinds = {(tuple(part.shape), part.dtype) for part in parts}
    return len(kinds) == 1 and all(shape for shape, _ in kinds)
