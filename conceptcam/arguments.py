"""The arguments of the command line, and the manual pages that `--help` shows."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conceptcam import __version__
from conceptcam.config import did_you_mean


def build_parser(commands: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """The parser of all commands; what a command does is put under `run`."""
    parser = argparse.ArgumentParser(
        prog="conceptcam",
        description="Concept-bottleneck models for (medical) images: which findings, where, and what each counted for.",
        epilog="`conceptcam COMMAND --help` explains a command. Exit codes: 0 done, 2 something to be mended by you.",
    )
    parser.add_argument("--version", action="version", version=f"conceptcam {__version__}")
    places = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add in _COMMANDS.items():
        command = add(places)
        command.set_defaults(run=commands[name])
        if name in _WRITING:
            command.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new one in runs/")
        command.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
    return parser


def _demo_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands, "demo", "train, look at and check a model of a drawn chest, in minutes",
        """Draws a data set of chest phantoms, on which every finding and its place is known exactly; trains a
three-stage concept model from scratch; measures it on images it has never seen; and draws what it sees.

Writes config.json and model.safetensors (load the folder with ConceptModel.from_pretrained), history.csv,
run.json, metrics.json, metrics.txt, summary.json and figures/: phantom.png shows every finding, learning.png the
maps epoch by epoch, images/ what the model sees in test images.""",
        """examples:
  conceptcam demo                                 the whole demonstration
  conceptcam demo --images 1000 --epochs concepts=3 prototypes=2 task=2 --out runs/quick
  conceptcam demo --bottleneck concepts           the classic bottleneck""",
    )  # fmt: skip
    parser.add_argument("--images", type=_positive, default=8000, metavar="N", help="training images (default: 8000)")
    parser.add_argument("--size", type=_positive, default=112, metavar="PX", help="side of the images (default: 112)")
    _training_options(parser, epochs=("concepts=8", "prototypes=10", "task=10"), batch_size=64)
    return parser


def _train_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands, "train", "train on your own images with boxes",
        """Trains a model on images with COCO detection annotations: each category is a concept, present in an
