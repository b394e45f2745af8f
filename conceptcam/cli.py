"""The command line: `conceptcam demo | train | evaluate | explain`."""

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam import __version__

if TYPE_CHECKING:
    from conceptcam.runs import RunOptions

USER_ERRORS = (ValueError, TypeError, OSError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or 2 after an error of the user's, which is told in one sentence."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        options.run(options)
    except USER_ERRORS as error:
        if options.verbose:
            raise
        print(f"conceptcam {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> None:
    from conceptcam.demo import phantom_data, run_demo

    start = time.perf_counter()
    print(f"Drawing {options.images} chest phantoms of {options.size} pixels (kept for the next time) ...")
    data = phantom_data(options.images, size=options.size, seed=options.seed, progress=_terminal())
    folder = _folder(options, "demo")
    figures = run_demo(folder, data, _run_options(options), bottleneck=options.bottleneck, say=print)
    for name, value in figures.items():
        print(f"{name:<50} {value:.3f}")
    print(f"\nMinutes taken: {(time.perf_counter() - start) / 60:.1f}")
    _where(folder)
    print(f"Look at {folder / 'figures'}, or: conceptcam explain {folder} IMAGE")


def _train(options: argparse.Namespace) -> None:
    import dataclasses

    from conceptcam.config import ConceptConfig
    from conceptcam.data.coco import CocoDataset
    from conceptcam.data.transforms import light_augmentation
    from conceptcam.model import ConceptModel
    from conceptcam.runs import FIGURES, measure, save_explanations, train_run
    from conceptcam.stages import preset

    train, val = _datasets(options, (options.train, options.val), CocoDataset)
    config = preset(options.preset).configure(
        ConceptConfig(
            concepts=train.concepts,
            tasks=train.tasks,
            task_kind=options.task_kind,
            backbone=options.backbone,
            feature_level=options.feature_level,
            image_size=tuple(options.image_size),
            mean=tuple(options.mean),
            std=tuple(options.std),
            bottleneck=options.bottleneck,
        )
    )
    if not config.tasks:
        print("No task labels in the data: the model learns concepts and prototypes, and will give no diagnosis.")
    print(f"Training on {len(train)} images, validating on {len(val)}; {len(config.concepts)} concepts ...")
    run = _run_options(options)
    run = dataclasses.replace(run, backbone_pretrained=options.pretrained or options.weights is not None)
    model = ConceptModel.from_config(config, pretrained_backbone=options.pretrained, backbone_weights=options.weights)
    folder = _folder(options, "train")
    watch = val.read(_most_boxed(val))
    model = train_run(
        config, train, val, folder, run,
        training_data=f"{len(train)} images of {options.data.name}/{options.train}",
        model=model, watch=watch, follow=config.concepts[:6],
        augment=None if options.no_augment else light_augmentation(config.image_size),
    )  # fmt: skip
    result = measure(model, val, folder, run)
    save_explanations(model, [val.read(i) for i in range(min(options.figures, len(val)))], folder / FIGURES)
    print(result.table())
    print("These figures are of the validation images, which also chose the epoch and the thresholds.")
    _where(folder)


def _evaluate(options: argparse.Namespace) -> None:
    from conceptcam.data.coco import CocoDataset
    from conceptcam.model import ConceptModel
    from conceptcam.runs import FIGURES, measure, save_explanations

    model = ConceptModel.from_pretrained(options.model)
    (dataset,) = _datasets(options, (options.split,), CocoDataset, concepts=model.config.concepts)
    if dataset.tasks:
        (dataset,) = _datasets(
            options, (options.split,), CocoDataset, concepts=dataset.concepts, tasks=model.config.tasks
        )
    folder = _folder(options, "evaluate")
    result = measure(model, dataset, folder, _run_options(options), canaries=options.canary)
    save_explanations(model, [dataset.read(i) for i in range(min(options.figures, len(dataset)))], folder / FIGURES)
    print(result.table())
    _where(folder)


def _explain(options: argparse.Namespace) -> None:
    from conceptcam.draw import save_png
    from conceptcam.explanation import explain
    from conceptcam.model import ConceptModel

    model = ConceptModel.from_pretrained(options.model)
    folder = _folder(options, "explain")
    for path in options.images:
        explanation = explain(model, path, task=options.task)
        print(f"\n{path}")
        for finding in explanation.findings[: options.top]:
            verdict = ""
            if not math.isnan(finding.threshold):
                above = finding.probability > finding.threshold
                verdict = f"{'present' if above else 'absent'} (threshold {finding.threshold:.3f})"
            print(f"  {finding.concept:<28} {finding.probability:6.3f}  {verdict}")
        reasons = explanation.reasons if options.task is None else (explanation.reason(options.task),)
        for reason in reasons:
            parts = ", ".join(f"{share.concept} {share.share:+.2f}" for share in reason.shares[: options.top])
            print(
                f"  {reason.task}: p = {reason.probability:.3f}, "
                f"logit {reason.logit:+.2f} = {reason.bias:+.2f} {parts} ..."
            )
        if not reasons:
            print("  (this model was taught no task)")
        save_png(explanation.figure(concepts=options.concept, top=options.top), folder / f"{path.stem}.png")
        text = json.dumps(explanation.as_dict(), indent=2, ensure_ascii=False) + "\n"
        (folder / f"{path.stem}.json").write_text(text, encoding="utf-8")
    _where(folder)


def _datasets(options: argparse.Namespace, files: Sequence[str], reader: Any, **names: Any) -> list[Any]:
    images = options.images if options.images is not None else options.data / "images"
    bad = {"bad_boxes": options.bad_boxes}
    first = reader(options.data / files[0], images, **bad, **names)
    names = {"concepts": first.concepts, "tasks": first.tasks}
    rest = [reader(options.data / file, images, **bad, **names) for file in files[1:]]
    return [first, *rest]


def _most_boxed(dataset: Any) -> int:
    return int(dataset.concept_labels.nan_to_num().sum(dim=1).argmax())


def _run_options(options: argparse.Namespace) -> "RunOptions":
    from conceptcam.runs import RunOptions

    given = vars(options)
    names = ("preset", "batch_size", "seed", "device", "precision", "freeze_backbone", "workers")
    known = {name: given[name] for name in names if name in given}
    return RunOptions(**known, epochs=dict(given.get("epochs") or ()), progress=_terminal())


def _terminal() -> bool:
    return sys.stderr.isatty()


def _folder(options: argparse.Namespace, command: str) -> Path:
    folder = options.out or Path("runs", f"{command}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not an empty folder; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _where(folder: Path) -> None:
    print(f"Written to {folder}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conceptcam",
        description="Concept-bottleneck models for (medical) images: which findings, where, and what each counted for.",
        epilog="`conceptcam COMMAND --help` explains a command. Exit codes: 0 done, 2 something to be mended by you.",
    )
    parser.add_argument("--version", action="version", version=f"conceptcam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_demo_parser, _train_parser, _evaluate_parser, _explain_parser):
        command = add(commands)
        command.add_argument("--out", type=Path, metavar="DIR", help="folder to write; default: a new one in runs/")
        command.add_argument("-v", "--verbose", action="store_true", help="log what happens, and show tracebacks")
    return parser


def _demo_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands, "demo", _demo, "train, look at and check a model of a drawn chest, in minutes",
        """Draws a data set of chest phantoms, on which every finding and its place is known exactly; trains a
three-stage concept model from scratch; measures it on images it has never seen; and draws what it sees.

Writes config.json and model.safetensors (load the folder with ConceptModel.from_pretrained), history.csv,
metrics.json, metrics.txt, summary.json and figures/: phantom.png shows every finding, learning.png the maps
epoch by epoch, the others what the model sees in test images.""",
        """examples:
  conceptcam demo                                 the whole demonstration
  conceptcam demo --images 1000 --epochs concepts=3 prototypes=2 task=2 --out /tmp/quick
  conceptcam demo --bottleneck concepts           the classic bottleneck""",
    )  # fmt: skip
    parser.add_argument("--images", type=_positive, default=8000, metavar="N", help="training images (default: 8000)")
    parser.add_argument("--size", type=_positive, default=112, metavar="PX", help="side of the images (default: 112)")
    _training_options(parser, epochs=("concepts=8", "prototypes=4", "task=8"), batch_size=64)
    return parser


def _train_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands, "train", _train, "train on your own images with boxes",
        """Trains a model on images with COCO detection annotations: each category is a concept, present in an
image if it has a box there. Trains concepts and prototypes, and the task head if images carry task labels (an
object "tasks" of name: 0 or 1 in the image's record).

DATA is a folder with train.json, val.json and images/. Writes config.json, model.safetensors, history.csv,
metrics.json, metrics.txt and figures/.""",
        """examples:
  conceptcam train smears --backbone timm:resnet18 --pretrained
  conceptcam train smears --backbone timm:tf_efficientnet_lite0 --weights lite0.safetensors \\
      --mean .5 .5 .5 --std .5 .5 .5 --feature-level -2 --image-size 320 320""",
    )  # fmt: skip
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the annotations and images/")
    parser.add_argument("--train", default="train.json", metavar="FILE", help="training annotations within DATA")
    parser.add_argument("--val", default="val.json", metavar="FILE", help="validation annotations within DATA")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: DATA/images)")
    parser.add_argument(
        "--bad-boxes", choices=("refuse", "skip"), default="refuse",
        help="what to do if a box is empty or far outside its image (default: refuse the file)",
    )  # fmt: skip
    parser.add_argument(
        "--backbone", default="timm:resnet18", metavar="NAME", help="as create_backbone takes (default: timm:resnet18)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--weights", type=Path, metavar="FILE", help="safetensors file to start the backbone from")
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
        "--mean",
        type=float,
        nargs=3,
        default=(0.485, 0.456, 0.406),
        metavar="M",
        help="of the backbone's training (default: ImageNet's)",
    )
    parser.add_argument("--std", type=float, nargs=3, default=(0.229, 0.224, 0.225), metavar="S", help="likewise")
    parser.add_argument(
        "--task-kind", choices=("multilabel", "multiclass"), default="multilabel", help="default: multilabel"
    )
    parser.add_argument(
        "--no-augment", action="store_true", help="do not jitter place, size and exposure of training images"
    )
    parser.add_argument("--figures", type=int, default=12, metavar="N", help="validation images to draw (default: 12)")
    _training_options(parser, epochs=(), batch_size=32)
    return parser


