"""Images with boxes from a COCO detection file and a folder of images."""

import math
import posixpath
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conceptcam._checks import brief, check_choice, check_names, shorten
from conceptcam.config import TaskKind
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.coco_file import (
    NUMBER,
    InvalidBoxes,
    check_images,
    draw_boxes,
    has_size,
    is_a,
    is_annotated,
    read_coco,
    without_denied,
)
from conceptcam.data.coco_masks import check_outline, draw_outlines
from conceptcam.data.faults import Fault, OnFault, refuse_fault
from conceptcam.data.image_cache import ImageCache, ImageReader
from conceptcam.data.images import sample_mask
from conceptcam.data.labels import Uncertain, resolve_uncertain
from conceptcam.data.text_column import TextColumn

_UNCERTAIN = -1.0


class CocoDataset(ConceptDataset):
    """Images with concept labels and boxes, from a COCO detection file.

    Categories are the concepts. A concept is present (1) in an image with a box of its category and
    absent (0) in one without, because the file says that somebody looked; an image without annotations
    thus has labels 0 and no boxes to draw. A crowd (`iscrowd`) counts as a box around a group: left out,
    its place would count as free of the concept.

    Four optional fields, which other readers of COCO ignore, say what boxes cannot. All belong to an
    entry of `images`:

    - `"concepts": {"Edema": 1, "Nodule": null}` replaces labels taken from boxes: 0, 1, a probability, or -1
      where somebody looked and left it open; null, where nobody said, is unknown.
    - `"tasks": {"Pneumonia": 1}` gives task labels in the same way; a task not named is unknown.
    - `"patient": "p17"` (or `"patient_id"`) says whose image it is, so that data are divided by patient.
    - `"annotated": false` says that nobody drew boxes in the image: its boxes are None, and its labels
      are unknown where `"concepts"` does not give them.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are relative to.
        concepts: Categories to use, in the order wanted; None takes all, by category id.
        tasks: Names to take from the images' `"tasks"`, in the order wanted; None takes all, in the order of
            their appearance. If the tasks exclude each other, label each image with one 1 and zeros.
        invalid_boxes: What to do with boxes that cannot be: without area, not numbers, or more than two
            pixels beyond the image. `"error"` raises; `"skip"` leaves them out with a warning, and the
            label of a concept that had no other box in the image becomes unknown.
        uncertain: What a label of -1 counts as; see `resolve_uncertain`. By default it is unknown, which is best for
            data that figures are reported on. The box of an uncertain concept is drawn whatever it counts as, and
            the loss weighs it by its label.
        regions: Categories whose outlines are where findings can be, such as `["lung"]`; they are no concepts unless
            `concepts` names them. An outline is an annotation's `segmentation`, as polygons or run lengths (RLE), or
            its box. An image without any has no region. See `WithRegions`.
        task_kind: As in `ConceptConfig`. The labels of a `"multiclass"` task sum to 1, and nobody can say which part of
            it an uncertain one has: it can only be ignored.
        bit_depth: Bits that 16-bit images really use; see `load_image`.
        on_fault: Called with each fault of the file, such as a box that cannot be or a missing image. What is at fault
            is then left out, as `conceptcam inspect` does to list them all. By default the first one raises.
        augmentation: See `ConceptDataset`.
        preprocess: See `ConceptDataset`.

    Raises:
        FileNotFoundError: If there is no such JSON file or folder.
        ValueError: Naming the first few offenders and their number, if the file is not COCO detection
            JSON, an id, category or file name is repeated, an image file is missing, an annotation is of
            an unknown image or category, a label is impossible or denied by a box, or a box cannot be;
            if an option is unknown, or does not fit uncertain labels of a multi-class task.
    """

    folder: Path

    def __init__(
        self,
        annotations: str | PathLike[str],
        images: str | PathLike[str],
        *,
        concepts: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        regions: Sequence[str] = (),
        invalid_boxes: InvalidBoxes = "error",
        uncertain: Uncertain = "ignore",
        task_kind: TaskKind = "multilabel",
        bit_depth: int | None = None,
        on_fault: OnFault = refuse_fault,
        augmentation: Callable[[ConceptItem], ConceptItem] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_choice("invalid_boxes", invalid_boxes, InvalidBoxes)
        check_choice("task_kind", task_kind, TaskKind)
        self.augmentation, self.preprocess, self.task_kind = augmentation, preprocess, task_kind
        self._reader = ImageReader(bit_depth)
        self.folder = Path(images)
        content = check_images(read_coco(Path(annotations), on_fault), self.folder, on_fault)
        self._read_images(content["images"])
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        by_id = [categories[key] for key in sorted(categories, key=lambda key: (isinstance(key, str), key))]
        by_id = list(dict.fromkeys(by_id))
        self._outlines = _outlines(content, categories, _chosen("regions", regions, by_id, at_least=0), on_fault)
        usual = [name for name in by_id if name not in regions]
        self.concepts = _chosen("concepts", usual if concepts is None else concepts, by_id, at_least=1)
        self._drawn = draw_boxes(content, categories, self.concepts, invalid_boxes, on_fault)
        self._read_labels(content["images"], by_id, tasks, uncertain, on_fault)

    def _read_images(self, images: list[dict[str, Any]]) -> None:
        """Names, sizes and patients, as tensors and bytes, which loader processes share; lists they would copy."""
        self._names = TextColumn([posixpath.normpath(image["file_name"]) for image in images])
        self._annotated = torch.tensor([is_annotated(image) for image in images])
        sizes = [(image["width"], image["height"]) if has_size(image) else (torch.nan,) * 2 for image in images]
        self._sizes = torch.tensor(sizes, dtype=torch.float64)
        patients = [str(image.get("patient", image.get("patient_id", ""))) for image in images]
        self.patients = TextColumn(patients) if any(patients) else None

    def _read_labels(
        self,
        images: list[dict[str, Any]],
        categories: Sequence[str],
        tasks: Sequence[str] | None,
        uncertain: Uncertain,
        on_fault: OnFault,
    ) -> None:
        known_tasks = list({name: None for image in images for name in image.get("tasks") or ()})
        self.tasks = _chosen("tasks", known_tasks if tasks is None else tasks, known_tasks, at_least=0)
        labels = torch.zeros(len(images), len(self.concepts))
        labels[~self._annotated] = torch.nan
        labels[self._drawn.skipped[:, 0], self._drawn.skipped[:, 1]] = torch.nan
        labels[self._drawn.image, self._drawn.concept] = 1
        # Labels with the code first: a box denies a 0 that somebody wrote, not one that stands for "uncertain".
        labels = _given(images, "concepts", self.concepts, labels, categories, on_fault)
        self._drawn = without_denied(self._drawn, labels, self._names, self.concepts, on_fault, who="'concepts' says")
        self.concept_labels = resolve_uncertain(labels, uncertain, uncertain=_UNCERTAIN)
        unknown = torch.full((len(images), len(self.tasks)), torch.nan)
        targets = _given(images, "tasks", self.tasks, unknown, known_tasks, on_fault)
        if self.task_kind == "multiclass" and uncertain != "ignore":
            self._refuse_uncertain(targets)
        self.task_labels = resolve_uncertain(targets, uncertain, uncertain=_UNCERTAIN)

    @property
    def names(self) -> Sequence[str]:
        """File names of the images, in order, each in its shortest spelling."""
        return self._names

    @property
    def all_boxes(self) -> ConceptBoxes:
        """The boxes of all images, numbered as the images."""
        return self._drawn.of_all_images()

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
            ValueError: If the image cannot be read, or has another size than the JSON file says, so that
                boxes would lie elsewhere.
        """
        index = range(len(self))[index]  # -1 is the last, whose boxes are not those before the first
        name = self._names[index]
        image, size = self._reader.read(self.folder / name)
        self._check_size(index, size)
        boxes = self._drawn.of_image(index) if self._annotated[index] else None
        item = ConceptItem(image, self.concept_labels[index], self.task_labels[index], boxes, name)
        return item._replace(region=self._region(index, size, (image.shape[1], image.shape[2])))

    def _check_size(self, index: int, size: tuple[int, int]) -> None:
        """Refuse an image that has another size (H, W) than the file says."""
        given_width, given_height = self._sizes[index].tolist()
        if not math.isnan(given_width) and size != (given_height, given_width):
            raise ValueError(
                f"image {self._names[index]!r} is {size[1]} x {size[0]} pixels (upright, if EXIF says how), but the "
                f"JSON file says {given_width:g} x {given_height:g}: its boxes would be misplaced"
            )

    def _region(self, index: int, size: tuple[int, int], wanted: tuple[int, int]) -> Tensor | None:
        """(h, w) where findings can be in an image of another size (H, W); None if nobody drew it."""
        if self._outlines is None or not self._outlines[index]:
            return None
        try:
            region = draw_outlines(self._outlines[index].splitlines(), size)
        except ValueError as error:
            raise ValueError(f"an outline in {self._names[index]!r} cannot be used: {error}") from error
        return sample_mask(region, wanted)

    def _refuse_uncertain(self, targets: Tensor) -> None:
        """Refuse uncertain labels of tasks that exclude each other."""
        rows = (targets == _UNCERTAIN).any(dim=1).nonzero()[:, 0].tolist()
        if found := [repr(self._names[i]) for i in rows]:
            raise ValueError(
                f"'tasks' says -1 (uncertain) in {shorten(found)}; in a multi-class task that can only be ignored: "
                "write null there, or set `uncertain` to 'ignore' (--uncertain ignore)"
            )


def _chosen(what: str, names: Sequence[str], known: Sequence[str], *, at_least: int) -> tuple[str, ...]:
    check_names(what, names, at_least=at_least)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {what} {_with_near(unknown, known)}; the file has {list(known)}")
    return tuple(names)


def _outlines(
    content: dict[str, Any], categories: dict[Any, str], regions: Sequence[str], on_fault: OnFault
) -> TextColumn | None:
    """The outlines of the chosen categories in each image, a line each; None if no category is chosen."""
    if not regions:
        return None
    images = {image["id"]: image for image in content["images"]}
    found: dict[Any, list[str]] = {key: [] for key in images}
    wrong = []
    for annotation in content["annotations"]:
        image = images.get(annotation["image_id"])
        if image is not None and categories.get(annotation["category_id"]) in regions:
            where = f"annotation {annotation.get('id')} in {image['file_name']!r}"
            size = (image.get("height"), image.get("width"))
            try:
                found[image["id"]].append(check_outline(annotation, size, where))
            except ValueError as error:
                wrong.append(str(error))
    if wrong:
        more = f" ({len(wrong) - 1} others cannot be read either)" if len(wrong) > 1 else ""
        on_fault(Fault("outline that cannot be read", wrong[0] + more))
    return TextColumn(["\n".join(lines) for lines in found.values()])


def _with_near(unknown: Sequence[str], known: Sequence[str]) -> str:
    near = {name: get_close_matches(name, known, n=2) for name in unknown}
    return shorten(
        [f"{name!r} (near: {', '.join(map(repr, close))})" if close else repr(name) for name, close in near.items()]
    )


def _given(
    images: list[dict[str, Any]],
    field: str,
    names: tuple[str, ...],
    labels: Tensor,
    known: Sequence[str],
    on_fault: OnFault,
) -> Tensor:
    """`labels` (N, len(names)), replaced where the field `field` of an image says otherwise; uncertain ones coded."""
    wrong = []
    strange: dict[str, str] = {}
    for index, image in enumerate(images):
        for name, value in (image.get(field) or {}).items():
            if name not in known:
                strange.setdefault(name, image["file_name"])
            elif not _is_label(value):
                wrong.append(f"{name!r} of image {image['file_name']!r} is {brief(value)}")
                value = None
            if name in names:
                labels[index, names.index(name)] = torch.nan if value is None else float(value)
    if strange:
        first = next(iter(strange.values()))
        own = [name for name, image in strange.items() if image == first]
        others = [repr(name) for name, image in strange.items() if image != first]
        more = f"; other images label {shorten(others)}, also unknown" if others else ""
        text = f"image {first!r} labels unknown {field} {_with_near(own, known)}{more}"
        on_fault(Fault("unknown label", text))
    if wrong:
        text = f"the label of {shorten(wrong)}; expected 0 to 1, -1 for uncertain, or null where nobody said"
        on_fault(Fault("label that cannot be", text))
    return labels


def _is_label(value: Any) -> bool:
    """Whether a value is one of a label: None where nobody said."""
    return value is None or (is_a(value, NUMBER) and (0 <= value <= 1 or value == _UNCERTAIN))
