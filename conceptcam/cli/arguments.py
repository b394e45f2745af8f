"""The arguments of the command line, and the manual pages that `--help` shows."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conceptcam._version import __version__
from conceptcam.cli.training_arguments import command, count, data_options, demo_parser, positive, train_parser


def build_parser(commands: Mapping[str, Callable[..., None]]) -> argparse.ArgumentParser:
    """The parser of all commands; what a command does is put under `run`."""
    parser = argparse.ArgumentParser(
        prog="conceptcam",
        description="Concept-bottleneck models for (medical) images: which findings, where, and what each counted for.",
        epilog="`conceptcam COMMAND --help` explains a command. Exit codes: 0 done, 2 something to be mended by you.",
    )
    parser.add_argument("--version", action="version", version=f"conceptcam {__version__}")
    places = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add in _COMMANDS.items():
        own = add(places)
        own.set_defaults(run=commands[name])
        if name in _WRITING:
            own.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new one in runs/")
        own.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
    return parser


def _evaluate_parser(commands: Any) -> argparse.ArgumentParser:
    parser = command(
        commands, "evaluate", "measure a trained model, with controls",
        """Measures how right a model is on annotated images: for each concept AUROC, average precision, F1 and the
mean probability; whether its map peaks in the boxes (beside a random map, the image centre, and mirrored and
transposed boxes); and the tasks, if they were taught. Writes metrics.json, metrics.txt and figures/.""",
        """examples:
  conceptcam evaluate runs/train-20260101-120000 smears --split val.json""",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the annotations and images/")
    parser.add_argument(
        "--split", default="val.json", metavar="FILE", help="annotations within DATA (default: val.json)"
    )
    data_options(parser)
    parser.add_argument(
        "--sided",
        action="append",
        default=[],
        metavar="NAME",
        help="a concept that has one place by nature; may be repeated",
    )
    parser.add_argument("--figures", type=count, default=12, metavar="N", help="images to draw (default: 12)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images per step (default: 32)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, ...")
    return parser


def _explain_parser(commands: Any) -> argparse.ArgumentParser:
    parser = command(
        commands, "explain", "say what a model sees in images, and why",
        """Prints the foremost concepts of each image with their probability, and splits each task logit into the
concepts it came from. Writes a figure of the maps and a JSON file per image.""",
        """examples:
  conceptcam explain runs/demo-20260101-120000 chest.png
  conceptcam explain MODEL chest.png --task Pneumonia --concept Consolidation --concept Infiltration""",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--task", metavar="NAME", help="explain this task alone")
    parser.add_argument(
        "--concept", action="append", default=[], metavar="NAME", help="draw this concept; may be repeated"
    )
    parser.add_argument(
        "--top", type=positive, default=5, metavar="N", help="how many concepts to print and draw (default: 5)"
    )
    return parser


def _models_parser(commands: Any) -> argparse.ArgumentParser:
    parser = command(
        commands, "models", "list what can be loaded by name",
        """Lists taught models that come with the package, architectures that become a model once concepts and tasks are
named, and backbones with published weights: grid, license, and where the weights come from. A full name
shows everything that is known of it. Nothing is downloaded.""",
        """examples:
  conceptcam models
  conceptcam models "*vit*" --kind backbone --commercial
  conceptcam models rad_dino_vit_b14""",
    )  # fmt: skip
    parser.add_argument("pattern", nargs="?", default="*", metavar="NAME", help="a name, or a pattern such as '*vit*'")
    parser.add_argument("--kind", choices=("model", "architecture", "backbone"), help="only these")
    parser.add_argument("--commercial", action="store_true", help="only what may be used commercially")
    return parser


def _verify_parser(commands: Any) -> argparse.ArgumentParser:
    parser = command(
        commands, "verify", "check that a model is whole and unchanged",
        """Loads a model strictly, every tensor of it, and compares its weights with the SHA-256 that was recorded
when they were saved. A download is otherwise checked for its length only.""",
        """examples:
  conceptcam verify runs/demo-20260101-120000
  conceptcam verify phantom-csr
  conceptcam verify organization/name --revision v1""",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the Hub")
    return parser


def _convert_parser(commands: Any) -> argparse.ArgumentParser:
    parser = command(
        commands, "convert", "turn a published checkpoint into safetensors",
        """Reads a checkpoint of another project without running code from it. With --backbone alone, OUT is a
safetensors file of the encoder, for create_backbone(NAME, weights=OUT): facebookresearch/mae (MedMAE, Medical MAE),
timm, Hugging Face ViT, ViTMAE and DINOv2. With --concepts, IN is a whole concept model of the
founding document or its predecessor, and OUT a folder for ConceptModel.from_pretrained.

Every tensor must fit: the result says how many did, and less than all of them is an error.""",
        """examples:
  conceptcam convert pre_trained_medmae.pth medmae.safetensors --backbone medmae_vit_b16
  conceptcam convert csr.pth csr --backbone medmae_vit_b16 --concepts Atelectasis Edema --tasks Pneumonia \\
      --stages concepts prototypes task""",
    )  # fmt: skip
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
    return parser


_MODEL_HELP = "folder written by train, demo or save_pretrained, a name of `conceptcam models`, or organization/name"
_WRITING = ("demo", "train", "evaluate", "explain")
_COMMANDS = {
    "demo": demo_parser,
    "train": train_parser,
    "evaluate": _evaluate_parser,
    "explain": _explain_parser,
    "models": _models_parser,
    "verify": _verify_parser,
    "convert": _convert_parser,
}
