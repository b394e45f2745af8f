"""Train on your own images with boxes.

Trains a model on images with COCO detection annotations: each category is a concept, present in an image if it has
a box there. Trains concepts and prototypes, and the task head if images carry task labels (an object "tasks" of
name: 0 or 1 in the image's record).

DATA is a folder with train.json, val.json and images/. Writes config.json, model.safetensors, run.json,
history.csv, metrics.json, metrics.txt and figures/.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam.cli.inputs import FINISHED, images_folder, make_options, output_folder, read_data, show
from conceptcam.cli.options import BOTTLENECK, add_data_options, add_figures, add_options, add_out, positive

if TYPE_CHECKING:
    from conceptcam.data.coco import CocoDataset
    from conceptcam.runs.options import RunOptions

EXAMPLES = """  conceptcam train smears --backbone timm:resnet18 --pretrained
  conceptcam train smears --backbone timm:tf_efficientnet_lite0 --weights lite0.safetensors \\
      --feature-level -2 --image-size 320 320"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam train`."""
    from conceptcam.runs.options import RunOptions

    add_data_options(parser)
    for name, use in (("train", "learn from"), ("val", "choose the best epoch by")):
        parser.add_argument(
            f"--{name}", default=f"{name}.json", metavar="FILE",
            help=f"annotations within DATA to {use} (default: {name}.json)",
        )  # fmt: skip
    parser.add_argument(
        "--uncertain", choices=("ignore", "zeros", "ones", "soft"), default="ignore", metavar="NAME",
        help="what a training label of -1 counts as; in validation data it is always ignored (default: ignore)",
    )  # fmt: skip
    parser.add_argument("--no-augment", action="store_true", help="do not shift, scale, turn and light images anew")
    parser.add_argument(
        "--backbone", default="timm:resnet18", metavar="NAME", help="as create_backbone takes (default: timm:resnet18)"
    )
    parser.add_argument(
        "--feature-level", type=int, default=-1, metavar="N",
        help="how fine the grid is: -1 is the last, coarsest one, -2 the one before (default: -1)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=positive, nargs=2, default=(224, 224), metavar=("H", "W"),
        help="size in pixels that images are resized to (default: 224 224)",
    )  # fmt: skip
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar=name[0].upper(),
            help=f"{name} of each channel of images in [0, 1] (default: what the backbone expects)",
        )  # fmt: skip
    parser.add_argument(
        "--task-kind", choices=("multilabel", "multiclass"), default="multilabel", metavar="NAME",
        help="whether any number of tasks can be true, or exactly one is (default: multilabel)",
    )  # fmt: skip
    parser.add_argument("--bottleneck", **BOTTLENECK)
    add_figures(parser)
    add_out(parser)
    add_options(parser, RunOptions())


def run(options: argparse.Namespace) -> None:
    """Train on a user's own images."""
    from conceptcam.runs.options import RunOptions
    from conceptcam.training import distributed

    how = make_options(options, RunOptions())
    with distributed.process_group(how.device):  # of the processes that torchrun starts, the first one writes and talks
        first = distributed.is_main_process()
        folder = distributed.broadcast(output_folder(options, resume=how.resume) if first else None)
        assert folder is not None
        _train(folder, options, how, show if first else lambda line: None)


def _train(folder: Path, options: argparse.Namespace, how: "RunOptions", echo: Any) -> None:
    from conceptcam.backbones import backbone_normalization
    from conceptcam.config import ConceptConfig
    from conceptcam.data.transforms import default_augmentation
    from conceptcam.runs.folder import RunFolder
    from conceptcam.runs.options import options_to_dict
    from conceptcam.runs.run import check_resume_options, train_run
    from conceptcam.training import distributed

    run = distributed.broadcast(RunFolder(folder) if distributed.is_main_process() else None)
    assert run is not None
    data, fields = _data_record(options), _config_fields(options)
    if run.state == "finished":
        check_resume_options(run, {**options_to_dict(how, options.task_kind), "data": data, "model": fields})
        echo(FINISHED.format(folder))
        return
    train = read_data(options, "train", uncertain=options.uncertain, task_kind=options.task_kind)
    val = read_data(options, "val", concepts=train.concepts, tasks=train.tasks)
    if shared := sorted({*train.names} & {*val.names}):
        raise ValueError(
            f"{len(shared)} images are in both training and validation data: {shared[:3]}; take them out of one"
        )
    mean, std = backbone_normalization(options.backbone)
    fields = {"mean": tuple(mean), "std": tuple(std), **fields}
    config = ConceptConfig(concepts=train.concepts, tasks=train.tasks, **fields)
    if not config.tasks:
        echo("No task labels in the data: the model learns concepts and prototypes, and will give no diagnosis.")
    echo(f"Training on {len(train)} images, validating on {len(val)}; {len(config.concepts)} concepts ...")
    result = train_run(
        config, train, val, folder, how,
        training_data=f"{len(train)} images of {options.data.name}/{options.train}",
        data=data,
        measured_on=f"the {len(val)} validation images of {options.data.name}/{options.val}, which also chose epochs "
        "and thresholds",
        drawn=range(options.figures),
        example_image=_example(val),
        example_concepts=config.concepts[:6],
        augmentation=None if options.no_augment else default_augmentation(config.image_size),
        echo=echo,
    )  # fmt: skip
    if result.evaluation is not None:
        echo(result.evaluation.table())
        echo("These figures are of the validation images, which also chose the epoch and the thresholds.")
        echo(f"Written to {folder}")


def _config_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the model's config that flags give."""
    names = ("task_kind", "backbone", "feature_level", "bottleneck")
    given = {name: tuple(value) for name in ("image_size", "mean", "std") if (value := getattr(options, name))}
    return {name: getattr(options, name) for name in names} | given


def _data_record(options: argparse.Namespace) -> dict[str, Any]:
    """Where the data are and how they are read."""
    names = ("train", "val", "invalid_boxes", "uncertain", "no_augment")
    places = {"folder": options.data, "images": images_folder(options)}
    return {name: str(place.resolve()) for name, place in places.items()} | {n: getattr(options, n) for n in names}


def _example(dataset: "CocoDataset") -> Any:
    """The image with the most concepts."""
    return dataset.load_item(int(dataset.concept_labels.nan_to_num().sum(dim=1).argmax()))
