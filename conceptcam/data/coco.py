"""Images with boxes from a COCO detection file and a folder of images."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from conceptcam.boxes import ConceptBoxes
from conceptcam.config import TaskKind, check_names
from conceptcam.data.batch import ConceptDataset, ConceptItem
from conceptcam.data.images import read_image
from conceptcam.labels import Uncertain, resolve_uncertain

BadBoxes = Literal["refuse", "skip"]

_UNCERTAIN = -1.0
# Annotation tools round box corners; a box this little beyond the image, in pixels, is cut at the border.
_OVERSHOOT = 2.0
_ID, _NUMBER = (int, str), (int, float)
_FIELDS: dict[str, dict[str, Any]] = {
    "images": {"id": _ID, "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "annotations": {"image_id": _ID, "category_id": _ID, "bbox": list},
    "categories": {"id": _ID, "name": str},
}
_OPTIONAL = (
    ("concepts", dict, '{"Edema": 1, "Nodule": null}'),
    ("tasks", dict, '{"Pneumonia": 1}'),
    ("annotated", bool, "false"),
)
_log = logging.getLogger(__name__)


class CocoDataset(ConceptDataset):
    """Images with concept labels and boxes, from a COCO detection file.

    Categories are the concepts. A concept is present (1) in an image with a box of its category and
    absent (0) in one without, because the file says that somebody looked; an image without annotations
    thus has labels 0 and no boxes to draw. A crowd (`iscrowd`) counts as a box around a group: left out,
    its place would count as free of the concept.

    Three optional fields, which other readers of COCO ignore, say what boxes cannot. All belong to an
    entry of `images`:

    - `"concepts": {"Edema": 1, "Nodule": null}` replaces labels taken from boxes: 0, 1, a probability, or -1
      where somebody looked and left it open; null, where nobody said, is unknown.
    - `"tasks": {"Pneumonia": 1}` gives task labels in the same way; a task not named is unknown.
    - `"annotated": false` says that nobody drew boxes in the image: its boxes are None, and its labels
      are unknown where `"concepts"` does not give them.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are relative to.
        concepts: Categories to use, in the order wanted; None takes all, by category id.
        tasks: Names to take from the images' `"tasks"`, in the order wanted; None takes all, in the order of
            their appearance. If the tasks exclude each other, label each image with one 1 and zeros.
        bad_boxes: What to do with boxes that cannot be: without area, not numbers, or more than two
            pixels beyond the image. `"refuse"` raises; `"skip"` leaves them out with a warning, and the
            label of a concept that had no other box in the image becomes unknown.
        uncertain: What a label of -1 counts as; see `resolve_uncertain`. By default it is unknown, which is best for
            data that figures are reported on. The box of an uncertain concept is drawn whatever it counts as, and
            the loss weighs it by its label.
        task_kind: As in `ConceptConfig`. The labels of a `"multiclass"` task sum to 1, of which an uncertain one
            has no share that could be named: it can only be ignored.
        augment: See `ConceptDataset`.
        preprocess: See `ConceptDataset`.

    Raises:
        FileNotFoundError: If there is no such JSON file or folder.
        ValueError: Naming the first few offenders and their number, if the file is not COCO detection
            JSON, an id, category or file name is repeated, an image file is missing, an annotation is of
            an unknown image or category, a label is impossible or denied by a box, or a box cannot be;
            if an option is unknown, or does not fit uncertain labels of a multi-class task.
    """

    def __init__(
        self,
        annotations: str | PathLike[str],
        images: str | PathLike[str],
        *,
        concepts: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        bad_boxes: BadBoxes = "refuse",
        uncertain: Uncertain = "ignore",
        task_kind: TaskKind = "multilabel",
        augment: Callable[[ConceptItem], ConceptItem] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if bad_boxes not in ("refuse", "skip"):
            raise ValueError(f"unknown `bad_boxes` {bad_boxes!r}; known: ['refuse', 'skip']")
        if task_kind not in get_args(TaskKind):
            raise ValueError(f"unknown `task_kind` {task_kind!r}; known: {list(get_args(TaskKind))}")
        self.augment, self.preprocess = augment, preprocess
        self.folder = Path(images)
        content = _load(Path(annotations))
        self._images: list[dict[str, Any]] = content["images"]
        _check_images(self._images, self.folder)
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        by_id = [categories[key] for key in sorted(categories, key=lambda key: (isinstance(key, str), key))]
        self.concepts = _chosen("concepts", by_id if concepts is None else concepts, by_id, at_least=1)
        known_tasks = {name: None for image in self._images for name in image.get("tasks") or ()}
        self.tasks = _chosen("tasks", list(known_tasks) if tasks is None else tasks, list(known_tasks), at_least=0)

        drawn = _draw(content, categories, self.concepts, bad_boxes)
        self._drawn, self._first = drawn, torch.searchsorted(drawn.image, torch.arange(len(self._images) + 1))
        labels = torch.zeros(len(self._images), len(self.concepts))
        labels[[not _annotated(image) for image in self._images]] = torch.nan
        labels[drawn.skipped[:, 0], drawn.skipped[:, 1]] = torch.nan
        labels[drawn.image, drawn.concept] = 1
        # Labels with the code first: a box denies a 0 that somebody wrote, not one that stands for "uncertain".
        labels = _given(self._images, "concepts", self.concepts, labels, known=by_id)
        self._check_denied(labels)
        self.concept_labels = resolve_uncertain(labels, uncertain, uncertain=_UNCERTAIN)
        unknown = torch.full((len(self._images), len(self.tasks)), torch.nan)
        targets = _given(self._images, "tasks", self.tasks, unknown, known=list(known_tasks))
        if task_kind == "multiclass" and uncertain != "ignore":
            self._refuse_uncertain(targets)
        self.task_labels = resolve_uncertain(targets, uncertain, uncertain=_UNCERTAIN)

    @property
    def names(self) -> tuple[str, ...]:
        """File names of the images, in order."""
        return tuple(entry["file_name"] for entry in self._images)

    def read(self, index: int) -> ConceptItem:
        """The item as it is stored, neither augmented nor preprocessed.

        Raises:
            FileNotFoundError: If the image has gone since the data set was made.
            ValueError: If the image cannot be read, or has another size than the JSON file says, so that
                boxes would lie elsewhere.
        """
        index = range(len(self))[index]  # -1 is the last, whose boxes are not those before the first
        entry = self._images[index]
        image = read_image(self.folder / entry["file_name"])
        height, width = image.shape[1:]
        if (width, height) != (entry["width"], entry["height"]):
            raise ValueError(
                f"image {entry['file_name']!r} is {width} x {height} pixels (upright, if EXIF says how), but the "
                f"JSON file says {entry['width']} x {entry['height']}: its boxes would be misplaced"
            )
        boxes = None
        if _annotated(entry):
            rows = slice(int(self._first[index]), int(self._first[index + 1]))
            concept = self._drawn.concept[rows]
            boxes = ConceptBoxes(self._drawn.xyxy[rows], concept, torch.zeros_like(concept))
        return ConceptItem(image, self.concept_labels[index], self.task_labels[index], boxes, entry["file_name"])

    def _check_denied(self, labels: Tensor) -> None:
        """Refuse boxes of a concept whose label says that it is absent."""
        denied = labels[self._drawn.image, self._drawn.concept] == 0
        pairs = zip(self._drawn.image[denied].tolist(), self._drawn.concept[denied].tolist(), strict=True)
        if found := [f"{self._images[i]['file_name']!r} ({self.concepts[k]!r})" for i, k in dict.fromkeys(pairs)]:
            raise ValueError(f"'concepts' says 0 where boxes are drawn, in {_some(found)}; correct one of the two")

    def _refuse_uncertain(self, targets: Tensor) -> None:
        """Refuse uncertain labels of tasks that exclude each other."""
        rows = (targets == _UNCERTAIN).any(dim=1).nonzero()[:, 0].tolist()
        if found := [repr(self._images[i]["file_name"]) for i in rows]:
            raise ValueError(
                f"'tasks' says -1 (uncertain) in {_some(found)}; in a multi-class task that can only be ignored: "
                "write null there, or pass uncertain='ignore'"
            )


class _Drawn(NamedTuple):
    """N boxes of chosen concepts, ordered by image."""

    xyxy: Tensor
    """(N, 4) float32 fractions."""
    concept: Tensor
    """(N,) index into the concepts."""
    image: Tensor
    """(N,) index into the images, ascending."""
    skipped: Tensor
    """(S, 2) image and concept of boxes that were left out."""


def _load(path: Path) -> dict[str, Any]:
    """The content of a COCO detection file, with its fields and ids checked."""
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(part), list) for part in _FIELDS):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{str(path)!r} is no COCO detection file: expected the lists {list(_FIELDS)}, got {found}")
    for part, fields in _FIELDS.items():
        entries = content[part]
        if lacking := [entry for entry in entries if not _has(entry, fields)]:
            raise ValueError(
                f"{len(lacking)} of {len(entries)} `{part}` lack one of {list(fields)}, or have it in another type; "
                f"first: {lacking[0]}"
            )
        _refuse_repeated(f"ids in `{part}`", [entry["id"] for entry in entries if "id" in entry])
    _refuse_repeated("category names", [entry["name"] for entry in content["categories"]])
    if not content["images"]:
        raise ValueError(f"{str(path)!r} lists no images")
    return content


def _has(entry: Any, fields: Mapping[str, Any]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in fields.items())


def _refuse_repeated(what: str, values: list[Any]) -> None:
    if repeated := [repr(value) for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"repeated {what}: {_some(repeated)}; each may occur once")


def _check_images(images: list[dict[str, Any]], folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    _refuse_repeated("file names in `images`", [image["file_name"] for image in images])
    for image in images:
        for key, kind, example in _OPTIONAL:
            if not isinstance(image.get(key), kind | None):
                raise ValueError(
                    f"{key!r} of image {image['file_name']!r} is {image[key]!r}; expected such as {example}"
                )
    sizes = [(image["width"], image["height"]) for image in images]
    if wrong := [repr(image["file_name"]) for image, size in zip(images, sizes, strict=True) if not min(size) > 0]:
        raise ValueError(f"width and height must be above 0, which they are not for {_some(wrong)}")
    if missing := [repr(image["file_name"]) for image in images if not (folder / image["file_name"]).is_file()]:
        raise ValueError(f"{len(missing)} of {len(images)} images are missing from {str(folder)!r}: {_some(missing)}")


def _chosen(what: str, names: Sequence[str], known: Sequence[str], *, at_least: int) -> tuple[str, ...]:
    check_names(what, names, at_least=at_least)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {what} {_with_near(unknown, known)}; the file has {list(known)}")
    return tuple(names)


def _with_near(unknown: Sequence[str], known: Sequence[str]) -> str:
    near = {name: get_close_matches(name, known, n=2) for name in unknown}
    return _some(
        [f"{name!r} (near: {', '.join(map(repr, close))})" if close else repr(name) for name, close in near.items()]
    )


def _draw(
    content: dict[str, Any], categories: dict[Any, str], concepts: tuple[str, ...], bad_boxes: BadBoxes
) -> _Drawn:
    """The boxes of the chosen concepts, checked, as fractions of their images."""
    images, annotations = content["images"], content["annotations"]
    row = {image["id"]: index for index, image in enumerate(images)}
    for key, known in (("image_id", row), ("category_id", categories)):
        if strange := [entry for entry in annotations if entry[key] not in known]:
            ids = list(dict.fromkeys(repr(entry[key]) for entry in strange))
            raise ValueError(f"{len(strange)} of {len(annotations)} annotations have an unknown {key}: {_some(ids)}")
    chosen = [entry for entry in annotations if categories[entry["category_id"]] in concepts]
    chosen.sort(key=lambda entry: row[entry["image_id"]])
    image = torch.tensor([row[entry["image_id"]] for entry in chosen], dtype=torch.long)
    concept = torch.tensor([concepts.index(categories[entry["category_id"]]) for entry in chosen], dtype=torch.long)
    if unlooked := [repr(images[i]["file_name"]) for i in image.unique().tolist() if not _annotated(images[i])]:
        raise ValueError(f"'annotated' is false, yet there are annotations, for {_some(unlooked)}")
    sizes = torch.tensor([[entry["width"], entry["height"]] for entry in images], dtype=torch.float64)
    xyxy, bad = _fractions(
        torch.tensor([_numbers(entry["bbox"]) for entry in chosen], dtype=torch.float64).view(-1, 4), sizes[image]
    )
    if bad.any():
        found = _some([_describe(chosen[i], images[image[i]]) for i in bad.nonzero()[:, 0].tolist()])
        if bad_boxes == "refuse":
            raise ValueError(
                f"{int(bad.sum())} of {len(chosen)} boxes cannot be: {found}; expected [x, y, width, height] in "
                "pixels, with an area, inside the image. Correct them, or pass bad_boxes='skip' to leave them out."
            )
        _log.warning("left out %d of %d boxes, which cannot be: %s", int(bad.sum()), len(chosen), found)
    good = ~bad
    return _Drawn(xyxy[good], concept[good], image[good], torch.stack([image[bad], concept[bad]], dim=1))


def _numbers(bbox: list[Any]) -> list[float]:
    """Four numbers, or four NaN if `bbox` is something else."""
    return bbox if len(bbox) == 4 and all(isinstance(value, _NUMBER) for value in bbox) else [torch.nan] * 4


def _fractions(xywh: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4) corners in [0, 1], and (N,) which boxes cannot be; a small overshoot is cut off."""
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    beyond = torch.maximum(-low, high - sizes).amax(dim=1)
    xyxy = (torch.cat([low, high], dim=1) / sizes.repeat(1, 2)).clamp(0, 1).float()
    sane = (xyxy[:, :2] < xyxy[:, 2:]).all(dim=1) & (beyond <= _OVERSHOOT)
    if cut := int((sane & (beyond > 1e-3)).sum()):
        _log.info(
            "cut %d of %d boxes at the border, beyond which they went by at most %g pixels", cut, len(xywh), _OVERSHOOT
        )
    return xyxy, ~sane


