"""Findings that change the outline of an organ: each is a healthy `Shape` made ill, and a box to draw."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from numpy.random import Generator

from conceptcam.data.phantom.anatomy import LUNG_TOP, PA_TALL, THORAX_WIDTH, Shape
from conceptcam.data.phantom.scene import Attributes

Rectangle = tuple[tuple[float, float], tuple[float, float]]


class Outline(NamedTuple):
    """A finding that shows in the outline of an organ."""

    change: Callable[[Shape, Generator, float], tuple[Shape, Attributes]]
    """Gives the ill shape, of a severity."""
    rectangle: Callable[[Shape], Rectangle]
    """Where to look, (u0, u1), (v0, v1), given the shape with all its illnesses."""


def _aortic_enlargement(shape: Shape, rng: Generator, severity: float) -> tuple[Shape, Attributes]:
    radius = shape.knob_radius + severity * rng.uniform(0.009, 0.030)
    return replace(shape, knob_radius=radius), Attributes("right", "apical", radius, 1)


def _knob(shape: Shape) -> Rectangle:
    (u, v), radius = shape.knob_center, shape.knob_radius
    return (u - radius, u + radius), (v - radius, v + radius)


def _enlarged_pa(shape: Shape, rng: Generator, severity: float) -> tuple[Shape, Attributes]:
    radius = shape.artery_radius + severity * rng.uniform(0.009, 0.028)
    return replace(shape, artery_radius=radius), Attributes("right", "mid", radius, 1)


def _artery(shape: Shape) -> Rectangle:
    (u, v), radius = shape.artery_center, shape.artery_radius
    # From the midline outwards, where the bulge shows: the rest lies in the mediastinum.
    return (max(0.515, u - radius), u + radius), (v - PA_TALL * radius, v + PA_TALL * radius)


def _cardiomegaly(shape: Shape, rng: Generator, severity: float) -> tuple[Shape, Attributes]:
    # By definition wider than half the thorax; a healthy heart takes less.
    bulge = severity * (rng.uniform(0.505, 0.60) * THORAX_WIDTH / 2 - shape.heart_half)
    return replace(shape, heart_bulge=bulge), Attributes("both", "basal", shape.heart_half + bulge, 1)


def _heart(shape: Shape) -> Rectangle:
    # The flat band in which the heart is too wide, not the whole heart, as radiologists box it.
    (u, v), half = shape.heart_center, shape.heart_half + shape.heart_bulge
    u += 0.30 * shape.heart_bulge
    return (u - half, u + half), (v - 0.08, v + 0.11)


def _mediastinal_shift(shape: Shape, rng: Generator, severity: float) -> tuple[Shape, Attributes]:
    side, shift = (-1, 1)[rng.random() < 0.5], severity * rng.uniform(0.024, 0.052)
    return replace(shape, shift=side * shift), Attributes("midline", "apical", shift, 1)


def _trachea(shape: Shape) -> Rectangle:
    # The trachea and the aortic knob, where they are and where they should be.
    left, right = 0.5 + min(0.0, shape.shift), 0.5 + max(0.0, shape.shift)
    return (left - 0.062, right + 0.092), (0.0, 0.55)


def _emphysema(shape: Shape, rng: Generator, severity: float) -> tuple[Shape, Attributes]:
    depth = severity * rng.uniform(0.010, 0.050)
    ill = replace(
        shape,
        domes=(shape.domes[0] + depth, shape.domes[1] + depth),
        dome_bend=_toward(shape.dome_bend, rng.uniform(1.2, 3.2), severity),
        lung_widening=_toward(shape.lung_widening, 1.03, severity),
        lung_depth=shape.lung_depth + severity * rng.uniform(0.01, 0.05),
        markings=_toward(shape.markings, rng.uniform(0.55, 0.9), severity),
        heart_half=_toward(shape.heart_half, 0.92 * shape.heart_half, severity),
    )
    return ill, Attributes("both", "whole", depth, 1)


def _toward(healthy: float, ill: float, severity: float) -> float:
    """A value that far on the way from one to the other; at 1 the other to the bit."""
    return ill - (1 - severity) * (ill - healthy)


def _both_lungs(shape: Shape) -> Rectangle:
    return (0.12, 0.875), (LUNG_TOP, max(shape.domes) + 0.03)


# In this order: emphysema narrows the heart that cardiomegaly then widens.
OUTLINES: dict[str, Outline] = {
    "Emphysema": Outline(_emphysema, _both_lungs),
    "Cardiomegaly": Outline(_cardiomegaly, _heart),
    "Aortic enlargement": Outline(_aortic_enlargement, _knob),
    "Enlarged PA": Outline(_enlarged_pa, _artery),
    "Mediastinal shift": Outline(_mediastinal_shift, _trachea),
}
"""The findings of this kind; `findings.PAINTERS` has all others."""
