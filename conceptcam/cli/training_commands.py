"""What `conceptcam demo` and `conceptcam train` do."""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam.cli.command_inputs import images_folder, is_finished, output_folder, read_data, run_options

if TYPE_CHECKING:
    from conceptcam.config import ConceptConfig
    from conceptcam.data.coco import CocoDataset
    from conceptcam.runs.options import RunOptions

Say = Callable[[str], None]


def demo(options: argparse.Namespace, say: Say) -> None:
    """Train, look at and check a model of a drawn chest."""
    from conceptcam.runs.demo import phantom_data, run_demo
    from conceptcam.runs.folder import removed_unless_taught

    start = time.perf_counter()
    folder, run = output_folder(options), run_options(options)
    if options.size % 8:
        raise ValueError(f"--size must be a multiple of 8, the small backbone's stride, got {options.size}")
    known = {
        "data": {"train_images": options.images},
        "model": {"image_size": [options.size] * 2, "bottleneck": options.bottleneck},
    }
    if is_finished(folder, run, known):
        return say(_FINISHED.format(folder))
    say(f"Drawing {options.images} chest phantoms of {options.size} pixels (kept for the next time) ...")
    data = phantom_data(options.images, size=options.size, seed=options.seed, progress=sys.stderr.isatty())
    with removed_unless_taught(folder):
        figures = run_demo(folder, data, run, bottleneck=options.bottleneck, say=say)
    for name, value in figures.items():
        say(f"{name:<50} {'-' if math.isnan(value) else f'{value:.3f}'}")
    say(f"\nMinutes taken: {(time.perf_counter() - start) / 60:.1f}")
    say(f"Written to {folder}")
    return say(f"Look at {folder / 'figures'}, or: conceptcam explain {folder} IMAGE")


def train(options: argparse.Namespace, say: Say) -> None:
    """Train on a user's own images."""
    from conceptcam.training import distributed

    run = run_options(options)
    with distributed.process_group(run.device):  # of `torchrun`'s processes the first one writes and talks
        first = distributed.is_main_process()
        folder = distributed.broadcast(output_folder(options) if first else None)
        assert folder is not None
        _train_in(folder, options, run, say if first else _say_nothing)


def _train_in(folder: Path, options: argparse.Namespace, run: "RunOptions", say: Say) -> None:
    from conceptcam.data.transforms import default_augmentation
    from conceptcam.runs.reports import EXPLANATIONS, measure, save_explanations
    from conceptcam.runs.run import end_run, train_run
    from conceptcam.training import distributed

    known = {"data": _told_of_data(options), "model": _told_of_model(options)}
    if distributed.broadcast(is_finished(folder, run, known, task_kind=options.task_kind)):
        return say(_FINISHED.format(folder))
    train = read_data(options, "train", uncertain=options.uncertain, task_kind=options.task_kind)
    val = read_data(options, "val", concepts=train.concepts, tasks=train.tasks)
    _refuse_shared(train, val)
    config = _config(options, train)
    if not config.tasks:
        say("No task labels in the data: the model learns concepts and prototypes, and will give no diagnosis.")
    say(f"Training on {len(train)} images, validating on {len(val)}; {len(config.concepts)} concepts ...")
    model = train_run(
        config, train, val, folder, run,
        training_data=f"{len(train)} images of {options.data.name}/{options.train}",
        data=_told_of_data(options),
        watch=val.load_item(_fullest(val)), follow=config.concepts[:6],
        augmentation=None if options.no_augment else default_augmentation(config.image_size),
        say=say,
    )  # fmt: skip
    if not distributed.is_main_process():
        return None
    result = measure(model, val, folder, run)
    where = (
        f"the {len(val)} validation images of {options.data.name}/{options.val}, which also chose epochs and thresholds"
    )
    model.record = dataclasses.replace(model.record, metrics=result.summary(), measured_on=where)
    model.save_pretrained(folder)
    save_explanations(model, [val.load_item(i) for i in range(min(options.figures, len(val)))], folder / EXPLANATIONS)
    end_run(folder)
    say(result.table())
    say("These figures are of the validation images, which also chose the epoch and the thresholds.")
    return say(f"Written to {folder}")


def _config(options: argparse.Namespace, train: "CocoDataset") -> "ConceptConfig":
    from conceptcam.backbones import backbone_normalization
    from conceptcam.config import ConceptConfig

    mean, std = backbone_normalization(options.backbone)
    fields = {"mean": tuple(mean), "std": tuple(std), **_told_of_model(options)}
    return ConceptConfig(concepts=train.concepts, tasks=train.tasks, **fields)


def _told_of_model(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the model's config that flags name."""
    names = ("task_kind", "backbone", "feature_level", "bottleneck")
    given = {name: tuple(value) for name in ("image_size", "mean", "std") if (value := getattr(options, name))}
    return {name: getattr(options, name) for name in names} | given


def _told_of_data(options: argparse.Namespace) -> dict[str, Any]:
    """Where the data are and how they are read."""
    names = ("train", "val", "invalid_boxes", "uncertain", "no_augment")
    places = {"folder": options.data, "images": images_folder(options)}
    return {name: str(place.resolve()) for name, place in places.items()} | {n: getattr(options, n) for n in names}


def _refuse_shared(train: "CocoDataset", val: "CocoDataset") -> None:
    """Figures on images that were trained on say nothing."""
    if shared := sorted({*train.names} & {*val.names}):
        raise ValueError(
            f"{len(shared)} images are in both training and validation data: {shared[:3]}; take them out of one"
        )


def _fullest(dataset: "CocoDataset") -> int:
    """The image with the most concepts."""
    return int(dataset.concept_labels.nan_to_num().sum(dim=1).argmax())


def _say_nothing(line: str) -> None:
    """What processes say that are not the first."""


_FINISHED = "The run in {} is finished; there is nothing left to do."
