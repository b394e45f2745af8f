"""What stands in a COCO detection file: its entries and boxes, checked."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import compress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import brief, check_names, shorten
from conceptcam._files import parse_json
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.faults import Fault, OnFault, refuse_fault
from conceptcam.data.image_files import relative_path, repeats

InvalidBoxes = Literal["error", "skip"]

NUMBER = (int, float)
"""Types of a number in JSON."""

OVERSHOOT = 2.0
"""Pixels: annotation tools round the corners of boxes; a box this little beyond the image is cut at the border."""

_ID = (int, str)
_FIELDS: dict[str, dict[str, Any]] = {
    "images": {"id": _ID, "file_name": str},
    "annotations": {"image_id": _ID, "category_id": _ID, "bbox": list},
    "categories": {"id": _ID, "name": str},
}
_OPTIONAL = (
    ("concepts", dict, '{"Edema": 1, "Nodule": null}'),
    ("tasks", dict, '{"Pneumonia": 1}'),
    ("annotated", bool, "false"),
    ("patient", str | int, '"p17"'),
    ("width", int | float, "640"),
    ("height", int | float, "480"),
)
# Spellings that are likely slips for an optional field, which would be ignored without a word.
_SLIP = 0.8
_LARGEST = 10**6  # pixels along a side; no image has more
_FEW_PIXELS = 4  # along a side; in smaller images, a box of the first pixel may be meant
_log = logging.getLogger(__name__)


class DrawnBoxes(NamedTuple):
    """N boxes of chosen concepts, ordered by image."""

    xyxy: Tensor
    """(N, 4) float32 fractions."""
    concept: Tensor
    """(N,) index into the concepts."""
    image: Tensor
    """(N,) index into the images, ascending."""
    skipped: Tensor
    """(S, 2) image and concept of boxes that were left out."""

    def of_all_images(self) -> ConceptBoxes:
        """The boxes, numbered as the images."""
        return ConceptBoxes(self.xyxy, self.concept, self.image)

    def of_image(self, index: int) -> ConceptBoxes:
        """The boxes of one image, as those of a batch of it alone."""
        first, end = torch.searchsorted(self.image, torch.tensor([index, index + 1])).tolist()
        concept = self.concept[first:end]
        return ConceptBoxes(self.xyxy[first:end], concept, torch.zeros_like(concept))

    def select(self, kept: Tensor) -> "DrawnBoxes":
        """Some of the boxes, by a mask of bools."""
        return DrawnBoxes(self.xyxy[kept], self.concept[kept], self.image[kept], self.skipped)


def without_denied(
    drawn: DrawnBoxes, labels: Tensor, images: Sequence[str], concepts: Sequence[str], on_fault: OnFault, *, who: str
) -> DrawnBoxes:
    """The boxes without those of a concept whose label says that it is absent, which are refused by default.

    Args:
        drawn: All boxes.
        labels: (N, K); 0 is absent.
        images: N names.
        concepts: K names.
        on_fault: Is given a fault if there are any.
        who: What says so, such as "labels say".

    Raises:
        ValueError: By default, if there are any.
    """
    denied = labels[drawn.image, drawn.concept] == 0
    pairs = zip(drawn.image[denied].tolist(), drawn.concept[denied].tolist(), strict=True)
    if found := [f"{images[i]!r} ({concepts[k]!r})" for i, k in dict.fromkeys(pairs)]:
        text = f"{who} 0 where boxes are drawn, in {shorten(found)}; correct one of the two"
        on_fault(Fault("box that a label denies", text))
    return drawn.select(~denied)


def read_coco(path: Path, on_fault: OnFault = refuse_fault) -> dict[str, Any]:
    """The content of a COCO detection file, with its fields and ids checked.

    Args:
        path: The JSON file.
        on_fault: Is given a fault for entries that cannot be used, which are then left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no COCO detection JSON, or lists no images; and by default if it repeats an id or a
            category's name, or an entry lacks a field.
    """
    content = parse_json(path.read_bytes(), repr(str(path)))
    if not isinstance(content, dict) or any(not isinstance(content.get(part), list) for part in _FIELDS):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{str(path)!r} is no COCO detection file: expected the lists {list(_FIELDS)}, got {found}")
    for part, fields in _FIELDS.items():
        entries = content[part]
        if lacking := [entry for entry in entries if not _has(entry, fields)]:
            text = (
                f"{len(lacking)} of {len(entries)} `{part}` lack one of {list(fields)}, or have it in another type; "
                f"first: {brief(lacking[0])}"
            )
            on_fault(Fault("entry that cannot be read", text))
        whole = [entry for entry in entries if _has(entry, fields)]
        ids = [entry["id"] if is_a(entry.get("id"), _ID) else None for entry in whole]
        again = _repeated(f"ids in `{part}`", ids, on_fault)
        content[part] = [entry for entry, twice in zip(whole, again, strict=True) if not twice]
    _repeated("category names", [entry["name"] for entry in content["categories"]], on_fault)
    content = _check_printable(content, "categories", "name", "categories", on_fault)
    content = _check_printable(content, "images", "file_name", "file names", on_fault)
    if not content["images"]:
        raise ValueError(f"{str(path)!r} lists no images" + ("" if on_fault is refuse_fault else " that can be used"))
    return content


def _check_printable(content: dict[str, Any], part: str, key: str, what: str, on_fault: OnFault) -> dict[str, Any]:
    """The content without entries whose name is empty or cannot be printed."""
    try:
        check_names(what, list(dict.fromkeys(entry[key] for entry in content[part])), at_least=0)
    except ValueError as error:
        on_fault(Fault("name that cannot be used", str(error)))
    else:
        return content
    return _without(content, part, [not _is_printable(entry[key]) for entry in content[part]])


def _is_printable(name: str) -> bool:
    try:
        check_names("name", [name], at_least=1)
    except ValueError:
        return False
    return True


def _without(content: dict[str, Any], part: str, wrong: Sequence[bool]) -> dict[str, Any]:
    """The content without some of its images or categories, and without their annotations."""
    key = {"images": "image_id", "categories": "category_id"}[part]
    lost = {entry["id"] for entry, bad in zip(content[part], wrong, strict=True) if bad}
    kept = [entry for entry in content[part] if entry["id"] not in lost]
    annotations = [entry for entry in content["annotations"] if entry[key] not in lost]
    return {**content, part: kept, "annotations": annotations}


def _has(entry: Any, fields: Mapping[str, Any]) -> bool:
    return isinstance(entry, dict) and all(is_a(entry.get(key), kind) for key, kind in fields.items())


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind; true and false are no numbers, as they are to Python."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _repeated(what: str, values: Sequence[Any], on_fault: OnFault) -> list[bool]:
    """Which values were there before; None is nobody's."""
    count = Counter(value for value in values if value is not None)
    if repeated := [repr(value) for value, times in count.items() if times > 1]:
        on_fault(Fault("repeated entry", f"repeated {what}: {shorten(repeated)}; each may occur once"))
    return repeats(values)


