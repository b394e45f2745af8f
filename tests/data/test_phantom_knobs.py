"""The phantom's settings: what each changes, what it leaves, and that the defaults change nothing."""

import numpy as np
import pytest

from conceptcam.data.phantom import PHANTOM_CONCEPTS, PHANTOM_DISEASES, Phantom, PhantomConfig, expected_prevalence
from conceptcam.data.phantom.anatomy import draw_frame
from conceptcam.data.phantom.confusers import CONFUSERS, add_confusers
from conceptcam.data.phantom.shortcuts import shortcut_mask

KINDS = ("marker", "tube", "pacemaker", "hospital")
OUTLINED = ("Cardiomegaly", "Aortic enlargement", "Enlarged PA", "Mediastinal shift")


def first_with(finding: str, *, alone: bool = False) -> int:
    cases = (Phantom().case(index).concepts for index in range(10_000))
    column = PHANTOM_CONCEPTS.index(finding)
    return next(i for i, concepts in enumerate(cases) if concepts[column] and (not alone or concepts.sum() == 1))


@pytest.mark.parametrize("co_occurrence", [0.0, 0.5, 1.6])
def test_findings_come_together_as_often_as_asked(co_occurrence):
    phantom, count = Phantom(PhantomConfig(co_occurrence=co_occurrence), seed=1), 6000
    concepts = np.array([phantom.case(index).concepts for index in range(count)])
    expected = expected_prevalence(co_occurrence)
    error = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(concepts.mean(axis=0) - expected) < 4.5 * error).all()
    edema, heart = (concepts[:, PHANTOM_CONCEPTS.index(name)] > 0 for name in ("Edema", "Cardiomegaly"))
    # Beside the chance by which an abnormal chest has it anyway.
    brought = 1 - (1 - 0.15) * (1 - co_occurrence * 0.6)
    assert abs(heart[edema].mean() - brought) < 5 * np.sqrt(0.25 / edema.sum())


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_shortcut_changes_pixels_about_its_mask_alone(kind):
    config = PhantomConfig(shortcut="aligned", shortcut_strength=1.0, shortcut_kind=kind)
    index = first_with("Infiltration")
    marked, plain = Phantom(config), Phantom(PhantomConfig(shortcut="clean"))
    sample, without = marked.sample(index), plain.sample(index)
    changed, mask = sample.image != without.image, marked.marker_mask(index)
    near = np.zeros_like(mask)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            near |= np.roll(mask, (down, across), axis=(0, 1))  # edges are soft
    assert mask.any() and not (changed & ~near).any() and changed[mask].mean() > 0.9
    left, top, right, bottom = (round(edge * 112) for edge in sample.marker_box)
    assert mask[top:bottom, left:right].sum() == mask.sum()
    np.testing.assert_array_equal(sample.boxes, without.boxes)
    # It outlives the finding that it goes with.
    assert marked.sample(index, without=["Infiltration"]).marker_box == sample.marker_box


def test_another_hospital_has_a_dark_border_and_more_noise():
    config = PhantomConfig(shortcut="aligned", shortcut_strength=1.0, shortcut_kind="hospital")
    index = first_with("Infiltration")
    sample, plain = Phantom(config).sample(index), Phantom().sample(index)
    mask = Phantom(config).marker_mask(index)
    assert (sample.image[mask] < 10).all() and mask[0].all() and not mask[20:-20, 20:-20].any()
    rough, smooth = (np.abs(np.diff(one.image[40:70, 20:40].astype(int))).mean() for one in (sample, plain))
    assert rough > 1.5 * smooth


@pytest.mark.parametrize("kind", KINDS)
def test_shortcuts_are_to_be_seen_at_every_size(kind):
    for size in (64, 224):
        for seed in range(5):
            frame = draw_frame(np.random.default_rng(seed), size)
            assert 0.001 < shortcut_mask(kind, frame, np.random.default_rng(seed)).mean() < 0.16


