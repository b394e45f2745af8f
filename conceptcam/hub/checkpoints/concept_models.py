"""Checkpoints of the seed's concept models, five parts with shapes of their own, as the parts of this library."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from conceptcam.hub.checkpoints.files import read_checkpoint, tensors_within
from conceptcam.hub.weights import refuse_not_finite

_PARTS = ("backbone", "concept_head", "projector", "prototypes", "task_head")
_WRAPPERS = ("module.", "_orig_mod.")


class SeedCheckpoint(NamedTuple):
    """A concept model of the seed, without the names of its concepts and tasks, which its file does not hold."""

    backbone: dict[str, Tensor]
    """Under the file's names, without `backbone.`; `fit_encoder` gives them the backbone's own."""
    heads: dict[str, Tensor]
    """Everything else, under the names and with the shapes that `ConceptModel` has, in float32."""
    num_concepts: int
    """K."""
    prototypes_per_concept: int
    """M."""
    embed_dim: int
    """D."""
    num_tasks: int
    """T."""
    in_channels: int
    """C, channels of the backbone's features."""
    head_bias: bool
    """Whether the concept head has a bias."""


def read_concept_checkpoint(path: Path) -> SeedCheckpoint:
    """A concept model saved as the seed says, a dictionary of five parts, or as one flat state dict.

    Expressed exactly are a concept head of one 1x1 convolution or linear layer; a projector of two layers with a ReLU
    between (layers without weights leave no trace in a file, so that it is a ReLU is taken on trust, as the seed
    has it); prototypes (K, M, D), or (K * M, D) with those of a concept side by side; and a task head of one linear
    layer over all K * M similarities. Axes of length 1 behind these shapes are of no account.

    The seed's similarities may be negative, those of a `ConceptModel` are clipped at 0: task logits are equal where
    the largest similarity of each prototype is not negative.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely, lacks a part, or a part is none of the above; the sentence says which.
    """
    parts = _split(_unwrapped(tensors_within(read_checkpoint(path), str(path))), path)
    head_weight, head_bias = _linear(parts["concept_head"], path, "concept_head")
    concepts, channels = head_weight.shape
    projector = _projector(parts["projector"], channels, path)
    embed_dim = projector["projector.layers.2.weight"].shape[0]
    prototypes = _prototypes(parts["prototypes"], concepts, embed_dim, path)
    per_concept = prototypes.shape[1]
    task_weight, task_bias = _linear(parts["task_head"], path, "task_head")
    if task_weight.shape[1] != concepts * per_concept or task_bias is None:
        raise ValueError(
            f"{path}: the task head must be a linear layer with bias over the {concepts} x {per_concept} similarities "
            f"to prototypes; it reads {task_weight.shape[1]} numbers, with{'out' if task_bias is None else ''} bias"
        )
    heads = {
        "concept_head.score.weight": head_weight[..., None, None],
        **({} if head_bias is None else {"concept_head.score.bias": head_bias}),
        **projector,
        "prototypes.vectors": prototypes,
        "task_head.weight": task_weight.unflatten(1, (concepts, per_concept)),
        "task_head.bias": task_bias,
    }
    refuse_not_finite(heads, str(path))
    return SeedCheckpoint(
        backbone=parts["backbone"],
        heads={name: value.float().contiguous() for name, value in heads.items()},
        num_concepts=concepts,
        prototypes_per_concept=per_concept,
        embed_dim=embed_dim,
        num_tasks=task_weight.shape[0],
        in_channels=channels,
        head_bias=head_bias is not None,
    )


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while wrapper := next((start for start in _WRAPPERS if all(name.startswith(start) for name in tensors)), None):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def _split(tensors: dict[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part, by their names within it."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    more = []
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = value
        else:
            more.append(name)
    missing = [part for part in _PARTS if not parts[part]]
    if missing or more:
        raise ValueError(
            f"{path} is no concept model of the seed: of its parts {list(_PARTS)} it lacks {missing}, and it has "
            f"{len(more)} other tensors {more[:3]}; for a backbone alone, convert it as one"
        )
    return parts


def _linear(part: Mapping[str, Tensor], path: Path, what: str) -> tuple[Tensor, Tensor | None]:
    """The weight (out, in) and the bias (out,), if there is one, of a part that is one linear layer."""
    layers = _layers(part, path, what)
    if len(layers) != 1:
        raise ValueError(f"{path}: {what} must be one linear layer, it has {len(layers)}: {sorted(part)[:6]}")
    return layers[0]


def _projector(part: Mapping[str, Tensor], channels: int, path: Path) -> dict[str, Tensor]:
    layers = _layers(part, path, "projector")
    shapes = [tuple(weight.shape) for weight, bias in layers if bias is not None]
    if len(layers) != 2 or len(shapes) != 2 or shapes[0] != (channels, channels) or shapes[1][1] != channels:
        raise ValueError(
            f"{path}: the projector must be two layers with bias, {channels} -> {channels} -> D, with a ReLU between; "
            f"it has {[f'{name} {tuple(value.shape)}' for name, value in part.items()][:6]}"
        )
    return {
        f"projector.layers.{place}.{kind}": value
        for place, layer in zip((0, 2), layers, strict=True)
        for kind, value in zip(("weight", "bias"), layer, strict=True)
        if value is not None
    }


def _prototypes(part: Mapping[str, Tensor], concepts: int, embed_dim: int, path: Path) -> Tensor:
    """(K, M, D)."""
    shapes = [tuple(value.shape) for value in part.values()]
    if len(part) == 1:
        (value,) = part.values()
        if value.ndim == 3 and value.shape[0] == concepts and value.shape[2] == embed_dim:
            return value
        value = _without_ones(value, 2)
        if value.ndim == 2 and value.shape[1] == embed_dim and value.shape[0] % concepts == 0:
            return value.unflatten(0, (concepts, -1))
    raise ValueError(
        f"{path}: prototypes must be one tensor (K, M, D) or (K * M, D), with K = {concepts} from the concept head and "
        f"D = {embed_dim} from the projector; got {shapes}"
    )


def _layers(part: Mapping[str, Tensor], path: Path, what: str) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each layer, in the file's order, which is the order in which data meets them."""
    layers: list[tuple[Tensor, Tensor | None]] = []
    used = 0
    for name, value in part.items():
        owner, _, kind = name.rpartition(".")
        weight = _without_ones(value, 2)
        if kind != "weight" or weight.ndim != 2 or not weight.numel():
            continue
        bias = part.get(f"{owner}.bias".lstrip("."))
        if bias is not None and bias.shape != weight.shape[:1]:
            break
        layers.append((weight, bias))
        used += 1 if bias is None else 2
    if used != len(part):
        raise ValueError(
            f"{path}: {what} must hold weights and biases of linear layers or 1x1 convolutions, nothing else; it has "
            f"{[f'{name} {tuple(value.shape)}' for name, value in part.items()][:6]}"
        )
    return layers


def _without_ones(tensor: Tensor, keep: int) -> Tensor:
    """The tensor without axes of length 1 behind the first `keep`."""
    if tensor.ndim <= keep or any(size != 1 for size in tensor.shape[keep:]):
        return tensor
    return tensor.flatten(keep - 1)
