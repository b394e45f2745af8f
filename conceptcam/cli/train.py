r"""Train on your own images with boxes.

Trains a model on images with COCO detection annotations: each category is a concept, present in an image if it has
a box there. Trains concepts and prototypes, and the task head if images carry task labels (an object "tasks" of
name: 0 or 1 in the image's record).

DATA is a folder with train.json, val.json and images/. Writes config.json, model.safetensors, run.json,
history.csv, metrics.json, metrics.txt and figures/.

Examples:
    conceptcam train smears --backbone timm:resnet18 --pretrained
    conceptcam train smears --backbone timm:tf_efficientnet_lite0 --weights lite0.safetensors \
        --feature-level -2 --image-size 320 320
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from conceptcam.cli.inputs import FINISHED, make_options, output_folder, read_data, show
from conceptcam.cli.options import (
    add_bottleneck,
    add_data_options,
    add_flag,
    add_out,
    add_preprocessing,
    add_run_options,
    preprocessing,
)

if TYPE_CHECKING:
    from conceptcam.runs.folder import RunFolder
    from conceptcam.runs.options import RunOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam train`."""
    add_data_options(parser)
    for name, use in (("train", "learn from"), ("val", "choose the best epoch by")):
        add_flag(parser, name, f"{name}.json", f"annotations within DATA to {use}", metavar="FILE")
    uncertain = "what a training label of -1 counts as; in validation data it is always ignored"
    add_flag(parser, "uncertain", "ignore", uncertain, choices=("ignore", "zeros", "ones", "soft"))
    add_flag(parser, "no_augment", False, "do not shift, scale, turn and light images anew")
    add_flag(parser, "backbone", "timm:resnet18", "as create_backbone takes")
    level = "how fine the grid is: -1 is the last, coarsest one, -2 the one before"
    add_flag(parser, "feature_level", -1, level, metavar="N")
    add_preprocessing(parser)
    kind = "whether any number of tasks can be true, or exactly one is"
    add_flag(parser, "task_kind", "multilabel", kind, choices=("multilabel", "multiclass"))
    add_bottleneck(parser)
    add_out(parser, figures=True)
    add_run_options(parser)


def run(options: argparse.Namespace) -> None:
    """Train on a user's own images."""
    from conceptcam.runs.folder import RunFolder
    from conceptcam.training import distributed

    how = make_options(options)
    with distributed.process_group(how.device):  # of the processes that torchrun starts, the first one writes and talks
        first = distributed.is_main_process()
        run = distributed.broadcast(RunFolder(output_folder(options, resume=how.resume)) if first else None)
        assert run is not None
        _train(run, options, how, show if first else lambda line: None)


def _train(run: "RunFolder", options: argparse.Namespace, how: "RunOptions", echo: Callable[[str], None]) -> None:
    from conceptcam.backbones import backbone_normalization
    from conceptcam.config import ConceptConfig
    from conceptcam.data.transforms import default_augmentation
    from conceptcam.runs.options import options_to_dict
    from conceptcam.runs.run import train_run

    names = ("task_kind", "backbone", "feature_level", "bottleneck")
    data, fields = _data_record(options), {name: getattr(options, name) for name in names} | preprocessing(options)
    if run.state == "finished":
        run.check_resume_options({**options_to_dict(how, options.task_kind), "data": data, "model": fields})
        return echo(FINISHED.format(run.path))
    train = read_data(options, "train", uncertain=options.uncertain, task_kind=options.task_kind)
    val = read_data(options, "val", concepts=train.concepts, tasks=train.tasks)
    if shared := sorted({*train.names} & {*val.names}):
        raise ValueError(
            f"{len(shared)} images are in both training and validation data: {shared[:3]}; take them out of one"
        )
    usual = dict(zip(("mean", "std"), backbone_normalization(options.backbone), strict=True))
    config = ConceptConfig(concepts=train.concepts, tasks=train.tasks, **{**usual, **fields})
    if not config.tasks:
        echo("No task labels in the data: the model learns concepts and prototypes, and will give no diagnosis.")
    echo(f"Training on {len(train)} images, validating on {len(val)}; {len(config.concepts)} concepts ...")
    measured_on = f"the {len(val)} validation images of {options.data.name}/{options.val}"
    result = train_run(
        config, train, val, run.path, how,
        training_data=f"{len(train)} images of {options.data.name}/{options.train}",
        data=data,
        measured_on=f"{measured_on}, which also chose epochs and thresholds",
        drawn=range(options.figures),
        example_image=val.load_item(int(val.concept_labels.nan_to_num().sum(dim=1).argmax())),  # shows most concepts
        example_concepts=config.concepts[:6],
        augmentation=None if options.no_augment else default_augmentation(config.image_size),
        echo=echo,
    )  # fmt: skip
    if result.evaluation is not None:
        echo(result.evaluation.table())
        echo("These figures are of the validation images, which also chose the epoch and the thresholds.")
        echo(f"Written to {run.path}")
    return None


def _data_record(options: argparse.Namespace) -> dict[str, Any]:
    """Where the data are and how they are read."""
    places = {"folder": options.data, "images": options.images or options.data / "images"}
    names = ("train", "val", "invalid_boxes", "uncertain", "no_augment")
    return {name: str(place.resolve()) for name, place in places.items()} | {n: getattr(options, n) for n in names}
