"""Put two models side by side on the same images.

Measures two models on annotated images and prints, for each concept and task that both have, the AUROC and the average
precision of either, and their difference with a 95 % interval. Differences are paired: the same images, or patients
where ids are given, are drawn anew for both. A difference whose interval holds 0 could be luck. Writes comparison.json
and comparison.txt.

Examples:
    conceptcam compare runs/wide runs/narrow labels.csv --images films --split runs/wide/split.csv --part val
    conceptcam compare phantom-csr phantom-cbm chests --annotations test.json
"""

import argparse

from conceptcam._files import write_json, write_text
from conceptcam.cli.data import add_data_options, add_split, read_data, read_part
from conceptcam.cli.flags import MODEL, add_flag, add_out, add_run_options
from conceptcam.cli.inputs import make_options, output_folder, show, show_origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam compare`."""
    parser.add_argument("model", metavar="A", help=MODEL)
    parser.add_argument("other", metavar="B", help="the other one, named likewise")
    add_data_options(parser)
    add_flag(parser, "annotations", "val.json", "table or COCO file within the folder DATA", metavar="FILE")
    add_split(parser, "says which part each image is in")
    part = "compare on this part alone, by --split or the table's split column, such as val or test (default: all)"
    add_flag(parser, "part", None, part)
    add_flag(parser, "draws", 1000, "how often images are drawn anew for intervals", at_least=1, metavar="N")
    add_out(parser)
    add_run_options(parser, names=("batch_size", "device", "num_workers"))


def run(options: argparse.Namespace) -> None:
    """Compare two models."""
    from conceptcam.analysis.comparison import compare
    from conceptcam.analysis.evaluation import evaluate
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.runs.options import loader

    place, how = output_folder(options), make_options(options)
    models = [ConceptModel.from_pretrained(name) for name in (options.model, options.other)]
    found = []
    for letter, model in zip("AB", models, strict=True):
        show_origin(model.record, start=f"{letter}: a model")
        dataset = read_part(options, read_data(options, "annotations", like=model.config), show)
        dataset.preprocess = model.preprocess
        found.append(evaluate(model, loader(dataset, how), device=how.device, draws=0))
    result = compare(*found, patients=dataset.patients, draws=options.draws)
    write_json(place / "comparison.json", {"A": options.model, "B": options.other, **result.as_dict()})
    write_text(place / "comparison.txt", result.table())
    show(f"\n{result.table()}\nWritten to {place}")
