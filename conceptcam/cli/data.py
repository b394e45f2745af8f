"""Which images a command reads: those of a table of labels or of a COCO file, and how they are divided."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from conceptcam._checks import shorten
from conceptcam.cli.flags import add_bit_depth, add_flag

if TYPE_CHECKING:
    from conceptcam.config import ConceptConfig, TaskKind
    from conceptcam.data.batch import ConceptDataset
    from conceptcam.data.faults import OnFault
    from conceptcam.data.labels import Uncertain
    from conceptcam.data.table import TableDataset
    from conceptcam.data.table_file import Table
    from conceptcam.runs.folder import RunFolder

    Known = ConceptDataset | ConceptConfig


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which annotated images a command reads, and how."""
    data = "table of labels (CSV, TSV, Parquet), COCO file, or folder with such files and images/"
    parser.add_argument("data", type=Path, metavar="DATA", help=data)
    images = "folder of the images (default: the table's folder; for COCO, images/ beside the file)"
    add_flag(parser, "images", None, images, type=Path, metavar="DIR")
    add_flag(parser, "concepts", None, "columns of the table, or categories, that are concepts", nargs="+")
    task = "columns of the table that are tasks: binary ones, or one of class names"
    add_flag(parser, "task", None, task, nargs="+")
    add_flag(parser, "boxes", None, "table with a row per box, for a table of labels", type=Path, metavar="FILE")
    masks = "folder of masks, one per image and named like it, white where findings can be: maps learn to stay inside"
    add_flag(parser, "regions", None, masks, type=Path, metavar="DIR")
    outlines = "categories of a COCO file whose outlines, polygons or RLE, are such masks; they are no concepts then"
    add_flag(parser, "region_categories", None, outlines, nargs="+")
    unit = "unit of the boxes of a table (default: recognized and said)"
    add_flag(parser, "box_unit", None, unit, choices=("pixels", "fractions"))
    readers = "how to merge the rows of several readers of one image (default: such rows are refused)"
    add_flag(parser, "readers", None, readers, choices=("any", "majority", "all", "soft", "unanimous"))
    for what in ("image", "patient"):
        add_flag(parser, f"{what}_column", None, f"column of the {what}s (default: recognized and said)")
    add_bit_depth(parser)
    add_flag(
        parser, "invalid_boxes", "error", "what to do with a box that is empty or far outside its image: error refuses "
        "the file, skip leaves the box out", choices=("error", "skip"),
    )  # fmt: skip


class Divided(NamedTuple):
    """Data to learn from and data to validate on."""

    train: "ConceptDataset"
    val: "ConceptDataset"
    split: tuple[Sequence[str], Sequence[str]] | None
    """Names and parts of the images, where one set of data was divided here."""


def labels_file(options: argparse.Namespace, flag: str) -> Path:
    """The file of labels that DATA is, or that a flag names within the folder DATA or beside the file DATA."""
    data: Path = options.data
    if is_file(data) and flag not in ("val", "test"):
        return data
    folder = data.parent if is_file(data) else data
    return folder / (getattr(options, flag) or f"{flag}.json")


def add_split(parser: argparse.ArgumentParser, use: str) -> None:
    """Which file divides the data."""
    text = f"split.csv of a run, or a file like it, with the columns image and split, which {use}"
    add_flag(parser, "split", None, text, type=Path, metavar="FILE")


def is_file(data: Path) -> bool:
    """Whether DATA is a file of labels, to judge by its name if there is nothing."""
    return data.is_file() or (data.suffix != "" and not data.exists())


def check_labels(options: argparse.Namespace, flag: str) -> None:
    """Check that a file of labels is there.

    Raises:
        FileNotFoundError: With the files that are.
    """
    path, data = labels_file(options, flag), options.data
    if not data.exists():
        kind = f"file {data}" if is_file(data) else f"folder {data} with {path.name} in it"
        raise FileNotFoundError(f"there is no {kind}; see `conceptcam {options.command} -h`")
    if not path.exists():
        there = sorted(file.name for file in path.parent.glob("*") if file.suffix.lower() in (".json", ".csv", ".tsv"))
        found = there or "no JSON, CSV or TSV files"
        raise FileNotFoundError(f"there is no {path}; {path.parent} has {found}: name the annotations with --{flag}")


