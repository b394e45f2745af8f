"""Fractures: a piece of bone is taken out, its outer end put back lower, and the broken ends are dense."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.anatomy import (
    CLAVICLE_DENSITY,
    RIB_DENSITY,
    RIB_SPACING,
    clavicle_height,
    clavicle_profile,
    rib_height,
    rib_profile,
)
from conceptcam.data.phantom.arrays import Floats
from conceptcam.data.phantom.scene import Attributes, Scene, draw_side

_REACH = 0.046


def rib_fracture(scene: Scene, rng: Generator, traits: Mapping[str, bool]) -> Attributes:
    """A step, a gap and some callus in one posterior rib over the lung, or in two neighbours."""
    lung, first, across = draw_side(rng), int(rng.integers(3, 6)), rng.uniform(0.17, 0.24)
    count = 1 + int(rng.random() < 0.4)
    step, gap, callus = rng.uniform(0.026, 0.034), rng.uniform(0.014, 0.019), rng.uniform(0.15, 0.22)
    for rib in range(first, first + count):

        def profile(distance: Floats, v: Floats, rib: int = rib) -> Floats:
            return RIB_DENSITY * rib_profile((v - rib_height(rib, distance)) / RIB_SPACING)

        place = (lung, across, float(rib_height(rib, across)))
        _break(scene, "Rib fracture", place, profile, step, gap, callus=callus)
        across += rng.uniform(-0.01, 0.01)
    return Attributes(("left", "right")[lung], "mid", step, count)


def clavicle_fracture(scene: Scene, rng: Generator, traits: Mapping[str, bool]) -> Attributes:
    """A step and a gap in one clavicle."""
    lung, across = draw_side(rng), rng.uniform(0.13, 0.28)

    def profile(distance: Floats, v: Floats) -> Floats:
        return CLAVICLE_DENSITY * clavicle_profile(v - clavicle_height(distance))

    step, gap = rng.uniform(0.028, 0.038), rng.uniform(0.016, 0.022)
    place = (lung, across, float(clavicle_height(across)))
    _break(scene, "Clavicle fracture", place, profile, step, gap, callus=rng.uniform(0.10, 0.16))
    return Attributes(("left", "right")[lung], "apical", step, 1)


def _break(
    scene: Scene,
    finding: str,
    place: tuple[int, float, float],
    profile: Callable[[Floats, Floats], Floats],
    step: float,
    gap: float,
    *,
    callus: float,
) -> None:
    """Break a bone at (side, distance from the midline, height)."""
    lung, across, height = place
    outwards = (-1, 1)[lung]
    window, du, dv = scene.around(0.5 + outwards * across, height, _REACH, _REACH + step)
    distance, v, along = across + outwards * du, height + dv, outwards * du
    # The outer piece hangs by its broken end and meets the bone again at the end of the window.
    drop = step * (1 - along / _REACH).clip(0, 1) * (along > 0)
    kept = (np.abs(along) / gap * 2 - 0.5).clip(0, 1)
    change = profile(distance, v - drop) * kept - profile(distance, v)
    for end, low in ((-gap, 0.0), (gap, step)):
        away = (along - end) ** 2 + (dv - low) ** 2
        change += callus * (1 - away / 0.013**2).clip(0, 1)
    scene.paint(finding, window, change)
