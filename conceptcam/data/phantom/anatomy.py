"""The chest without its local findings: where the body lies, what shape its organs have, how they attenuate.

Coordinates (u, v) are of the body: 0 to 1 across and down a chest that lies straight and centred. Image
coordinates (x, y) are fractions of the image. "Left" and "right" are the image's sides, as boxes count them;
the patient's heart, on the patient's left, is in the image's right half.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.arrays import Floats
from conceptcam.data.phantom.textures import Textures

Window = tuple[slice, slice]

LUNG_CENTER = (0.295, 0.705)
LUNG_RADIUS = (0.168, 0.160)
LUNG_TOP, LUNG_WIDEST = 0.095, 0.60
RIB_SPACING, RIB_HALF = 0.083, 0.225
RIB_DENSITY, CLAVICLE_DENSITY = 0.085, 0.13
THORAX_WIDTH = 0.65
PA_TALL = 1.5


@dataclass(frozen=True)
class Frame:
    """How the body lies in the image: moved, scaled and turned a little."""

    size: int
    offset: tuple[float, float]
    scale: tuple[float, float]
    turn: float

    @cached_property
    def u(self) -> Floats:
        """(size, size) body coordinate across, of each pixel's centre."""
        (a, b), _ = self._matrix
        x, y = self._centers
        return a * x + (b * y + 0.5)

    @cached_property
    def v(self) -> Floats:
        """(size, size) body coordinate down, of each pixel's centre."""
        _, (c, d) = self._matrix
        x, y = self._centers
        return c * x + (d * y + 0.5)

    @property
    def _centers(self) -> tuple[Floats, Floats]:
        place = ((np.arange(self.size) + 0.5) / self.size - 0.5).astype(np.float32)
        return place[None] - self.offset[0], place[:, None] - self.offset[1]

    @property
    def _matrix(self) -> tuple[tuple[float, float], tuple[float, float]]:
        (sx, sy), turn = self.scale, self.turn
        return (math.cos(turn) / sx, math.sin(turn) / sx), (-math.sin(turn) / sy, math.cos(turn) / sy)

    def to_image(self, u: float, v: float) -> tuple[float, float]:
        """The image point (x, y) of a body point."""
        (a, b), (c, d) = self._matrix
        det, du, dv = a * d - b * c, u - 0.5, v - 0.5
        x, y = (d * du - b * dv) / det, (a * dv - c * du) / det
        return x + 0.5 + self.offset[0], y + 0.5 + self.offset[1]

    def box(self, u: tuple[float, float], v: tuple[float, float]) -> tuple[float, float, float, float]:
        """The upright image box (x0, y0, x1, y1) around a body rectangle, cut to the image."""
        corners = [self.to_image(a, b) for a in u for b in v]
        xs, ys = zip(*corners, strict=True)
        return max(0.0, min(xs)), max(0.0, min(ys)), min(1.0, max(xs)), min(1.0, max(ys))

    def window(self, u: tuple[float, float], v: tuple[float, float]) -> Window:
        """The pixels, at least one, that may show a body rectangle."""
        x0, y0, x1, y1 = self.box(u, v)
        left, top = (min(int(low * self.size), self.size - 1) for low in (x0, y0))
        right, bottom = (math.ceil(high * self.size) for high in (x1, y1))
        return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def draw_frame(rng: Generator, size: int, variety: float = 1.0) -> Frame:
    """A body that lies nearly straight: moved by 1 %, scaled by 4 %, turned by 2 degrees (sd), times `variety`."""
    move, turn = rng.normal(0, 0.012 * variety, 2), rng.normal(0, 0.03 * variety)
    scale = rng.normal(1, 0.04 * variety, 2).clip(1 - 0.12 * variety, 1 + 0.12 * variety)
    return Frame(size, (float(move[0]), float(move[1])), (float(scale[0]), float(scale[1])), float(turn))


