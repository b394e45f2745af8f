"""Arguments of `conceptcam demo` and `train`, and those that commands share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conceptcam._checks import did_you_mean


def demo_parser(commands: Any) -> argparse.ArgumentParser:
    """That of `conceptcam demo`."""
    parser = command(
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
    parser.add_argument("--images", type=positive, default=8000, metavar="N", help="training images (default: 8000)")
    parser.add_argument("--size", type=positive, default=112, metavar="PX", help="side of the images (default: 112)")
    _training_options(parser, epochs=("concepts=8", "prototypes=10", "task=10"), batch_size=64)
    return parser


def train_parser(commands: Any) -> argparse.ArgumentParser:
    """That of `conceptcam train`."""
    parser = command(
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
    data_options(parser)
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
        "--image-size", type=positive, nargs=2, default=(224, 224), metavar=("H", "W"), help="default: 224 224"
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
    parser.add_argument(
        "--figures", type=count, default=12, metavar="N", help="validation images to draw (default: 12)"
    )
    _training_options(parser, epochs=(), batch_size=32)
    return parser


def data_options(parser: argparse.ArgumentParser) -> None:
    """How annotated images are read."""
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: DATA/images)")
    parser.add_argument(
        "--invalid-boxes", choices=("error", "skip"), default="error",
        help="what to do if a box is empty or far outside its image (default: refuse the file)",
    )  # fmt: skip


def _training_options(parser: argparse.ArgumentParser, *, epochs: Sequence[str], batch_size: int) -> None:
    parser.add_argument(
        "--preset", type=_one_of("preset", ("recommended", "original", "paper")), default="recommended", metavar="NAME",
        help="recommended (default), original or paper",
    )  # fmt: skip
    parser.add_argument(
        "--bottleneck", type=_one_of("bottleneck", ("prototypes", "concepts")), default="prototypes", metavar="NAME",
        help="what the task head reads: prototypes (default) or concepts",
    )  # fmt: skip
    parser.set_defaults(default_epochs=dict(_epochs(text) for text in epochs))
    parser.add_argument(
        "--epochs", type=_epochs, nargs="+", action="extend", default=[], metavar="STAGE=N",
        help=f"epochs of stages concepts, prototypes, task (default: {' '.join(epochs) or 'those of the preset'})",
    )  # fmt: skip
    parser.add_argument(
        "--solve-task", action="store_true", help="solve for the task head's weights at once, in place of its epochs"
    )
    parser.add_argument("--batch-size", type=positive, default=batch_size, metavar="N", help=f"default: {batch_size}")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
        help="auto (default): bf16 where a trial step is faster in it than in fp32",
    )  # fmt: skip
    parser.add_argument(
        "--num-workers", type=count, default=0, metavar="N", help="processes that load images (default: 0)"
    )
    parser.add_argument(
        "--gradient-accumulation-steps",
        type=positive,
        default=1,
        metavar="N",
        help="batches per step, to save memory (default: 1)",
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
        "--feature-cache", choices=("auto", "off", "memory", "disk"), default="auto",
        help="where the later stages keep what frozen parts say of each image (default: auto)",
    )  # fmt: skip
    parser.add_argument("--tensorboard", action="store_true", help="log epochs for TensorBoard too")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out if it was killed, begin it if there is none, do nothing if it is finished",
    )


def command(commands: Any, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A command with its manual page."""
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=summary, description=description, epilog=examples, formatter_class=raw)


def count(text: str) -> int:
    """A whole number, perhaps 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or above, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """A whole number above 0."""
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
    return stage, positive(number)
