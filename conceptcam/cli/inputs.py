"""What commands check before they begin: options of training, a folder to write."""

import argparse
import atexit
import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conceptcam.config import TrainingRecord
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.runs.options import RunOptions

FINISHED = "The run in {} is finished; there is nothing left to do."


def show(line: str) -> None:
    """Print a line at once, also into a file or a pipe."""
    print(line, flush=True)


def make_options(options: argparse.Namespace, defaults: "RunOptions | None" = None) -> "RunOptions":
    """The options of a run: as the flags give them, otherwise as the defaults are, or as in `RunOptions()`.

    Raises:
        ValueError: If the device cannot be used, or options contradict each other.
    """
    from conceptcam.model.device import resolve_device
    from conceptcam.runs.options import RunOptions

    defaults, given = defaults or RunOptions(), vars(options)
    named = {field.name: given[field.name] for field in dataclasses.fields(defaults) if field.name in given}
    if "RANK" not in os.environ:  # of several, each has a device of its own, which is looked at when it trains
        resolve_device(named.get("device", "cpu"))
    usual = dict(defaults.epochs)
    if named.get("solve_task"):
        usual.pop("task", None)
    if named.get("weights") and Path(named["weights"]).expanduser().is_file():
        named["weights"] = str(Path(named["weights"]).expanduser().resolve())  # `run.json` tells which file it was
    epochs = usual | dict(named.pop("epochs", None) or ())  # the last number of a stage counts
    return dataclasses.replace(defaults, **named, epochs=epochs, progress_bar=sys.stderr.isatty())


def output_folder(options: argparse.Namespace, *, resume: bool = False) -> Path:
    """The folder to write, which holds nothing yet, unless it is that of a run to resume.

    Raises:
        FileExistsError: If it holds something else.
        ValueError: If a run is to be resumed and no folder is given.
    """
    from conceptcam.runs.folder import RunFolder

    folder: Path = options.out or _new_folder(f"{options.command}-{time.strftime('%Y%m%d-%H%M%S')}")
    if resume and options.out is None:
        raise ValueError("--resume needs --out with the folder of the run to go on with")
    if resume:
        if getattr(options, "folds", None) is None:  # a cross-validation knows its folder by split.csv
            RunFolder(folder).check_only_a_run()
    elif is_taken(folder):
        if options.command in ("demo", "train"):
            RunFolder(folder).check_begin(resume=False)
        raise FileExistsError(f"{folder} is there already and not an empty folder; choose another --out")
    options.out = folder  # whoever asks later where it is, also of a folder that nobody named
    return folder


def _new_folder(name: str) -> Path:
    """A folder of that name in `runs`, or with a number behind it, if another start took it in the same second.

    It is made at once, so that no other start takes it, and is gone at the end if nothing was written.
    """
    for number in itertools.count(1):
        folder = Path("runs", name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    atexit.register(_remove_if_empty, folder.absolute())
    return folder


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def is_taken(place: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return place.exists() and (not place.is_dir() or any(place.iterdir()))


def list_images(paths: Sequence[Path]) -> list[Path]:
    """The images that paths name: files, and all images in folders and below them, in order.

    Raises:
        FileNotFoundError: Naming the first ones that are not there, or a folder without images.
    """
    from conceptcam.data.image_files import is_image

    if missing := [str(path) for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} images are not there: {missing[:3]}")
    images = []
    for path in paths:
        found = sorted(file for file in path.rglob("*") if is_image(file)) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"there are no images in the folder {path}")
        images += found
    return images


def show_origin(record: "TrainingRecord", *, start: str = "A model") -> None:
    """Print what a model was trained on, what it is not for, and whether it can tell images unlike those."""
    data = record.training_data or "data that nobody named"
    blind = "" if record.feature_statistics else " It cannot tell whether an image is unlike those."
    show(f"{start} trained on {data}; research software, not for diagnosis.{blind}")


def load_model(options: argparse.Namespace) -> "ConceptModel":
    """The model that a command names, on its device; it reads images with the bit depth that the command says."""
    from conceptcam.model.concept_model import ConceptModel

    model = ConceptModel.from_pretrained(options.model, device=make_options(options).device)
    model.preprocess = dataclasses.replace(model.preprocess, bit_depth=options.bit_depth)
    return model
