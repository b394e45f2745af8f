"""Random textures, made once: noise in three bands, a net of fibres, and trees of lung vessels.

An image takes crops of them, since making noise afresh would cost more than all the rest of the picture.
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.arrays import Floats

Texture = Literal["parenchyma", "shading", "fibres", "grain"]
Point = tuple[float, float]

HILA = ((0.395, 0.47), (0.60, 0.45))
"""Where the vessels of each lung enter it, (x, y) in the body; the image-left one lies lower."""

_TREES = 10
_MARGIN = 0.08


@lru_cache(maxsize=2)
def textures_of(size: int) -> "Textures":
    """The textures for one image size; they never change, so phantoms of that size share them."""
    return Textures(size)


class Textures:
    """Noise and vessels to crop from, for one image size.

    They are the same for every seed: an image's own randomness is which crop it takes.
    """

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(20_240)
        self.size = size
        side = 2 * size + size % 2
        # Bands are in cycles per image, so that a texture looks the same at every size.
        self._banks: dict[Texture, Floats] = {
            "parenchyma": _band(rng, 6, side, 3.5 / size, 14 / size, 0.6),
            "shading": _band(rng, 6, side, 0.2 / size, 2.5 / size, 0.0),
            "fibres": np.abs(_band(rng, 4, side, 9 / size, 26 / size, 0.0)),
            "grain": rng.standard_normal((4, side, side)).astype(np.float32),
        }
        self._banks["fibres"] /= self._banks["fibres"].mean()
        for bank in self._banks.values():
            bank.flags.writeable = False
        self._margin = round(_MARGIN * size)
        self._trees = [
            np.stack([_vessel_tree(rng, size, self._margin, lung) for _ in range(_TREES)]) for lung in (0, 1)
        ]

    def crop(self, kind: Texture, rng: Generator, shape: tuple[int, ...]) -> Floats:
        """A random (h, w) piece of one texture, no larger than the image."""
        bank = self._banks[kind]
        height, width = shape
        which, top, left, flip = rng.random(4)
        y, x = int(top * (bank.shape[1] - height + 1)), int(left * (bank.shape[2] - width + 1))
        piece = bank[int(which * len(bank)), y : y + height, x : x + width]
        return piece[:, ::-1] if flip < 0.5 else piece

    def vessels(self, rng: Generator, offset: tuple[float, float]) -> Floats:
        """(size, size) lung vessels of both sides, moved right and down by `offset` of the image size."""
        left, top = (self._margin - round(min(max(o, -_MARGIN), _MARGIN) * self.size) for o in offset)
        rows, columns = slice(top, top + self.size), slice(left, left + self.size)
        first, second = (int(which * _TREES) for which in rng.random(2))
        return self._trees[0][first, rows, columns] + self._trees[1][second, rows, columns]


def _band(rng: Generator, count: int, side: int, low: float, high: float, slope: float) -> Floats:
    """(count, side, side) noise of unit variance with frequencies from low to high cycles per pixel."""
    across, along = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(across, along)
    keep = np.exp(-((frequency / high) ** 4)) * (1 - np.exp(-((frequency / low) ** 4)))
    keep /= np.maximum(frequency, low / 4) ** slope
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((count, side, side))) * keep, s=(side, side))
    return (noise / noise.std(axis=(1, 2), keepdims=True)).astype(np.float32)


class Canvas(NamedTuple):
    """Where vessels are drawn: an image of `size` with a margin on each side, in pixels."""

    pixels: Floats
    size: int
    margin: int


def _vessel_tree(rng: Generator, size: int, margin: int, lung: int) -> Floats:
    """Vessels that leave one hilum and branch outwards, on a canvas with a margin on each side."""
    place = (np.arange(size + 2 * margin) + 0.5 - margin) / size
    root = 1 - ((place[None] - HILA[lung][0]) / 0.05) ** 2 - ((place[:, None] - HILA[lung][1]) / 0.075) ** 2
    canvas = Canvas(0.9 * root.clip(0, 1).astype(np.float32), size, margin)
    outwards = (math.pi, 0.0)[lung]
    for angle in np.linspace(-1.35, 1.35, 9):
        angle += rng.normal(0, 0.08)
        # Blood sinks: vessels to the base of the lung are longer and thicker than those to its apex.
        down = math.sin(angle)
        direction = outwards - angle if lung == 0 else outwards + angle
        length = 0.075 + 0.02 * down + rng.normal(0, 0.006)
        _branch(rng, canvas, HILA[lung], direction, length, 0.0085 + 0.0025 * down, 4)
    return canvas.pixels


def _branch(
    rng: Generator, canvas: Canvas, start: Point, direction: float, length: float, width: float, generations: int
) -> None:
    end = (start[0] + length * math.cos(direction), start[1] + length * math.sin(direction))
    _stroke(canvas, start, end, width)
    if generations:
        fork = rng.uniform(0.2, 0.45)
        for turn in (-fork, fork * rng.uniform(0.3, 1)):
            grown = (length * rng.uniform(0.7, 0.9), width * 0.72)
            _branch(rng, canvas, end, direction + turn, *grown, generations - 1)


def _stroke(canvas: Canvas, start: Point, end: Point, width: float) -> None:
    """A line with soft edges; thinner than a pixel, it fades instead of breaking up."""
    (x0, y0), (x1, y1) = ([place * canvas.size + canvas.margin for place in point] for point in (start, end))
    pixels, whole = width * canvas.size, canvas.pixels
    reach = max(pixels, 0.7)
    top, bottom = sorted((y0, y1))
    left, right = sorted((x0, x1))
    rows = slice(max(0, int(top - reach)), max(0, min(whole.shape[0], math.ceil(bottom + reach))))
    columns = slice(max(0, int(left - reach)), max(0, min(whole.shape[1], math.ceil(right + reach))))
    y = np.arange(rows.start, rows.stop)[:, None] + 0.5
    x = np.arange(columns.start, columns.stop)[None] + 0.5
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-6)
    along = along.clip(0, 1)
    away = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    strength = min(1.0, pixels / reach) * (width / 0.0085) ** 0.5
    line = strength * (1 - (away / reach) ** 2).clip(0, 1)
    window = whole[rows, columns]
    np.maximum(window, line, out=window, casting="same_kind")
