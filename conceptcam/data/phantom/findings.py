"""Findings that add density to a chest or remove it: one function each, and the table of them.

A painter gets the scene, its own stream of random numbers and the finding's hidden traits; it paints, and
says what it painted. What it draws depends on nothing else, so it can be taken away exactly.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.anatomy import Window
from conceptcam.data.phantom.arrays import Floats
from conceptcam.data.phantom.bones import clavicle_fracture, rib_fracture
from conceptcam.data.phantom.pleura import pleural_effusion, pleural_thickening, pneumothorax
from conceptcam.data.phantom.scene import Attributes, Scene, Spot, Zone, draw_spot

Traits = Mapping[str, bool]
Radii = tuple[float, float]
Painter = Callable[[Scene, Generator, Traits], Attributes]


def _blob(
    scene: Scene, rng: Generator, spot: Spot, radii: Radii, *, edge: float, lobes: float = 0.0, grain: float = 0.0
) -> tuple[Window, Floats]:
    """A window and, in it, a disc of height 1 within the lung; `edge` is its steepness."""
    reach = 1 + 0.35 * lobes
    window, du, dv = scene.around(spot.u, spot.v, radii[0] * reach, radii[1] * reach)
    away = (du / radii[0]) ** 2 + (dv / radii[1]) ** 2
    if lobes:
        away *= 1 + (lobes * scene.chest.textures.crop("shading", rng, away.shape)).clip(-0.45, 0.6)
    disc = ((1 - away) * edge).clip(0, 1) * scene.chest.clear[window]
    if grain:
        disc *= (1 + grain * scene.chest.textures.crop("parenchyma", rng, away.shape)).clip(0.1, None)
    return window, disc


def atelectasis(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """A collapsed segment: a flat, slightly oblique, sharp band."""
    spot = draw_spot(rng, "basal" if rng.random() < 0.6 else "apical", pad=0.07)
    half, thick, tilt = rng.uniform(0.075, 0.115), rng.uniform(0.016, 0.026), rng.uniform(-0.25, 0.25)
    window, du, dv = scene.around(spot.u, spot.v, half, thick + 0.26 * half)
    dv = dv - tilt * du + 0.8 * du * du
    band = ((1 - (du / half) ** 2 - (dv / thick) ** 2) * 3).clip(0, 1) * scene.chest.clear[window]
    scene.paint("Atelectasis", window, rng.uniform(0.20, 0.28) * band)
    return Attributes(spot.side, spot.zone, half, 1)


def calcification(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Two to five tiny, very dense specks close together."""
    spot = draw_spot(rng, _zone(rng, traits["apical"]), pad=0.04)
    count = int(rng.integers(2, 6))
    window, du, dv = scene.around(spot.u, spot.v, 0.045, 0.045)
    specks = np.zeros_like(du)
    for _ in range(count):
        turn, away = rng.uniform(0, 2 * math.pi), rng.uniform(0.010, 0.030)
        x, y = away * math.cos(turn), away * math.sin(turn)
        radius = rng.uniform(0.007, 0.011)
        np.maximum(specks, (3 * (1 - ((du - x) ** 2 + (dv - y) ** 2) / radius**2)).clip(0, 1), out=specks)
    if not specks.any():  # in a small image all may fall between pixels; the last one then takes the nearest
        specks.flat[((du - x) ** 2 + (dv - y) ** 2).argmin()] = 1
    scene.paint("Calcification", window, rng.uniform(0.34, 0.50) * specks)
    return Attributes(spot.side, spot.zone, 0.045, count)