def images_folder(options: argparse.Namespace, labels: Path) -> Path:
    """The folder that file names of images are relative to."""
    from conceptcam.data.table_file import is_table

    usual = labels.parent if is_table(labels) else labels.parent / "images"
    return usual if options.images is None else Path(options.images)


def read_data(
    options: argparse.Namespace,
    flag: str,
    *,
    like: "Known | None" = None,
    task_kind: "TaskKind | None" = None,
    uncertain: "Uncertain" = "ignore",
    on_fault: "OnFault | None" = None,
) -> "ConceptDataset":
    """The data set of a file of labels.

    Args:
        options: Flags of `add_data_options`.
        flag: The option that names the file: a table, or a COCO file.
        like: Training data or a model, whose concepts and tasks these data must have.
        task_kind: None takes that of `like`, else what a table shows, else `"multilabel"`.
        uncertain: What a label of -1 counts as.
        on_fault: Is given a fault for what cannot be used, which is then left out; None refuses it.

    Raises:
        OSError: If a file or folder is not there, or cannot be read.
        ValueError: If the labels cannot be used.
    """
    from conceptcam.data.faults import refuse_fault
    from conceptcam.data.regions import WithRegions
    from conceptcam.data.table_file import is_table

    check_labels(options, flag)
    path = labels_file(options, flag)
    read: Callable[..., ConceptDataset] = _read_table if is_table(path) else _read_coco
    try:
        found = read(
            options, path, like=like, task_kind=task_kind, uncertain=uncertain, on_fault=on_fault or refuse_fault
        )
        return found if options.regions is None else WithRegions(found, options.regions)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; name the folder of the images with --images") from error
    except ValueError as error:
        hint = "; name the folder of the images with --images" if "are missing from" in str(error) else ""
        known = str(path) in str(error) or path.name in str(error)
        raise ValueError(f"{'' if known else f'{path}: '}{error}{hint}") from error


def read_train_and_val(
    options: argparse.Namespace, run: "RunFolder", echo: Callable[[str], None] = lambda line: None
) -> Divided:
    """Data to learn from and to validate on: two files, the parts of a split column, or a split by patient.

    Args:
        options: Flags of `add_data_options`, and those of `train`.
        run: The folder, which may hold the split of a run to resume.
        echo: Is given a line for each thing that was recognized or decided.

    Raises:
        OSError: If a file or folder is not there, or cannot be read.
        ValueError: If the data cannot be used, or an image is in both parts.
    """
    from conceptcam.data.splits import divide_dataset

    if options.val is not None and options.split is not None:
        raise ValueError("--split divides DATA, and --val names validation data of their own; give one of them")
    train = read_data(options, "train", task_kind=options.task_kind, uncertain=options.uncertain)
    for note in train.notes:
        echo(note)
    if is_divided(options):
        parts = _parts(options, train, run, echo)
        # What -1 counts as is for learning alone.
        val = train if options.uncertain == "ignore" else read_data(options, "train", like=train)
        sides = [divide_dataset(data, parts) for data in (train, val)]
        _warn(sides[0]["train"], sides[1]["val"], echo)
        return Divided(sides[0]["train"], sides[1]["val"], (train.names, parts))
    val = read_data(options, "val", like=train)
    if shared := sorted({*train.names} & {*val.names}):
        raise ValueError(
            f"{len(shared)} images are in both training and validation data: {shared[:3]}; take them out of one"
        )
    _warn(train, val, echo)
    return Divided(train, val, None)


def _warn(train: "ConceptDataset", val: "ConceptDataset", echo: Callable[[str], None]) -> None:
    """Echo what is wrong with the labels and patients."""
    from conceptcam.data.splits import shared_patients

    warn_of_faults(train, echo)
    ids = [*(train.patients or ()), *(val.patients or ())]
    sides = ["train"] * len(train.patients or ()) + ["val"] * len(val.patients or ())
    if both := shared_patients(ids, sides):
        echo(f"WARNING: {len(both)} patients are in both training and validation data: {shorten(map(str, both))}.")


