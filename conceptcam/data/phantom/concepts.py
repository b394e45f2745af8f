"""What the phantom can show: its findings, its diseases, and how often findings come together."""

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.arrays import Floats, Ints
from conceptcam.data.vindr import VINDR_CONCEPTS, VINDR_TASKS

PHANTOM_VERSION = 1
"""Rises whenever the same (seed, index, config) would give another image, label or box."""

PHANTOM_CONCEPTS: tuple[str, ...] = VINDR_CONCEPTS
"""The 22 local labels of VinDr-CXR; every concept vector of the phantom has this order."""

PHANTOM_DISEASES: tuple[str, ...] = VINDR_TASKS
"""The six global labels of VinDr-CXR; every disease vector of the phantom has this order."""

SMALL_FINDINGS: tuple[str, ...] = (
    "Nodule/Mass",
    "Calcification",
    "Rib fracture",
    "Clavicle fracture",
    "Pleural thickening",
)
"""Findings of about a grid cell's size, on which localization methods differ most."""

ONE_SIDED: tuple[str, ...] = ("Enlarged PA", "Other lesion")
"""Findings that are always in the image's right half, so mirrored boxes miss them."""

UPRIGHT: tuple[str, ...] = ("Mediastinal shift",)
"""Findings with a tall, upright box near the midline, so transposed boxes miss them."""

SIDED_CONCEPTS: tuple[str, ...] = (*ONE_SIDED, *UPRIGHT)
"""Findings whose place betrays a geometric mistake."""

INDEX: dict[str, int] = {name: index for index, name in enumerate(PHANTOM_CONCEPTS)}

ABNORMAL = 0.71
"""Share of images with any finding."""

# Chance of each finding in an abnormal image before others bring it along: the `balanced` preset, far above
# the prevalences of a hospital, so that every finding can be learned from a few thousand images.
_ALONE = np.array(
    [0.16, 0.08, 0.08, 0.15, 0.06, 0.08, 0.05, 0.06, 0.06, 0.08, 0.09]
    + [0.06, 0.06, 0.08, 0.05, 0.14, 0.10, 0.05, 0.11, 0.10, 0.07, 0.06]
)

# Finding -> finding it brings along, with that chance; a cause stands before its effect's own effects.
_BRINGS: tuple[tuple[str, str, float], ...] = (
    ("Edema", "Cardiomegaly", 0.6),
    ("Edema", "Pleural effusion", 0.5),
    ("Cardiomegaly", "Aortic enlargement", 0.6),
    ("Pleural effusion", "Pleural thickening", 0.4),
    ("Consolidation", "Lung opacity", 0.5),
    ("Infiltration", "Lung opacity", 0.4),
    ("Atelectasis", "Lung opacity", 0.3),
    ("Atelectasis", "Mediastinal shift", 0.3),
    ("Rib fracture", "Pneumothorax", 0.3),
    ("Lung cavity", "Pulmonary fibrosis", 0.4),
)

# A chest that is all holes shows no net of fibres.
_EXCLUDES: tuple[tuple[str, str], ...] = (("Emphysema", "ILD"),)


def draw_concepts(rng: Generator, co_occurrence: float = 1.0) -> Ints:
    """(22,) which findings one image shows, 0 or 1: none at all, or at least one."""
    # All numbers are drawn first, so that what follows in the stream does not depend on them.
    abnormal, pick = rng.random(2)
    alone, brings = rng.random(len(_ALONE)), rng.random(len(_BRINGS))
    concepts = np.zeros(len(_ALONE), np.int8)
    if abnormal >= ABNORMAL:
        return concepts
    concepts[:] = alone < _ALONE
    if not concepts.any():
        concepts[np.searchsorted(_ALONE.cumsum(), pick * _ALONE.sum(), side="right")] = 1
    for (cause, effect, chance), drawn in zip(_BRINGS, brings, strict=True):
        if concepts[INDEX[cause]] and drawn < co_occurrence * chance:
            concepts[INDEX[effect]] = 1
    for winner, loser in _EXCLUDES:
        if concepts[INDEX[winner]]:
            concepts[INDEX[loser]] = 0
    return concepts


def expected_prevalence(co_occurrence: float = 1.0) -> Floats:
    """(22,) the exact share of images that show each finding.

    The findings drawn alone are independent, and no two causes of one effect share a cause, so the chances
    propagate one by one.

    Args:
        co_occurrence: Of `PhantomConfig`.
    """
    empty = float(np.prod(1 - _ALONE))
    each = [_propagate(one, co_occurrence) for one in np.eye(len(_ALONE))]
    single = sum(weight * chance for weight, chance in zip(_ALONE / _ALONE.sum(), each, strict=True))
    return ABNORMAL * (_propagate(_ALONE, co_occurrence) + empty * single)


def _propagate(alone: Floats, co_occurrence: float) -> Floats:
    chance = alone.copy()
    for cause, effect, strength in _BRINGS:
        miss = (1 - chance[INDEX[effect]]) * (1 - co_occurrence * strength * chance[INDEX[cause]])
        chance[INDEX[effect]] = 1 - miss
    for winner, loser in _EXCLUDES:
        chance[INDEX[loser]] *= 1 - chance[INDEX[winner]]
    return chance
