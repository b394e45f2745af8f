import math

import pytest
import torch

from conceptcam.analysis import doubts
from conceptcam.metrics.border import BorderScores
from conceptcam.metrics.classification import LabelScores
from conceptcam.model.corrections import TypicalEvidence

NAMES = ("nevus", "melanoma")


def scores(auroc, positives, negatives):
    """Scores of labels of which only these figures matter."""
    columns = [torch.as_tensor(one, dtype=torch.float64) for one in (auroc, positives, negatives)]
    return LabelScores(columns[0], columns[0], columns[0], columns[1], columns[2])


def labels(rows, *positives):
    """(rows, L) labels of which so many are positive."""
    return torch.stack([(torch.arange(rows) < count).float() for count in positives], dim=1)


@pytest.mark.parametrize(
    ("called", "true", "kind", "doubted"),
    [
        ([1.0, 0.0], [0.6, 0.4], "multiclass", "100 % of them are called 'nevus', and 60 % are"),
        ([0.97, 0.03], [0.96, 0.04], "multiclass", None),  # so common that it explains the answer
        ([0.7, 0.3], [0.6, 0.4], "multiclass", None),
        ([0.0, 0.5], [0.4, 0.5], "multilabel", "100 % of them are called not 'nevus', and 60 % are"),
        ([0.99, 0.5], [0.5, 0.5], "multilabel", "99 % of them are called 'nevus', and 50 % are"),
        ([0.0, 0.5], [0.1, 0.5], "multilabel", None),  # rare, and ranked all the same
        ([math.nan, 0.5], [math.nan, 0.5], "multilabel", None),
    ],
)
def test_one_answer_for_nearly_all_is_doubted(called, true, kind, doubted):
    found = doubts.one_answer_doubts(NAMES, torch.tensor(called), torch.tensor(true), kind)
    assert [doubted in one for one in found] == ([] if doubted is None else [True])


def test_a_loss_that_hardly_left_its_start_is_doubted():
    found = doubts.stalled_stage_doubts({"concepts": [1.0, 0.6, 0.5], "task": [1.0986, 1.0985, 1.0991]})
    assert len(found) == 1
    assert "'task' hardly learned: its training loss went from 1.0986 to 1.0985 in 3 epochs" in found[0]
    assert doubts.stalled_stage_doubts({"task": [0.36]}) == []  # solved for at once


def test_a_loss_like_that_of_a_constant_answer_is_doubted():
    assert doubts.constant_answer_doubts("tasks", 0.4, 1.1) == []
    assert doubts.constant_answer_doubts("tasks", math.nan, math.nan) == []
    (found,) = doubts.constant_answer_doubts("tasks", 1.0980, 1.0986)
    assert found.startswith("The tasks were hardly learned") and "1.0980" in found and "1.0986" in found


def test_training_far_above_the_measured_images_is_doubted():
    enough = [20, 20], [20, 20]
    learned = scores([0.98, 0.96], *enough)
    (found,) = doubts.overfitting_doubts("concepts", learned, scores([0.75, 0.71], *enough))
    assert "0.970 on training images and 0.730 on the others" in found
    assert doubts.overfitting_doubts("concepts", learned, scores([0.9, 0.88], *enough)) == []


def test_overfitting_is_judged_by_labels_with_enough_images():
    learned, rare = scores([0.98, 0.96], [20, 20], [20, 20]), ([20, 2], [20, 38])
    assert doubts.overfitting_doubts("concepts", learned, scores([0.95, 0.1], *rare)) == []
    assert doubts.overfitting_doubts("concepts", learned, scores([0.1, 0.1], [1, 1], [30, 30])) == []


def test_labels_without_one_of_both_sides_are_named():
    given = labels(20, 0, 20, 7)
    (found,) = doubts.one_sided_doubts("concept", ("a", "b", "c"), given, "training")
    assert found == (
        "Among the training images, 'a' has no positives, 'b' has no negatives: these 2 concepts cannot be learned."
    )
    (unknown,) = doubts.one_sided_doubts("task", ("a",), torch.full((5, 1), math.nan), "validation")
    assert unknown.endswith("'a' has no positives or negatives: this task cannot be judged.")
    (single,) = doubts.one_sided_doubts("concept", ("a",), given[:, :1], "validation")
    assert single.endswith("'a' has no positives: this concept cannot be judged, nor be given a threshold.")
    assert doubts.one_sided_doubts("concept", ("c",), given[:, 2:], "training") == []


def test_few_positives_for_each_prototype_are_doubted():
    given = labels(100, 0, 9, 10)
    (found,) = doubts.prototype_doubts(("a", "b", "c"), given, 2)
    assert "1 concept has fewer than 5 training images for each of the 2 prototypes: 'b' (9)" in found
    assert "fewer prototypes, by `prototypes_per_concept` (--prototypes-per-concept), or take more images" in found
    (single,) = doubts.prototype_doubts(("a",), labels(100, 4), 1)  # there are no fewer than one
    assert "learn fewer" not in single and single.endswith("an image rather than a concept: take more images.")
    assert doubts.prototype_doubts(("c",), given[:, 2:], 2) == []


