"""Measure a trained model, with controls.

Measures how right a model is on annotated images: for each concept AUROC, average precision, F1 and the mean
probability; whether its map peaks in the boxes (beside a random map, the image centre, and mirrored and transposed
boxes); and the tasks, if they were taught. With --all also what takes much longer: whether scores rest on what maps
show, whether concepts leak, what corrections do, and whether prototypes mean one thing. Writes metrics.json,
metrics.txt, predictions.csv with a row per image, and figures/; all of them are there before the long measures begin.

Examples:
    conceptcam evaluate runs/train-20260101-120000 smears --annotations val.json
    conceptcam evaluate runs/lungs labels.csv --images films --split runs/lungs/split.csv --part val
    conceptcam evaluate runs/lungs labels.csv --images films --split runs/lungs/split.csv --part val --all
"""

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from conceptcam.cli.data import add_data_options, add_split, read_data, read_part
from conceptcam.cli.flags import MODEL, add_flag, add_out, add_run_options
from conceptcam.cli.inputs import make_options, output_folder, show, show_origin

if TYPE_CHECKING:
    from conceptcam.analysis.evaluation_result import Evaluation
    from conceptcam.runs.folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam evaluate`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_data_options(parser)
    add_flag(parser, "annotations", "val.json", "table or COCO file within the folder DATA", metavar="FILE")
    add_split(parser, "says which part each image is in")
    part = "measure on this part alone, by --split or the table's split column, such as val or test (default: all)"
    add_flag(parser, "part", None, part)
    add_flag(parser, "sided", [], "a concept that has one place by nature; may be repeated", action="append")
    slow = "then measure also what takes long, and say about how long: faithfulness, leakage, corrections, prototypes"
    add_flag(parser, "all", False, slow)
    add_out(parser, figures=True)
    add_run_options(parser, names=("batch_size", "device", "num_workers"))


def run(options: argparse.Namespace) -> None:
    """Measure a trained model."""
    from conceptcam.analysis.baselines import Baselines
    from conceptcam.analysis.slow_table import slow_lines
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.runs.folder import BASELINES_FILE, RunFolder
    from conceptcam.runs.reports import measure, measure_rest, save_explanations

    place, how = output_folder(options), make_options(options)
    model = ConceptModel.from_pretrained(options.model)
    show_origin(model.record)
    dataset = read_part(options, read_data(options, "annotations", like=model.config), show)
    folder, own = RunFolder(place), Path(options.model) / BASELINES_FILE
    baselines = Baselines.load(own) if own.is_file() else None
    result = measure(model, dataset, folder, how, sided_concepts=options.sided, baselines=baselines)
    drawn = range(min(options.figures, len(dataset)))
    result.per_image.to_csv(place / "predictions.csv", patients=dataset.patients)
    _draw(result, folder)
    save_explanations(model, [dataset.load_item(i) for i in drawn], folder.explanations)
    show(f"{result.table()}\nWritten to {place}")
    if options.all:
        result = measure_rest(model, dataset, result, folder, how, echo=show)
        _draw(result, folder)
        assert result.slow is not None
        show("\n".join(["", *slow_lines(result.slow), "", f"Added to {place}"]))


def _draw(result: "Evaluation", folder: "RunFolder") -> None:
    """Save the figures, if matplotlib is installed."""
    from conceptcam.analysis.evaluation_figures import evaluation_figures

    if importlib.util.find_spec("matplotlib") is not None:
        for name, figure in evaluation_figures(result).items():
            folder.figures.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder.figures / f"{name}.png")