@dataclass(frozen=True)
class Shape:
    """The outlines of the organs; the findings that change an outline change these numbers."""

    domes: tuple[float, float]
    """v of the top of each hemidiaphragm; the image-left one, over the liver, is higher."""
    dome_bend: float = 4.0
    lung_widening: float = 1.0
    lung_depth: float = 0.40
    markings: float = 1.0
    heart_half: float = 0.145
    heart_bulge: float = 0.0
    """Added to the heart's half-width at the level where it is widest (cardiomegaly)."""
    knob_radius: float = 0.044
    artery_radius: float = 0.034
    shift: float = 0.0
    """Sideways place of trachea and upper mediastinum, fading towards the heart."""
    gas: float = 0.0
    """Radius of the gas bubble in the stomach."""

    @property
    def heart_center(self) -> tuple[float, float]:
        """(u, v) of the heart's middle; a wide heart grows towards its apex."""
        return 0.545 + 0.30 * (self.heart_half - 0.145), 0.655

    @property
    def knob_center(self) -> tuple[float, float]:
        """(u, v) of the aortic knob's middle."""
        return 0.543 + 0.55 * (self.knob_radius - 0.044) + 0.95 * self.shift, 0.335

    @property
    def artery_center(self) -> tuple[float, float]:
        """(u, v) of the middle of the main pulmonary artery."""
        return 0.546 + 0.70 * (self.artery_radius - 0.034), 0.435

    def midline(self, v: Floats) -> Floats:
        """Where across (u) the trachea and mediastinum are at each height."""
        return 0.5 + self.shift * ((0.60 - v) * 4).clip(0, 1)

    def lung_edge(self, lung: int, u: Floats, v: Floats, *, shrink: float = 0.0) -> Floats:
        """Squared distance from a lung's axis: 0 on it, 1 on the chest wall."""
        rise = ((LUNG_WIDEST - v) / (LUNG_WIDEST - LUNG_TOP)).clip(0, None)
        outwards = (-1, 1)[lung]
        # Upwards the axis leans towards the midline, as the cage narrows to its apex.
        lean = (0.045 * outwards) * rise
        radius = LUNG_RADIUS[lung] * self.lung_widening - shrink
        across = (u - (LUNG_CENTER[lung] + 0.5 * shrink * -outwards) + lean) / radius
        rise *= rise
        return across * across + rise * (0.25 + 0.75 * rise)

    def lung(self, index: int, u: Floats, v: Floats) -> Floats:
        """How much of a lung there is at each place, 0 to 1, the heart not yet before it."""
        inner = u - (LUNG_CENTER[index] - (-1, 1)[index] * 0.03)
        dome = self.domes[index] + self.dome_bend * inner * inner
        inside = ((1 - self.lung_edge(index, u, v)) * 7).clip(0, 1)
        return inside * ((dome - v) * 40).clip(0, 1)

    def heart(self, u: Floats, v: Floats) -> Floats:
        """How much of the heart there is at each place, 0 to 1."""
        center_u, center_v = self.heart_center
        down = v - center_v
        growth: Floats | float = 0.0
        if self.heart_bulge:
            # An enlarged heart widens where it is widest, more towards its apex; its upper border stays.
            level = ((down - 0.015) / 0.095) ** 2
            growth = self.heart_bulge * (1 - level * level).clip(0, 1)
        # Tilted: the axis runs from the right atrium, up and image-left, down to the apex, image-right.
        across = (u - center_u - 0.30 * (down + growth)) / (self.heart_half + growth)
        down = down / 0.17
        return ((1 - across * across - down * down) * 5).clip(0, 1)

    def silhouette(self, u: Floats, v: Floats) -> Floats:
        """How much of heart, great vessels and mediastinum there is at each place, 0 to 1."""
        width = 0.060 + 0.10 * (0.24 - v).clip(0, None)
        solid = ((width - np.abs(u - self.midline(v))) * 30).clip(0, 1)
        np.maximum(solid, self.heart(u, v), out=solid)
        for (x, y), radius, tall in (
            (self.knob_center, self.knob_radius, 1.0),
            (self.artery_center, self.artery_radius, PA_TALL),
        ):
            across, down = (u - x) / radius, (v - y) / (radius * tall)
            np.maximum(solid, ((1 - across * across - down * down) * 3).clip(0, 1), out=solid)
        return solid


def draw_shape(rng: Generator, variety: float = 1.0) -> Shape:
    """The outlines of a healthy chest: cardiothoracic ratio .41 to .485, right dome higher; times `variety`."""
    # However much hearts differ, one wider than half the thorax is no healthy one.
    ratio = rng.uniform(*_spread(0.41, 0.485, variety, 0.485))
    dome_left, dome_right = rng.normal((0.745, 0.775), 0.01 * variety)
    return Shape(
        domes=(float(dome_left), float(dome_right)),
        heart_half=float(ratio * THORAX_WIDTH / 2),
        knob_radius=float(rng.uniform(*_spread(0.040, 0.048, variety, 0.044))),
        artery_radius=float(rng.uniform(*_spread(0.031, 0.037, variety, 0.034))),
        shift=variety * min(max(0.004 * float(rng.standard_normal()), -0.008), 0.008),
        gas=float(max(0.0, rng.uniform(-0.02, 0.05))),
    )


def _spread(low: float, high: float, variety: float, fixed: float) -> tuple[float, float]:
    """Bounds `variety` times as far from a fixed value; at 1 to the bit as they are."""
    return low - (1 - variety) * (low - fixed), high - (1 - variety) * (high - fixed)


def rib_height(rib: int, across: Floats | float) -> Floats:
    """How far down (v) the middle of a posterior rib is, at a distance from the midline."""
    return np.asarray(0.07 + RIB_SPACING * rib + 0.55 * (across - 0.12) ** 2 + 0.51 * across**2)


def rib_profile(phase: Floats) -> Floats:
    """How dense a rib is, `phase` spacings from its middle: a tube, so densest at its rims."""
    inside = 1 - (phase / RIB_HALF) ** 2
    return (inside * 4).clip(0, 1) * (1.2 - 0.4 * inside)