def warn_of_faults(train: "ConceptDataset", echo: Callable[[str], None]) -> None:
    """Echo what is wrong with labels, which costs no time to see."""
    from conceptcam.data.inspection import inspect_dataset

    for fault in inspect_dataset(train, read_images=False).faults:
        echo(f"WARNING: {fault.kind} in the training data: {fault.text}.")


def read_parts(options: argparse.Namespace, data: "ConceptDataset") -> Sequence[str] | None:
    """The part of each image, by the flag `--split` or a split column; None without either.

    Raises:
        OSError: If the split cannot be read.
        ValueError: If the split is of other images.
    """
    from conceptcam.data.splits import load_split
    from conceptcam.data.table import TableDataset

    if options.split is not None:
        return load_split(options.split, data.names)
    return data.parts if isinstance(data, TableDataset) else None


def read_part(
    options: argparse.Namespace, data: "ConceptDataset", echo: Callable[[str], None] = lambda line: None
) -> "ConceptDataset":
    """The part of a data set that the flags of `evaluate` name; all of it without them.

    Raises:
        OSError: If the split cannot be read.
        ValueError: If the split is of other images, or there is no such part.
    """
    from conceptcam.data.splits import divide_dataset

    for note in data.notes:
        echo(note)
    parts = read_parts(options, data)
    if options.part is None:
        own = Path(options.model) / "split.csv"
        if own.is_file() and options.split is None:
            echo(f"WARNING: {own} divided such images; to measure on those not learned from: --split {own} --part val")
        return data
    if parts is None or options.part not in parts:
        found = f"the parts are {sorted(set(parts))}" if parts else "there is no split column; give --split"
        raise ValueError(f"there is no part {options.part!r}: {found}")
    return divide_dataset(data, parts)[options.part]


def is_divided(options: argparse.Namespace) -> bool:
    """Whether one set of data is divided into training and validation data, because there is no other."""
    if options.split is not None and options.val is None:
        return True
    lacks_val = options.data.is_dir() and not labels_file(options, "val").is_file()
    return options.val is None and (is_file(options.data) or lacks_val)


def data_name(options: argparse.Namespace, flag: str) -> str:
    """What to call training or validation data in a model's record: the file, with its folder if that was given."""
    path = labels_file(options, "train" if is_divided(options) else flag)
    return path.name if is_file(options.data) else f"{options.data.name}/{path.name}"


def data_record(options: argparse.Namespace) -> dict[str, Any]:
    """Where training and validation data are and how they are read, for `run.json`."""
    names = ["concepts", "task", "box_unit", "readers", "image_column", "patient_column", "invalid_boxes"]
    names += ["region_categories"] if options.region_categories else []
    places = {name: None if (place := getattr(options, name)) is None else place.name for name in ("boxes", "regions")}
    return {
        "folder": str(options.data.resolve()),
        "images": str(images_folder(options, labels_file(options, "train")).resolve()),
        "train": labels_file(options, "train").name,
        "val": None if is_divided(options) else labels_file(options, "val").name,
        "val_fraction": options.val_fraction,
        **places,
        "split": None if options.split is None else options.split.name,
        **{name: getattr(options, name) for name in (*names, "uncertain", "bit_depth", "no_augment")},
    }