def check_images(content: dict[str, Any], folder: Path, on_fault: OnFault = refuse_fault) -> dict[str, Any]:
    """The content without entries of images that no data set can be made of, which are refused by default.

    Args:
        content: As `read_coco` gives it.
        folder: What file names are relative to.
        on_fault: Is given a fault for entries that cannot be used, which are then left out, as are their annotations.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file name is repeated, leaves the folder, or its file is missing, a size is impossible, or one
            of the fields that other readers ignore is of another type or looks misspelt.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    content = _check_places(content, folder, on_fault)
    _check_slips(content["images"], on_fault)
    content = _check_optional(content, on_fault)
    for wrong, limit in (
        (lambda size: not min(size) > 0, "above 0"),
        (lambda size: not max(size) <= _LARGEST, f"at most {_LARGEST:,}"),
    ):
        images = content["images"]
        bad = [has_size(image) and wrong((image["width"], image["height"])) for image in images]
        if any(bad):
            names = shorten(repr(image["file_name"]) for image in compress(images, bad))
            on_fault(Fault("size that cannot be", f"width and height must be {limit}, which they are not for {names}"))
            content = _without(content, "images", bad)
    images = content["images"]
    missing = [not os.path.isfile(folder / image["file_name"]) for image in images]
    if any(missing):
        names = shorten(repr(image["file_name"]) for image in compress(images, missing))
        text = f"{sum(missing)} of {len(images)} images are missing from {str(folder)!r}: {names}"
        on_fault(Fault("missing image", text))
        content = _without(content, "images", missing)
    if not content["images"]:
        raise ValueError("none of the images can be used")
    return content


def _check_places(content: dict[str, Any], folder: Path, on_fault: OnFault) -> dict[str, Any]:
    """The content without images outside the folder, or named twice by whatever spelling."""
    images = content["images"]
    paths = [relative_path(image["file_name"], os.path.abspath(folder)) for image in images]
    outside = [path is None for path in paths]
    if any(outside):
        names = shorten(repr(image["file_name"]) for image in compress(images, outside))
        text = (
            f"{sum(outside)} of {len(images)} images are outside the folder {str(folder)!r}: {names}; give the folder "
            "that holds them all"
        )
        on_fault(Fault("image outside the folder", text))
    again = _repeated("file names in `images`", paths, on_fault)
    return _without(content, "images", [a or b for a, b in zip(outside, again, strict=True)])


def _check_slips(images: list[dict[str, Any]], on_fault: OnFault) -> None:
    """Refuse a field whose name is nearly that of an optional one."""
    known = [name for name, _, _ in _OPTIONAL]
    for key in sorted({key for image in images for key in image} - {*known, "id", "file_name", "patient_id"}):
        if near := get_close_matches(key, known, n=1, cutoff=_SLIP):
            text = f"images have a field {key!r}, which nothing reads; did you mean {near[0]!r}? Rename it"
            on_fault(Fault("misspelt field", text))


def _check_optional(content: dict[str, Any], on_fault: OnFault) -> dict[str, Any]:
    """The content without optional fields of another type, and without images whose size is no number."""
    images = []
    unsized = []
    for image in content["images"]:
        wrong = [key for key, kind, _ in _OPTIONAL if image.get(key) is not None and not is_a(image[key], kind)]
        for key, example in ((key, example) for key, _, example in _OPTIONAL if key in wrong):
            text = f"{key!r} of image {image['file_name']!r} is {brief(image[key])}; expected such as {example}"
            on_fault(Fault("field of another type", text))
        images.append({key: value for key, value in image.items() if key not in wrong} if wrong else image)
        unsized.append("width" in wrong or "height" in wrong)
    return _without({**content, "images": images}, "images", unsized) if any(unsized) else {**content, "images": images}


def draw_boxes(
    content: dict[str, Any],
    categories: dict[Any, str],
    concepts: tuple[str, ...],
    invalid_boxes: InvalidBoxes,
    on_fault: OnFault = refuse_fault,
) -> DrawnBoxes:
    """The boxes of the chosen concepts, checked, as fractions of their images.

    Args:
        content: As `check_images` gives it.
        categories: Names by id.
        concepts: Names of those that are wanted.
        invalid_boxes: Whether boxes that cannot be are refused, or left out with a warning.
        on_fault: Is given a fault for annotations that cannot be used, which are then left out.

    Raises:
        ValueError: If an annotation is of an unknown image or category, or of an image in which nobody drew boxes, or a
            box cannot be.
    """
    images = content["images"]
    row = {image["id"]: index for index, image in enumerate(images)}
    chosen = _of_known(content["annotations"], row, categories, on_fault)
    chosen = [entry for entry in chosen if categories[entry["category_id"]] in concepts]
    chosen.sort(key=lambda entry: row[entry["image_id"]])
    chosen = _on_looked(chosen, {image["id"]: image for image in images}, on_fault)
    image = torch.tensor([row[entry["image_id"]] for entry in chosen], dtype=torch.long)
    concept = torch.tensor([concepts.index(categories[entry["category_id"]]) for entry in chosen], dtype=torch.long)
    sizes = torch.tensor(
        [[entry["width"], entry["height"]] if has_size(entry) else [1, 1] for entry in images], dtype=torch.float64
    )
    xyxy, bad = box_fractions(
        torch.tensor([_numbers(entry["bbox"]) for entry in chosen], dtype=torch.float64).view(-1, 4), sizes[image]
    )
    if bad.any():
        found = shorten([_describe(chosen[i], images[image[i]]) for i in bad.nonzero()[:, 0].tolist()])
        if invalid_boxes == "error":
            text = (
                f"{int(bad.sum())} of {len(chosen)} boxes cannot be: {found}; expected [x, y, width, height] in "
                "pixels, not in fractions, with an area, inside the image. Correct them, or set `invalid_boxes` to "
                "'skip' (--invalid-boxes skip)"
            )
            on_fault(Fault("box that cannot be", text))
        else:
            _log.warning("left out %d of %d boxes, which cannot be: %s", int(bad.sum()), len(chosen), found)
    good = ~bad
    return DrawnBoxes(xyxy[good], concept[good], image[good], torch.stack([image[bad], concept[bad]], dim=1))


def _of_known(
    annotations: list[dict[str, Any]], images: Mapping[Any, Any], categories: Mapping[Any, Any], on_fault: OnFault
) -> list[dict[str, Any]]:
    """Annotations of images and categories that are there."""
    for key, known in (("image_id", images), ("category_id", categories)):
        if strange := [entry for entry in annotations if entry[key] not in known]:
            ids = list(dict.fromkeys(repr(entry[key]) for entry in strange))
            text = f"{len(strange)} of {len(annotations)} annotations have an unknown {key}: {shorten(ids)}"
            on_fault(Fault("annotation of nothing", text))
            annotations = [entry for entry in annotations if entry[key] in known]
    return annotations


def _on_looked(
    annotations: list[dict[str, Any]], images: Mapping[Any, dict[str, Any]], on_fault: OnFault
) -> list[dict[str, Any]]:
    """Annotations of images in which somebody drew boxes, and whose size is known."""
    for usable, what in (
        (is_annotated, "'annotated' is false, yet there are annotations, for"),
        (has_size, "images with boxes need `width` and `height`, which are missing from"),
    ):
        owners = {entry["image_id"]: images[entry["image_id"]] for entry in annotations}
        lost = {key: repr(image["file_name"]) for key, image in owners.items() if not usable(image)}
        if lost:
            on_fault(Fault("box on an image that has none", f"{what} {shorten(lost.values())}"))
            annotations = [entry for entry in annotations if entry["image_id"] not in lost]
    return annotations


def _numbers(bbox: list[Any]) -> list[float]:
    """Four numbers, or four NaN if `bbox` is something else."""
    sane = len(bbox) == 4 and all(is_a(value, NUMBER) and abs(value) <= 2 * _LARGEST for value in bbox)
    return bbox if sane else [torch.nan] * 4


def box_fractions(xywh: Tensor, sizes: Tensor, *, overshoot: float = OVERSHOOT) -> tuple[Tensor, Tensor]:
    """Boxes as fractions of their images, and which of them cannot be.

    Args:
        xywh: (N, 4) left, top, width and height in the unit of the sizes.
        sizes: (N, 2) width and height of the image that each box is in.
        overshoot: How far beyond the image a box may go; it is cut at the border.

    Returns:
        (N, 4) float32 corners in [0, 1], and (N,) bool: without an area, no numbers, too far outside, or no larger than
        the first pixel of an image of many, which is what a box in fractions looks like.
    """
    low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
    beyond = torch.maximum(-low, high - sizes).amax(dim=1)
    xyxy = (torch.cat([low, high], dim=1) / sizes.repeat(1, 2)).clamp(0, 1).float()
    in_fractions = (xywh <= 1).all(dim=1) & (sizes > _FEW_PIXELS).all(dim=1)
    sane = (xyxy[:, :2] < xyxy[:, 2:]).all(dim=1) & (beyond <= overshoot) & ~in_fractions
    if cut := int((sane & (beyond > overshoot / 2000)).sum()):
        _log.info("cut %d of %d boxes at the border, beyond which they went by at most %g", cut, len(xywh), overshoot)
    return xyxy, ~sane


def _describe(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    size = f"{image['width']} x {image['height']}"
    return f"{brief(annotation['bbox'])} (annotation {annotation.get('id')}) in {image['file_name']!r} of {size} pixels"


def has_size(image: Mapping[str, Any]) -> bool:
    """Whether the file says how large an image is."""
    return image.get("width") is not None and image.get("height") is not None


def is_annotated(image: Mapping[str, Any]) -> bool:
    """Whether somebody looked at an image to draw boxes; there may have been nothing to draw."""
    return image.get("annotated") is not False
