"""Images with labels from a table: one row per image, one column per concept and task."""

import posixpath
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from conceptcam._checks import brief, check_choice, check_names, quoted, shorten
from conceptcam.config import TaskKind
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.coco_file import InvalidBoxes, without_denied
from conceptcam.data.faults import Fault, OnFault, refuse_fault
from conceptcam.data.image_cache import ImageCache, ImageReader
from conceptcam.data.image_files import IMAGE_SUFFIXES, find_images
from conceptcam.data.images import image_size
from conceptcam.data.labels import Uncertain, resolve_uncertain
from conceptcam.data.merging import ReaderRule, merge_rows
from conceptcam.data.public_tables import translate_boxes, translate_labels
from conceptcam.data.table_boxes import BoxUnit, TableBoxes, no_boxes, read_boxes
from conceptcam.data.table_file import Table, is_unknown, read_table
from conceptcam.data.table_tasks import TableTasks, holds_classes, read_tasks
from conceptcam.data.text_column import TextColumn

if TYPE_CHECKING:
    import pandas as pd

IMAGE_COLUMNS = (
    *("image", "imagepath", "imagefile", "imageindex", "imagename", "imageid", "filename", "filepath", "file"),
    *("path", "img", "images"),
)
"""What the column of images may be called, as `plain` writes it."""

PATIENT_COLUMNS = ("patient", "patientid", "subject", "subjectid")
"""What the column of patients may be called."""

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
"""What a split column may hold, besides other names, which are kept, and what it means."""

_UNCERTAIN = -1.0
# Resized images keep their proportions to within the rounding of their sides.
_SLACK = 0.02


