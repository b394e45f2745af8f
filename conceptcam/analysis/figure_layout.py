"""Pages of pictures: rows of them below each other, with titles, notes, names and a heading that are never cut off."""

import functools
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (25, 25, 30)
NOTE_SIZE = 13
GAP = 12
"""Pixels between pictures, and between rows of text and pictures."""

_TITLE_SIZE, _FAINT, _MARGIN = 15, (105, 105, 115), 14

Captioned = tuple[str, Image.Image, str]
"""A title, its picture, and a fainter line below the title."""


def strip(
    pictures: Sequence[Captioned], width: int, *, label: str = "", label_width: int = 0, gap: int = GAP
) -> Image.Image:
    """Pictures side by side, each in a column of `width` pixels below its title, after a label.

    Args:
        pictures: With their titles and notes, which are wrapped.
        width: Of each column.
        label: Name of the row, at its left.
        label_width: Room for the name; 0 leaves it out.
        gap: Pixels between columns.
    """
    heads = [(_wrapped(title, _TITLE_SIZE, width), _wrapped(note, NOTE_SIZE, width)) for title, _, note in pictures]
    head = max(_height(title, note) for title, note in heads)
    indent = label_width + GAP if label_width else 0
    size = (indent + len(pictures) * (width + gap) - gap, head + max(image.height for _, image, _ in pictures))
    row = Image.new("RGB", size, PAPER)
    lines = _wrapped(label, _TITLE_SIZE, label_width)
    _write(row, (0, head + (pictures[0][1].height - _height(lines, ())) // 2), lines, ())
    for column, ((_, image, _), (title, note)) in enumerate(zip(pictures, heads, strict=True)):
        left = indent + column * (width + gap)
        _write(row, (left, 0), title, note)
        row.paste(image, (left, head))
    return row


def page(strips: Sequence[Image.Image], gap: int, *, heading: str = "", key: Image.Image | None = None) -> Image.Image:
    """Rows below each other, with margins.

    Args:
        strips: The rows.
        gap: Pixels between them.
        heading: Above all; wrapped.
        key: What explains the pictures, beside the first row and level with its lower edge.
    """
    body = max(row.width for row in strips)
    width = body + (0 if key is None else GAP + key.width)
    lines = _wrapped(heading, _TITLE_SIZE, width)
    top = _MARGIN + (_height(lines, ()) + 8 if lines else 0)
    rows = sum(row.height + gap for row in strips) - gap
    height = max(rows, 0 if key is None else key.height)
    whole = Image.new("RGB", (width + 2 * _MARGIN, top + height + _MARGIN), PAPER)
    _write(whole, (_MARGIN, _MARGIN), lines, ())
    if key is not None:
        whole.paste(key, (_MARGIN + body + GAP, top + max(0, strips[0].height - key.height)))
    for row in strips:
        whole.paste(row, (_MARGIN, top))
        top += row.height + gap
    return whole


def label_width(labels: Sequence[str]) -> int:
    """Pixels for the names of rows: as much as they need, wrapped at 130."""
    lines = [line for label in labels for line in _wrapped(label, _TITLE_SIZE, 130)]
    return math.ceil(max(font(_TITLE_SIZE).getlength(line) for line in lines)) if lines else 0


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one font, in pixels."""
    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of `text` that each fit in `width` pixels; a word too long for a line is broken."""
    face, lines = font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and face.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _height(title: Sequence[str], note: Sequence[str]) -> int:
    lines = len(title) * (_TITLE_SIZE + 4) + len(note) * (NOTE_SIZE + 4)
    return lines + 4 if lines else 0


def _write(onto: Image.Image, place: tuple[int, int], title: Sequence[str], note: Sequence[str]) -> None:
    pen, (left, top) = ImageDraw.Draw(onto), place
    for lines, size, color in ((title, _TITLE_SIZE, INK), (note, NOTE_SIZE, _FAINT)):
        for line in lines:
            pen.text((left, top), line, fill=color, font=font(size))
            top += size + 4
