"""Measure a trained model, with controls.

Measures how right a model is on annotated images: for each concept AUROC, average precision, F1 and the mean
probability; whether its map peaks in the boxes (beside a random map, the image centre, and mirrored and transposed
boxes); and the tasks, if they were taught. Writes metrics.json, metrics.txt and figures/.

Examples:
    conceptcam evaluate runs/train-20260101-120000 smears --annotations val.json
"""

import argparse

from conceptcam.cli.inputs import make_options, output_folder, read_data, show
from conceptcam.cli.options import MODEL, add_data_options, add_flag, add_out, add_run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam evaluate`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_data_options(parser)
    add_flag(parser, "annotations", "val.json", "annotations within DATA", metavar="FILE")
    add_flag(parser, "sided", [], "a concept that has one place by nature; may be repeated", action="append")
    add_out(parser, figures=True)
    add_run_options(parser, names=("batch_size", "device", "num_workers"))


def run(options: argparse.Namespace) -> None:
    """Measure a trained model."""
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.runs.folder import RunFolder
    from conceptcam.runs.reports import measure, save_explanations

    place, how = output_folder(options), make_options(options)
    model = ConceptModel.from_pretrained(options.model)
    dataset = read_data(options, "annotations", concepts=model.config.concepts)
    if dataset.tasks:  # in the model's order, and all of them
        dataset = read_data(options, "annotations", concepts=model.config.concepts, tasks=model.config.tasks)
    folder = RunFolder(place)
    result = measure(model, dataset, folder, how, sided_concepts=options.sided)
    drawn = range(min(options.figures, len(dataset)))
    save_explanations(model, [dataset.load_item(i) for i in drawn], folder.explanations)
    show(f"{result.table()}\nWritten to {place}")
