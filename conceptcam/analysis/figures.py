"""Pictures of what a model sees: heatmaps over images, and sheets of them.

All heatmaps share one fixed scale from 0 to 1, so that a colour means the same number in every picture.
Stretching each map to its own range would make a map of noise look like a finding.
"""

import functools
import math
import re
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from conceptcam._files import atomic_write
from conceptcam.data.batch import ConceptDataset
from conceptcam.data.boxes import ConceptBoxes

# Colours at 0, 1/4, 1/2, 3/4 and 1: lightness rises steadily, and blue and yellow differ for people with any common
# colour blindness.
_STOPS = ((30, 30, 140), (120, 30, 160), (205, 50, 110), (250, 130, 50), (255, 240, 100))
_BOX, _HALO = (0, 235, 235), (0, 0, 0)
_PAPER, _EMPTY, _INK, _FAINT, _MID_GREY = (255,) * 3, (235, 235, 238), (25, 25, 30), (105, 105, 115), 110
_TITLE_SIZE, _NOTE_SIZE = 15, 13
_MARGIN, _GAP = 14, 12
_BAR_WIDTH, _BAR_HEIGHT = 14, 110
_NARROWEST = 110  # columns of thinner pictures are this wide, for the sake of their titles
_LABEL_WIDTH = 130  # names of rows are wrapped there
_PARTS_OF_A_WORD = re.compile(r"[^_/.-]*[_/.-]|[^_/.-]+")


class Tile(NamedTuple):
    """One picture of a sheet."""

    title: str
    image: Image.Image
    note: str = ""
    """A second, fainter line below the title."""


class Legend(NamedTuple):
    """What a figure explains at its right."""

    alpha: float
    """How much a heat of 1 covers in the pictures; the bar shows the same mixture."""
    boxes: bool = False
    """Whether there are boxes to explain."""


def overlay(
    image: ArrayLike, heatmap: ArrayLike, *, boxes: ArrayLike = (), title: str = "", alpha: float = 0.7, side: int = 320
) -> Image.Image:
    """A heatmap over an image, with a title, boxes, and a bar that says what the colours mean.

    Args:
        image: (3, H, W), (H, W, 3) or (H, W); uint8, or float in [0, 1]. It is shown in grey, so that
            every colour in the picture is the heatmap's.
        heatmap: (h, w) in [0, 1], of any size; cells are joined bilinearly.
        boxes: (N, 4) left, top, right, bottom, as fractions of the image's width and height.
        title: Line above the picture.
        alpha: How much a heat of 1 covers of the image; less heat covers less.
        side: Pixels of the picture's longer side.

    Raises:
        ValueError: If a shape or range is another, `alpha` leaves [0, 1] or `side` is below 16.
    """
    picture = blend(image, heatmap, boxes=boxes, alpha=alpha, side=side)
    return contact_sheet([Tile(title, picture)], columns=1, legend=Legend(alpha, _has_boxes([boxes])))


def blend(
    image: ArrayLike, heatmap: ArrayLike | None = None, *, boxes: ArrayLike = (), alpha: float = 0.7, side: int = 256
) -> Image.Image:
    """The bare picture of `overlay`, without title and bar; without a heatmap, the image in its colours.

    Raises:
        ValueError: As `overlay`.
    """
    if not 0 <= alpha <= 1 or side < 16:
        raise ValueError(f"`alpha` must be in [0, 1] and `side` at least 16, got {alpha} and {side}")
    picture = _picture(image, side)
    if heatmap is not None:
        heat = _upsampled(heatmap, picture.size)
        grey = np.asarray(picture.convert("L"), np.float32)[..., None]
        picture = Image.fromarray(_mix(grey, heat, alpha))
    _draw_boxes(picture, np.asarray(boxes, np.float64).reshape(-1, 4))
    return picture


def blank(size: tuple[int, int]) -> Image.Image:
    """An empty picture of (width, height) `size`, crossed out, in place of one that there is not."""
    picture = Image.new("RGB", size, _EMPTY)
    pen = ImageDraw.Draw(picture)
    pen.line((0, 0, *size), fill=_FAINT)
    pen.line((0, size[1], size[0], 0), fill=_FAINT)
    return picture


