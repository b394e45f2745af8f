"""Findings between lung and chest wall: air, fluid and scars."""

from collections.abc import Mapping

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.anatomy import LUNG_CENTER
from conceptcam.data.phantom.scene import Attributes, Scene, Zone, draw_side


def pneumothorax(scene: Scene, rng: Generator, traits: Mapping[str, bool]) -> Attributes:
    """Air in the pleural space: a dark crescent without vessels, and the collapsed lung's fine border."""
    chest, lung = scene.chest, draw_side(rng)
    width, bottom = rng.uniform(0.020, 0.055), rng.uniform(0.32, 0.60)
    window = _half(scene, lung, 0.08, bottom)
    u, v = chest.frame.u[window], chest.frame.v[window]
    # The collapsed lung is a narrower and lower copy of the cavity it leaves.
    outside = chest.shape.lung_edge(lung, u, v - 0.6 * width, shrink=width) - 1
    fade = ((bottom - v) * 14).clip(0, 1) * chest.lungs[lung][window]
    # Air rises to the apex and the outer wall; towards the midline the lung still touches.
    outwards = (-1, 1)[lung]
    fade *= ((outwards * (u - LUNG_CENTER[lung]) + 0.06) * 20).clip(0, 1)
    space = (outside * 9).clip(0, 1) * fade
    line = (1 - np.abs(outside) * 7).clip(0, 1) * fade
    air = rng.uniform(0.05, 0.10) + 0.9 * chest.markings[window]
    scene.paint("Pneumothorax", window, rng.uniform(0.07, 0.13) * line - air * space)
    return Attributes(("left", "right")[lung], "apical", width, 1)


def pleural_thickening(scene: Scene, rng: Generator, traits: Mapping[str, bool]) -> Attributes:
    """A short, thin strip of scar along the outer wall of one lung."""
    chest, lung = scene.chest, draw_side(rng, 0.55)
    middle, half, thick = rng.uniform(0.20, 0.66), rng.uniform(0.040, 0.075), rng.uniform(0.30, 0.45)
    window = _half(scene, lung, middle - half, middle + half)
    u, v = chest.frame.u[window], chest.frame.v[window]
    outwards = (-1, 1)[lung]
    depth = 1 - chest.shape.lung_edge(lung, u, v)
    strip = ((thick - depth) * 8).clip(0, 1) * chest.lungs[lung][window]
    strip *= ((1 - ((v - middle) / half) ** 2) * 2.5).clip(0, 1)
    strip *= ((outwards * (u - LUNG_CENTER[lung]) - 0.02) * 40).clip(0, 1)
    scene.paint("Pleural thickening", window, rng.uniform(0.20, 0.28) * strip)
    zone: Zone = "apical" if middle < 0.34 else "mid" if middle < 0.52 else "basal"
    return Attributes(("left", "right")[lung], zone, half, 1)


def pleural_effusion(scene: Scene, rng: Generator, traits: Mapping[str, bool]) -> Attributes:
    """Fluid on one diaphragm: it fills the angle by the ribs and climbs the wall in a meniscus."""
    chest, lung = scene.chest, draw_side(rng, 0.55)
    height = rng.uniform(0.02, 0.19)
    outwards = (-1, 1)[lung]
    dome = chest.shape.domes[lung]
    window = _half(scene, lung, dome - height - 0.12, 0.96)
    u, v = chest.frame.u[window], chest.frame.v[window]
    outer = ((u - LUNG_CENTER[lung]) * outwards).clip(-0.10, 0.17)
    # Concave: low towards the midline, highest at the wall.
    surface = dome + 0.035 - height + 1.6 * (0.17 - outer) ** 2
    # Towards the heart it thins out.
    fluid = ((v - surface) * 22).clip(0, 1) * ((outer + 0.09) * 30).clip(0, 1) * chest.clear[window]
    scene.paint("Pleural effusion", window, rng.uniform(0.16, 0.32) * fluid)
    return Attributes(("left", "right")[lung], "basal", height, 1)


def _half(scene: Scene, lung: int, top: float, bottom: float) -> tuple[slice, slice]:
    """The window of one lung between two heights."""
    return scene.chest.frame.window(((0.10, 0.50), (0.50, 0.90))[lung], (top, bottom))
