"""What the arguments of a command stand for: data, options of a run, a folder to write."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conceptcam.data.coco import CocoDataset
    from conceptcam.runs.options import RunOptions


def read_data(options: argparse.Namespace, flag: str, **names: Any) -> "CocoDataset":
    """The data set whose annotations a flag names.

    Raises:
        OSError: If a file or folder is not there, or cannot be read.
        ValueError: If the annotations cannot be used.
    """
    from conceptcam.data.coco import CocoDataset

    path = options.data / getattr(options, flag)
    if not options.data.is_dir():
        raise FileNotFoundError(f"there is no folder {options.data} with {path.name} in it; see `conceptcam train -h`")
    if not path.exists():
        there = sorted(file.name for file in options.data.glob("*.json"))
        raise FileNotFoundError(
            f"there is no {path}; {options.data} has {there or 'no JSON files'}: name the annotations with --{flag}"
        )
    try:
        return CocoDataset(path, images_folder(options), invalid_boxes=options.invalid_boxes, **names)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name the folder of the images with --images") from error
    except ValueError as error:
        named = str(path) in str(error)
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def images_folder(options: argparse.Namespace) -> Path:
    """The folder that file names of images are relative to."""
    folder: Path = options.images if options.images is not None else options.data / "images"
    return folder


def run_options(options: argparse.Namespace) -> "RunOptions":
    """How to train, or to measure.

    Raises:
        ValueError: If the device cannot be used, or options contradict each other.
    """
    from conceptcam.model.device import resolve_device
    from conceptcam.runs.options import RunOptions

    given = vars(options)
    names = {field.name for field in dataclasses.fields(RunOptions)} - {"epochs", "progress_bar"}
    known = {name: given[name] for name in names & given.keys()}
    if "RANK" not in os.environ:  # of several, each has a device of its own, which is looked at when it trains
        resolve_device(given.get("device", "cpu"))
    asked, usual = dict(given.get("epochs", ())), dict(given.get("default_epochs", {}))
    if known.get("solve_task"):
        usual.pop("task", None)
        if "task" in asked:
            raise ValueError("--solve-task finds the task head's weights at once: leave task=N out of --epochs")
    weights = known.get("weights")
    if weights is not None and Path(weights).expanduser().is_file():
        known["weights"] = str(Path(weights).expanduser().resolve())  # so that `run.json` says which file it was
    return RunOptions(**known, epochs={**usual, **asked}, progress_bar=sys.stderr.isatty())


def output_folder(options: argparse.Namespace) -> Path:
    """The folder to write, which holds nothing yet, unless it is that of a run to resume.

    Raises:
        FileExistsError: If it holds something else.
        ValueError: If a run is to be resumed and nobody says where it is.
    """
    from conceptcam.runs.folder import read_run, run_state

    folder: Path = options.out or Path("runs", f"{options.command}-{time.strftime('%Y%m%d-%H%M%S')}")
    if getattr(options, "resume", False):
        if options.out is None:
            raise ValueError("--resume needs --out with the folder of the run to go on with")
        run_state(folder)
        return folder
    if is_taken(folder):
        told = read_run(folder) if hasattr(options, "resume") else {}
        if told and not told.get("finished"):
            raise FileExistsError(
                f"{folder} holds an unfinished run; add --resume to go on with it, or choose another --out"
            )
        raise FileExistsError(f"{folder} is there already and not an empty folder; choose another --out")
    return folder


def is_taken(place: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return place.exists() and (not place.is_dir() or any(place.iterdir()))


def is_finished(folder: Path, run: "RunOptions", known: Mapping[str, Any], *, task_kind: Any = "multilabel") -> bool:
    """Whether the run that is to be resumed has come to its end, with the same options.

    Args:
        folder: Where it is.
        run: How it is to train.
        known: What more `run.json` should say, as far as flags tell.
        task_kind: As in `ConceptConfig`.

    Raises:
        ValueError: If it has come to its end with other options.
    """
    from conceptcam.runs.folder import read_run
    from conceptcam.runs.options import refuse_changed, told_of

    then = read_run(folder) if run.resume else {}
    if not then.get("finished"):
        return False
    refuse_changed(folder, then, {**told_of(run, task_kind), **known})
    return True