def test_thresholds_that_rest_on_few_images_are_doubted():
    given = labels(40, 0, 9, 31, 20)
    (found,) = doubts.threshold_doubts(("a", "b", "c", "d"), given)
    assert "2 concepts have a threshold" in found and "'b' (9), 'c' (9)" in found
    assert doubts.threshold_doubts(("d",), given[:, 3:]) == []


def test_a_choice_by_few_images_is_doubted():
    assert "by 9 validation images alone" in doubts.choice_doubts(9)[0]
    assert doubts.choice_doubts(10) == []


def test_corrections_that_hardly_move_evidence_are_doubted():
    typical = TypicalEvidence(
        torch.tensor([[0.9, 0.7], [0.5, 0.50], [0.2, 0.1], [math.nan, 0.9]]),
        torch.tensor([[0.1, 0.2], [0.5, 0.49], [0.3, 0.1], [0.1, 0.1]]),
    )
    torch.testing.assert_close(typical.rise, torch.tensor([0.65, 0.005, -0.05, math.nan]), equal_nan=True)
    (found,) = doubts.correction_doubts(["seen", "flat", "backwards", "unknown"], typical.rise)
    assert found.startswith("Corrections of these 2 concepts may change nothing or go the wrong way")
    assert found.endswith("or falls: 'backwards' (-0.050), 'flat' (+0.005).")
    assert doubts.correction_doubts(["seen"], typical.rise[:1]) == []


def test_averages_that_leave_labels_out_say_so():
    given = scores([0.7, 0.2, math.nan], [9, 2, 0], [21, 28, 30])
    (found,) = doubts.average_doubts("concept", ("a", "b", "c"), given)
    assert found.endswith("leave out the concepts with fewer than 5 measured images on a side: 'b' (2).")
    (carried,) = doubts.average_doubts("concept", ("a", "b"), scores([0.7, 0.2], [3, 2], [21, 28]))
    assert "No concept has 5 measured images on each side" in carried and "'b' (2), 'a' (3)" in carried
    assert doubts.average_doubts("concept", ("a",), scores([0.7], [9], [21])) == []


def test_differences_are_doubted_by_the_rule_of_averages():
    for positives in ([9, 2, 0], [3, 2, 0], [9, 5, 0], [0, 0, 0]):
        given = scores([0.7, 0.2, math.nan], positives, [21, 28, 30])
        averages = doubts.average_doubts("concept", ("a", "b", "c"), given)
        differences = doubts.difference_doubts("concept", ("a", "b", "c"), given)
        assert [one.rpartition(":")[2] for one in differences] == [one.rpartition(":")[2] for one in averages]


@pytest.mark.parametrize(
    ("images", "trained", "doubted"), [(112, False, True), (999, True, False), (1000, False, False)]
)
def test_random_weights_and_few_images_are_doubted(images, trained, doubted):
    found = doubts.untrained_doubts(images, trained=trained)
    assert bool(found) == doubted
    assert all("112 training images are too few" in one and "--pretrained" in one for one in found)


def test_a_concept_with_one_probability_for_all_images_is_doubted():
    steady, moving = torch.full((20,), 0.057), torch.linspace(0.02, 0.06, 20)
    (found,) = doubts.flat_concept_doubts(NAMES, torch.stack([steady, moving], dim=1))
    assert "'nevus' (0.057 to 0.057)" in found and "melanoma" not in found
    assert doubts.flat_concept_doubts(NAMES, torch.stack([moving, moving], dim=1)) == []


def test_less_than_plain_features_give_is_doubted():
    (found,) = doubts.below_baseline_doubts("concepts", 0.637, 0.712)
    assert "0.637" in found and "reaches 0.712" in found
    assert doubts.below_baseline_doubts("concepts", 0.71, 0.712) == []
    assert doubts.below_baseline_doubts("concepts", 0.71, math.nan) == []


@pytest.mark.parametrize(
    ("images", "peaks", "chance", "doubted"),
    [
        (40, 30, 52 / 196, True),
        (40, 19, 52 / 196, False),  # in fewer than half
        (10, 9, 52 / 196, True),
        (9, 9, 52 / 196, False),  # too few to tell
        (12, 8, 24 / 49, False),  # as chance may have it
        (40, 30, 0.7, False),  # as chance has it
        (40, 40, 24 / 49, True),
        (0, 0, math.nan, False),
    ],
)
def test_maps_that_peak_at_the_border_are_doubted(images, peaks, chance, doubted):
    given = torch.tensor([[images, 0], [peaks, 0], [chance, math.nan]], dtype=torch.float64)
    found = doubts.border_doubts(NAMES, BorderScores(*given))
    assert bool(found) == doubted
    assert all(f"'nevus' (in {peaks} of {images} images that have it; by chance in" in one for one in found)
    assert all("this concept peak in the outermost cells" in one and "melanoma" not in one for one in found)


def test_random_maps_are_hardly_ever_doubted():
    chance, dice = 24 / 49, torch.Generator().manual_seed(0)
    for images in (10, 15, 40, 200):
        peaks = torch.binomial(torch.full((20_000,), float(images)), torch.tensor(chance), generator=dice).double()
        given = BorderScores(torch.full_like(peaks, images), peaks, torch.full_like(peaks, chance))
        (found,) = doubts.border_doubts(list(map(str, range(20_000))), given) or [""]
        assert found.count("images that have it") <= 0.001 * 20_000
