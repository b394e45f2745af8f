"""Things that look like findings and are none: what makes a chest hard to read.

They are painted like findings, but have no label and no box. Their random numbers are their own, so the rest of an
image is the same with them and without.
"""

from collections.abc import Callable

from numpy.random import Generator

from conceptcam.data.phantom.anatomy import Chest
from conceptcam.data.phantom.arrays import Floats
from conceptcam.data.phantom.scene import draw_side, draw_spot

Confuser = Callable[[Chest, Generator, Floats], None]


def add_confusers(chest: Chest, attenuation: Floats, rng: Generator, mean: float) -> int:
    """Paint a random number of them, `mean` on average, into an attenuation (size, size); gives the number."""
    count = int(rng.poisson(mean))
    for _ in range(count):
        CONFUSERS[int(rng.integers(len(CONFUSERS)))](chest, rng, attenuation)
    return count


def nipple(chest: Chest, rng: Generator, attenuation: Floats) -> None:
    """A round density low on one side, like a nodule."""
    side = draw_side(rng, 0.5)
    u, v = (0.27, 0.73)[side] + rng.normal(0, 0.015), rng.uniform(0.55, 0.66)
    _disc(chest, attenuation, (u, v), (rng.uniform(0.020, 0.032),) * 2, rng.uniform(0.10, 0.18), edge=2.5)


def vessel_on_end(chest: Chest, rng: Generator, attenuation: Floats) -> None:
    """A tiny dense dot, like a calcification."""
    spot = draw_spot(rng, pad=0.05)
    _disc(chest, attenuation, (spot.u, spot.v), (rng.uniform(0.007, 0.011),) * 2, rng.uniform(0.22, 0.34), edge=3.0)


def overlap(chest: Chest, rng: Generator, attenuation: Floats) -> None:
    """A soft shadow where tissues overlap, like an opacity."""
    spot = draw_spot(rng, pad=0.04)
    radii = rng.uniform(0.05, 0.10), rng.uniform(0.05, 0.10)
    _disc(chest, attenuation, (spot.u, spot.v), radii, rng.uniform(0.08, 0.15), edge=1.1)


def skin_fold(chest: Chest, rng: Generator, attenuation: Floats) -> None:
    """A long edge down one lung, dark beyond it, like the border of a pneumothorax; lung markings go on beyond it."""
    side = draw_side(rng, 0.5)
    outwards = (-1, 1)[side]
    u, top, bottom = 0.5 + outwards * rng.uniform(0.24, 0.31), rng.uniform(0.15, 0.25), rng.uniform(0.45, 0.62)
    middle, half = (top + bottom) / 2, (bottom - top) / 2
    window = chest.frame.window((u - 0.12, u + 0.12), (top, bottom))
    beyond = outwards * (chest.frame.u[window] - u) - rng.uniform(-0.12, 0.12) * (chest.frame.v[window] - middle)
    fade = (1 - ((chest.frame.v[window] - middle) / half) ** 2).clip(0, 1) * chest.lungs[side][window]
    shade = (beyond > 0) * (1 - beyond / 0.10).clip(0, 1)
    attenuation[window] -= rng.uniform(0.04, 0.08) * shade * fade


CONFUSERS: tuple[Confuser, ...] = (nipple, vessel_on_end, overlap, skin_fold)


def _disc(
    chest: Chest,
    attenuation: Floats,
    place: tuple[float, float],
    radii: tuple[float, float],
    density: float,
    *,
    edge: float,
) -> None:
    (u, v), (ru, rv) = place, radii
    window = chest.frame.window((u - ru, u + ru), (v - rv, v + rv))
    away = ((chest.frame.u[window] - u) / ru) ** 2 + ((chest.frame.v[window] - v) / rv) ** 2
    attenuation[window] += density * ((1 - away) * edge).clip(0, 1) * chest.clear[window]
