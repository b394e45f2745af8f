"""Turn a published checkpoint into safetensors.

Reads a checkpoint of another project without running code from it. With --backbone alone, OUT is a safetensors file
of the encoder, for create_backbone(NAME, weights=OUT): facebookresearch/mae (MedMAE, Medical MAE), timm, Hugging Face
ViT, ViTMAE and DINOv2. With --concepts, IN is a whole concept model of the original document or its predecessor, and
OUT a folder for ConceptModel.from_pretrained.

Every tensor must fit: the result tells how many did, and fewer than all of them is an error.
"""

import argparse
from pathlib import Path

from conceptcam.cli.inputs import is_taken, show
from conceptcam.cli.options import positive

EXAMPLES = """  conceptcam convert pre_trained_medmae.pth medmae.safetensors --backbone medmae_vit_b16
  conceptcam convert csr.pth csr --backbone medmae_vit_b16 --concepts Atelectasis Edema --tasks Pneumonia \\
      --stages concepts prototypes task"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam convert`."""
    parser.add_argument("source", type=Path, metavar="IN", help="checkpoint file")
    parser.add_argument("target", type=Path, metavar="OUT", help="what to write")
    parser.add_argument("--backbone", required=True, metavar="NAME", help="as create_backbone takes")
    parser.add_argument("--concepts", nargs="+", default=[], metavar="NAME", help="concept names, in the model's order")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help="task names, in the model's order")
    parser.add_argument(
        "--stages", nargs="+", default=[], metavar="NAME",
        help="which of concepts, prototypes and task it was taught; the file does not say",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=positive, nargs=2, metavar=("H", "W"),
        help="of the images it takes, in pixels (default: 224 224); the file does not say",
    )  # fmt: skip
    parser.add_argument(
        "--mean", type=float, nargs=3, metavar="M",
        help="of a concept model's images, per channel, in [0, 1] (default: what the backbone expects)",
    )  # fmt: skip
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="likewise")
    parser.add_argument("--force", action="store_true", help="write over OUT if it is there")


def run(options: argparse.Namespace) -> None:
    """Turn a checkpoint of others into safetensors."""
    from conceptcam.model.convert import convert_backbone, convert_concept_model

    if is_taken(options.target.expanduser()) and not options.force:
        raise FileExistsError(f"{options.target} is there already; add --force to write over it, or choose another OUT")
    fields = {name: tuple(given) for name in ("image_size", "mean", "std") if (given := getattr(options, name))}
    if options.concepts:
        show(
            convert_concept_model(
                options.source,
                options.target,
                concepts=options.concepts,
                tasks=options.tasks,
                backbone=options.backbone,
                stages=options.stages,
                **fields,
            )
        )
    elif options.tasks or options.stages or options.mean or options.std:
        raise ValueError("--tasks, --stages, --mean and --std are of a whole concept model, which needs --concepts too")
    else:
        size = fields.get("image_size")
        show(convert_backbone(options.source, options.target, backbone=options.backbone, image_size=size))
