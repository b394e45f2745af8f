"""Write the probabilities of images into a table.

Writes a table with a row per image: its name, the probability of each concept, and of each task if the model was
taught any.

Examples:
    conceptcam predict phantom-csr chest.png
    conceptcam predict runs/lungs films/ --ids --out lungs.csv
    conceptcam predict runs/train-20260101-120000 smears/*.png --out smears.csv --device cuda
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from conceptcam.cli.flags import MODEL, UNLIKE, add_flag, add_images, add_run_options
from conceptcam.cli.inputs import is_taken, list_images, load_model, make_options, show, show_origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam predict`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_images(parser)
    add_flag(parser, "out", Path("predictions.csv"), "CSV file to write", type=Path, metavar="FILE")
    add_flag(parser, "ids", False, "add the patient and study that DICOM files name")
    text = "write probabilities as the model gives them, not as its calibration corrects them"
    add_flag(parser, "uncalibrated", False, text)
    add_flag(parser, "hide_unlike", False, UNLIKE)
    add_run_options(parser, names=("batch_size", "device"))


def run(options: argparse.Namespace) -> None:
    """Write the probabilities of images."""
    how = make_options(options)
    if is_taken(options.out):
        raise FileExistsError(f"{options.out} is there already; choose another --out")
    images = list_images(options.images)
    ids = _ids(images) if options.ids else {}
    model = load_model(options)
    show_origin(model.record)
    table = model.predict(images, batch_size=how.batch_size, calibrated=not options.uncalibrated)
    unlike = 0 if table.unlikeness is None else int((table.unlikeness > 1).sum())
    if unlike and not options.hide_unlike:
        what = f"{unlike} of {len(images)} images are unlike those the model was trained on"
        show(f"{what} (unlikeness above 1 in the table); what it says of them means little")
    table.to_csv(options.out, more=ids)
    show(f"{len(table.names)} images, {len(model.config.concepts)} concepts: written to {options.out}")


def _ids(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Patient and study of each image; empty for files that are not DICOM."""
    from conceptcam.data.dicom import DicomIds, dicom_ids, is_dicom

    found = [dicom_ids(path) if is_dicom(path) else DicomIds("", "") for path in paths]
    return {"patient": [ids.patient for ids in found], "study": [ids.study for ids in found]}