def _parts(
    options: argparse.Namespace, data: "ConceptDataset", run: "RunFolder", echo: Callable[[str], None]
) -> list[str]:
    """The part of each image: as a run to resume has them, as a column says, or by a split made now."""
    import torch

    from conceptcam.data.splits import ConceptSubset, load_split, split_by_patient
    from conceptcam.data.table import TableDataset

    if run.split.is_file():
        return load_split(run.split, data.names)
    if options.split is not None:
        parts = load_split(options.split, data.names)
        if not {"train", "val"} <= set(parts):
            raise ValueError(f"{options.split} needs the parts 'train' and 'val', and has {sorted(set(parts))}")
        return parts
    given = data.parts if isinstance(data, TableDataset) else None
    if given is not None and {"train", "val"} <= set(given):
        others = sorted(set(given) - {"train", "val"})
        left = f"; images of {', '.join(map(repr, others))} are left out" if others else ""
        echo(f"The split column says which images are for training and validation{left}.")
        return list(given)
    parts = ["train"] * len(data) if given is None or "train" not in given else list(given)
    learning = ConceptSubset(data, [row for row, part in enumerate(parts) if part == "train"])
    labels = torch.cat([learning.concept_labels, learning.task_labels], dim=1)
    fractions = {"train": 1 - options.val_fraction, "val": options.val_fraction}
    divided = split_by_patient(labels, learning.patients, fractions=fractions, seed=options.seed)
    for row, part in zip(learning.rows, divided, strict=True):
        parts[row] = part
    by = "patient" if data.patients else "image, for no patients are known"
    left = f"; the split column has {len(data) - len(learning)} others" if len(learning) < len(data) else ""
    echo(
        f"Divided by {by}: {parts.count('train')} images to learn from, {parts.count('val')} to validate on{left}; "
        f"written to {run.split.name}."
    )
    return parts


def _read_coco(
    options: argparse.Namespace,
    path: Path,
    *,
    like: "Known | None",
    task_kind: "TaskKind | None",
    uncertain: "Uncertain",
    on_fault: "OnFault",
) -> "ConceptDataset":
    from conceptcam.data.coco import CocoDataset

    for flag in ("boxes", "box_unit", "readers", "image_column", "patient_column"):
        if getattr(options, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')} is for a table of labels; {path} is a COCO file")
    concepts, tasks = (like.concepts, like.tasks) if like is not None else (options.concepts, options.task)
    how = {"invalid_boxes": options.invalid_boxes, "bit_depth": options.bit_depth, "uncertain": uncertain}
    how |= {"on_fault": on_fault, "concepts": concepts, "regions": options.region_categories or ()}
    folder = images_folder(options, path)
    data = CocoDataset(path, folder, task_kind=task_kind or "multilabel", **how)
    # A model measured on data without tasks is measured by its concepts.
    return CocoDataset(path, folder, tasks=tasks, **how) if like is not None and data.tasks else data


def _read_table(
    options: argparse.Namespace,
    path: Path,
    *,
    like: "Known | None",
    task_kind: "TaskKind | None",
    uncertain: "Uncertain",
    on_fault: "OnFault",
) -> "TableDataset":
    from conceptcam.data.table import TableDataset
    from conceptcam.data.table_file import read_table

    concepts = like.concepts if like is not None else options.concepts
    if not concepts:
        columns = list(read_table(path).columns)
        raise ValueError(f"{path} is a table: name those of its columns that are concepts with --concepts: {columns}")
    kind = task_kind or (like.task_kind if like is not None else None)
    tasks = options.task or ([] if like is None else _known_tasks(read_table(path), like))
    return TableDataset(
        path,
        images_folder(options, path),
        concepts=concepts,
        tasks=tasks,
        task_kind=kind if tasks else None,
        classes=like.tasks if like is not None and kind == "multiclass" and len(tasks) == 1 else None,
        image_column=options.image_column,
        patient_column=options.patient_column,
        boxes=options.boxes,
        box_unit=options.box_unit,
        invalid_boxes=options.invalid_boxes,
        readers=options.readers,
        bit_depth=options.bit_depth,
        uncertain=uncertain,
        on_fault=on_fault,
    )


def _known_tasks(table: "Table", like: "Known") -> list[str]:
    """The columns of a table that hold a model's tasks: those of their names, or one that holds them as classes."""
    from conceptcam.data.table_file import is_unknown

    columns = [name for name in like.tasks if name in table.columns]
    if columns or like.task_kind != "multiclass":
        return columns
    held = {name: {cell for cell in cells if not is_unknown(cell)} for name, cells in table.columns.items()}
    found = [name for name, cells in held.items() if cells and cells <= set(like.tasks)]
    return found if len(found) == 1 else []