image if it has a box there. Trains concepts and prototypes, and the task head if images carry task labels (an
object "tasks" of name: 0 or 1 in the image's record).

DATA is a folder with train.json, val.json and images/. Writes config.json, model.safetensors, run.json,
history.csv, metrics.json, metrics.txt and figures/.""",
        """examples:
  conceptcam train smears --backbone timm:resnet18 --pretrained
  conceptcam train smears --backbone timm:tf_efficientnet_lite0 --weights lite0.safetensors \\
      --feature-level -2 --image-size 320 320""",
    )  # fmt: skip
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the annotations and images/")
    parser.add_argument("--train", default="train.json", metavar="FILE", help="training annotations within DATA")
    parser.add_argument("--val", default="val.json", metavar="FILE", help="validation annotations within DATA")
    _data_options(parser)
    parser.add_argument(
        "--backbone", default="timm:resnet18", metavar="NAME", help="as create_backbone takes (default: timm:resnet18)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint to start the backbone from: a file, or organization/name on the Hub",
    )
    start.add_argument("--pretrained", action="store_true", help="download the backbone's published weights")
    parser.add_argument("--freeze-backbone", action="store_true", help="train the heads alone")
    parser.add_argument(
        "--feature-level",
        type=int,
        default=-1,
        metavar="N",
        help="-1: the last, coarsest grid (default); -2: the one before",
    )
    parser.add_argument(
        "--image-size", type=_positive, nargs=2, default=(224, 224), metavar=("H", "W"), help="default: 224 224"
    )
    parser.add_argument(
        "--mean", type=float, nargs=3, metavar="M", help="per channel, in [0, 1] (default: what the backbone expects)"
    )
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="likewise")
    parser.add_argument(
        "--task-kind", choices=("multilabel", "multiclass"), default="multilabel", help="default: multilabel"
    )
    parser.add_argument(
        "--imbalance",
        type=_one_of("answer to imbalance", ("none", "ratio", "sqrt", "effective", "focal", "asymmetric")),
        metavar="NAME",
        help="what to do about rare labels: none, ratio, sqrt, effective, focal or asymmetric "
        "(default: ratio; none for multi-class tasks and --preset paper)",
    )
    parser.add_argument(
        "--uncertain", choices=("ignore", "zeros", "ones", "soft"), default="ignore",
        help="what a training label of -1 counts as (default: ignore, as in validation data always)",
    )  # fmt: skip
    parser.add_argument(
        "--no-augment", action="store_true", help="do not jitter place, size and exposure of training images"
    )
    parser.add_argument("--figures", type=int, default=12, metavar="N", help="validation images to draw (default: 12)")
    _training_options(parser, epochs=(), batch_size=32)
    return parser


def _evaluate_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
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
    _data_options(parser)
    parser.add_argument(
        "--canary",
        action="append",
        default=[],
        metavar="NAME",
        help="a concept that has one place by nature; may be repeated",
    )
    parser.add_argument("--figures", type=int, default=12, metavar="N", help="images to draw (default: 12)")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="images per step (default: 32)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, ...")
    return parser


def _explain_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
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
        "--top", type=_positive, default=5, metavar="N", help="how many concepts to print and draw (default: 5)"
    )
    return parser


def _models_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands, "models", "list what can be loaded by name",
        """Lists taught models that come with the package, recipes that become a model once concepts and tasks are
named, and backbones with published weights: grid, licence, and where the weights come from. A full name
shows everything that is known of it. Nothing is downloaded.""",
        """examples:
  conceptcam models
  conceptcam models "*vit*" --kind backbone --commercial
  conceptcam models rad_dino_vit_b14""",
    )  # fmt: skip
    parser.add_argument("pattern", nargs="?", default="*", metavar="NAME", help="a name, or a pattern such as '*vit*'")
    parser.add_argument("--kind", choices=("model", "recipe", "backbone"), help="only these")
    parser.add_argument("--commercial", action="store_true", help="only what may be used commercially")
    return parser


def _verify_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
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
    parser = _command(
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
        "--image-size", type=_positive, nargs=2, metavar=("H", "W"),
        help="of the images it takes, in pixels (default: 224 224); the file does not say",
    )  # fmt: skip
    parser.add_argument(
        "--mean", type=float, nargs=3, metavar="M",
        help="of a concept model's images, per channel, in [0, 1] (default: what the backbone expects)",
    )  # fmt: skip
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="likewise")
    return parser


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: DATA/images)")
    parser.add_argument(
        "--bad-boxes", choices=("refuse", "skip"), default="refuse",
        help="what to do if a box is empty or far outside its image (default: refuse the file)",
    )  # fmt: skip


def _training_options(parser: argparse.ArgumentParser, *, epochs: Sequence[str], batch_size: int) -> None:
    parser.add_argument(
        "--preset", type=_one_of("preset", ("recommended", "seed", "paper")), default="recommended", metavar="NAME",
        help="recommended (default), seed or paper",
    )  # fmt: skip
    parser.add_argument(
        "--bottleneck", type=_one_of("bottleneck", ("prototypes", "concepts")), default="prototypes", metavar="NAME",
        help="what the task head reads: prototypes (default) or concepts",
    )  # fmt: skip
    parser.set_defaults(default_epochs=dict(_epochs(text) for text in epochs))
    parser.add_argument(
        "--epochs", type=_epochs, nargs="+", default=[], metavar="STAGE=N",
        help=f"epochs of stages concepts, prototypes, task (default: {' '.join(epochs) or 'those of the preset'})",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=_positive, default=batch_size, metavar="N", help=f"default: {batch_size}")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto (default): bf16 where a trial step is faster in it than in fp32",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images (default: 0)")
    parser.add_argument(
        "--accumulate", type=_positive, default=1, metavar="N", help="batches per step, to save memory (default: 1)"
    )
    parser.add_argument(
        "--layer-decay", type=float, default=1.0, metavar="F",
        help="each layer of the backbone learns at F times the rate of the one behind it (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="save memory by computing activations twice"
    )
    parser.add_argument("--compile", action="store_true", help="run training steps through torch.compile")
    parser.add_argument(
        "--cache", choices=("auto", "off", "memory", "disk"), default="auto",
        help="where the later stages keep what frozen parts say of each image (default: auto)",
    )  # fmt: skip
    parser.add_argument("--tensorboard", action="store_true", help="log epochs for TensorBoard too")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run that was killed: the same command, --out its folder"
    )


def _command(commands: Any, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=summary, description=description, epilog=examples, formatter_class=raw)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _one_of(what: str, known: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"unknown {what} {text!r}{did_you_mean(text, known)}; known: {list(known)}"
            )
        return text

    return check


def _epochs(text: str) -> tuple[str, int]:
    stage, _, number = text.partition("=")
    if stage not in ("concepts", "prototypes", "task"):
        raise argparse.ArgumentTypeError(f"expected concepts=N, prototypes=N or task=N, got {text!r}")
    return stage, _positive(number)


_MODEL_HELP = "folder written by train, demo or save_pretrained, a name of `conceptcam models`, or organization/name"
_WRITING = ("demo", "train", "evaluate", "explain")
_COMMANDS = {
    "demo": _demo_parser,
    "train": _train_parser,
    "evaluate": _evaluate_parser,
    "explain": _explain_parser,
    "models": _models_parser,
    "verify": _verify_parser,
    "convert": _convert_parser,
}
