"""A chest while findings are drawn into it, and the boxes that come of it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.anatomy import LUNG_CENTER, LUNG_RADIUS, Chest, Window
from conceptcam.data.phantom.arrays import Floats

Side = Literal["left", "right", "both", "midline"]
Zone = Literal["apical", "mid", "basal", "whole"]
Box = tuple[float, float, float, float]

# v of the lung's three zones; a hidden trait "apical" means the first, its absence one of the others.
ZONES: dict[str, tuple[float, float]] = {"apical": (0.19, 0.33), "mid": (0.36, 0.52), "basal": (0.52, 0.68)}

_VISIBLE = 0.10


@dataclass(frozen=True)
class Attributes:
    """What one finding is like in one image; the 22 concepts do not tell it."""

    side: Side
    """The image's side, as boxes count it."""
    zone: Zone
    size: float
    """Largest half-width, or what the finding is measured by, as a fraction of the image width."""
    count: int
    """How many there are, one box for each."""


class Spot(NamedTuple):
    """A place in a lung, in body coordinates."""

    lung: int
    u: float
    v: float
    zone: Zone

    @property
    def side(self) -> Side:
        """The image's side."""
        return ("left", "right")[self.lung]


class Scene:
    """One chest to paint findings into.

    Attributes:
        attenuation: (size, size) log-attenuation so far.
        boxes: The finding and the box (x0, y0, x1, y1), in fractions of the image, of each thing painted.
    """

    def __init__(self, chest: Chest, contrast: float) -> None:
        self.chest = chest
        self.attenuation = chest.attenuation()
        self.boxes: list[tuple[str, Box]] = []
        self._contrast = contrast

    def around(self, u: float, v: float, ru: float, rv: float) -> tuple[Window, Floats, Floats]:
        """The window u +- ru, v +- rv, and its pixels' body coordinates relative to (u, v)."""
        frame = self.chest.frame
        window = frame.window((u - ru, u + ru), (v - rv, v + rv))
        return window, frame.u[window] - u, frame.v[window] - v

    def paint(self, finding: str, window: Window, density: Floats) -> None:
        """Add density (or, below 0, remove it) in a window, and box what can be seen of it.

        The box holds every pixel with at least 10 % of the largest change, so it is as tight as the
        drawing, whatever cut it: an edge of the lung, the heart, the border of the image.
        """
        self.attenuation[window] += self._contrast * density
        strength = np.abs(density)
        visible = strength > _VISIBLE * strength.max()
        rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
        top, left, size = window[0].start, window[1].start, self.chest.frame.size
        x0, x1 = (left + columns[0]) / size, (left + columns[-1] + 1) / size
        y0, y1 = (top + rows[0]) / size, (top + rows[-1] + 1) / size
        self.boxes.append((finding, (float(x0), float(y0), float(x1), float(y1))))

    def mark(self, finding: str, u: tuple[float, float], v: tuple[float, float]) -> None:
        """Box a body rectangle in which the chest's own outline shows the finding."""
        self.boxes.append((finding, self.chest.frame.box(u, v)))


def draw_side(rng: Generator, left: float = 0.62) -> int:
    """0 for the image-left lung, 1 for the other; uneven, so that mirrored boxes show."""
    return 0 if rng.random() < left else 1


def draw_spot(rng: Generator, zone: Zone | None = None, *, lung: int | None = None, pad: float = 0.03) -> Spot:
    """A place in a lung, at least `pad` from the chest wall and clear of the heart.

    Args:
        rng: Where the random numbers come from.
        zone: None takes one of the three.
        lung: None takes one of the two.
        pad: In body coordinates.
    """
    which, height, place = rng.random(3)
    if lung is None:
        lung = draw_side(rng)
    if zone is None:
        zone = ("apical", "mid", "basal")[int(which * 3)]
    assert zone is not None
    low, high = ZONES[zone]
    v = low + height * (high - low)
    outwards = (-1, 1)[lung]
    # The wall by the formula of `Shape.lung_edge`, the heart's border by a straight line.
    rise = max(0.0, (0.60 - v) / 0.505)
    axis = LUNG_CENTER[lung] - 0.045 * outwards * rise
    wall = LUNG_RADIUS[lung] * max(0.0, 1 - rise**2 * (0.25 + 0.75 * rise**2)) ** 0.5
    heart = (0.11, 0.16)[lung] * max(0.0, v - 0.45) / 0.2
    inner = max(0.085 + min(heart, (0.11, 0.17)[lung]) * 0.55, abs(axis - 0.5) - wall) + pad
    outer = max(abs(axis - 0.5) + wall - pad, inner + 0.005)
    return Spot(lung, 0.5 + outwards * (inner + place * (outer - inner)), v, zone)