def clavicle_height(across: Floats | float) -> Floats:
    """How far down (v) the middle of a clavicle is, at a distance from the midline."""
    return np.asarray(0.185 - 0.22 * (across - 0.05) + 0.22 * (across - 0.05) ** 2)


def clavicle_profile(away: Floats) -> Floats:
    """How dense a clavicle is, `away` from its middle."""
    inside = 1 - (away / 0.0165) ** 2
    return (inside * 4).clip(0, 1) * (1.15 - 0.3 * inside)


class Chest:
    """One chest's attenuation and the fields that findings are drawn with."""

    def __init__(self, frame: Frame, shape: Shape, textures: Textures, rng: Generator) -> None:
        self.frame, self.shape, self.textures = frame, shape, textures
        u, v = frame.u, frame.v
        self.lungs = (shape.lung(0, u, v), shape.lung(1, u, v))
        lung = np.maximum(*self.lungs)
        # Drawn only where it can be: most of an image's time goes into whole-image arithmetic.
        middle = frame.window((0.28, 0.86), (-0.2, 1.2))
        self._silhouette = np.zeros_like(u)
        self._silhouette[middle] = shape.silhouette(u[middle], v[middle])
        # Behind the heart some lung shows through, and so does what lies in it.
        self.clear = lung * (1 - 0.85 * self._silhouette)
        hilum = (frame.offset[0], frame.offset[1])
        markings = 0.085 * textures.vessels(rng, hilum)
        markings += 0.020 * textures.crop("parenchyma", rng, u.shape)
        self.markings = shape.markings * markings * self.clear

    def attenuation(self) -> Floats:
        """(size, size) log-attenuation, a new array: about 0 in air, .25 in lung, .7 in the mediastinum."""
        u, v = self.frame.u, self.frame.v
        across = np.abs(u - 0.5)
        body = self._body(across, v)
        lung = np.maximum(*self.lungs)
        total = 0.60 * body + 0.10 * self._silhouette
        total += 0.05 * ((v - 0.70) * 6).clip(0, 1) * body
        total -= self.shape.lung_depth * self.clear
        total += self.markings
        total += self._bones(across, v, body * (0.4 + 0.6 * lung))
        strip = self.frame.window((0.40, 0.60), (-0.2, 1.2))
        total[strip] += self._spine(across[strip], v[strip]) - self._trachea(u[strip], v[strip])
        if self.shape.gas > 0.01:
            self._add_gas(total)
        return total

    def _body(self, across: Floats, v: Floats) -> Floats:
        """Soft tissue, thinner towards the flanks; neck and sloping shoulders at the top."""
        side = (across / 0.50) ** 2
        side *= side * side
        shoulder = 0.33 * (across - 0.17).clip(0, None)
        edge = ((1 - side) * 3).clip(0, 1) * ((v - shoulder) * 18 + 0.2).clip(0, 1)
        return edge * (1 - 0.9 * (across * across))

    def _bones(self, across: Floats, v: Floats, seen: Floats) -> Floats:
        """Ribs and clavicles; `seen` is how well ribs show at each place."""
        phase = (v - rib_height(0, across)) * (1 / RIB_SPACING)
        cage = ((across - 0.06) * 14).clip(0, 1) * ((0.86 - v) * 9).clip(0, 1) * seen
        ribs = RIB_DENSITY * rib_profile(phase - np.rint(phase))
        # Anterior ends are farther from the detector and softer: they slant the other way, faintly.
        phase = (v - 0.10 + 0.75 * across) * (1 / 0.1)
        front = 1 - ((phase - np.rint(phase)) * 4) ** 2
        front = front.clip(0, 1) * ((across - 0.14) * 10).clip(0, 1)
        bones = (ribs + 0.030 * front) * cage
        away = v - clavicle_height(across)
        ends = ((across - 0.035) * 40).clip(0, 1) * ((0.40 - across) * 25).clip(0, 1)
        bones += CLAVICLE_DENSITY * clavicle_profile(away) * ends
        return bones

    def _spine(self, across: Floats, v: Floats) -> Floats:
        disc = v * (1 / 0.055)
        disc = np.abs(disc - np.rint(disc))
        column = ((0.036 - across) * 60).clip(0, 1)
        return column * (0.03 + 0.045 * (disc * 4 - 0.4).clip(0, 1))

    def _trachea(self, u: Floats, v: Floats) -> Floats:
        away = np.abs(u - self.shape.midline(v))
        return 0.15 * (1 - (away / 0.021) ** 2).clip(0, 1) * ((0.40 - v) * 14).clip(0, 1)

    def _add_gas(self, total: Floats) -> None:
        """The bubble in the stomach, under the image-right dome."""
        tall, (u, v) = self.shape.gas, (0.66, 0.86)
        wide = 1.6 * tall
        window = self.frame.window((u - wide, u + wide), (v - tall, v + tall))
        across, down = (self.frame.u[window] - u) / wide, (self.frame.v[window] - v) / tall
        total[window] -= 0.22 * ((1 - across * across - down * down) * 1.5).clip(0, 1)
