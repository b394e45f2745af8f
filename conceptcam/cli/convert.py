r"""Turn a published checkpoint into safetensors.

Reads a checkpoint of another project without running code from it. With --backbone alone, OUT is a safetensors file
of the encoder, for create_backbone(NAME, weights=OUT): facebookresearch/mae (MedMAE, Medical MAE), timm, Hugging Face
ViT, ViTMAE and DINOv2. With --concepts, IN is a whole concept model of the original document or its predecessor, and
OUT a folder for ConceptModel.from_pretrained.

Every tensor must fit: the result tells how many did, and fewer than all of them is an error.

Examples:
    conceptcam convert pre_trained_medmae.pth medmae.safetensors --backbone medmae_vit_b16
    conceptcam convert csr.pth csr --backbone medmae_vit_b16 --concepts Atelectasis Edema --tasks Pneumonia \
        --stages concepts prototypes task
"""

import argparse
from pathlib import Path

from conceptcam.cli.flags import add_flag, add_preprocessing, preprocessing
from conceptcam.cli.inputs import is_taken, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam convert`."""
    parser.add_argument("source", type=Path, metavar="IN", help="checkpoint file")
    parser.add_argument("target", type=Path, metavar="OUT", help="what to write")
    add_flag(parser, "backbone", None, "as create_backbone takes", required=True)
    add_flag(parser, "concepts", (), "concept names, in the model's order", nargs="+")
    add_flag(parser, "tasks", (), "task names, in the model's order", nargs="+")
    stages = "which of concepts, prototypes and task it was taught; the file does not say"
    add_flag(parser, "stages", (), stages, nargs="+")
    add_preprocessing(parser)
    add_flag(parser, "force", False, "write over OUT if it is there")


def run(options: argparse.Namespace) -> None:
    """Turn a checkpoint of others into safetensors."""
    from conceptcam.model.convert import convert_backbone, convert_concept_model

    if is_taken(options.target.expanduser()) and not options.force:
        raise FileExistsError(f"{options.target} is there already; add --force to write over it, or choose another OUT")
    if options.concepts:
        names = {name: getattr(options, name) for name in ("concepts", "tasks", "backbone", "stages")}
        return show(convert_concept_model(options.source, options.target, **names, **preprocessing(options)))
    if options.tasks or options.stages or options.mean or options.std or options.grey:
        wrong = "--tasks, --stages, --mean, --std and --grey"
        raise ValueError(f"{wrong} are of a whole concept model, which needs --concepts too")
    size = tuple(options.image_size)
    return show(convert_backbone(options.source, options.target, backbone=options.backbone, image_size=size))
