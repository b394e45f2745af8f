"""Write the probabilities of images into a table.

Writes a table with a row per image: its name, the probability of each concept, and of each task if the model was
taught any.

Examples:
    conceptcam predict phantom-csr chest.png
    conceptcam predict runs/train-20260101-120000 smears/*.png --out smears.csv --device cuda
"""

import argparse
from pathlib import Path

from conceptcam.cli.inputs import check_images, is_taken, make_options, show
from conceptcam.cli.options import MODEL, add_flag, add_run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam predict`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files")
    add_flag(parser, "out", Path("predictions.csv"), "CSV file to write", type=Path, metavar="FILE")
    add_run_options(parser, names=("batch_size", "device"))


def run(options: argparse.Namespace) -> None:
    """Write the probabilities of images."""
    from conceptcam.model.concept_model import ConceptModel

    how = make_options(options)
    if is_taken(options.out):
        raise FileExistsError(f"{options.out} is there already; choose another --out")
    check_images(options.images)
    model = ConceptModel.from_pretrained(options.model, device=how.device)
    table = model.predict(options.images, batch_size=how.batch_size)
    table.to_csv(options.out)
    show(f"{len(table.names)} images, {len(model.config.concepts)} concepts: written to {options.out}")
