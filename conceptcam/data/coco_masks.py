"""Outlines of COCO files as masks: polygons, and run lengths as a list or as COCO's compressed text."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conceptcam._checks import brief
from conceptcam.data.coco_file import NUMBER, is_a

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def check_outline(annotation: dict[str, Any], size: tuple[Any, Any], where: str) -> str:
    """The outline of an annotation as a JSON text that `draw_outlines` reads; of its box, if it has no outline.

    Args:
        annotation: As in the file; an outline is its `segmentation`.
        size: (H, W) that the file says of the image.
        where: What to call the annotation in messages.

    Raises:
        ValueError: If the outline is neither polygons nor run lengths, or is of another size than the image.
    """
    outline = annotation.get("segmentation")
    if not outline:
        box = annotation["bbox"]
        if len(box) != 4 or not all(is_a(number, NUMBER) for number in box):
            raise ValueError(f"the box of {where} is {brief(box)}; expected [x, y, width, height]")
        left, top, width, height = box
        right, bottom = left + width, top + height
        outline = [[left, top, right, top, right, bottom, left, bottom]]
    if isinstance(outline, dict) and isinstance(outline.get("counts"), list | str):
        if outline.get("size") != list(size):
            raise ValueError(f"the mask of {where} is of size {outline.get('size')}, and the image of {list(size)}")
    elif not (isinstance(outline, list) and all(_is_polygon(one) for one in outline)):
        raise ValueError(
            f"the outline of {where} is {brief(outline)}; expected polygons such as [[x0, y0, x1, y1, x2, y2]], or "
            "run lengths such as {'size': [height, width], 'counts': [6, 2, 7]}"
        )
    return json.dumps(outline)


def draw_outlines(outlines: Sequence[str], size: tuple[int, int]) -> Tensor:
    """(H, W) uint8, 1 inside any of the outlines that `check_outline` gave.

    A polygon covers the pixels whose centre is in it, by the even-odd rule.

    Raises:
        ValueError: If run lengths do not fill the image.
    """
    inside = np.zeros(size, dtype=np.bool_)
    for outline in map(json.loads, outlines):
        if isinstance(outline, dict):
            inside |= decode_runs(outline["counts"], size)
        else:
            for polygon in outline:
                inside |= fill_polygon(np.array(polygon, dtype=np.float64).reshape(-1, 2), size)
    return torch.from_numpy(inside.astype(np.uint8))


def decode_runs(counts: Sequence[int] | str, size: tuple[int, int]) -> Mask:
    """A mask (H, W) from the lengths of its runs of 0 and 1 by turns, beginning with 0, column by column.

    Args:
        counts: The lengths, or COCO's text of them.
        size: (H, W).

    Raises:
        ValueError: If they do not fill the image, or are no lengths.
    """
    runs = _parse_text(counts) if isinstance(counts, str) else counts
    if not all(is_a(run, int) and run >= 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths {brief(counts)} do not fill the {size[1]} x {size[0]} pixels of a mask")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def fill_polygon(points: "np.ndarray[Any, np.dtype[np.float64]]", size: tuple[int, int]) -> Mask:
    """The pixels (H, W) whose centre is in a polygon.

    Args:
        points: (n, 2) corners as x and y in pixels.
        size: (H, W).
    """
    height, width = size
    ends = np.roll(points, -1, axis=0)
    upper = np.where((points[:, 1] <= ends[:, 1])[:, None], points, ends)
    lower = np.where((points[:, 1] <= ends[:, 1])[:, None], ends, points)
    # The rows whose centre an edge passes; the lower end does not count, or a corner would be passed twice.
    first, last = (np.ceil(part[:, 1] - 0.5).clip(0, height).astype(np.int64) for part in (upper, lower))
    edge = np.repeat(np.arange(len(points)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    crossing = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    crossed = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(crossed, (row, column), 1)
    return crossed.cumsum(axis=1)[:, :width] % 2 == 1


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(is_a(value, NUMBER) and abs(value) < 1e9 for value in points)
    )


def _parse_text(text: str) -> list[int]:
    """Run lengths from COCO's text: base 32, lowest digits first, each but the first three as a difference.

    A character holds five bits; a sixth says that more follow, and the highest of the last five is the sign.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return []
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
