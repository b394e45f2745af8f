"""Which diseases a chest has, given its findings: noisy logic, with its exact posterior.

A disease is a noisy OR: each finding that can cause it does so with its own chance, independently, and a
small leak covers every other cause. Some chances depend on a hidden trait of the finding (is it in the apex of
the lung, is it large) that the 22 concepts do not tell. The knob `completeness` moves such a chance from its
average over the trait (0) to its value for the trait (1):

    chance = (1 - completeness) * average chance + completeness * chance for this trait

so the diseases stay as common, and exactly as predictable from the 22 concepts, at every setting; what grows
is what somebody who sees the pixels can know beyond the concepts.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from conceptcam.data.phantom.arrays import Bools, Floats, Ints
from conceptcam.data.phantom.concepts import INDEX, PHANTOM_CONCEPTS, PHANTOM_DISEASES
from conceptcam.data.phantom.config import PhantomConfig

LEAK = 0.01
"""Chance of each disease, in an abnormal chest, from causes that are not among its own."""


class Trait(NamedTuple):
    """A yes-or-no property of a finding that diseases depend on and concepts do not tell."""

    finding: str
    property: str
    chance: float


TRAITS: tuple[Trait, ...] = (
    Trait("Calcification", "apical", 0.6),
    Trait("Nodule/Mass", "apical", 0.4),
    Trait("Nodule/Mass", "large", 0.3),
    Trait("Pulmonary fibrosis", "apical", 0.6),
)
"""The hidden traits, in the order of every trait vector; each is independent of everything else."""

_TRAIT = {(trait.finding, trait.property): index for index, trait in enumerate(TRAITS)}


def draw_traits(rng: Generator) -> Bools:
    """(4,) the hidden traits the findings of one image have, or would have."""
    return rng.random(len(TRAITS)) < [trait.chance for trait in TRAITS]


def draw_diseases(rng: Generator, concepts: Ints, traits: Bools, config: PhantomConfig) -> Ints:
    """(6,) the diseases of one image; the same random numbers whatever the findings."""
    chances = disease_probability(concepts[None], traits[None], config)[0]
    return (rng.random(len(PHANTOM_DISEASES)) < chances).astype(np.int8)


def disease_probability(concepts: Ints, traits: Bools, config: PhantomConfig) -> Floats:
    """How likely each disease is for somebody who knows the findings and their hidden traits.

    Args:
        concepts: (N, 22), 0 or 1.
        traits: (N, 4), in the order of `TRAITS`.
        config: Only `completeness` matters.

    Returns:
        (N, 6) in [0, 1]. "No finding" is certain where no concept is present, and excludes all others.
    """
    present = {name: concepts[:, index] > 0 for name, index in INDEX.items()}

    def depends(finding: str, trait: str, yes: float, no: float = 0.0) -> Floats:
        index = _TRAIT[finding, trait]
        average = TRAITS[index].chance * yes + (1 - TRAITS[index].chance) * no
        own = np.where(traits[:, index], yes, no)
        return present[finding] * ((1 - config.completeness) * average + config.completeness * own)

    congestion = present["Cardiomegaly"] & (present["Pleural effusion"] | present["Edema"])
    fracture = present["Rib fracture"] | present["Clavicle fracture"]
    causes: dict[str, list[Floats]] = {
        "Pneumonia": [
            0.85 * present["Consolidation"],
            0.55 * present["Infiltration"],
            0.15 * present["Lung opacity"],
            0.10 * present["Pleural effusion"],
        ],
        "Tuberculosis": [
            0.80 * present["Lung cavity"],
            depends("Pulmonary fibrosis", "apical", 0.55),
            depends("Calcification", "apical", 0.35),
            depends("Nodule/Mass", "apical", 0.20),
        ],
        "Lung tumor": [
            depends("Nodule/Mass", "large", 0.85, 0.25),
            0.25 * (present["Atelectasis"] & present["Enlarged PA"]),
        ],
        "COPD": [0.90 * present["Emphysema"], 0.05 * present["Lung cyst"]],
        "Other diseases": [
            0.75 * congestion,
            0.70 * present["Pneumothorax"],
            0.60 * present["ILD"],
            0.50 * fracture,
            0.30 * present["Aortic enlargement"],
        ],
    }
    abnormal = (concepts > 0).any(axis=1)
    chances = [abnormal * _noisy_or(causes[disease]) for disease in PHANTOM_DISEASES[:-1]]
    return np.stack([*chances, ~abnormal], axis=1)


def _noisy_or(causes: list[Floats]) -> Floats:
    return 1 - (1 - LEAK) * np.prod([1 - cause for cause in causes], axis=0)


def disease_posterior(concepts: Ints, config: PhantomConfig) -> Floats:
    """How likely each disease is for somebody who knows the 22 findings and nothing else.

    Exact: every combination of hidden traits is weighed by its probability.

    Args:
        concepts: (N, 22), 0 or 1.
        config: Only `completeness` matters.

    Returns:
        (N, 6) in [0, 1].

    Raises:
        ValueError: If the concepts are not (N, 22) zeros and ones.
    """
    concepts = np.asarray(concepts)
    if concepts.ndim != 2 or concepts.shape[1] != len(PHANTOM_CONCEPTS) or not np.isin(concepts, (0, 1)).all():
        raise ValueError(
            f"`concepts` must be zeros and ones of shape (N, {len(PHANTOM_CONCEPTS)}), got shape {concepts.shape} "
            f"with values from {concepts.min(initial=1)} to {concepts.max(initial=0)}"
        )
    posterior = np.zeros((len(concepts), len(PHANTOM_DISEASES)))
    for traits in product((False, True), repeat=len(TRAITS)):
        weight = np.prod([t.chance if has else 1 - t.chance for t, has in zip(TRAITS, traits, strict=True)])
        rows = np.tile(np.array(traits), (len(concepts), 1))
        posterior += weight * disease_probability(concepts, rows, config)
    return posterior


def disease_ceiling(concepts: Ints, diseases: Ints, config: PhantomConfig) -> dict[str, float]:
    """The AUROC of `disease_posterior` per disease, which nobody who sees only the concepts beats.

    Nobody beats it in expectation, that is: on a few samples luck can.

    Args:
        concepts: (N, 22), 0 or 1.
        diseases: (N, 6), 0 or 1, of the same samples.
        config: Those the samples were drawn with.

    Returns:
        Disease name -> AUROC; NaN where a disease is always or never there.
    """
    posterior = disease_posterior(concepts, config)
    return {
        name: _auroc(posterior[:, index], np.asarray(diseases)[:, index] > 0)
        for index, name in enumerate(PHANTOM_DISEASES)
    }


def _auroc(scores: Floats, truth: Bools) -> float:
    """Share of (positive, negative) pairs in the right order; a tie is half a pair."""
    # Rounded first: equal chances that differ in the last bit by the order of a product are a tie.
    _, group, sizes = np.unique(scores.round(12), return_inverse=True, return_counts=True)
    rank = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))
