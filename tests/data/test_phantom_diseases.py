"""The phantom's diseases and their exact posterior."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from conceptcam.data.phantom import (
    PHANTOM_CONCEPTS,
    PHANTOM_DISEASES,
    Phantom,
    PhantomConfig,
    disease_ceiling,
    disease_posterior,
    disease_probability,
)
from conceptcam.data.phantom.diseases import TRAITS, draw_diseases, draw_traits
from conceptcam.data.phantom.scene import ZONES

COMPLETENESS = (0.0, 0.5, 1.0)


def one(*findings: str) -> np.ndarray:
    concepts = np.zeros((1, len(PHANTOM_CONCEPTS)), int)
    concepts[0, [PHANTOM_CONCEPTS.index(name) for name in findings]] = 1
    return concepts


def chance(disease: str, *findings: str, config: PhantomConfig | None = None) -> float:
    return float(disease_posterior(one(*findings), config or PhantomConfig())[0, PHANTOM_DISEASES.index(disease)])


@pytest.mark.parametrize("completeness", COMPLETENESS)
@pytest.mark.parametrize(
    "findings",
    [
        ("Calcification", "Pulmonary fibrosis", "Nodule/Mass"),
        ("Nodule/Mass", "Lung cavity", "Atelectasis", "Enlarged PA"),
        ("Cardiomegaly", "Edema", "Rib fracture", "Infiltration"),
        ("Emphysema", "Lung cyst", "Aortic enlargement"),
    ],
)
def test_the_posterior_is_the_frequency_in_generated_chests(completeness, findings):
    config, rng, count = PhantomConfig(completeness=completeness), np.random.default_rng(5), 2500
    concepts = one(*findings)
    drawn = np.mean([draw_diseases(rng, concepts[0], draw_traits(rng), config) for _ in range(count)], axis=0)
    expected = disease_posterior(concepts, config)[0]
    error = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(drawn - expected) <= 4 * error).all()


@pytest.mark.parametrize("completeness", COMPLETENESS)
def test_the_posterior_is_calibrated_on_whole_phantom_cases(completeness):
    phantom = Phantom(PhantomConfig(completeness=completeness), seed=2)
    cases = [phantom.case(index) for index in range(2000)]
    posterior = disease_posterior(np.array([case.concepts for case in cases]), phantom.config)
    diseases = np.array([case.diseases for case in cases])
    for column in range(len(PHANTOM_DISEASES)):
        for low, high in ((0.0, 0.005), (0.005, 0.2), (0.2, 0.5), (0.5, 1.01)):
            group = (posterior[:, column] >= low) & (posterior[:, column] < high)
            if not group.any():
                continue
            expected = posterior[group, column]
            error = np.sqrt((expected * (1 - expected)).sum()) / group.sum()
            assert abs(diseases[group, column].mean() - expected.mean()) <= 4 * error


def test_chances_are_those_of_the_noisy_or_by_hand():
    assert chance("Pneumonia", "Consolidation") == pytest.approx(1 - 0.99 * 0.15)
    assert chance("Pneumonia", "Consolidation", "Infiltration") == pytest.approx(1 - 0.99 * 0.15 * 0.45)
    assert chance("Tuberculosis", "Lung cavity", "Calcification") == pytest.approx(1 - 0.99 * 0.2 * (1 - 0.6 * 0.35))
    assert chance("Lung tumor", "Nodule/Mass") == pytest.approx(1 - 0.99 * (1 - 0.3 * 0.85 - 0.7 * 0.25))
    assert chance("Lung tumor", "Atelectasis") == pytest.approx(0.01)
    assert chance("Lung tumor", "Atelectasis", "Enlarged PA") == pytest.approx(1 - 0.99 * 0.75)
    assert chance("COPD", "Emphysema") == pytest.approx(1 - 0.99 * 0.1)
    assert chance("Other diseases", "Cardiomegaly") == pytest.approx(0.01)
    assert chance("Other diseases", "Cardiomegaly", "Edema") == pytest.approx(1 - 0.99 * 0.25)
    assert chance("Other diseases", "Rib fracture", "Clavicle fracture") == pytest.approx(1 - 0.99 * 0.5)


def test_no_finding_is_certain_and_excludes_every_disease():
    assert disease_posterior(one(), PhantomConfig()).tolist() == [[0, 0, 0, 0, 0, 1]]
    phantom = Phantom(seed=3)
    for case in map(phantom.case, range(500)):
        assert case.diseases[-1] == (not case.concepts.any())
        assert not (case.diseases[-1] and case.diseases[:-1].any())


def test_hidden_traits_matter_as_much_as_completeness_says():
    concepts, column = np.repeat(one("Nodule/Mass"), 2, axis=0), PHANTOM_DISEASES.index("Lung tumor")
    traits = np.array([[trait.property == "large" for trait in TRAITS], [False] * len(TRAITS)])
    gaps = []
    for completeness in COMPLETENESS:
        large, small = disease_probability(concepts, traits, PhantomConfig(completeness=completeness))[:, column]
        gaps.append(large - small)
    assert gaps == pytest.approx([0, 0.5 * gaps[2], 0.99 * 0.6])


@pytest.mark.parametrize("trait", TRAITS, ids=lambda trait: f"{trait.finding} {trait.property}")
def test_hidden_traits_are_what_the_pixels_show(trait):
    phantom = Phantom(seed=4)
    column, position = PHANTOM_CONCEPTS.index(trait.finding), TRAITS.index(trait)
    seen = set()
    for index in range(400):
        case = phantom.case(index)
        if not case.concepts[column]:
            continue
        has = bool(case.traits[position])
        seen.add(has)
        sample = phantom.sample(index)
        attributes = sample.attributes[trait.finding]
        if trait.property == "large":
            assert (attributes.size > 0.05) == has
        else:
            assert (attributes.zone == "apical") == has
            first = sample.boxes[sample.box_concepts == column][0]
            # The body may lie a little higher or lower in the image than straight.
            middle = (first[1] + first[3]) / 2
            assert middle < ZONES["apical"][1] + 0.06 if has else middle > ZONES["mid"][0] - 0.06
    assert seen == {True, False}


def test_the_ceiling_is_the_auroc_of_the_posterior():
    phantom = Phantom(PhantomConfig(completeness=1.0), seed=6)
    cases = [phantom.case(index) for index in range(1500)]
    concepts, diseases = np.array([c.concepts for c in cases]), np.array([c.diseases for c in cases])
    ceiling = disease_ceiling(concepts, diseases, phantom.config)
    posterior = disease_posterior(concepts, phantom.config).round(12)
    for column, name in enumerate(PHANTOM_DISEASES):
        assert ceiling[name] == pytest.approx(roc_auc_score(diseases[:, column], posterior[:, column]))
    assert ceiling["No finding"] == 1


def test_hidden_traits_beat_the_ceiling_at_completeness_one_alone():
    for completeness, better in ((0.0, False), (1.0, True)):
        phantom = Phantom(PhantomConfig(completeness=completeness), seed=8)
        cases = [phantom.case(index) for index in range(2000)]
        concepts, diseases, traits = (np.array([case[part] for case in cases]) for part in range(3))
        column = PHANTOM_DISEASES.index("Lung tumor")
        known = disease_probability(concepts, traits, phantom.config)[:, column].round(12)
        gain = (
            roc_auc_score(diseases[:, column], known)
            - disease_ceiling(concepts, diseases, phantom.config)["Lung tumor"]
        )
        assert (gain > 0.01) == better


def test_a_disease_that_nobody_has_makes_its_ceiling_undefined():
    ceiling = disease_ceiling(one("ILD"), np.zeros((1, 6), int), PhantomConfig())
    assert all(np.isnan(value) for value in ceiling.values())


@pytest.mark.parametrize("concepts", [np.zeros((3, 21), int), np.zeros(22, int), np.full((1, 22), 2)])
def test_impossible_concepts_are_refused_with_their_shape(concepts):
    with pytest.raises(ValueError, match=r"`concepts` must be zeros and ones of shape \(N, 22\), got shape"):
        disease_posterior(concepts, PhantomConfig())
