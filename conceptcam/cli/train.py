r"""Train on your own images and labels.

Trains a model on a table of labels (CSV, TSV, Parquet) with a column per concept and task, or on images with COCO
detection annotations: there each category is a concept, present in an image if it has a box there. Trains concepts and
prototypes, and the task head if images carry task labels.

DATA is a table, a COCO file, or a folder with train.json, val.json and images/. Writes config.json, model.safetensors,
run.json, history.csv, metrics.json, metrics.txt, baselines.safetensors, figures/ and, where it divided the data,
split.csv.

Examples:
    conceptcam train labels.csv --images films --concepts nodule edema --task diagnosis
    conceptcam train smears --backbone timm:resnet18 --pretrained
    conceptcam train smears --backbone timm:tf_efficientnet_lite0 --weights lite0.safetensors \
        --feature-level -2 --image-size 320 320
"""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from conceptcam.cli.data import (
    add_data_options,
    add_split,
    data_name,
    data_record,
    read_data,
    read_train_and_val,
    warn_of_faults,
)
from conceptcam.cli.flags import (
    add_bottleneck,
    add_flag,
    add_out,
    add_preprocessing,
    add_run_options,
    fraction,
    preprocessing,
)
from conceptcam.cli.inputs import FINISHED, make_options, output_folder, show