class TableDataset(ConceptDataset):
    """Images with concept labels, tasks and boxes, from a table with a row per image.

    A cell of a concept or binary task is 0, 1, a probability, -1 where somebody looked and left it open, or empty where
    nobody said; `yes`, `no`, `true` and `false` also count. Columns that are not asked for are not read.

    Args:
        table: A CSV, TSV or Parquet file, or a pandas DataFrame. The tables of NIH ChestX-ray14, CheXpert and VinDr-CXR
            are read as they are; see `translate_labels`. The extra `table` is for Parquet alone.
        images: The folder that images are named relative to.
        concepts: Columns with the labels of concepts, in the order wanted. One that the table lacks is taken from
            `boxes`: present in an image with a box of it, absent in one that `boxes` lists without.
        tasks: Columns with tasks: binary ones, or one column of class names, whose classes become the tasks.
        task_kind: As in `ConceptConfig`; None recognizes it: a column that holds more than labels has class names.
        classes: Names of the classes, in the order wanted; None takes those of the column, sorted.
        image_column: The column that names the images; None takes the one called such as `image` or `file_name`.
        patient_column: The column of patients; None takes the one called such as `patient_id`, if there is one.
        split_column: The column that says which part an image is in; None takes `split`, if there is one.
        boxes: A table with a row per box: its image, its concept, and `x_min`, `y_min`, `x_max`, `y_max` or `x`, `y`,
            `width`, `height`. A row without numbers says that somebody looked and found nothing to draw; in an image
            that it does not list, nobody looked.
        box_unit: `"pixels"` of the images as they are stored, or of the columns `image_width` and `image_height`;
            `"fractions"` of them; None recognizes it.
        invalid_boxes: As `CocoDataset` has it.
        uncertain: What a label of -1 counts as; see `resolve_uncertain`. Of classes it is always unknown.
        readers: How to merge the rows of several readers of one image; see `merge_readers`. None refuses such rows.
            Boxes of a concept that the merged label calls absent are left out.
        bit_depth: Bits that 16-bit images really use; see `load_image`.
        on_fault: Called with each fault of the tables; see `CocoDataset`.
        augmentation: See `ConceptDataset`.
        preprocess: See `ConceptDataset`.

    Attributes:
        task_kind: As given or recognized.
        parts: The part of each image, from the split column, `valid` and the like as `val`; None without such a column.

    Raises:
        FileNotFoundError: If there is no such table or folder.
        ImportError: If Parquet is read without the extra `table`.
        ValueError: In one sentence with the column, the line and what stands there, if the table cannot be read, a
            column is missing, a cell is no label, an image is missing, named twice or outside the folder, a class is
            unknown, or a box cannot be, or is of a concept that is said to be absent.
    """

    folder: Path

    def __init__(
        self,
        table: "str | PathLike[str] | pd.DataFrame",
        images: str | PathLike[str],
        *,
        concepts: Sequence[str],
        tasks: Sequence[str] = (),
        task_kind: TaskKind | None = None,
        classes: Sequence[str] | None = None,
        image_column: str | None = None,
        patient_column: str | None = None,
        split_column: str | None = None,
        boxes: "str | PathLike[str] | pd.DataFrame | None" = None,
        box_unit: BoxUnit | None = None,
        invalid_boxes: InvalidBoxes = "error",
        uncertain: Uncertain = "ignore",
        readers: ReaderRule | None = None,
        bit_depth: int | None = None,
        on_fault: OnFault = refuse_fault,
        augmentation: Callable[[ConceptItem], ConceptItem] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_names("concepts", concepts, at_least=1)
        check_names("tasks", tasks, at_least=0)
        check_choice("invalid_boxes", invalid_boxes, InvalidBoxes)
        check_choice("box_unit", box_unit, (*get_args(BoxUnit), None))
        self.augmentation, self.preprocess, self._reader = augmentation, preprocess, ImageReader(bit_depth)
        self.folder, self.concepts = Path(images), tuple(concepts)
        rows, self.notes = translate_labels(read_table(table, on_fault))
        column = _image_column(rows, image_column)
        if readers is not None:
            rows = _merge_readers(rows, column, [*concepts, *tasks], readers)
        rows = self._read_images(rows, column, guessed=image_column is None and not self.notes)
        self._read_patients(rows, patient_column, split_column)
        self._read_tasks(read_tasks(rows, tasks, task_kind, classes), uncertain)
        self._drawn_on = _drawn_on(rows)
        self._boxes = no_boxes(len(rows))
        if boxes is not None:
            self._boxes = self._draw(translate_boxes(read_table(boxes, on_fault))[0], column, box_unit, invalid_boxes)
        self._read_concepts(rows, uncertain, keep_denied_boxes=readers is None)

    @property
    def names(self) -> Sequence[str]:
        """Files of the images, relative to the folder, in the order of the rows."""
        return self._names

    @property
    def all_boxes(self) -> ConceptBoxes:
        """The boxes of all images, numbered as the images."""
        return self._boxes.drawn.of_all_images()

    @property
    def image_cache(self) -> ImageCache | None:
        """The cache that images are read through, if they are."""
        return self._reader.cache

    def cache_images(self, cache: ImageCache | None) -> None:
        """Read images through a cache from now on; None ends that."""
        self._reader.cache = cache

    def load_item(self, index: int) -> ConceptItem:
        """The item as it is stored, neither augmented nor preprocessed.

        Raises:
            FileNotFoundError: If the image has gone since the data set was made.
            ValueError: If the image cannot be read, or has another shape than the columns `image_width` and
                `image_height` say, so that boxes would lie elsewhere.
        """
        index = range(len(self))[index]
        name = self._names[index]
        image, size = self._reader.read(self.folder / name)
        boxes = None
        if self._boxes.looked[index]:
            self._check_shape(index, size)
            boxes = self._boxes.drawn.of_image(index)
        return ConceptItem(image, self.concept_labels[index], self.task_labels[index], boxes, name)

    def _read_images(self, rows: Table, column: str, *, guessed: bool) -> Table:
        """Find the images that a column names; gives the rows whose image is there."""
        found = find_images(rows.column(column), self.folder, rows.where, rows.on_fault)
        self._names = TextColumn(found.names)
        said = [f"Images are named in the column {column!r}."] if guessed else []
        if found.unlisted:
            unlisted = shorten(found.unlisted)
            said.append(f"{len(found.unlisted)} images in {self.folder} are in no row: {unlisted}.")
        self.notes = (*self.notes, *said)
        return rows if all(found.kept) else rows.select(found.kept)

    def _read_patients(self, rows: Table, patient_column: str | None, split_column: str | None) -> None:
        """Read the patient and the part of each image, if there are columns of them."""
        patients, column = _optional(rows, patient_column, PATIENT_COLUMNS)
        self.patients = None if patients is None else TextColumn(patients)
        if column != patient_column:
            self.notes = (*self.notes, f"Patients are in the column {column!r}.")
        parts, _ = _optional(rows, split_column, ("split",))
        self.parts = parts and TextColumn([PARTS.get(part.lower(), part) for part in parts])

    def _read_tasks(self, tasks: TableTasks, uncertain: Uncertain) -> None:
        self.tasks, self.task_kind = tasks.names, tasks.kind
        # Nobody can say which part of the 1 that classes share an uncertain one has.
        policy: Uncertain = "ignore" if tasks.kind == "multiclass" else uncertain
        self.task_labels = resolve_uncertain(tasks.labels, policy, uncertain=_UNCERTAIN)
        self.notes = (*self.notes, *tasks.notes)

    def _read_concepts(self, rows: Table, uncertain: Uncertain, *, keep_denied_boxes: bool) -> None:
        """Read the labels of concepts, beside the boxes: the two must agree.

        Args:
            rows: A row per image.
            uncertain: See `resolve_uncertain`.
            keep_denied_boxes: Whether boxes of a concept that the label calls absent stay, to be refused. Those of
                merged readers are left out.
        """
        labels = _concept_labels(rows, self.concepts, self._boxes)
        if not keep_denied_boxes:
            self._boxes = self._boxes.without(labels == 0)
        drawn = without_denied(self._boxes.drawn, labels, self._names, self.concepts, rows.on_fault, who="labels say")
        self._boxes = self._boxes._replace(drawn=drawn)
        self.notes = (*self.notes, *self._boxes.notes)
        self.concept_labels = resolve_uncertain(labels, uncertain, uncertain=_UNCERTAIN)

    def _draw(self, table: Table, column: str, unit: BoxUnit | None, invalid_boxes: InvalidBoxes) -> TableBoxes:
        """The boxes of their table that are of images of this data set."""
        index = {name: number for number, name in enumerate(self._names)}
        by_stem = {posixpath.splitext(name)[0]: number for name, number in index.items()}
        cells = table.column(column if column in table.columns else _image_column(table, None))
        paths = [posixpath.normpath(cell.replace("\\", "/")) for cell in cells]
        images = [index.get(path, by_stem.get(path, -1)) for path in paths]
        if max(images) < 0:
            text = (
                f"{table.name} has no row of an image of the table of labels: its first is {brief(cells[0])}, theirs "
                f"is {brief(next(iter(index)))}; write images alike in both"
            )
            table.on_fault(Fault("boxes of no image", text))
            return no_boxes(len(index))
        own, images = table.select([image >= 0 for image in images]), [image for image in images if image >= 0]
        return read_boxes(
            own,
            images,
            self.concepts,
            partial(self._image_sizes, table.on_fault),
            count=len(index),
            unit=unit,
            invalid_boxes=invalid_boxes,
        )

    def _image_sizes(self, on_fault: OnFault, images: Sequence[int]) -> Tensor:
        """(n, 2) width and height in pixels of what boxes were drawn on: as the table says, else of the files.

        NaN where neither says it, and `on_fault` lets that pass.
        """
        if self._drawn_on is not None:
            sizes = self._drawn_on[list(images)]
            if not (sizes > 0).all():
                name = self._names[images[int((~(sizes > 0).all(dim=1)).nonzero()[0])]]
                text = f"image_width and image_height must be above 0, which they are not for {name!r}"
                on_fault(Fault("size that cannot be", text))
            return sizes.where(sizes > 0, torch.nan)
        read: dict[int, tuple[float, float]] = {}
        lost = list[OSError | ValueError]()
        for image in sorted({*images}):
            try:
                read[image] = image_size(self.folder / self._names[image])
            except (OSError, ValueError) as error:
                lost.append(error)
                read[image] = (torch.nan, torch.nan)
        if lost:
            more = f" and {len(lost) - 1} others" if len(lost) > 1 else ""
            on_fault(Fault("boxes on unreadable images", f"the boxes of an image cannot be placed: {lost[0]}{more}"))
        return torch.tensor([read[image] for image in images], dtype=torch.float64).view(-1, 2)

    def _check_shape(self, index: int, size: tuple[int, int]) -> None:
        """Refuse an image that has other proportions than what its boxes were drawn on."""
        if self._drawn_on is None or not (self._drawn_on[index] > 0).all():
            return
        (height, width), (given_width, given_height) = size, self._drawn_on[index].tolist()
        if abs(width * given_height / (height * given_width) - 1) > _SLACK:
            raise ValueError(
                f"image {self._names[index]!r} is {width} x {height} pixels (upright, if EXIF says how), but the "
                f"table says {given_width:g} x {given_height:g}, of other proportions: its boxes would be misplaced"
            )


def _image_column(table: Table, name: str | None) -> str:
    """The column that names images: the one given, or the only one that is called so."""
    if name is not None:
        table.column(name, "image column")
        return name
    found = table.find(IMAGE_COLUMNS)
    if len(found) > 1:  # such as an id beside a path
        found = [one for one in found if table.columns[one][0].lower().endswith(IMAGE_SUFFIXES)]
    if len(found) != 1:
        raise ValueError(
            f"cannot tell which column of {table.name} names the images; its columns are {quoted(table.columns)}: say "
            "which with `image_column` (--image-column)"
        )
    return found[0]


def _merge_readers(rows: Table, image_column: str, columns: Sequence[str], rule: ReaderRule) -> Table:
    """A row per image in place of a row per reader; classes have no merged label and are left as they are."""
    binary = [name for name in columns if name in rows.columns and not holds_classes(rows, name)]
    return merge_rows(rows, image_column, binary, rule)


def _optional(table: Table, name: str | None, known: Sequence[str]) -> tuple[list[str] | None, str | None]:
    """The cells of a column that may be missing, and its name; empty where nobody said."""
    found = table.find(known) if name is None else [name]
    if not found:
        return None, None
    if len(found) > 1:
        raise ValueError(f"{table.name} has several columns that may be meant: {found}; keep one, or name it")
    return ["" if is_unknown(cell) else cell for cell in table.column(found[0])], found[0]


def _drawn_on(table: Table) -> Tensor | None:
    """(N, 2) float64 width and height of what boxes were drawn on, if the table has such columns."""
    found = [table.find([name]) for name in ("imagewidth", "imageheight")]
    if not all(found):
        return None
    return torch.tensor([table.numbers(names[0]) for names in found], dtype=torch.float64).T


def _concept_labels(table: Table, concepts: Sequence[str], boxes: TableBoxes) -> Tensor:
    """(N, K) labels from the columns, or from the boxes where there is no column, or nothing in it."""
    labels = torch.full((len(table), len(concepts)), torch.nan)
    for number, concept in enumerate(concepts):
        if concept in table.columns or concept not in boxes.named:
            table.column(concept, "concept column")
            labels[:, number] = torch.tensor(table.labels(concept))
        else:
            labels[boxes.looked, number] = 0
            skipped = boxes.drawn.skipped
            labels[skipped[skipped[:, 1] == number, 0], number] = torch.nan
    unknown = labels[boxes.drawn.image, boxes.drawn.concept].isnan()
    boxed = ~torch.tensor([concept in table.columns for concept in concepts])[boxes.drawn.concept]
    present = unknown | boxed
    labels[boxes.drawn.image[present], boxes.drawn.concept[present]] = 1
    return labels
