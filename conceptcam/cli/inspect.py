"""Say what is wrong with a data set, before a run costs time.

Opens DATA as train does, counts its labels, and looks at every image once. Of a folder it reads train.json, val.json
and test.json, as far as they are there, or the files that flags name, and compares them. It lists entries that train
would refuse, such as boxes that cannot be, missing images and labels out of range; labels that are never present or
never absent; patients and images in more than one part; files that cannot be read, constant, dark, too small,
negatives or of another bit depth than the others; images that are there twice or nearly so; boxes too small to see. It
also counts which labels come together, and how large boxes are on the model's grid, and remarks which labels fewer
than five images have, or lack. The exit code is 1 if there are faults, and 2 if nothing could be inspected.

Examples:
    conceptcam inspect labels.csv --images films --concepts nodule edema --task diagnosis
    conceptcam inspect smears --invalid-boxes skip --json faults.json --html faults.html
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conceptcam._checks import shorten
from conceptcam._files import write_json, write_text
from conceptcam.cli.data import add_data_options, add_split, is_file, labels_file, read_data, read_parts
from conceptcam.cli.flags import add_flag
from conceptcam.cli.inputs import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conceptcam.data.batch import ConceptDataset
    from conceptcam.data.faults import Fault, OnFault

_PARTS = ("train", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam inspect`."""
    add_data_options(parser)
    for part in _PARTS:
        beside = "" if part == "train" else " or beside the file DATA"
        text = f"file of that part, in the folder DATA{beside}; if none is named, of a folder {part}.json"
        add_flag(parser, part, None, text, metavar="FILE")
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

    data, parts, faults = _read(options)
    found = inspect_dataset(
        data,
        parts=parts,
        image_size=tuple(options.image_size),
        grid=tuple(options.grid),
        read_images=not options.labels_only,
    )
    found = replace(found, faults=(*faults, *found.faults))
    show("\n".join(found.lines()))
    if options.json is not None:
        write_json(options.json, found.as_dict())
    if options.html is not None:
        write_text(options.html, inspection_page(found, data, title=f"Inspection of {options.data.name}"))
    return 1 if found.faults else 0


class _Data(NamedTuple):
    """What there is to inspect."""

    images: "ConceptDataset"
    parts: "Sequence[str] | None"
    """The part of each image; None if nothing divides them."""
    faults: "list[Fault]"
    """Of the files of labels."""


def _read(options: argparse.Namespace) -> _Data:
    """All files of labels that there are, and what is wrong with them.

    Raises:
        OSError: If a file or folder is not there, or cannot be read.
        ValueError: If no file can be used.
    """
    from conceptcam.data.faults import Fault
    from conceptcam.data.joined import JoinedDataset, compare_labels

    faults: list[Fault] = []
    found: dict[str, ConceptDataset] = {}
    files = _files(options)
    for part in files:
        name = labels_file(options, part).name
        try:
            found[part] = read_data(options, part, on_fault=_listing(faults, f"{name}: " if len(files) > 1 else ""))
        except ValueError as error:
            if part == files[-1] and not found:
                for fault in faults:  # why nothing is left
                    show(f"{fault.kind}: {fault.text}")
                raise
            faults.append(Fault("labels that cannot be read", str(error)))
    if len(files) == 1:
        data = found[files[0]]
        data.notes = (*data.notes, *_unlisted(options, data))
        return _Data(data, read_parts(options, data), faults)
    if options.split is not None:
        raise ValueError(f"--split divides one file of labels, and there are {len(files)}; leave it out")
    faults += compare_labels({labels_file(options, part).name: one for part, one in found.items()})
    joined = JoinedDataset(list(found.values()))
    counts = [f"{labels_file(options, part).name} has {len(one)} images." for part, one in found.items()]
    joined.notes = (*counts, *joined.notes, *_unlisted(options, joined))
    return _Data(joined, [part for part, one in found.items() for _ in range(len(one))], faults)


def _unlisted(options: argparse.Namespace, data: "ConceptDataset") -> list[str]:
    """A note of images that none of the files of a folder lists; readers of tables give one of their own."""
    from conceptcam.data.image_files import unlisted_images

    if data.folder is None or not options.data.is_dir() or any(getattr(options, part) for part in _PARTS):
        return []
    lost = unlisted_images(list(data.names), data.folder)
    return (
        [f"{len(lost)} images in {data.folder} are in none of these files: {shorten(map(repr, lost))}."] if lost else []
    )


def _listing(faults: "list[Fault]", where: str) -> "OnFault":
    """What adds faults to a list, each once, and says in which file they are."""

    def add(fault: "Fault") -> None:
        named = fault._replace(text=where + fault.text)
        if named not in faults:
            faults.append(named)

    return add


def _files(options: argparse.Namespace) -> list[str]:
    """The parts to read: those whose files are named, with DATA if it is a file; else the usual ones of the folder."""
    named = [part for part in _PARTS if getattr(options, part) is not None]
    if is_file(options.data):
        if options.train is not None:
            raise ValueError(
                f"DATA is the file {options.data.name}, so --train {options.train} is not read; leave it out, or let "
                "DATA be a folder"
            )
        return ["train", *(part for part in named if part != "train")]
    return named or [part for part in _PARTS if labels_file(options, part).is_file()] or ["train"]