def consolidation(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Air spaces full of fluid: dense, lobular, mostly low."""
    spot = draw_spot(rng, "basal" if rng.random() < 0.65 else None, pad=0.05)
    radii = rng.uniform(0.065, 0.105), rng.uniform(0.06, 0.105)
    return _patch(scene, rng, "Consolidation", spot, radii, (0.24, 0.32), edge=3.0, lobes=0.45, grain=0.10)


def _patch(
    scene: Scene, rng: Generator, finding: str, spot: Spot, radii: Radii, density: tuple[float, float], **look: float
) -> Attributes:
    """Paint a blob of some density, drawn between two bounds; `look` is as in `_blob`."""
    window, disc = _blob(scene, rng, spot, radii, **look)
    scene.paint(finding, window, rng.uniform(*density) * disc)
    return Attributes(spot.side, spot.zone, radii[0], 1)


def edema(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Fluid around both hila: the wings of a bat, in one box."""
    reach, tall = rng.uniform(0.15, 0.20), rng.uniform(0.15, 0.20)
    chest = scene.chest
    window, du, dv = scene.around(0.5, 0.455, 0.10 + reach, tall)
    wings = (1 - ((np.abs(du) - 0.10) / reach) ** 2 - (dv / tall) ** 2).clip(0, 1)
    wings *= chest.clear[window] * (1 + 0.35 * chest.textures.crop("parenchyma", rng, du.shape)).clip(0.2, None)
    scene.paint("Edema", window, rng.uniform(0.07, 0.20) * wings)
    return Attributes("both", "mid", reach, 1)


def ild(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Interstitial lung disease: a fine net in both lungs, tall, a box for each."""
    strength = rng.uniform(0.03, 0.07)
    half, tall = rng.uniform(0.10, 0.13), rng.uniform(0.15, 0.21)
    for lung in (0, 1):
        spot = Spot(lung, (0.30, 0.70)[lung] + rng.uniform(-0.01, 0.01), 0.55 + rng.uniform(-0.03, 0.03), "whole")
        _net(scene, rng, "ILD", spot, (half, tall), strength, 0.0)
    return Attributes("both", "whole", tall, 2)


def pulmonary_fibrosis(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Scars: a coarse net in one place, on a veil."""
    spot = draw_spot(rng, "apical" if traits["apical"] else "basal", pad=0.045)
    radii = rng.uniform(0.05, 0.085), rng.uniform(0.045, 0.085)
    _net(scene, rng, "Pulmonary fibrosis", spot, radii, rng.uniform(0.07, 0.11), 0.05)
    return Attributes(spot.side, spot.zone, radii[0], 1)


def _net(scene: Scene, rng: Generator, finding: str, spot: Spot, radii: Radii, strength: float, veil: float) -> None:
    window, disc = _blob(scene, rng, spot, radii, edge=2.5)
    fibres = scene.chest.textures.crop("fibres", rng, disc.shape)
    scene.paint(finding, window, disc * (strength * (fibres - 0.55) + veil))


def infiltration(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Faint, patchy, without an edge."""
    spot = draw_spot(rng, "mid" if rng.random() < 0.6 else None, pad=0.05)
    radii = rng.uniform(0.07, 0.115), rng.uniform(0.07, 0.12)
    return _patch(scene, rng, "Infiltration", spot, radii, (0.13, 0.19), edge=1.3, lobes=0.3, grain=0.85)


def lung_opacity(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """Faint and smooth, without an edge."""
    spot = draw_spot(rng, pad=0.04)
    radii = rng.uniform(0.06, 0.10), rng.uniform(0.055, 0.10)
    return _patch(scene, rng, "Lung opacity", spot, radii, (0.15, 0.22), edge=1.1, lobes=0.15)


def lung_cavity(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """A hole with a thick wall, in the apex."""
    return _ring(scene, rng, "Lung cavity", draw_spot(rng, "apical", pad=0.035), wall=0.42, density=0.22)


def lung_cyst(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """A hole with a thin wall, anywhere."""
    return _ring(scene, rng, "Lung cyst", draw_spot(rng, pad=0.035), wall=0.15, density=0.17)


def _ring(scene: Scene, rng: Generator, finding: str, spot: Spot, *, wall: float, density: float) -> Attributes:
    radius = rng.uniform(0.033, 0.056)
    window, du, dv = scene.around(spot.u, spot.v, radius * 1.03, radius * 1.03)
    away = np.sqrt(du * du + dv * dv) / radius
    ring = (1.15 - np.abs(away - (1 - wall / 2)) / (wall / 2)).clip(0, 0.8) / 0.8
    hole = ((1 - wall - away) * 5).clip(0, 1)
    scene.paint(finding, window, (density * ring - 0.09 * hole) * scene.chest.clear[window])
    return Attributes(spot.side, spot.zone, radius, 1)


def nodule(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """One to three round, sharp densities; the first may be a large mass, the others are small."""
    spots = [draw_spot(rng, _zone(rng, traits["apical"]), pad=0.04)]
    radii = [float(rng.uniform(0.052, 0.085) if traits["large"] else _small_radius(rng))]
    for _ in range(int(rng.random() < 0.35) + int(rng.random() < 0.2)):
        spots.append(draw_spot(rng, spots[0].zone if spots[0].zone == "apical" else "mid"))
        radii.append(_small_radius(rng))
    for spot, radius in zip(spots, radii, strict=True):
        window, disc = _blob(scene, rng, spot, (radius, radius), edge=3.0, lobes=0.12)
        scene.paint("Nodule/Mass", window, rng.uniform(0.18, 0.28) * disc)
    return Attributes(spots[0].side, spots[0].zone, max(radii), len(spots))


def _small_radius(rng: Generator) -> float:
    return min(max(0.026 * math.exp(0.35 * rng.standard_normal()), 0.016), 0.045)


def _zone(rng: Generator, apical: bool) -> Zone:
    low: Zone = "mid" if rng.random() < 0.5 else "basal"
    return "apical" if apical else low


def other_lesion(scene: Scene, rng: Generator, traits: Traits) -> Attributes:
    """An implanted device: a sharp, bright, rounded can under the image-right clavicle."""
    u, v = rng.uniform(0.63, 0.76), rng.uniform(0.22, 0.33)
    window, du, dv = scene.around(u, v, 0.040, 0.030)
    can = ((1 - (du / 0.038) ** 4 - (dv / 0.028) ** 4) * 4).clip(0, 1)
    scene.paint("Other lesion", window, rng.uniform(0.32, 0.45) * can)
    return Attributes("right", "apical", 0.038, 1)


# Drawn in this order: what fills the lung first, what lies on it last.
PAINTERS: dict[str, Painter] = {
    "Edema": edema,
    "ILD": ild,
    "Pulmonary fibrosis": pulmonary_fibrosis,
    "Infiltration": infiltration,
    "Lung opacity": lung_opacity,
    "Consolidation": consolidation,
    "Atelectasis": atelectasis,
    "Nodule/Mass": nodule,
    "Lung cavity": lung_cavity,
    "Lung cyst": lung_cyst,
    "Calcification": calcification,
    "Pneumothorax": pneumothorax,
    "Pleural thickening": pleural_thickening,
    "Pleural effusion": pleural_effusion,
    "Rib fracture": rib_fracture,
    "Clavicle fracture": clavicle_fracture,
    "Other lesion": other_lesion,
}
"""The findings of this kind; `outlines.OUTLINES` has all others."""
