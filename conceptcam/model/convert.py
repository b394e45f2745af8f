"""Checkpoints of others, made into files that this library writes itself: checked once, then loaded at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from conceptcam._files import atomic_write
from conceptcam.backbones import backbone_normalization, create_backbone
from conceptcam.config import ConceptConfig, TrainingRecord
from conceptcam.hub.checkpoints import read_concept_checkpoint, read_encoder
from conceptcam.hub.weights import save_tensors
from conceptcam.model.concept_model import ConceptModel


def convert_backbone(
    source: str | Path, target: str | Path, *, backbone: str, image_size: tuple[int, int] | None = None
) -> str:
    """Write the encoder of a published checkpoint as safetensors that `create_backbone(backbone, weights=)` takes.

    Position embeddings keep the size that they have in the checkpoint; loading resizes them.

    Args:
        source: A checkpoint file in any format of `conceptcam.hub.checkpoints`.
        target: The file to write, `.safetensors`; what was there stays as it is if anything fails.
        backbone: Name known to `create_backbone`, of the architecture that the weights are for.
        image_size: (H, W) to build the backbone at, to see what it wants, if it does not take 224 x 224 pixels.

    Returns:
        What was done, in one line: how many tensors matched, of which format, and how many were left out.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint cannot be read safely, or is not all of this backbone's encoder.
        OSError: If the disk is full or the target cannot be written.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.suffix != ".safetensors":
        raise ValueError(f"the file to write must end in .safetensors, got {target}")
    with torch.random.fork_rng(devices=[]):  # its random weights are not used
        wanted = create_backbone(backbone, image_size=image_size or (224, 224)).state_dict()
    # A backbone of timm's is the model inside a wrapper; its files have the names of the model.
    if all(name.startswith("model.") for name in wanted):
        wanted = {name.removeprefix("model."): value for name, value in wanted.items()}
    encoder = read_encoder(source, wanted)
    try:
        with atomic_write(target) as scratch:
            save_tensors(encoder.tensors, scratch)
    except OSError as error:
        raise OSError(f"could not write {target}: {error}") from error
    return (
        f"{target}: {len(encoder.tensors)} of {len(wanted)} tensors of {backbone}, from {encoder.format} format, "
        f"{len(encoder.left_out)} left out"
    )


def convert_concept_model(
    source: str | Path,
    folder: str | Path,
    *,
    concepts: Sequence[str],
    tasks: Sequence[str],
    backbone: str = "medmae_vit_b16",
    stages: Sequence[str] = (),
    **fields: Any,
) -> str:
    """Write a concept model of the seed as a folder that `ConceptModel.from_pretrained` takes.

    The file says how many concepts, prototypes and tasks there are, but neither what they are called nor what was
    taught: a checkpoint of the seed's first stage holds an untaught task head. What cannot be expressed exactly is
    refused; see `read_concept_checkpoint`.

    Args:
        source: The five parts in a dictionary, or a flat state dict.
        folder: The folder to write; a model in it stays as it is if anything fails.
        concepts: Names of the concepts, in the order of training.
        tasks: Names of the tasks, in the order of training.
        backbone: Name known to `create_backbone`, of the architecture in the file.
        stages: What the model has been taught, of `"concepts"`, `"prototypes"` and `"task"`; parts that were not are
            not reported on.
        **fields: More fields of `ConceptConfig`, such as `image_size` and `task_kind`. `mean` and `std` are the
            backbone's unless they are given; the file says neither them nor the size. The seed's code trained its
            prototypes by `pooling_order="project_then_pool"` in some versions; task logits do not depend on it.

    Returns:
        What was done, in one line.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the checkpoint cannot be read safely, is no such model, or does not fit the names or backbone.
        OSError: If the disk is full or the folder cannot be written.
    """
    source, folder = Path(source).expanduser(), Path(folder).expanduser()
    found = read_concept_checkpoint(source)
    for what, names, count in (("concepts", concepts, found.num_concepts), ("tasks", tasks, found.num_tasks)):
        if len(names) != count:
            raise ValueError(f"{source} has {count} {what}, but {len(names)} were named: {list(names)}")
    mean, std = backbone_normalization(backbone)
    config = ConceptConfig(
        concepts=tuple(concepts),
        tasks=tuple(tasks),
        backbone=backbone,
        head_bias=found.head_bias,
        embed_dim=found.embed_dim,
        prototypes_per_concept=found.prototypes_per_concept,
        **{"mean": mean, "std": std, **fields},
    )
    with torch.random.fork_rng(devices=[]):  # every weight is overwritten
        model = ConceptModel.from_config(config, backbone_weights=source)
    channels = model.backbone.out_channels
    if channels != found.in_channels:
        raise ValueError(f"{source}: its concept head reads {found.in_channels} channels, {backbone} gives {channels}")
    weights = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    model.load_state_dict(weights | found.heads)
    model.record = TrainingRecord(stages=tuple(stages))
    model.save_pretrained(folder)
    return (
        f"{folder}: {found.num_concepts} concepts with {found.prototypes_per_concept} prototypes each, "
        f"{found.num_tasks} tasks, {len(weights)} of {len(weights)} tensors of {backbone}"
    )
