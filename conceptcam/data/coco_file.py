"""What stands in a COCO detection file: its entries and boxes, checked."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import brief, check_names, shorten
from conceptcam._files import parse_json
from conceptcam.data.image_files import relative_path

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


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO detection file, with its fields and ids checked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no COCO detection JSON, lists no images, or repeats an id or a category's name.
    """
    content = parse_json(path.read_bytes(), repr(str(path)))
    if not isinstance(content, dict) or any(not isinstance(content.get(part), list) for part in _FIELDS):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{str(path)!r} is no COCO detection file: expected the lists {list(_FIELDS)}, got {found}")
    for part, fields in _FIELDS.items():
        entries = content[part]
        if lacking := [entry for entry in entries if not _has(entry, fields)]:
            raise ValueError(
                f"{len(lacking)} of {len(entries)} `{part}` lack one of {list(fields)}, or have it in another type; "
                f"first: {brief(lacking[0])}"
            )
        _refuse_repeated(f"ids in `{part}`", [entry["id"] for entry in entries if is_a(entry.get("id"), _ID)])
    _refuse_repeated("category names", [entry["name"] for entry in content["categories"]])
    check_names("categories", [entry["name"] for entry in content["categories"]], at_least=0)
    check_names("file names", [*{entry["file_name"] for entry in content["images"]}], at_least=0)
    if not content["images"]:
        raise ValueError(f"{str(path)!r} lists no images")
    return content


def _has(entry: Any, fields: Mapping[str, Any]) -> bool:
    return isinstance(entry, dict) and all(is_a(entry.get(key), kind) for key, kind in fields.items())


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a kind; true and false are no numbers, as they are to Python."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _refuse_repeated(what: str, values: list[Any]) -> None:
    if repeated := [repr(value) for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"repeated {what}: {shorten(repeated)}; each may occur once")


def check_images(images: list[dict[str, Any]], folder: Path) -> None:
    """Refuse entries of images that no data set can be made of.

    Args:
        images: The file's `images`.
        folder: What their file names are relative to.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file name is repeated, leaves the folder, or its file is missing, a size is impossible, or one
            of the fields that other readers ignore is of another type or looks misspelt.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r}")
    paths = [relative_path(image["file_name"], os.path.abspath(folder)) for image in images]
    if outside := [repr(image["file_name"]) for image, path in zip(images, paths, strict=True) if path is None]:
        raise ValueError(
            f"{len(outside)} of {len(images)} images are outside the folder {str(folder)!r}: {shorten(outside)}; give "
            "the folder that holds them all"
        )
    _refuse_repeated("file names in `images`", paths)
    _refuse_slips(images)
    for image in images:
        for key, kind, example in _OPTIONAL:
            if image.get(key) is not None and not is_a(image[key], kind):
                raise ValueError(
                    f"{key!r} of image {image['file_name']!r} is {brief(image[key])}; expected such as {example}"
                )
    sizes = [(image["width"], image["height"]) if has_size(image) else (1, 1) for image in images]
    if wrong := [repr(image["file_name"]) for image, size in zip(images, sizes, strict=True) if not min(size) > 0]:
        raise ValueError(f"width and height must be above 0, which they are not for {shorten(wrong)}")
    if wrong := [
        repr(image["file_name"]) for image, size in zip(images, sizes, strict=True) if not max(size) <= _LARGEST
    ]:
        raise ValueError(f"width and height must be at most {_LARGEST:,}, which they are not for {shorten(wrong)}")
    if missing := [repr(image["file_name"]) for image in images if not os.path.isfile(folder / image["file_name"])]:
        raise ValueError(f"{len(missing)} of {len(images)} images are missing from {str(folder)!r}: {shorten(missing)}")


def _refuse_slips(images: list[dict[str, Any]]) -> None:
    """Refuse a field whose name is nearly that of an optional one."""
    known = [name for name, _, _ in _OPTIONAL]
    for key in {key for image in images for key in image} - {*known, "id", "file_name", "patient_id"}:
        if near := get_close_matches(key, known, n=1, cutoff=_SLIP):
            raise ValueError(f"images have a field {key!r}, which nothing reads; did you mean {near[0]!r}? Rename it")


def draw_boxes(
    content: dict[str, Any], categories: dict[Any, str], concepts: tuple[str, ...], invalid_boxes: InvalidBoxes
) -> DrawnBoxes:
    """The boxes of the chosen concepts, checked, as fractions of their images.

    Args:
        content: As `read_coco` gives it.
        categories: Names by id.
        concepts: Names of those that are wanted.
        invalid_boxes: Whether boxes that cannot be are refused, or left out with a warning.

    Raises:
        ValueError: If an annotation is of an unknown image or category, or of an image in which nobody drew boxes, or a
            box cannot be.
    """
    images, annotations = content["images"], content["annotations"]
    row = {image["id"]: index for index, image in enumerate(images)}
    for key, known in (("image_id", row), ("category_id", categories)):
        if strange := [entry for entry in annotations if entry[key] not in known]:
            ids = list(dict.fromkeys(repr(entry[key]) for entry in strange))
            raise ValueError(f"{len(strange)} of {len(annotations)} annotations have an unknown {key}: {shorten(ids)}")
    chosen = [entry for entry in annotations if categories[entry["category_id"]] in concepts]
    chosen.sort(key=lambda entry: row[entry["image_id"]])
    image = torch.tensor([row[entry["image_id"]] for entry in chosen], dtype=torch.long)
    concept = torch.tensor([concepts.index(categories[entry["category_id"]]) for entry in chosen], dtype=torch.long)
    if unlooked := [repr(images[i]["file_name"]) for i in image.unique().tolist() if not is_annotated(images[i])]:
        raise ValueError(f"'annotated' is false, yet there are annotations, for {shorten(unlooked)}")
    if unsized := [repr(images[i]["file_name"]) for i in image.unique().tolist() if not has_size(images[i])]:
        raise ValueError(f"images with boxes need `width` and `height`, which are missing from {shorten(unsized)}")
    sizes = torch.tensor(
        [[entry["width"], entry["height"]] if has_size(entry) else [1, 1] for entry in images], dtype=torch.float64
    )
    xyxy, bad = box_fractions(
        torch.tensor([_numbers(entry["bbox"]) for entry in chosen], dtype=torch.float64).view(-1, 4), sizes[image]
    )
    if bad.any():
        found = shorten([_describe(chosen[i], images[image[i]]) for i in bad.nonzero()[:, 0].tolist()])
        if invalid_boxes == "error":
            raise ValueError(
                f"{int(bad.sum())} of {len(chosen)} boxes cannot be: {found}; expected [x, y, width, height] in "
                "pixels, not in fractions, with an area, inside the image. Correct them, or set `invalid_boxes` to "
                "'skip' (--invalid-boxes skip)"
            )
        _log.warning("left out %d of %d boxes, which cannot be: %s", int(bad.sum()), len(chosen), found)
    good = ~bad
    return DrawnBoxes(xyxy[good], concept[good], image[good], torch.stack([image[bad], concept[bad]], dim=1))


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