if TYPE_CHECKING:
    from conceptcam.analysis.evaluation_result import Evaluation
    from conceptcam.config import ConceptConfig
    from conceptcam.data.batch import ConceptDataset
    from conceptcam.runs.folder import RunFolder
    from conceptcam.runs.options import RunOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam train`."""
    add_data_options(parser)
    add_flag(parser, "train", "train.json", "table or COCO file within the folder DATA to learn from", metavar="FILE")
    val = "table or COCO file beside it to choose the best epoch by (default: val.json if the folder DATA has it; else "
    add_flag(parser, "val", None, f"{val}some patients are split off, and split.csv says which)", metavar="FILE")
    add_split(parser, "divides DATA in place of a new split")
    part = "how much of the data is split off where there is no --val"
    add_flag(parser, "val_fraction", 0.2, part, type=fraction, metavar="F")
    folds = "train K times, each time with another K-th of the images held out, then once more with none held out"
    add_flag(parser, "folds", None, folds, at_least=1, metavar="K")
    uncertain = "what a training label of -1 counts as; in validation data it is always ignored"
    add_flag(parser, "uncertain", "ignore", uncertain, choices=("ignore", "zeros", "ones", "soft"))
    add_flag(parser, "no_augment", False, "do not shift, scale, turn and light images anew")
    add_flag(parser, "backbone", "timm:resnet18", "as create_backbone takes")
    level = "how fine the grid is: -1 is the last, coarsest one, -2 the one before (default: the last with 14 cells "
    add_flag(parser, "feature_level", None, f"{level}a side, if it is one of these)", type=int, metavar="N")
    add_preprocessing(parser)
    kind = "whether any number of tasks can be true, or exactly one is (default: as a table shows, else multilabel)"
    add_flag(parser, "task_kind", None, kind, choices=("multilabel", "multiclass"))
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
        command = _Command(run, options, how, _model_fields(options), show if first else lambda line: None)
        if run.state == "finished":
            _check_finished(command)
        elif options.folds is not None:
            _cross_validate(command)
        else:
            _train(command)


class _Command(NamedTuple):
    """What was asked for, and where it is written and said."""

    run: "RunFolder"
    options: argparse.Namespace
    how: "RunOptions"
    fields: dict[str, Any]
    """Of the model's config, as far as flags give them."""
    echo: Callable[[str], None]

    def common(self, dataset: "ConceptDataset", config: "ConceptConfig") -> dict[str, Any]:
        """The arguments that one training and several, of a cross-validation, have alike."""
        from conceptcam.data.transforms import default_augmentation

        return {
            "training_data": f"{len(dataset)} images of {data_name(self.options, 'train')}",
            "data": data_record(self.options),
            "augmentation": None if self.options.no_augment else default_augmentation(config.image_size),
            "echo": self.echo,
        }


def _train(command: _Command) -> None:
    """Train once, on training data, and measure on validation data."""
    from conceptcam.runs.run import train_run

    run, options, how, fields, echo = command
    train, val, split = read_train_and_val(options, run, echo)
    config = _config(train, fields, echo)
    echo(f"Training on {len(train)} images, validating on {len(val)}; {len(config.concepts)} concepts ...")
    measured_on = f"the {len(val)} validation images of {data_name(options, 'val')}"
    result = train_run(
        config, train, val, run.path, how,
        split=split,
        measured_on=f"{measured_on}, which also chose epochs and thresholds",
        drawn=range(options.figures),
        example_image=val.load_item(int(val.concept_labels.nan_to_num().sum(dim=1).argmax())),  # shows most concepts
        example_concepts=config.concepts[:6],
        **command.common(train, config),
    )  # fmt: skip
    if result.evaluation is not None:
        _echo_result(run, result.evaluation, result.warnings, echo)


def _check_finished(command: _Command) -> None:
    """Say that a run is finished, if it is the one that the options ask for."""
    from conceptcam.runs.options import options_to_dict

    run, options, how, fields, echo = command
    model = {**fields, "task_kind": options.task_kind or run.saved["model"]["task_kind"]}
    run.check_resume_options({**options_to_dict(how), "data": data_record(options), "model": model})
    run.remove_checkpoints()
    echo(FINISHED.format(run.path))


def _echo_result(
    run: "RunFolder", evaluation: "Evaluation", warnings: Sequence[str], echo: Callable[[str], None]
) -> None:
    table = evaluation.table()
    echo(table)
    echo("These figures are of the validation images, which also chose the epoch and the thresholds.")
    _echo_warnings(warnings, table, echo)
    echo(f"Written to {run.path}")


def _echo_warnings(warnings: Sequence[str], said: str, echo: Callable[[str], None]) -> None:
    """The warnings that were not said a moment ago."""
    for warning in warnings:
        if warning not in said:
            echo(f"WARNING: {warning}")


def _cross_validate(command: _Command) -> None:
    """Train once per fold and once on all images."""
    from conceptcam.runs.cross_validation import cross_validate, table
    from conceptcam.training import distributed

    run, options, how, fields, echo = command
    if options.val is not None or options.split is not None:
        raise ValueError("--folds divides the data itself: leave out --val and --split")
    if options.folds < 2:
        raise ValueError(f"--folds needs at least 2, got {options.folds}")
    if options.uncertain != "ignore":
        raise ValueError(
            f"--folds measures on all images, where -1 is unknown: leave out --uncertain {options.uncertain}"
        )
    if distributed.world_size() > 1:
        raise ValueError("--folds trains in one process; start it without torchrun")
    dataset = read_data(options, "train", task_kind=options.task_kind, uncertain=options.uncertain)
    for note in dataset.notes:
        echo(note)
    warn_of_faults(dataset, echo)
    config = _config(dataset, fields, echo)
    echo(f"{len(dataset)} images in {options.folds} folds; {len(config.concepts)} concepts ...")
    common = command.common(dataset, config)
    result = cross_validate(config, dataset, run.path, how, folds=options.folds, **common)
    echo(table(result))
    echo("Each image was predicted by a model that had not seen it.")
    _echo_warnings(result.warnings, "", echo)
    echo(f"The model of all images is in {run.path / 'final'}; predictions.csv, metrics and split.csv are beside it.")


def _model_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the model's config that flags give, before data are read."""
    from conceptcam.backbones import usual_feature_level

    fields = {name: getattr(options, name) for name in ("backbone", "bottleneck", "feature_level")}
    fields |= preprocessing(options)
    if options.feature_level is None:
        fields["feature_level"] = usual_feature_level(options.backbone, fields["image_size"])
    return fields


def _config(dataset: "ConceptDataset", fields: dict[str, Any], echo: Callable[[str], None]) -> "ConceptConfig":
    """The config of a model for a data set."""
    from conceptcam.model.data_config import config_for_data

    if not dataset.tasks:
        echo("No task labels in the data: the model learns concepts and prototypes, and will give no diagnosis.")
    return config_for_data(dataset, **fields)
