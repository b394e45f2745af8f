"""Say what is wrong with a data set, before a run costs time.

Opens DATA as train does, counts its labels, and looks at every image once: labels that are never present or never
absent, patients on both sides of a split, files that cannot be read, constant, dark, too small, negatives or of another
bit depth than the others, images that are there twice or nearly so, boxes too small to see. It also counts which labels
come together, and how large boxes are on the model's grid. The exit code is 1 if there are faults.

Examples:
    conceptcam inspect labels.csv --images films --concepts nodule edema --task diagnosis
    conceptcam inspect smears --train val.json --invalid-boxes skip --json faults.json --html faults.html
"""

import argparse
from pathlib import Path

from conceptcam._files import write_json, write_text
from conceptcam.cli.data import add_data_options, add_split, read_data, read_parts
from conceptcam.cli.inputs import show
from conceptcam.cli.options import add_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam inspect`."""
    add_data_options(parser)
    add_flag(parser, "train", "train.json", "table or COCO file within the folder DATA", metavar="FILE")
    add_split(parser, "says which part each image is in")
    size = "size in pixels to which the model will resize images"
    add_flag(parser, "image_size", (224, 224), size, at_least=1, nargs=2, metavar=("H", "W"))
    grid = "cells of the model's maps, in which boxes are measured"
    add_flag(parser, "grid", (14, 14), grid, at_least=1, nargs=2, metavar=("H", "W"))
    add_flag(parser, "labels_only", False, "do not read images")
    add_flag(parser, "json", None, "also write the report as JSON", type=Path, metavar="FILE")
    page = "also write the report as one HTML page, with some images and their boxes"
    add_flag(parser, "html", None, page, type=Path, metavar="FILE")


def run(options: argparse.Namespace) -> int:
    """Look for what is wrong with a user's data; 1 if anything is."""
    from conceptcam.analysis.inspection_report import inspection_page
    from conceptcam.data.inspection import inspect_dataset

    data = read_data(options, "train")
    found = inspect_dataset(
        data,
        parts=read_parts(options, data),
        image_size=tuple(options.image_size),
        grid=tuple(options.grid),
        read_images=not options.labels_only,
    )
    show("\n".join(found.lines()))
    if options.json is not None:
        write_json(options.json, found.as_dict())
    if options.html is not None:
        write_text(options.html, inspection_page(found, data, title=f"Inspection of {options.data.name}"))
    return 1 if found.faults else 0