def contact_sheet(
    tiles: Sequence[Tile | tuple[str, Image.Image]],
    *,
    columns: int | None = None,
    heading: str = "",
    legend: Legend | None = None,
) -> Image.Image:
    """Pictures in rows, each below its title.

    Args:
        tiles: The pictures; they may differ in size. Long titles are wrapped.
        columns: Pictures per row; None fills rows of up to five evenly.
        heading: Line above all.
        legend: What to explain at the right of the first row.

    Raises:
        ValueError: If there are no pictures or no columns.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one picture")
    if columns is None:  # the fewest rows of at most five, filled evenly
        columns = math.ceil(len(tiles) / math.ceil(len(tiles) / 5))
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}")
    rows = [[Tile(*tile) for tile in tiles[start : start + columns]] for start in range(0, len(tiles), columns)]
    width = max(_NARROWEST, *(tile.image.width for row in rows for tile in row))
    return _page([_row(row, width, _GAP) for row in rows], _GAP + 4, heading, legend)


def concept_sheet(dataset: ConceptDataset, *, columns: int = 6) -> Image.Image:
    """A contact sheet of a data set: one image of each concept, with the boxes of the concept."""
    tiles = []
    for k, name in enumerate(dataset.concepts):
        rows = (dataset.concept_labels[:, k] > 0).nonzero()[:, 0]
        if len(rows):
            # The image with the fewest other findings shows this one best.
            item = dataset.load_item(int(rows[dataset.concept_labels[rows].sum(dim=1).argmin()]))
            boxes = item.boxes or ConceptBoxes.empty()
            tiles.append(Tile(name, blend(item.image, boxes=boxes.xyxy[boxes.concept == k])))
    return contact_sheet(tiles, columns=columns)


def concept_panel(
    image: ArrayLike,
    names: Sequence[str],
    maps: Sequence[ArrayLike],
    *,
    captions: Sequence[str] = (),
    boxes: Sequence[ArrayLike] = (),
    columns: int | None = None,
    heading: str = "",
    alpha: float = 0.7,
    side: int = 256,
) -> Image.Image:
    """One image beside the maps of several concepts.

    Args:
        image: As in `overlay`.
        names: One name per concept.
        maps: One (h, w) map in [0, 1] per concept.
        captions: One per concept, such as its probability; none given draws none.
        boxes: One (N, 4) array per concept, of fractions; none given draws none.
        columns: Pictures per row, the plain image included; None fills rows of up to five evenly.
        heading: Line above all.
        alpha: How much a heat of 1 covers of the image.
        side: Pixels of each picture's longer side.

    Raises:
        ValueError: If the lengths differ, or as `overlay`.
    """
    captions, boxes = captions or [""] * len(names), boxes or [()] * len(names)
    if not len(names) == len(maps) == len(captions) == len(boxes):
        raise ValueError(
            f"need as many maps, captions and boxes as names: got {len(names)} names, {len(maps)} maps, "
            f"{len(captions)} captions and boxes of {len(boxes)}"
        )
    tiles = [Tile("Image", blend(image, side=side))]
    for name, heatmap, caption, drawn in zip(names, maps, captions, boxes, strict=True):
        tiles.append(Tile(name, blend(image, heatmap, boxes=drawn, alpha=alpha, side=side), caption))
    legend = Legend(alpha, _has_boxes(boxes))
    return contact_sheet(tiles, columns=columns, heading=heading, legend=legend)


def learning_figure(
    image: ArrayLike,
    names: Sequence[str],
    epochs: Sequence[int | str],
    maps: Sequence[ArrayLike],
    *,
    boxes: Sequence[ArrayLike] = (),
    heading: str = "",
    alpha: float = 0.7,
    side: int = 160,
) -> Image.Image:
    """How the maps of one image came to be: a row per concept, a column per epoch.

    Args:
        image: As in `overlay`; shown with the boxes in the first column.
        names: Concept of each row.
        epochs: Number or name of each column.
        maps: For each epoch, (len(names), h, w) in [0, 1].
        boxes: One (N, 4) array per concept, of fractions; none given draws none.
        heading: Line above all.
        alpha: How much a heat of 1 covers of the image.
        side: Pixels of each picture's longer side.

    Raises:
        ValueError: If the lengths differ, there is no concept or epoch, or as `overlay`.
    """
    boxes = boxes or [()] * len(names)
    shapes = {np.shape(of_epoch)[:1] for of_epoch in maps}
    if len(maps) != len(epochs) or len(boxes) != len(names) or shapes != {(len(names),)} or not names:
        raise ValueError(
            f"need maps of {len(epochs)} epochs for {len(names)} concepts and boxes per concept, at least one of "
            f"each; got maps of shapes {[np.shape(of_epoch) for of_epoch in maps]} and boxes of {len(boxes)}"
        )
    titles = ["Image", *(f"Epoch {epoch}" if isinstance(epoch, int) else epoch for epoch in epochs)]
    width = max(blend(image, side=side).width, _widest(titles))
    rows = []
    for row, (name, drawn) in enumerate(zip(names, boxes, strict=True)):
        pictures = [blend(image, boxes=drawn, side=side)]
        pictures += [blend(image, np.asarray(of_epoch)[row], boxes=drawn, alpha=alpha, side=side) for of_epoch in maps]
        heads = titles if row == 0 else [""] * len(titles)
        tiles = [Tile(head, picture) for head, picture in zip(heads, pictures, strict=True)]
        label = _text(name, _TITLE_SIZE, _widest(names) + _GAP)
        rows.append(_row(tiles, width, 4, label=label))
    return _page(rows, 4, heading, Legend(alpha, _has_boxes(boxes)))


def save_png(image: Image.Image, path: str | PathLike[str]) -> None:
    """Write a PNG whole or not at all, making its folder if needed."""
    with atomic_write(path) as scratch:
        image.save(scratch, format="PNG")


def _picture(image: ArrayLike, side: int) -> Image.Image:
    """An RGB picture whose longer side is `side` pixels."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise ValueError(f"expected an image of shape (3, H, W), (H, W, 3) or (H, W), got {np.shape(image)}")
    if pixels.dtype != np.uint8:
        pixels = (_in_unit_range(pixels, "image") * 255).round().astype(np.uint8)
    height, width = pixels.shape[:2]
    size = (max(1, round(width * side / max(pixels.shape[:2]))), max(1, round(height * side / max(pixels.shape[:2]))))
    # `fromarray` needs rows in one piece; an image that was permuted has not.
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _upsampled(heatmap: ArrayLike, size: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W, 1) heat at each pixel of a picture of (width, height) `size`."""
    heat = np.asarray(heatmap)
    if heat.ndim != 2 or not heat.size:
        raise ValueError(f"expected one heatmap of shape (h, w), got {heat.shape}")
    grid = Image.fromarray(np.ascontiguousarray(_in_unit_range(heat, "heatmap")))
    return np.asarray(grid.resize(size, Image.Resampling.BILINEAR))[..., None].clip(0, 1)


def _in_unit_range(values: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        hint = "divide by its highest possible value" if what == "image" else "apply a sigmoid to logits first"
        raise ValueError(f"{what} spans {low:.4g} to {high:.4g}, expected 0 to 1; {hint}")
    return values.clip(0, 1)


def _mix(grey: NDArray[np.float32], heat: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
    """(H, W, 3): `grey` (H, W, 1) under the colours of `heat` (H, W, 1), the more covered the hotter."""
    places = np.linspace(0, 1, len(_STOPS))
    color = np.concatenate([np.interp(heat, places, channel) for channel in zip(*_STOPS, strict=True)], axis=-1)
    cover = alpha * heat * (2 - heat)  # rises early, so that a heat of 0.5 is not mistaken for none
    return (grey * (1 - cover) + color * cover).round().astype(np.uint8)


def _has_boxes(boxes: Sequence[ArrayLike]) -> bool:
    # `np.size` of a tensor is torch's method of that name, which is true of every tensor.
    return any(np.asarray(drawn).size > 0 for drawn in boxes)


def _draw_boxes(picture: Image.Image, boxes: NDArray[np.float64]) -> None:
    """Outline boxes from outside, so that a small one does not hide what it marks."""
    pen = ImageDraw.Draw(picture)
    thickness = max(1, round(max(picture.size) / 160))
    right_edge, bottom_edge = picture.width - 1, picture.height - 1
    for left, top, right, bottom in (boxes * ([*picture.size] * 2)).round().astype(int).tolist():
        for color, grow, width in ((_HALO, thickness + 1, 1), (_BOX, thickness, thickness)):
            corner = (max(0, left - grow), max(0, top - grow))
            opposite = (min(right_edge, right - 1 + grow), min(bottom_edge, bottom - 1 + grow))
            pen.rectangle((corner, opposite), outline=color, width=width)


def _key(legend: Legend) -> Image.Image:
    """The colours of heat from 0, below, to 1, over middle grey, with numbers; and a box."""
    pad, below = _NOTE_SIZE // 2 + 1, 24 if legend.boxes else 0
    heat = np.repeat(np.linspace(1, 0, _BAR_HEIGHT, dtype=np.float32)[:, None, None], _BAR_WIDTH, axis=1)
    key = Image.new("RGB", (_BAR_WIDTH + 32, _BAR_HEIGHT + 2 * pad + below), _PAPER)
    key.paste(Image.fromarray(_mix(np.full_like(heat, _MID_GREY), heat, legend.alpha)), (0, pad))
    pen = ImageDraw.Draw(key)
    for value, text in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        level = pad + round((1 - value) * (_BAR_HEIGHT - 1))
        pen.line((_BAR_WIDTH, level, _BAR_WIDTH + 3, level), fill=_INK)
        pen.text((_BAR_WIDTH + 6, level), text, fill=_INK, font=_font(_NOTE_SIZE), anchor="lm")
    if legend.boxes:
        middle = key.height - 8
        for color, grow in ((_HALO, 6), (_BOX, 5), (_BOX, 4)):
            pen.rectangle((6 - grow, middle - grow, 6 + grow, middle + grow), outline=color)
        pen.text((_BAR_WIDTH + 6, middle), "box", fill=_INK, font=_font(_NOTE_SIZE), anchor="lm")
    return key


def _page(rows: Sequence[Image.Image], gap: int, heading: str, legend: Legend | None) -> Image.Image:
    """Rows below each other, with margins; the legend is beside the first row, level with its lower edge."""
    page = _join(rows, gap)
    if legend is not None:
        key = _key(legend)
        page = _join([page, _extend(key, top=max(0, rows[0].height - key.height))], _GAP, across=True)
    if heading:
        page = _join([_text(heading, _TITLE_SIZE, page.width), page], 8)
    return ImageOps.expand(page, _MARGIN, _PAPER)


def _row(tiles: Sequence[Tile], width: int, gap: int, label: Image.Image | None = None) -> Image.Image:
    """Pictures side by side, each in a column of `width` pixels below its title and note, after a label."""
    heads = [
        _join([_text(tile.title, _TITLE_SIZE, width), _text(tile.note, _NOTE_SIZE, width, _FAINT)]) for tile in tiles
    ]
    height = max(head.height for head in heads)
    columns = [
        _join([_extend(head, bottom=height - head.height), tile.image]) for head, tile in zip(heads, tiles, strict=True)
    ]
    if label is not None:
        columns.insert(0, _extend(label, top=height + max(0, tiles[0].image.height - label.height) // 2))
    return _join(columns, gap, across=True)


def _join(pictures: Sequence[Image.Image], gap: int = 0, *, across: bool = False) -> Image.Image:
    """Pictures below each other, or side by side, `gap` pixels apart."""
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    gaps = gap * (len(pictures) - 1)
    size = (sum(widths) + gaps, max(heights)) if across else (max(widths), sum(heights) + gaps)
    whole = Image.new("RGB", size, _PAPER)
    at = 0
    for picture in pictures:
        whole.paste(picture, (at, 0) if across else (0, at))
        at += gap + (picture.width if across else picture.height)
    return whole


def _extend(picture: Image.Image, *, top: int = 0, bottom: int = 0) -> Image.Image:
    return ImageOps.expand(picture, (0, top, 0, bottom), _PAPER)


def _text(text: str, size: int, width: int, color: tuple[int, int, int] = _INK) -> Image.Image:
    """A text, wrapped to `width` pixels, as a picture that is as tall as its lines."""
    lines = _wrapped(text, size, width - 1)  # ink may reach a pixel beyond a letter's width
    picture = Image.new("RGB", (width, len(lines) * (size + 4) + (4 if lines else 0)), _PAPER)
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((0, number * (size + 4)), line, fill=color, font=_font(size))
    return picture


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of `text` that each fit in `width` pixels.

    A word too long for a line is broken behind an underscore, hyphen, slash or dot, as names of columns and files have
    them; within a part alone that is too long itself.
    """
    face, lines = _font(size), [""]
    for word in text.split():
        space = " " if lines[-1] else ""
        if space and face.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
            space = ""
        for part in _PARTS_OF_A_WORD.findall(word):
            if lines[-1] and face.getlength(lines[-1] + space + part) > width:
                lines.append("")
            else:
                lines[-1] += space
            space = ""
            for letter in part:
                if lines[-1] and face.getlength(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
    return [line for line in lines if line]


def _widest(labels: Sequence[str]) -> int:
    """Pixels of the longest line of some labels, which are wrapped at `_LABEL_WIDTH`."""
    lines = [line for label in labels for line in _wrapped(label, _TITLE_SIZE, _LABEL_WIDTH)]
    return math.ceil(max((_font(_TITLE_SIZE).getlength(line) for line in lines), default=0)) + 1


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The one font, in pixels."""
    return ImageFont.load_default(size)