def _evaluate_parser(commands: Any) -> argparse.ArgumentParser:
    parser = _command(
        commands, "evaluate", _evaluate, "measure a trained model, with controls",
        """Measures how right a model is on annotated images: for each concept AUROC, average precision, F1 and the
mean probability; whether its map peaks in the boxes (beside a random map, the image centre, and mirrored and
transposed boxes); and the tasks, if they were taught. Writes metrics.json, metrics.txt and figures/.""",
        """examples:
  conceptcam evaluate runs/train-20260101-120000 smears --split val.json""",
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder written by train, demo or save_pretrained")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the annotations and images/")
    parser.add_argument(
        "--split", default="val.json", metavar="FILE", help="annotations within DATA (default: val.json)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (default: DATA/images)")
    parser.add_argument(
        "--bad-boxes", choices=("refuse", "skip"), default="refuse",
        help="what to do if a box is empty or far outside its image (default: refuse the file)",
    )  # fmt: skip
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
        commands, "explain", _explain, "say what a model sees in images, and why",
        """Prints the foremost concepts of each image with their probability, and splits each task logit into the
concepts it came from. Writes a figure of the maps and a JSON file per image.""",
        """examples:
  conceptcam explain runs/demo-20260101-120000 chest.png
  conceptcam explain MODEL chest.png --task Pneumonia --concept Consolidation --concept Infiltration""",
    )  # fmt: skip
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder written by train, demo or save_pretrained")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--task", metavar="NAME", help="explain this task alone")
    parser.add_argument(
        "--concept", action="append", default=[], metavar="NAME", help="draw this concept; may be repeated"
    )
    parser.add_argument(
        "--top", type=_positive, default=5, metavar="N", help="how many concepts to print and draw (default: 5)"
    )
    return parser


def _training_options(parser: argparse.ArgumentParser, *, epochs: Sequence[str], batch_size: int) -> None:
    parser.add_argument(
        "--preset", choices=("recommended", "seed", "paper"), default="recommended", help="default: recommended"
    )
    parser.add_argument(
        "--bottleneck",
        choices=("prototypes", "concepts"),
        default="prototypes",
        help="what the task head reads (default: prototypes)",
    )
    parser.add_argument(
        "--epochs", type=_epochs, nargs="+", default=[_epochs(text) for text in epochs], metavar="STAGE=N",
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


def _command(
    commands: Any, name: str, run: Any, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _epochs(text: str) -> tuple[str, int]:
    stage, _, number = text.partition("=")
    if stage not in ("concepts", "prototypes", "task"):
        raise argparse.ArgumentTypeError(f"expected concepts=N, prototypes=N or task=N, got {text!r}")
    return stage, _positive(number)


if __name__ == "__main__":
    sys.exit(main())
