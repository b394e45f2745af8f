"""Things in an image that are no findings and yet may go with one: what a model must not look at.

They are drawn over the finished image, so an image with one is otherwise the same as that without.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.anatomy import Frame
from conceptcam.data.phantom.arrays import Bools, Floats, Ints
from conceptcam.data.phantom.config import ShortcutKind
from conceptcam.data.phantom.scene import Box

_MARKER_BOX: Box = (0.90, 0.03, 0.95, 0.10)
_MARKER_GREY, _METAL_GREY, _TUBE_GREY, _BORDER_GREY = 250, 235, 205, 6
_VISIBLE = 0.3  # of a pixel, from which on it counts as covered
_BORDER = 0.035
_SCANNER_NOISE = 9.0  # grey values


def shortcut_cover(kind: ShortcutKind, frame: Frame, rng: Generator) -> tuple[Floats | Bools, int]:
    """(size, size) how much of each pixel the shortcut covers, in [0, 1], and its grey value."""
    return _COVERS[kind](frame, rng)


def draw_shortcut(kind: ShortcutKind, image: Ints, frame: Frame, rng: Generator) -> Ints:
    """The uint8 image (size, size) with the shortcut over it."""
    cover, grey = shortcut_cover(kind, frame, rng)
    if kind == "hospital":
        image = (image + _SCANNER_NOISE * rng.standard_normal(image.shape)).clip(0, 255)
    return (image + cover * (grey - image.astype(np.float32))).round().astype(np.uint8)


def shortcut_mask(kind: ShortcutKind, frame: Frame, rng: Generator) -> Bools:
    """(size, size) True on the pixels that the shortcut covers for the most part."""
    mask: Bools = shortcut_cover(kind, frame, rng)[0] > _VISIBLE
    return mask


def box_around(mask: Bools) -> Box:
    """The box around the true pixels of a square mask, in fractions of its side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    size = len(mask)
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return float(left / size), float(top / size), float(right / size), float(bottom / size)


def _marker(frame: Frame, rng: Generator) -> tuple[Bools, int]:
    """The letter L, as technicians put it on the patient's left; always in the same place."""
    size = frame.size
    left, top, right, bottom = (round(edge * size) for edge in _MARKER_BOX)
    stroke = max(2, round(0.018 * size))
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left : left + stroke] = True
    mask[bottom - stroke : bottom, left:right] = True
    return mask, _MARKER_GREY


def _tube(frame: Frame, rng: Generator) -> tuple[Floats, int]:
    """A drain: from the image-left flank up to the apex of that lung."""
    start, end = (0.02, rng.uniform(0.52, 0.68)), (rng.uniform(0.27, 0.34), rng.uniform(0.17, 0.27))
    bend = (rng.uniform(0.24, 0.32), rng.uniform(0.48, 0.58))
    return _line(frame, [start, bend, end], 0.008), _TUBE_GREY


def _pacemaker(frame: Frame, rng: Generator) -> tuple[Floats, int]:
    """A can below the image-left clavicle, and a lead from it to the heart."""
    u, v = rng.uniform(0.23, 0.29), rng.uniform(0.20, 0.27)
    can = ((1.15 - ((frame.u - u) / 0.042) ** 4 - ((frame.v - v) / 0.032) ** 4) * 4).clip(0, 1)
    tip = (rng.uniform(0.52, 0.60), rng.uniform(0.68, 0.74))
    lead = _line(frame, [(u + 0.03, v - 0.02), (0.46, rng.uniform(0.20, 0.28)), tip], 0.004)
    return np.maximum(can, lead), _METAL_GREY


def _hospital(frame: Frame, rng: Generator) -> tuple[Bools, int]:
    """The border of a scanner that blackens what its shutters cover."""
    size, width = frame.size, max(2, round(_BORDER * frame.size))
    mask = np.ones((size, size), bool)
    mask[width:-width, width:-width] = False
    return mask, _BORDER_GREY


def _line(frame: Frame, points: list[tuple[float, float]], radius: float) -> Floats:
    """A smooth curve through the plane from the first to the last of three points, bent towards the second."""
    a, b, c = (np.array(point) for point in points)
    steps = np.linspace(0, 1, 25)[:, None]
    curve = (1 - steps) ** 2 * a + 2 * steps * (1 - steps) * b + steps**2 * c
    radius = max(radius, 0.6 / frame.size)  # never thinner than a pixel, or it would break up
    cover = np.zeros_like(frame.u)
    for (u0, v0), (u1, v1) in zip(curve[:-1], curve[1:], strict=True):
        ends = (
            (min(u0, u1) - 2 * radius, max(u0, u1) + 2 * radius),
            (min(v0, v1) - 2 * radius, max(v0, v1) + 2 * radius),
        )
        window = frame.window(*ends)
        du, dv = frame.u[window] - u0, frame.v[window] - v0
        along = ((du * (u1 - u0) + dv * (v1 - v0)) / ((u1 - u0) ** 2 + (v1 - v0) ** 2)).clip(0, 1)
        away = np.hypot(du - along * (u1 - u0), dv - along * (v1 - v0))
        np.maximum(cover[window], (1.5 - away / radius).clip(0, 1), out=cover[window], casting="same_kind")
    return cover


_COVERS: dict[ShortcutKind, Callable[[Frame, Generator], tuple[Floats | Bools, int]]] = {
    "marker": _marker,
    "tube": _tube,
    "pacemaker": _pacemaker,
    "hospital": _hospital,
}
