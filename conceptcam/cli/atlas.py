"""Look at prototypes, and drop, merge or name them.

Lists the prototypes of a model, each with the image of the data that shows it best and with its health: how similar
that image is; in how many images of its concept it is the most similar one ("dead" if in none); of the ten images most
like it the fraction whose most similar place lies in a box of the concept (purity); its cosine with the nearest other
prototype (twin); and how much a task can rest on it. Writes atlas.txt, atlas.json and atlas.png. With --drop and
--merge it also solves for the task head anew, from the same images, and writes the changed model; with --rename alone,
the model as it is, whose names later calls find in the atlas.json beside it. The model that is given stays as it is.

Examples:
    conceptcam atlas runs/lungs labels.csv --images films --split runs/lungs/split.csv --part train
    conceptcam atlas runs/lungs chests --drop Edema=2 --merge ILD=0,1 --rename "Edema=0=bat wing" --out runs/mended
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conceptcam._checks import check_known
from conceptcam._files import write_json, write_text
from conceptcam.cli.data import add_data_options, add_split, read_data, read_part
from conceptcam.cli.flags import MODEL, add_flag, add_out, add_run_options
from conceptcam.cli.inputs import make_options, output_folder, show, show_origin

if TYPE_CHECKING:
    from conceptcam.analysis.atlas import Atlas, Prototype
    from conceptcam.data.batch import ConceptDataset

FILE = "atlas.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `conceptcam atlas`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_data_options(parser)
    add_flag(parser, "annotations", "train.json", "table or COCO file within the folder DATA", metavar="FILE")
    add_split(parser, "says which part each image is in")
    part = "look at this part alone, by --split or the table's split column; take that of training (default: all)"
    add_flag(parser, "part", None, part)
    number = "counted from 0; may be repeated"
    add_flag(
        parser, "concept", [], "draw the prototypes of this concept; may be repeated (default: all)", action="append"
    )
    add_flag(parser, "drop", [], f"make this prototype like nothing; {number}", metavar="NAME=N", action="append")
    merge = f"put the mean of these prototypes in the place of the first, and drop the others; {number}"
    add_flag(parser, "merge", [], merge, metavar="NAME=N,N", action="append")
    rename = f"call this prototype so in tables and pictures; {number}"
    add_flag(parser, "rename", [], rename, metavar="NAME=N=TEXT", action="append")
    add_out(parser)
    add_run_options(parser, names=("batch_size", "device", "num_workers"))


def run(options: argparse.Namespace) -> None:
    """List, draw and change the prototypes of a model."""
    from conceptcam.analysis.atlas import (
        build_atlas,
        check_prototypes,
        drop_prototypes,
        merge_prototypes,
        refit_task_head,
    )
    from conceptcam.model.concept_model import ConceptModel
    from conceptcam.runs.options import loader

    dropped = [_prototype(text, "--drop") for text in options.drop]
    merged = [_merged(text) for text in options.merge]
    names = dict(_named(text) for text in options.rename)
    place, how = output_folder(options), make_options(options)
    model = ConceptModel.from_pretrained(options.model, device=how.device)
    check_prototypes(model, [*dropped, *names, *((name, number) for name, numbers in merged for number in numbers)])
    for name in options.concept:
        check_known("concept", name, model.config.concepts)
    show_origin(model.record)
    dataset = read_part(options, read_data(options, "annotations", like=model.config), show)
    dataset.preprocess = model.preprocess
    for concept, numbers in merged:
        merge_prototypes(model, concept, numbers)
    if dropped:
        drop_prototypes(model, dropped)
    if (dropped or merged) and model.config.tasks:
        refit_task_head(model, loader(dataset, how))
        back = "in Python, `fit_calibration` brings it back"
        show(f"Solved for the task head anew; calibration of its tasks is gone, {back}.")
    known = _names_of(Path(options.model) / FILE)
    atlas = build_atlas(model, loader(dataset, how)).renamed(known | names)
    if dropped or merged:  # a folder by its last name alone: a path may hold names of people
        parent = Path(options.model).resolve().name if Path(options.model).is_dir() else options.model
        model.record = replace(model.record, derived_from=f"{parent}, {model.record.derived_from}")
    if dropped or merged or names:
        model.save_pretrained(place)
    _write(atlas, place, dataset, options.concept)
    show(f"\n{atlas.table()}\nWritten to {place}")


def _write(atlas: "Atlas", place: Path, dataset: "ConceptDataset", concepts: Sequence[str]) -> None:
    from conceptcam.analysis.figures import save_png

    write_json(place / FILE, atlas.as_dict())
    write_text(place / "atlas.txt", atlas.table())
    if any(not concepts or one.concept in concepts for one in atlas.drawable):
        save_png(atlas.figure(_image_loader(dataset), concepts=concepts), place / "atlas.png")


def _image_loader(dataset: "ConceptDataset") -> Callable[[str], Any]:
    rows = {name: row for row, name in enumerate(map(str, dataset.names))}
    return lambda name: dataset.load_item(rows[name] if name in rows else int(name)).image


def _names_of(file: Path) -> "dict[Prototype, str]":
    """The names that the atlas beside a model has for its prototypes."""
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["prototypes"]
        return {(one["concept"], one["number"]): one["name"] for one in entries if one["name"]}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} was not written by `conceptcam atlas`, or is damaged; remove it") from error


def _prototype(text: str, flag: str) -> "Prototype":
    """A prototype of a text such as "Edema=2"."""
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal():
        raise ValueError(
            f"{flag} expects NAME=N, a concept and the number of its prototype, such as Edema=2; got {text!r}"
        )
    return name, int(number)


def _merged(text: str) -> tuple[str, list[int]]:
    """A concept and numbers of its prototypes, of a text such as "ILD=0,1"."""
    name, _, numbers = text.rpartition("=")
    parts = numbers.split(",")
    if not name or not all(one.isdecimal() for one in parts) or len(set(parts)) < 2:
        raise ValueError(
            f"--merge expects NAME=N,N, a concept and two of its prototypes, such as ILD=0,1; got {text!r}"
        )
    return name, list(map(int, parts))


def _named(text: str) -> "tuple[Prototype, str]":
    """A prototype and its name, of a text such as "Edema=0=bat wing"."""
    found = re.fullmatch("(.+?)=([0-9]+)=(.*)", text, re.DOTALL)  # the first number: the name itself may have a "="
    if found is None or not found[3].strip():
        raise ValueError(f"--rename expects NAME=N=TEXT, such as 'Edema=0=bat wing'; got {text!r}")
    return (found[1], int(found[2])), found[3].strip()
