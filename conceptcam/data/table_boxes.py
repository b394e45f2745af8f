"""Boxes from a table with one row per box, checked, as fractions of their images."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from conceptcam._checks import brief, quoted, shorten
from conceptcam.data.coco_file import OVERSHOOT, DrawnBoxes, InvalidBoxes, box_fractions
from conceptcam.data.faults import Fault
from conceptcam.data.table_file import Table, plain

BoxUnit = Literal["pixels", "fractions"]

CONCEPT_COLUMNS = ("concept", "class", "classname", "label", "finding", "findinglabel", "category")
"""What the column that says what a box shows may be called, as `plain` writes it."""

_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
)
_SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height"))
# As fractions are rounded, a box may end a little beyond the image.
_FRACTION_OVERSHOOT = 0.002
_SLIP = 0.85
_log = logging.getLogger(__name__)


class TableBoxes(NamedTuple):
    """The boxes of chosen concepts, and what their table says beyond them."""

    drawn: DrawnBoxes
    """Boxes as fractions, ordered by image."""
    looked: Tensor
    """(N,) bool: images that the table lists, so that somebody looked for boxes."""
    named: frozenset[str]
    """All concepts that the table names."""
    notes: tuple[str, ...]
    """What was recognized or left out, in sentences."""

    def without(self, absent: Tensor) -> "TableBoxes":
        """The boxes but for those of concepts that are absent, (N, K) bool, and a note of how many these are."""
        kept = ~absent[self.drawn.image, self.drawn.concept]
        if kept.all():
            return self
        note = f"{int((~kept).sum())} boxes are of concepts that the merged labels call absent, and left out."
        return self._replace(drawn=self.drawn.select(kept), notes=(*self.notes, note))


def read_boxes(
    table: Table,
    images: Sequence[int],
    concepts: Sequence[str],
    image_sizes: Callable[[Sequence[int]], Tensor],
    *,
    count: int,
    unit: BoxUnit | None,
    invalid_boxes: InvalidBoxes,
) -> TableBoxes:
    """The boxes of a table with one row per box; a row without corners says that somebody looked and found nothing.

    Args:
        table: The rows.
        images: (R,) index of the image of each row.
        concepts: Names of those that are wanted.
        image_sizes: Gives the (n, 2) widths and heights in pixels of n images; called for boxes in pixels.
        count: How many images there are.
        unit: Of the corners; None recognizes it: boxes of which no number is above 1 are in fractions.
        invalid_boxes: Whether boxes that cannot be are refused, or left out with a warning.

    Raises:
        ValueError: If columns are missing, a cell is no number, a unit cannot be, a concept looks misspelt, or a box
            cannot be.
    """
    xywh, names = _xywh(table), table.column(concept_column(table))
    rows = (~xywh.isnan().any(dim=1)).nonzero()[:, 0].tolist()
    left_out = Counter(names[row] for row in rows if names[row] not in concepts)
    _refuse_misspelt(table, left_out, concepts)
    rows = sorted((row for row in rows if names[row] in concepts), key=images.__getitem__)
    found = _recognize(table, xywh[rows], unit)
    image = torch.tensor([images[row] for row in rows], dtype=torch.long)
    concept = torch.tensor([list(concepts).index(names[row]) for row in rows], dtype=torch.long)
    sizes = image_sizes(image.tolist()) if found == "pixels" else torch.ones(len(rows), 2, dtype=torch.float64)
    if sizes.isnan().any():  # a fault that was reported: nobody knows where these boxes are
        placed = (~sizes.isnan().any(dim=1)).nonzero()[:, 0]
        image, concept, sizes, rows = image[placed], concept[placed], sizes[placed], [rows[i] for i in placed.tolist()]
    overshoot = OVERSHOOT if found == "pixels" else _FRACTION_OVERSHOOT
    xyxy, bad = box_fractions(xywh[rows], sizes, overshoot=overshoot)
    for number in bad.nonzero()[:1, 0].tolist():
        size = f" of {sizes[number, 0]:g} x {sizes[number, 1]:g} pixels" if found == "pixels" else ""
        _tell_invalid(table, rows, xywh[rows[number]], int(bad.sum()), table.where(rows[number]) + size, invalid_boxes)
    notes = [f"The boxes of {table.name} are in {found}."] if unit is None and rows else []
    if left_out:
        named = shorten(map(repr, left_out))
        notes.append(f"{left_out.total()} boxes of {table.name} are of {named}, no concepts here, and left out.")
    looked = torch.zeros(count, dtype=torch.bool)
    looked[list(images)] = True
    drawn = DrawnBoxes(xyxy[~bad], concept[~bad], image[~bad], torch.stack([image[bad], concept[bad]], dim=1))
    return TableBoxes(drawn, looked, frozenset(names), tuple(notes))


def no_boxes(count: int) -> TableBoxes:
    """What is known of boxes where there is no table of them: nobody looked at any of the images."""
    none = torch.zeros(0, dtype=torch.long)
    drawn = DrawnBoxes(torch.zeros(0, 4), none, none, torch.zeros(0, 2, dtype=torch.long))
    return TableBoxes(drawn, torch.zeros(count, dtype=torch.bool), frozenset(), ())


def concept_column(table: Table) -> str:
    """The column that says what a box shows.

    Raises:
        ValueError: If none or several may be it.
    """
    found = table.find(CONCEPT_COLUMNS)
    if len(found) != 1:
        raise ValueError(
            f"{table.name} needs one column that says what a box shows, called such as 'concept' or 'label'; "
            f"it has {quoted(found or table.columns)}"
        )
    return found[0]


def _xywh(table: Table) -> Tensor:
    """(R, 4) float64 left, top, width and height of each row, NaN in all four where nothing is written."""
    for names in (*_CORNERS, *_SIZES):
        found = [table.find([name]) for name in names]
        if all(len(columns) == 1 for columns in found):
            numbers = torch.tensor([table.numbers(name) for (name,) in found], dtype=torch.float64).T
            partial = numbers.isnan().any(dim=1) & ~numbers.isnan().all(dim=1)
            if partial.any():
                row = int(partial.nonzero()[0])
                text = (
                    f"{int(partial.sum())} boxes of {table.name} lack a number, the first in {table.where(row)}: "
                    f"{_shown(numbers[row])}; write all four, or none where there is nothing to draw"
                )
                table.on_fault(Fault("box that cannot be", text))
            return torch.cat([numbers[:, :2], numbers[:, 2:] - numbers[:, :2]], dim=1) if names in _CORNERS else numbers
    raise ValueError(
        f"{table.name} has no boxes: expected the columns x_min, y_min, x_max, y_max, or x, y, width, height; "
        f"it has {quoted(table.columns)}"
    )


def _refuse_misspelt(table: Table, left_out: Sequence[str] | Counter[str], concepts: Sequence[str]) -> None:
    for name in left_out:
        close = [concept for concept in concepts if plain(concept) == plain(name)]
        # Other findings may have similar names, such as Pneumonia and Pneumothorax: a slip is nearer.
        close = close or get_close_matches(name, concepts, n=1, cutoff=_SLIP)
        if close:
            text = (
                f"{table.name} has boxes of {brief(name)}, which is no concept here; did you mean {close}? Write both "
                "alike"
            )
            table.on_fault(Fault("misspelt concept", text))


def _recognize(table: Table, xywh: Tensor, unit: BoxUnit | None) -> BoxUnit:
    """The unit of boxes, checked against their numbers."""
    if not len(xywh):
        return unit or "fractions"
    ends = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1).amax(dim=1)
    small = ends <= 1 + _FRACTION_OVERSHOOT
    if unit == "fractions" and not small.all():
        raise ValueError(
            f"the boxes of {table.name} are said to be in fractions, but {int((~small).sum())} of {len(small)} go "
            f"beyond 1, such as {_shown(xywh[~small][0])} (x, y, width, height); they may be in pixels"
        )
    if unit == "pixels" and small.all():
        raise ValueError(
            f"the boxes of {table.name} are said to be in pixels, but none goes beyond 1, so they look like fractions"
        )
    if small.any() and not small.all():
        text = (
            f"{int(small.sum())} of {len(small)} boxes of {table.name} look like fractions, such as "
            f"{_shown(xywh[small][0])} (x, y, width, height), and the others like pixels; write all in one unit"
        )
        table.on_fault(Fault("boxes in two units", text))
    return "fractions" if small.all() else "pixels"


def _tell_invalid(
    table: Table, rows: Sequence[int], first: Tensor, count: int, where: str, invalid_boxes: InvalidBoxes
) -> None:
    """Refuse boxes that cannot be, or warn of them."""
    found = f"{count} of {len(rows)} boxes of {table.name}"
    shown = f"the first is {_shown(first)} (x, y, width, height) in {where}"
    if invalid_boxes == "skip":
        _log.warning("left out %s, which cannot be; %s", found, shown)
        return
    text = (
        f"{found} cannot be: {shown}; expected boxes with an area, inside the image. If they were drawn on images of "
        "another size, give it in the columns image_width and image_height; or set `invalid_boxes` to 'skip' "
        "(--invalid-boxes skip)"
    )
    table.on_fault(Fault("box that cannot be", text))


def _shown(numbers: Tensor) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers.tolist())}]"
