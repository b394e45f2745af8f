"""Checkpoints as others would publish them, of random weights, and what their models give for an image."""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 2, 2, 8, 32


def randomized(model: nn.Module) -> nn.Module:
    """The model with weights large enough that each of them shows in its features."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def timm_vit(side: int = SIDE, **changes: Any) -> VisionTransformer:
    """A small vision transformer of timm, of random weights, without classifier."""
    fields: dict[str, Any] = {"img_size": side, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    return randomized(VisionTransformer(**fields | {"num_heads": HEADS, "num_classes": 0} | changes))


def timm_dinov2(side: int = SIDE, *, registers: int = 0, swiglu: int | None = None) -> VisionTransformer:
    """As timm builds its DINOv2: scaled layers, and with registers no place for the class token."""
    changes: dict[str, Any] = {"init_values": 1e-5, "reg_tokens": registers, "no_embed_class": registers > 0}
    if swiglu is not None:
        changes |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": swiglu * 2 / WIDTH}
    return timm_vit(side, **changes)


def tokens(model: VisionTransformer, images: Tensor) -> Tensor:
    """All tokens that a model of timm gives, normalized: (B, N, C)."""
    with torch.no_grad():
        return model.forward_features(images)


def mae_weights(side: int = SIDE) -> dict[str, Tensor]:
    """An encoder and a decoder, as `facebookresearch/mae` names them."""
    hidden = 4 * WIDTH
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + (side // PATCH) ** 2, WIDTH), "mask_token": (1, 1, 16)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    layers = {"norm": (WIDTH,), "decoder_norm": (16,), "decoder_embed": (16, WIDTH), "decoder_pred": (192, 16)}
    for stem, width, inner in (("blocks", WIDTH, hidden), ("decoder_blocks", 16, 64)):
        for block in (f"{stem}.{number}" for number in range(DEPTH)):
            layers |= {f"{block}.norm1": (width,), f"{block}.norm2": (width,)}
            layers |= {f"{block}.attn.qkv": (3 * width, width), f"{block}.attn.proj": (width, width)}
            layers |= {f"{block}.mlp.fc1": (inner, width), f"{block}.mlp.fc2": (width, inner)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes["decoder_pos_embed"] = (1, shapes["pos_embed"][1], 16)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def mae_file(path: Path, weights: dict[str, Tensor]) -> Path:
    """A file as MAE's training script writes it."""
    torch.save(
        {
            "model": weights,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{}]},
            "epoch": 799,
            "scaler": {"scale": 65536.0},
            "args": argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75, norm_pix_loss=True),
        },
        path,
    )
    return path


def mae_tokens(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """What the encoder of MAE gives without masking: (B, N, C), normalized."""

    def linear(tokens: Tensor, name: str) -> Tensor:
        return tokens @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(tokens: Tensor, name: str) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, 3, h, w, PATCH, PATCH)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"].expand(len(x), 1, WIDTH), x], dim=1) + weights["pos_embed"]
    for block in (f"blocks.{number}" for number in range(DEPTH)):
        queries, keys, values = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        heads = []
        for part in torch.arange(WIDTH).chunk(HEADS):
            scores = queries[..., part] @ keys[..., part].transpose(1, 2) / len(part) ** 0.5
            heads.append(scores.softmax(-1) @ values[..., part])
        x = x + linear(torch.cat(heads, dim=-1), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")


def resized(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Position embeddings (1, 1 + side * side, C) for another grid, the first place kept."""
    side = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
