"""The report of an inspection as one HTML page with sample images; its text is `inspection.html.jinja`."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from conceptcam.analysis.figures import blend
from conceptcam.data.batch import ConceptDataset
from conceptcam.data.boxes import ConceptBoxes
from conceptcam.data.inspection import Inspection
from conceptcam.data.label_counts import FEW_PIXELS

_SIDE = 200  # pixels of a sample image


class _Picture(NamedTuple):
    """A sample image."""

    name: str
    present: str
    """Its concepts and tasks."""
    data: str
    """A JPEG file in base64."""


class _Cell(NamedTuple):
    """How often images with one label have another."""

    text: str
    """In percent."""
    shade: str
    title: str


class _Row(NamedTuple):
    """What images with one label also have."""

    name: str
    cells: list[_Cell]


def inspection_page(found: Inspection, dataset: ConceptDataset, *, title: str = "Inspection", samples: int = 24) -> str:
    """A page that needs no other file and loads nothing.

    It holds images of the data set: where these must not leave a place, nor must the page.

    Args:
        found: What `inspect_dataset` gave.
        dataset: What was inspected.
        title: Heading of the page.
        samples: How many images to show, spread evenly over the data set; those that cannot be read are left out.
    """
    from jinja2 import Environment

    template = Path(__file__).with_name("inspection.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    count = min(samples, len(dataset))
    rows = [number * len(dataset) // count for number in range(count)]
    pictures = [picture for row in rows if (picture := _sample(dataset, row)) is not None]
    return environment.from_string(template).render(
        title=title, found=found, pictures=pictures, together=_together(found), few_pixels=f"{FEW_PIXELS:g}"
    )


def _together(found: Inspection) -> list[_Row]:
    """A matrix of how many of the images with one label have another too."""
    both: dict[tuple[str, str], tuple[int, int]] = {}
    for pair in found.pairs:
        both[pair.first, pair.second] = pair.both, pair.both + pair.first_alone
        both[pair.second, pair.first] = pair.both, pair.both + pair.second_alone
    names = [one.name for one in found.labels]
    return [_Row(row, [_cell(row, column, both.get((row, column))) for column in names]) for row in names]


def _cell(row: str, column: str, counted: tuple[int, int] | None) -> _Cell:
    if counted is None:
        return _Cell("", "0", "") if row == column else _Cell("0", "0", f"no image has {row} and {column}")
    part, whole = counted
    return _Cell(
        f"{100 * part / whole:.0f}", f"{0.6 * part / whole:.2f}", f"{part} of {whole} with {row} have {column}"
    )


def _sample(dataset: ConceptDataset, row: int) -> _Picture | None:
    """An image with its boxes; None if it cannot be read."""
    try:
        item = dataset.load_item(row)
    except (ValueError, OSError):  # the inspection has named it
        return None
    names = (*dataset.concepts, *dataset.tasks)
    labels = [*item.concepts.tolist(), *item.targets.tolist()]
    present = [name for name, label in zip(names, labels, strict=True) if label >= 0.5]
    boxes = (item.boxes or ConceptBoxes.empty()).xyxy
    file = io.BytesIO()
    blend(item.image, boxes=boxes, side=_SIDE).convert("RGB").save(file, "JPEG", quality=85)
    return _Picture(item.name, ", ".join(present) or "none", base64.b64encode(file.getvalue()).decode())