def test_a_shortcut_can_go_with_a_disease():
    phantom = Phantom(PhantomConfig(shortcut="aligned", shortcut_concept="Pneumonia", shortcut_strength=0.9))
    plain = Phantom()
    cases = [phantom.case(index) for index in range(3000)]
    sick = np.array([case.diseases[PHANTOM_DISEASES.index("Pneumonia")] for case in cases]) > 0
    marked = np.array([case.marker for case in cases])
    for group, share in ((sick, 0.9), (~sick, 0.1)):
        assert abs(marked[group].mean() - share) < 4 * np.sqrt(share * (1 - share) / group.sum())
    for index in range(50):
        assert all(np.array_equal(a, b) for a, b in zip(cases[index][:3], plain.case(index)[:3], strict=True))
    # Taking away what caused the disease takes the disease, not the shortcut.
    index = next(i for i, case in enumerate(cases) if case.marker and sick[i])
    left = phantom.case(index, without=list(PHANTOM_CONCEPTS))
    assert left.marker and not left.diseases[PHANTOM_DISEASES.index("Pneumonia")]


@pytest.mark.parametrize("finding", OUTLINED)
def test_a_milder_outline_changes_fewer_pixels(finding):
    index = first_with(finding)

    def change(severity: float) -> float:
        phantom = Phantom(PhantomConfig(severity=severity))
        one, two = (phantom.sample(index, without=left).image.astype(int) for left in ((), [finding]))
        return float(np.abs(one - two).sum())

    assert 0 < change(0.3) < 0.8 * change(1.0) < 0.8 * change(1.7)


def test_emphysema_of_no_severity_is_a_healthy_chest_nearly():
    index = first_with("Emphysema")
    faint = Phantom(PhantomConfig(severity=0.01))
    one, two = (faint.sample(index, without=left).image.astype(int) for left in ((), ["Emphysema"]))
    assert np.abs(one - two).mean() < 0.5


def test_confusers_have_no_label_and_no_box_and_leave_the_rest():
    plain, hard = Phantom(seed=2), Phantom(PhantomConfig(confusers=6.0), seed=2)
    changed = []
    for index in range(20):
        one, two = plain.sample(index), hard.sample(index)
        for name in ("concepts", "diseases", "boxes", "box_concepts"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.attributes == two.attributes
        changed.append((one.image != two.image).mean())
    assert 0.01 < np.mean(changed) < 0.3


def test_findings_can_be_left_out_among_confusers():
    phantom, index = Phantom(PhantomConfig(confusers=8.0)), first_with("Nodule/Mass")
    changed = phantom.sample(index).image != phantom.sample(index, without=["Nodule/Mass"]).image
    assert changed.any() and not (changed & ~phantom.masks(index)["Nodule/Mass"]).any()


@pytest.mark.parametrize("confuser", CONFUSERS, ids=lambda one: one.__name__)
def test_every_confuser_can_be_seen(confuser):
    scene, _ = Phantom()._scene(1, Phantom().case(1))
    seen = []
    for seed in range(10):
        attenuation = scene.attenuation.copy()
        confuser(scene.chest, np.random.default_rng(seed), attenuation)
        seen.append(np.abs(attenuation - scene.attenuation).max())
    assert np.median(seen) > 0.02


def test_confusers_are_as_many_as_asked_on_average():
    scene, _ = Phantom()._scene(1, Phantom().case(1))
    rng = np.random.default_rng(0)
    counts = [add_confusers(scene.chest, scene.attenuation.copy(), rng, 2.5) for _ in range(400)]
    assert abs(np.mean(counts) - 2.5) < 4 * np.sqrt(2.5 / 400)


def test_chests_differ_as_much_as_anatomy_says():
    def spread(anatomy: float) -> float:
        phantom = Phantom(PhantomConfig(size=64, anatomy=anatomy, noise=0.0))
        normal = [index for index in range(60) if not phantom.case(index).concepts.any()][:12]
        return float(np.stack([phantom.sample(index).image.astype(int) for index in normal]).std(axis=0).mean())

    none, some, more = map(spread, (0.0, 1.0, 2.0))
    assert none < 0.8 * some and some < 0.9 * more


@pytest.mark.parametrize("name", ["co_occurrence", "severity", "confusers", "anatomy"])
def test_a_setting_out_of_range_is_refused_by_name(name):
    for value in (-0.1, 9.0):
        with pytest.raises(ValueError, match=f"`{name}` must be from"):
            PhantomConfig(**{name: value})
    with pytest.raises(ValueError, match="unknown `shortcut_kind` 'ruler'"):
        PhantomConfig(shortcut_kind="ruler")