def _describe(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    size = f"{image['width']} x {image['height']}"
    return f"{annotation['bbox']} (annotation {annotation.get('id')}) in {image['file_name']!r} of {size} pixels"


def _given(
    images: list[dict[str, Any]], field: str, names: tuple[str, ...], labels: Tensor, *, known: Sequence[str]
) -> Tensor:
    """`labels` (N, len(names)), replaced where the field `field` of an image says otherwise; uncertain ones coded."""
    for index, image in enumerate(images):
        given = image.get(field) or {}
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"image {image['file_name']!r} labels unknown {field} {_with_near(unknown, known)}")
        for name, value in given.items():
            if name in names:
                labels[index, names.index(name)] = _label(value, f"{name!r} of image {image['file_name']!r}")
    return labels


def _label(value: Any, where: str) -> float:
    if value is None:
        return torch.nan
    if not isinstance(value, _NUMBER) or not (0 <= value <= 1 or value == _UNCERTAIN):
        raise ValueError(
            f"the label of {where} is {value!r}; expected 0 to 1, -1 for uncertain, or null where nobody said"
        )
    return float(value)


def _annotated(image: Mapping[str, Any]) -> bool:
    return image.get("annotated") is not False


def _some(items: Iterable[str]) -> str:
    """The first three of them, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
